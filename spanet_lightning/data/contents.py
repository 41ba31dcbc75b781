"""What a data set contains: its layout, splits, classes with their counts, sizes and channels.

Everything is read by the functions that training reads by, from a data module: that of an
experiment, or the one that `recognise` finds for a folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from lightning import LightningDataModule

from spanet_lightning.data import coco_file, coco_layout
from spanet_lightning.data.class_folders import LabelledFiles, class_faults, subfolders
from spanet_lightning.data.classification import ImageClassificationDataModule
from spanet_lightning.data.coco import CocoDataModule, CocoSet, trainable_images
from spanet_lightning.data.decode import opened
from spanet_lightning.data.faults import Fault
from spanet_lightning.data.listing import Listing, scan
from spanet_lightning.data.masks import MaskClasses, Survey, classes_of, nothing_to_learn, survey
from spanet_lightning.data.segmentation import MaskFolders, SegmentationFoldersDataModule
from spanet_lightning.errors import DataError, invalid_choice

Layout = Literal["coco", "masks", "folders"]
LAYOUTS = get_args(Layout)
_SPLITS = {
    "train_split": ("train", "training"),
    "val_split": ("val", "valid", "validation", "dev", "eval"),
    "test_split": ("test", "testing"),
}
_SAMPLE = 300  # images whose headers are read for a summary


class ImageJob(NamedTuple):
    """An image, and what is stated of it.

    Attributes:
        path: Where it is.
        item: The record that names it; empty without one.
        size: Width and height in pixels that it has to have; None takes any.
        label: Its class, of class folders.
        mask: Its mask.
    """

    path: Path
    item: str = ""
    size: tuple[int, int] | None = None
    label: int | None = None
    mask: Path | None = None


@dataclass
class Split:
    """A split of a data set.

    Attributes:
        jobs: Its images.
        counts: Images of each class, its boxes, or its pixels, in the order of labels.
    """

    jobs: list[ImageJob] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)


@dataclass
class Contents:
    """What a data set contains.

    Attributes:
        root: Its folder.
        layout: How it is laid out.
        classes: Names of the classes.
        splits: The splits by name.
        annotations: Number of annotated objects; None where there are none.
        mask_classes: How masks are read; None without masks, or where that is not known.
        resize_masks: Whether a mask of another size than its image is scaled to it.
        notes: What a user may want to change, or could not be checked.
        faults: What training would refuse.
    """

    root: Path
    layout: Layout
    classes: tuple[str, ...] = ()
    splits: dict[str, Split] = field(default_factory=dict)
    annotations: int | None = None
    mask_classes: MaskClasses | None = None
    resize_masks: bool = False
    notes: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    @property
    def unit(self) -> str:
        """What is counted for each class."""
        return {"coco": "boxes", "masks": "pixels", "folders": "images"}[self.layout]

    @property
    def num_images(self) -> int:
        """Number of images of all splits."""
        return sum(len(split.jobs) for split in self.splits.values())


# -- which layout a folder has


def recognise(root: Path, layout: str | None = None, **options: Any) -> LightningDataModule:
    """Return the data module that reads a folder.

    Args:
        root: Its folder; one that holds nothing but another folder stands for that.
        layout: "coco", "masks" or "folders"; None finds out.
        options: Arguments of the data module; those that are None are left to it.

    Raises:
        ConfigError: If there is no such layout.
        DataError: If there is no such folder, or it has no layout that is known.
    """
    if layout is not None and layout not in LAYOUTS:
        raise invalid_choice("--layout", layout, LAYOUTS)
    if not root.is_dir():
        raise DataError(f"ROOT: found no folder at {root}, expected one of a data set")
    options = {key: value for key, value in options.items() if value is not None}
    if layout == "coco" or (layout is None and _coco_files(root)):
        splits = {split: coco_layout.find_split(root, split) for split in coco_layout.SPLITS}
        files = _coco_files(root) or coco_layout.annotation_files(root)
        if not files:
            raise DataError(f"ROOT: found no annotations of instances in {root}, expected some")
        if splits["train"] is None:
            options.setdefault("train_annotations", files[0].relative_to(root).as_posix())
        if splits["val"] is None:
            options.setdefault("split", 0.2)
        masks = any(coco_file.has_masks(coco_file.read(file)) for file in _coco_files(root)[:1])
        return CocoDataModule(str(root), masks=masks, **options)
    if layout == "masks" or (layout is None and MaskFolders.exist(root)):
        data = SegmentationFoldersDataModule(str(root), **options)
        if layout is None and data.split("val") not in data.folders.splits():
            options["split"] = 0.2
        return SegmentationFoldersDataModule(str(root), **options)
    inner = subfolders(root)
    if layout == "folders" or any(_images_in(root / name) for name in inner):
        found = _class_splits(root, inner)
        if found is not None:
            return ImageClassificationDataModule(str(root), **found, **options)
        if len(inner) == 1 and layout is None:
            return recognise(root / inner[0], **options)
    loose = len(scan(root, root).names)
    what = f"{loose} images, but no labels" if loose else "none of the known layouts"
    raise DataError(
        f"ROOT: {root} has {what}; expected annotations in COCO's format, images/ with "
        "annotations/ or JPEGImages/ with SegmentationClass/ (masks), or a folder for each class, "
        "in SPLIT/CLASS/ or CLASS/"
        + ("; 'lightning predict --data.predict_root' takes images alone" if loose else "")
    )


def _coco_files(root: Path) -> list[Path]:
    """Return the annotation files of instances."""
    files = []
    for file in coco_layout.annotation_files(root):
        try:
            coco_file.read_categories([file])
        except DataError as error:
            broken = file.parent != root and "has no list" not in str(error)
            if broken or file.name.startswith(("instances", "_annotations")):
                files.append(file)
        else:
            files.append(file)
    return sorted(files, key=lambda file: "train" not in file.relative_to(root).as_posix())


def _images_in(folder: Path) -> bool:
    return bool(scan(folder, folder.parent).names)


def _class_splits(root: Path, inner: list[str]) -> dict[str, Any] | None:
    """Return the arguments for class folders below splits, or for class folders alone."""
    by_name = {name.lower(): name for name in inner}
    found: dict[str, Any] = {}
    for key, names in _SPLITS.items():
        name = next((by_name[one] for one in names if one in by_name), None)
        if name is not None and subfolders(root / name):
            found[key] = name
    if "train_split" in found:
        if "val_split" not in found:
            found["split"] = 0.2
        return found
    if found:
        found.setdefault("val_split", found.get("test_split"))
        return found
    if sum(_images_in(root / name) for name in inner) > 1:
        return {"train_split": ".", "split": 0.2}
    return None


# -- what a data module reads


def contents_of(data: LightningDataModule, *, whole: bool) -> Contents:
    """Return what a data set contains, its images not opened yet.

    Args:
        data: A data module that reads files.
        whole: Whether all splits that the folder has are read, not only those of the module.

    Raises:
        DataError: If there is nothing to read.
    """
    if isinstance(data, CocoDataModule):
        return _coco(data, whole)
    if isinstance(data, SegmentationFoldersDataModule):
        return _masks(data, whole)
    if isinstance(data, ImageClassificationDataModule) and not data.dataset:
        return _folders(data, whole)
    raise DataError(
        f"data: {type(data).__name__} reads no files that could be checked; expected "
        "CocoDataModule, SegmentationFoldersDataModule or ImageClassificationDataModule"
    )


def _coco(data: CocoDataModule, whole: bool) -> Contents:
    root = Path(data.root)
    contents = Contents(root, "coco", annotations=0)
    sets: dict[Path, CocoSet] = {}
    for split in ("train", "val", "test"):
        one = data.files(split)
        if one.file.is_file() or not whole:
            sets.setdefault(one.file, one)
    known = set(_coco_files(root)) if whole else set()
    for file in coco_layout.annotation_files(root) if whole else ():
        if file in known:
            folder = root / coco_layout.image_folder(root, file)
            sets.setdefault(file, CocoSet(root, file, folder, ""))
        elif file not in sets:
            contents.notes.append(f"{file}: not checked: no annotations of instances")
    try:
        categories = data.categories
    except DataError as error:
        contents.faults.append(Fault("unreadable annotations", str(root), "", str(error)))
        return contents
    contents.classes = tuple(categories.values())
    for file, one in sets.items():
        try:
            index, faults = one.load(categories, masks=None)
            own = coco_file.read_categories([file])
        except DataError as error:
            reason = str(error).partition(": ")[2]
            contents.faults.append(Fault("unreadable annotations", str(file), "", reason))
            continue
        contents.faults += faults
        if one.key in ("train", "val") and not faults:
            usable = trainable_images(index, data.keep_empty) if one.key == "train" else range(1)
            if not len(usable) or not index.num_objects().any():
                what = "train on" if one.key == "train" else "score"
                detail = f"no object to {what}, crowds aside"
                contents.faults.append(Fault("nothing to learn or score", str(file), "", detail))
        different = coco_file.category_fault(own, categories)
        if different is not None:
            contents.faults.append(Fault("different categories", str(file), "", different))
        jobs = [
            ImageJob(Path(path), f"image {id_}", (width, height))
            for path, id_, (height, width) in zip(
                index.files.tolist(), index.ids.tolist(), index.sizes.tolist(), strict=True
            )
            if path
        ]
        counts = np.bincount(index.labels, minlength=len(categories) + 1)[1:].tolist()
        contents.splits[file.relative_to(root).as_posix()] = Split(jobs, counts)
        contents.annotations = (contents.annotations or 0) + len(index.labels)
    return contents


def _masks(data: SegmentationFoldersDataModule, whole: bool) -> Contents:
    root = Path(data.root)
    contents = Contents(root, "masks", resize_masks=data.resize_masks)
    folders, listed = data.folders, data.class_list
    names = folders.splits()
    if not whole:
        names = list(dict.fromkeys(data.split(split) for split in ("train", "val", "test")))
    by_colour = listed is not None and listed.by_colour
    surveys: dict[str, Survey] = {}
    pixels: Counter[int] = Counter()
    for name in names:
        try:
            paired = folders.pair(name)
        except DataError as error:
            where = str(root / folders.images / name)
            contents.faults.append(Fault("missing folder", where, "", str(error)))
            continue
        contents.faults += paired.faults
        for mask in paired.unused if folders.lists is None else ():
            detail = "mask without an image of its name"
            contents.faults.append(Fault("missing image", str(mask), "", detail))
        jobs = [ImageJob(image, mask=mask) for image, mask in paired.pairs]
        contents.splits[name] = Split([*jobs, *map(ImageJob, paired.unpaired)])
        found = survey([mask for _, mask in paired.pairs], by_colour, skip_bad=True, whole=True)
        surveys[name] = found
        pixels += found.pixels
        if found.conflict is not None and (listed is None or by_colour):
            where = str(root / folders.masks)
            contents.faults.append(Fault("palettes differ", where, "", found.conflict))
        elif found.conflict is not None:
            contents.notes.append(found.conflict)
    if not pixels:
        return contents
    try:
        classes = classes_of(
            listed, data.reduce_zero_label, data.given_num_classes, pixels, str(root)
        )
    except DataError as error:
        where = str(root / folders.masks)
        contents.faults.append(Fault("value beyond the classes", where, "", str(error)))
        return contents
    contents.classes, contents.mask_classes = classes.names, classes
    for name, found in surveys.items():
        contents.splits[name].counts = [found.pixels[code] for code in classes.codes]
        fault = nothing_to_learn(found, classes, training=name == data.split("train"))
        if fault is not None:
            where = str(root / folders.masks)
            contents.faults.append(
                Fault("nothing to learn or score", where, name, f"masks {fault}")
            )
    return contents


def _folders(data: ImageClassificationDataModule, whole: bool) -> Contents:
    root = Path(data.root)
    contents = Contents(root, "folders")
    keys = ("train_split", "val_split", "test_split")
    names = dict.fromkeys(data.split_name(key) for key in keys)
    if whole and data.train_split != ".":
        names |= dict.fromkeys(name for name in subfolders(root) if _images_in(root / name))
    try:
        contents.classes = data.class_names
    except DataError as error:
        contents.faults.append(Fault("class folders", str(root), "", str(error)))
    for name in names:
        folder = root / name
        if not folder.is_dir():
            if not whole:
                fault = Fault("missing folder", str(folder), "", "there is no such folder")
                contents.faults.append(fault)
            continue
        listing = scan(folder, root)
        contents.faults += listing.faults
        contents.faults += class_faults(
            listing, contents.classes, training=name == data.train_split
        )
        contents.notes += _left_out(listing)
        files = LabelledFiles.of(listing, contents.classes)
        jobs = [
            ImageJob(Path(file), label=label)
            for file, label in zip(files.files, files.labels, strict=True)
        ]
        counts = files.counts(len(contents.classes)).tolist()
        contents.splits["all" if name == "." else name] = Split(jobs, counts)
    return contents


def _left_out(listing: Listing) -> list[str]:
    left_out = listing.left_out()
    return [f"{listing.folder}: not images: {left_out}"] if left_out else []


# -- the summary


def summary(contents: Contents) -> Iterator[tuple[str, str]]:
    """Yield what a person wants to know first, as names and values."""
    yield (
        "layout",
        {
            "coco": "COCO annotations",
            "masks": "images with masks",
            "folders": "a folder for each class",
        }[contents.layout],
    )
    for name, split in contents.splits.items():
        absent = [label for label, n in zip(contents.classes, split.counts, strict=False) if not n]
        text = f"{len(split.jobs):,} images"
        if contents.layout != "folders" and split.counts:
            text += f", {sum(split.counts):,} {contents.unit}"
        if absent and split.counts:
            text += f"; none of {_some(absent)}"
        yield name, text
    totals = _totals(contents)
    counted = [f"{name} {_short(n)}" for name, n in zip(contents.classes, totals, strict=False)]
    names = counted or list(contents.classes)
    yield "classes", f"{len(contents.classes)} ({contents.unit}): {_some(names, 12)}"
    sizes, modes = image_sizes(contents)
    if sizes:
        (low, high), middle = (min(sizes), max(sizes)), typical_size(sizes)
        span = f"{_px(low)} to {_px(high)}, typically {_px(middle)}" if low != high else _px(low)
        yield "size", span
        yield "channels", ", ".join(f"{_CHANNELS.get(m, m)} ({n})" for m, n in modes.most_common())


_CHANNELS = {
    "L": "grey",
    "1": "bits",
    "LA": "grey and alpha",
    "P": "palette",
    "RGBA": "RGB and alpha (dropped)",
    "I;16": "16-bit grey (upper 8 bits)",
}


def image_sizes(contents: Contents) -> tuple[list[tuple[int, int]], Counter[str]]:
    """Return width and height in pixels, and the mode, of a sample of the images."""
    jobs = [job for split in contents.splits.values() for job in split.jobs]
    sizes: list[tuple[int, int]] = []
    modes: Counter[str] = Counter()
    for job in jobs[:: max(1, len(jobs) // _SAMPLE)][:_SAMPLE]:
        try:
            with opened(job.path) as image:
                sizes.append(image.size)
                modes[image.mode] += 1
        except Exception:  # noqa: S112 - the check reports what is wrong with it
            continue
    return sizes, modes


def typical_size(sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """Return the median width and height."""
    return int(median(w for w, _ in sizes)), int(median(h for _, h in sizes))


def notes_on_classes(contents: Contents) -> Iterator[str]:
    """Yield which classes nothing is learned about, and how uneven the others are."""
    totals = _totals(contents)
    absent = [name for name, n in zip(contents.classes, totals, strict=False) if not n]
    if absent:
        yield f"classes without {contents.unit}: {_some(absent)}"
    some = [n for n in totals if n]
    if contents.layout == "folders" and some and max(some) >= 10 * min(some):
        yield (
            f"classes have {min(some)} to {max(some)} images: data.class_weights: balanced or "
            "data.sampling: balanced evens them out"
        )


def _totals(contents: Contents) -> list[int]:
    columns: Callable[..., Any] = zip
    counts = [split.counts for split in contents.splits.values() if split.counts]
    return [sum(column) for column in columns(*counts)]


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _short(number: int) -> str:
    if number < 10_000:
        return f"{number:,}"
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number / 1e3:.0f} k"


def _px(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]} px"
