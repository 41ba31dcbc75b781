"""All faults of a data set at once, whichever of three layouts it has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from spanet_lightning.data import coco_file, coco_layout
from spanet_lightning.data.check_images import (
    ImageJob,
    MaskJob,
    Say,
    image_faults,
    mask_faults,
)
from spanet_lightning.data.checks import check_class_folders, check_same_classes, read_folder
from spanet_lightning.data.coco import CocoSet
from spanet_lightning.data.faults import Fault
from spanet_lightning.data.listing import scan
from spanet_lightning.data.masks import classes_of, survey
from spanet_lightning.data.orientation import Meaning
from spanet_lightning.data.segmentation import MaskFolders, SegmentationFoldersDataModule
from spanet_lightning.errors import DataError

Layout = Literal["coco", "masks", "folders"]
LAYOUTS = get_args(Layout)


@dataclass
class Checked:
    """What a check has seen.

    Attributes:
        root: The data set.
        layout: How it is laid out.
        seen: What was looked at, as "images: 101".
        notes: What could not be checked, and why.
        faults: All that is wrong.
        meant: How many images are meant which way; see `orientation.meaning`.
    """

    root: str
    layout: Layout
    seen: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    meant: Counter[Meaning] = field(default_factory=Counter)

    def count(self, what: str, number: int) -> None:
        """Add to what was looked at."""
        self.seen[what] = self.seen.get(what, 0) + number


def layout_of(root: Path) -> Layout:
    """Return the layout of a data set.

    Raises:
        DataError: If there is no such folder, or nothing in it that is known.
    """
    if not root.is_dir():
        raise DataError(f"ROOT: found no folder at {root}, expected one of a data set")
    if coco_layout.annotation_files(root):
        return "coco"
    if MaskFolders.exist(root):
        return "masks"
    if any(scan(entry, root).names for entry in root.iterdir() if entry.is_dir()):
        return "folders"
    raise DataError(
        f"ROOT: {root} has none of the known layouts; expected annotations/*.json (COCO), images/ "
        "with annotations/ (masks), or SPLIT/CLASS/ (class folders)"
    )


def check(
    root: Path,
    layout: Layout,
    *,
    images: str | None = None,
    num_classes: int | None = None,
    reduce_zero_label: bool | None = None,
    say: Callable[[str, int, int], None],
) -> Checked:
    """Return all faults of a data set.

    Args:
        root: Its folder.
        layout: How it is laid out.
        images: Folder of a COCO set's images, below the root; None finds it by the file's name.
        num_classes: Classes of a set of masks; None takes them from its list of classes.
        reduce_zero_label: Whether 0 in a mask does not count.
        say: Is told how far it is: what is looked at, how many of how many.

    Raises:
        DataError: If there is nothing of that layout.
    """
    checked = Checked(str(root), layout)
    if layout == "coco":
        faults = _coco(root, images, checked, say)
    elif layout == "masks":
        faults = _masks(root, num_classes, reduce_zero_label, checked, say)
    else:
        faults = _folders(root, checked, say)
    checked.faults.extend(faults)
    turned = {way: checked.meant[way] for way in ("upright", "stored", "unclear")}
    if layout != "folders" and any(turned.values()):
        checked.notes.append(
            f"images stored turned, by their EXIF: {turned['upright']} annotated upright, "
            f"{turned['stored']} as stored, and {turned['unclear']} whose size does not tell: "
            "those are read upright"
        )
    return checked


# -- COCO


def _coco(
    root: Path, images: str | None, checked: Checked, say: Callable[[str, int, int], None]
) -> Iterator[Fault]:
    files = coco_layout.annotation_files(root)
    instances = []
    for file in files:
        try:
            coco_file.read_categories([file])
            instances.append(file)
        except DataError as error:
            if "has no list" in str(error) and not file.name.startswith("instances"):
                checked.notes.append(f"{file}: not checked: no annotations of instances")
                continue
            reason = str(error).removeprefix("annotations: ")
            yield Fault("unreadable annotations", str(file), "", reason)
    if not instances:
        if len(checked.notes) < len(files):
            return
        raise DataError(f"ROOT: found no annotations of instances in {root}, expected some")
    instances.sort(key=lambda file: "train" not in file.relative_to(root).as_posix())
    categories = coco_file.read_categories(instances)
    checked.count("categories", len(categories))
    for file in instances:
        folder = root / (images or coco_layout.image_folder(root, file))
        try:
            index, faults = CocoSet(root, file, folder).load(categories, masks=None)
        except DataError as error:
            yield Fault("unreadable annotations", str(file), "", str(error))
            continue
        yield from faults
        different = coco_file.category_fault(coco_file.read_categories([file]), categories)
        if different is not None:
            yield Fault("different categories", str(file), "", different)
        checked.count("images", len(index))
        checked.count("annotations", len(index.labels))
        jobs = [
            ImageJob(Path(path), f"image {id_}", (width, height))
            for path, id_, (height, width) in zip(
                index.files.tolist(), index.ids.tolist(), index.sizes.tolist(), strict=True
            )
            if path
        ]
        yield from image_faults(jobs, _said(say, f"images of {file.name}"), checked.meant)


# -- images and masks


def _masks(
    root: Path,
    num_classes: int | None,
    reduce_zero_label: bool | None,
    checked: Checked,
    say: Callable[[str, int, int], None],
) -> Iterator[Fault]:
    data = SegmentationFoldersDataModule(
        str(root), num_classes=num_classes, reduce_zero_label=reduce_zero_label, masks="resize"
    )
    folders = data.folders
    pairs: dict[str, list[tuple[Path, Path]]] = {}
    for split in folders.splits():
        try:
            paired = folders.pair(split)
        except DataError as error:
            yield Fault("missing folder", str(root / folders.images / split), "", str(error))
            continue
        yield from paired.faults
        for mask in paired.unused if folders.lists is None else ():
            yield Fault("missing image", str(mask), "", "mask without an image of its name")
        pairs[split] = paired.pairs
        checked.count("images", len(paired.pairs) + len(paired.unpaired))
    listed = data.class_list
    found = survey(
        [mask for split in pairs.values() for _, mask in split],
        listed is not None and listed.by_colour,
        skip_bad=True,
        whole=True,
    )
    if found.conflict is not None and (listed is None or listed.by_colour):
        yield Fault("palettes differ", str(root / folders.masks), "", found.conflict)
    elif found.conflict is not None:
        checked.notes.append(found.conflict)
    try:
        classes = classes_of(
            listed, reduce_zero_label, num_classes, None if listed else found.pixels, str(root)
        )
    except DataError as error:
        yield Fault("value beyond the classes", str(root / folders.masks), "", str(error))
        classes = None
    if classes is not None:
        checked.count("classes", len(classes.names))
        absent = [
            n for n, c in zip(classes.names, classes.codes, strict=True) if not found.pixels[c]
        ]
        if absent:
            checked.notes.append(f"classes without a pixel: {', '.join(absent)}")
    for split, some in pairs.items():
        whole = [MaskJob(image, mask, classes) for image, mask in some]
        yield from mask_faults(whole, _said(say, f"masks of {split}"), checked.meant)


# -- a folder for each class


def _folders(root: Path, checked: Checked, say: Callable[[str, int, int], None]) -> Iterator[Fault]:
    first: tuple[Path, list[str]] | None = None
    for folder in sorted(entry for entry in root.iterdir() if entry.is_dir()):
        listing = scan(folder, root)
        if not listing.names and not listing.faults:
            continue
        yield from listing.faults
        try:
            reader = read_folder(folder)
            check_class_folders(folder, reader)
            classes = list(reader.class_to_idx)
            if first is None:
                first = folder, classes
            else:
                check_same_classes(first, (folder, classes))
        except DataError as error:
            yield Fault("class folders", str(folder), "", str(error))
        jobs = [ImageJob(path) for path in listing.paths]
        checked.count("images", len(jobs))
        yield from image_faults(jobs, _said(say, f"images of {folder.name}"), checked.meant)


def _said(say: Callable[[str, int, int], None], what: str) -> Say:
    return lambda done, total: say(what, done, total)
