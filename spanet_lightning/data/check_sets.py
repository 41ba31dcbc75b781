"""All faults of a data set at once, whichever of three layouts it has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from spanet_lightning.data import coco_file
from spanet_lightning.data.check_images import (
    ImageJob,
    MaskJob,
    Say,
    image_faults,
    mask_faults,
)
from spanet_lightning.data.checks import check_class_folders, check_same_classes, read_folder
from spanet_lightning.data.coco_faults import has_masks, record_faults
from spanet_lightning.data.faults import Fault
from spanet_lightning.data.listing import name_fault, pair_by_stem, scan
from spanet_lightning.data.orientation import Meaning
from spanet_lightning.data.segmentation import SegmentationFoldersDataModule
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
    if annotation_files(root):
        return "coco"
    if (root / "images").is_dir() and (root / "annotations").is_dir():
        return "masks"
    if any(scan(entry).names for entry in root.iterdir() if entry.is_dir()):
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
    reduce_zero_label: bool = True,
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


def annotation_files(root: Path) -> list[Path]:
    """Return the JSON files where COCO's layout has its annotations."""
    return sorted([*(root / "annotations").glob("*.json"), *root.glob("*.json")])


def image_folder(root: Path, file: Path, names: list[str]) -> Path:
    """Return the folder that holds most of the images that an annotation file names.

    Args:
        root: Folder of the data set.
        file: The annotation file; `instances_train.json` is likely to be about `train/`.
        names: Files of the images.
    """
    split = file.stem.partition("_")[2] or file.stem
    short = split.rstrip("0123456789")
    named = [split, short, f"images/{split}", f"images/{short}", "images", "."]
    folders = [root / name for name in dict.fromkeys(named) if (root / name).is_dir()]
    folders += [entry for entry in sorted(root.iterdir()) if entry.is_dir()]
    # The first of them wins where several hold as many, so likely names come first.
    few = names[:200]
    return max(folders or [root], key=lambda folder: sum((folder / n).is_file() for n in few))


def _coco(
    root: Path, images: str | None, checked: Checked, say: Callable[[str, int, int], None]
) -> Iterator[Fault]:
    files = annotation_files(root)
    known: tuple[Path, dict[int, Any]] | None = None
    opened = 0
    for file in files:
        try:
            document = coco_file.read(file)
        except DataError as error:
            if "has no list" in str(error) and not file.name.startswith("instances"):
                checked.notes.append(f"{file}: not looked at: no annotations of instances")
                continue
            reason = str(error).removeprefix("annotations: ")
            yield Fault("unreadable annotations", str(file), "", reason)
            continue
        opened += 1
        for what in ("images", "annotations"):
            checked.count(what, len(document[what]))
        yield from record_faults(document, str(file), masks=has_masks(document), thorough=True)
        categories = {
            record["id"]: record.get("name")
            for record in document["categories"]
            if isinstance(record, dict) and type(record.get("id")) is int
        }
        if known is None:
            known = file, categories
            checked.count("categories", len(categories))
        elif categories != known[1]:
            detail = f"got other ids or names than {known[0]}, expected the same"
            yield Fault("different categories", str(file), "", detail)
        records = [record for record in document["images"] if _names_a_file(record)]
        names = [record["file_name"] for record in records]
        folder = root / images if images is not None else image_folder(root, file, names)
        jobs = {
            str(folder / record["file_name"]): ImageJob(
                folder / record["file_name"], f"image {record.get('id')}", _stated_size(record)
            )
            for record in records
        }
        yield from scan(folder, root).faults
        yield from image_faults(
            list(jobs.values()), _said(say, f"images of {file.name}"), checked.meant
        )
    if not opened and not files:
        raise DataError(f"ROOT: found no annotations/*.json in {root}, expected some")
    if files and not opened and len(checked.notes) == len(files):
        raise DataError(f"ROOT: found no annotations of instances among {len(files)} JSON files")


def _names_a_file(record: Any) -> bool:
    """Whether a record names a file that may be opened."""
    name = record.get("file_name") if isinstance(record, dict) else None
    return isinstance(name, str) and name_fault(name) is None


def _stated_size(record: dict[str, Any]) -> tuple[int, int] | None:
    width, height = record.get("width"), record.get("height")
    return (width, height) if type(width) is int and type(height) is int else None


# -- images and masks


def _masks(
    root: Path,
    num_classes: int | None,
    reduce_zero_label: bool,
    checked: Checked,
    say: Callable[[str, int, int], None],
) -> Iterator[Fault]:
    classes: tuple[int, int] | None = None
    data = SegmentationFoldersDataModule(
        str(root), num_classes=num_classes, reduce_zero_label=reduce_zero_label
    )
    if num_classes is not None or data.lists_classes:
        count = data.num_classes
        classes = (0, count if reduce_zero_label else count - 1)
        checked.count("classes", count)
    else:
        checked.notes.append(
            "values of masks are not compared with the classes: there is no list of classes, and "
            "no --num-classes"
        )
    folders = {
        kind: {entry.name for entry in (root / kind).iterdir() if entry.is_dir()}
        for kind in ("images", "annotations")
    }
    for kind, other in (("images", "annotations"), ("annotations", "images")):
        for split in sorted(folders[kind] - folders[other]):
            detail = f"there is no folder {root / other / split} for it"
            yield Fault("missing folder", str(root / kind / split), "", detail)
    for split in sorted(folders["images"] & folders["annotations"]):
        images, masks = root / "images" / split, root / "annotations" / split
        listings = scan(images, root), scan(masks, root)
        yield from (fault for listing in listings for fault in listing.faults)
        paired = pair_by_stem(*listings)
        checked.count("images", len(paired.pairs) + len(paired.unpaired))
        yield from paired.faults
        for mask in paired.unused:
            detail = f"mask without an image of its name in {images}"
            yield Fault("missing image", str(mask), "", detail)
        whole = [MaskJob(image, mask, classes) for image, mask in paired.pairs]
        yield from mask_faults(whole, _said(say, f"masks of {split}"), checked.meant)
        alone = [ImageJob(image) for image in paired.unpaired]
        yield from image_faults(alone, _said(say, f"images of {split}"), checked.meant)


# -- a folder for each class


def _folders(root: Path, checked: Checked, say: Callable[[str, int, int], None]) -> Iterator[Fault]:
    first: tuple[Path, list[str]] | None = None
    for folder in sorted(entry for entry in root.iterdir() if entry.is_dir()):
        if not scan(folder).names:
            continue
        yield from scan(folder, root).faults
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
        jobs = [ImageJob(path) for path in scan(folder, root).paths]
        checked.count("images", len(jobs))
        yield from image_faults(jobs, _said(say, f"images of {folder.name}"), checked.meant)


def _said(say: Callable[[str, int, int], None], what: str) -> Say:
    return lambda done, total: say(what, done, total)
