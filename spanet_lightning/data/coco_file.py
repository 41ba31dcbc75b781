"""Annotation files in COCO's format, as COCO and the tools that export it write them.

`parse` reads every record once and lists what is wrong with it. The check of a data set prints that
list, a data module refuses a file with any: they can't decide differently.
"""

from __future__ import annotations

import json
import math
import mmap
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info

from spanet_lightning.data import rle
from spanet_lightning.data.batches import DetectionTarget
from spanet_lightning.data.faults import Fault
from spanet_lightning.errors import DataError, did_you_mean

_TOLERANCE = 1.0  # pixels that a box may exceed its image by: published annotations are rounded
_DROPPABLE = ("degenerate box", "box outside the image", "empty segmentation")

Size = tuple[int, int]
"""Height and width in pixels."""


class Packed:
    """A sequence of byte strings in two arrays.

    Worker processes share the memory of their parent until something is written to it, and reading
    a Python object writes its reference count: a million of them would be copied for each worker.
    """

    def __init__(self, values: Sequence[bytes]) -> None:
        self.ends = np.cumsum([0, *map(len, values)])
        self.bytes = np.frombuffer(b"".join(values), dtype=np.uint8)

    def __getitem__(self, index: int) -> bytes:
        return self.bytes[self.ends[index] : self.ends[index + 1]].tobytes()


@dataclass(frozen=True)
class CocoIndex:
    """The annotations of a split by image.

    Attributes:
        categories: Names of the classes by their id in the annotation file, in increasing order of
            ids: a class's label is its position here, from 1.
        ids: The id of each image, shape (images,).
        files: The name of each image in the annotation file.
        sizes: Their heights and widths in pixels, shape (images, 2).
        starts: Where the annotations of each image begin, shape (images + 1,).
        boxes: Corners x1, y1, x2, y2 in pixels, clipped to the image; shape (annotations, 4).
        labels: The class of each, from 1.
        crowds: Whether each is a crowd.
        areas: Area of each, in pixels.
        masks: Run lengths of each; None where not asked for.
        dropped: Annotations that were dropped.
    """

    categories: Mapping[int, str]
    ids: np.ndarray
    files: np.ndarray
    sizes: np.ndarray
    starts: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowds: np.ndarray
    areas: np.ndarray
    masks: Packed | None
    dropped: int

    def __len__(self) -> int:
        return len(self.ids)

    def num_objects(self) -> np.ndarray:
        """Return the number of annotations of each image that are not crowds."""
        counts = np.concatenate([[0], np.cumsum(~self.crowds)])
        objects: np.ndarray = counts[self.starts[1:]] - counts[self.starts[:-1]]
        return objects

    def rarest(self) -> list[int]:
        """Return the rarest class of each image, by which images are stratified; 0 without any."""
        counts = np.bincount(self.labels, minlength=len(self.categories) + 1)
        pairs = zip(self.starts[:-1].tolist(), self.starts[1:].tolist(), strict=True)
        groups = (self.labels[a:b] for a, b in pairs)
        return [int(min(group, key=counts.__getitem__, default=0)) for group in groups]

    def target(self, index: int, *, crowds: bool, masks: bool) -> DetectionTarget:
        """Return the annotations of an image, at its stored size.

        Args:
            index: Which image.
            crowds: Whether crowds are included.
            masks: Whether to decode the instance masks.
        """
        rows = np.arange(self.starts[index], self.starts[index + 1])
        rows = rows[~self.crowds[rows] | crowds]
        target = DetectionTarget(
            boxes=torch.from_numpy(self.boxes[rows]),
            labels=torch.from_numpy(self.labels[rows]),
            iscrowd=torch.from_numpy(self.crowds[rows]),
            area=torch.from_numpy(self.areas[rows]),
            image_id=int(self.ids[index]),
        )
        if masks and self.masks is not None:
            height, width = (int(side) for side in self.sizes[index])
            target["masks"] = rle.decode([self.masks[row] for row in rows], height, width)
        return target


class Parsed(NamedTuple):
    """An annotation file.

    Attributes:
        annotations: Its annotations, those without a fault.
        faults: All that is wrong with it.
    """

    annotations: CocoIndex
    faults: list[Fault]


class _Annotation(NamedTuple):
    id: int
    box: tuple[float, float, float, float]
    label: int
    crowd: bool
    area: float
    mask: bytes


def read(file: Path, key: str = "annotations") -> dict[str, Any]:
    """Read an annotation file.

    Args:
        file: Where it is.
        key: Argument that named it, for the message.

    Returns:
        A mapping with the lists `images`, `categories` and `annotations`; the last one is empty
        for a file that only lists images, as COCO's `image_info` of a test set.

    Raises:
        DataError: If it is missing, not JSON, or lacks one of the first two.
    """
    if not file.is_file():
        raise DataError(f"{key}: found no file at {file}, expected annotations in COCO's format")
    try:
        with file.open("rb") as stream:
            document = json.load(stream)
    except (ValueError, OSError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{key}: {file} is not JSON: {reason}") from error
    if isinstance(document, dict) and document.get("annotations") is None:
        document["annotations"] = []
    lists = ("images", "annotations", "categories")
    lacking = [
        name
        for name in lists
        if not isinstance(document, dict) or not isinstance(document.get(name), list)
    ]
    if lacking:
        raise DataError(
            f"{key}: {file} has no list {', '.join(map(repr, lacking))}, expected annotations in "
            "COCO's instances format"
        )
    return dict(document)


def read_categories(files: Sequence[Path], key: str = "annotations") -> dict[int, str]:
    """Return the classes of a data set: the categories of its first annotation file by id.

    Exports of Roboflow begin with a category that is the supercategory of all others and that no
    annotation uses. Such roots are not classes.

    Args:
        files: The annotation files of all splits, training first.
        key: Argument that named the first, for messages.

    Raises:
        DataError: If the file can't be read, or lists no categories.
    """
    records = _scan_categories(files[0]) if files[0].is_file() else None
    if records is None:
        records = read(files[0], key)["categories"]
    parents = {r.get("supercategory") for r in records if isinstance(r, dict) and not _is_own(r)}
    categories: dict[int, str] = {}
    roots = []
    for record in records:
        id_ = _integer(record.get("id")) if isinstance(record, dict) else None
        name = record.get("name") if isinstance(record, dict) else None
        is_root = name in parents and not any(_uses_category(file, id_) for file in files)
        if is_root:
            roots.append(f"{id_} ({name!r})")
        elif id_ is not None and isinstance(name, str):
            categories.setdefault(id_, name)
    if roots and len(files) > 1:
        rank_zero_info(
            f"{files[0]}: category {', '.join(roots)} groups the others and has no annotation: "
            "not a class."
        )
    if not categories:
        raise DataError(f"{files[0]}: categories: got none, expected at least one")
    return dict(sorted(categories.items()))


def category_fault(own: Mapping[int, str], categories: Mapping[int, str]) -> str | None:
    """Return what is wrong with the categories of one split, or None; it may lack some.

    Args:
        own: Categories of the split.
        categories: The classes: the categories of the training split.
    """
    for id_, name in own.items():
        if categories.get(id_) != name:
            known = repr(categories[id_]) if id_ in categories else "no category of this id"
            hint = did_you_mean(name, set(categories.values()) - {name})
            return f"category {id_} is {name!r}, expected {known} as in training{hint}"
    return None


def _is_own(record: Mapping[str, Any]) -> bool:
    return record.get("supercategory") == record.get("name")


def _scan_categories(file: Path) -> list[Any] | None:
    """Return the list of categories without parsing the rest: COCO's own takes half a minute."""
    with file.open("rb") as stream:
        if not stream.seek(0, 2):
            return None
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            at = content.rfind(b'"categories"')
            match = re.compile(rb"\s*:\s*(?=\[)").match(content, at + 12) if at >= 0 else None
            tail = b"" if match is None else content[match.end() : match.end() + (1 << 22)]
    try:
        categories, _ = json.JSONDecoder().raw_decode(tail.decode(errors="ignore"))
    except ValueError:
        return None
    return categories if isinstance(categories, list) else None


def _uses_category(file: Path, category: int | None) -> bool:
    if not file.is_file():
        return False
    text = file.read_bytes()
    return re.search(rb'"category_id"\s*:\s*"?%d\b' % (category or 0), text) is not None


def parse(
    document: Mapping[str, Any],
    file: str,
    categories: Mapping[int, str],
    *,
    masks: bool,
    drop: bool = False,
    size_of: Callable[[str], Size | None] = lambda _: None,
) -> Parsed:
    """Return the annotations of a file by image, in increasing order of ids.

    Args:
        document: The result of `read`.
        file: Its name, for messages.
        categories: The classes, by id.
        masks: Whether segmentations are needed; otherwise they are not read.
        drop: Whether annotations with less than a pixel of width or height inside the image, no
            area, or no pixel are dropped, as in the published runs, instead of being faults.
        size_of: Returns the size of an image whose record states none.
    """
    faults: list[Fault] = []
    _check_categories(document["categories"], file, categories, faults)
    sizes: dict[int, Size] = {}
    files: dict[int, str] = {}
    ids: dict[str, int] = {}
    for i, record in enumerate(document["images"]):
        try:
            id_, name = _field(record, "id"), record.get("file_name")
            if not isinstance(name, str):
                raise ValueError(f"file_name: got {name!r:.40}, expected the name of a file")
            size = _size(record, size_of)
        except ValueError as error:
            faults.append(Fault("malformed image", file, f"images[{i}]", str(error)))
            continue
        item = f"image {id_} ({name})"
        if id_ in sizes:
            faults.append(Fault("duplicate image id", file, item, "got its id twice"))
        elif name in ids:
            faults.append(Fault("duplicate image file", file, item, f"image {ids[name]} has it"))
        if min(size) < 1:
            got = f"got {size[1]}×{size[0]} px, expected at least 1×1"
            faults.append(Fault("malformed image", file, item, got))
        sizes.setdefault(id_, size)
        files.setdefault(id_, name)
        ids.setdefault(name, id_)
    labels = {category: label for label, category in enumerate(categories, 1)}
    by_image: dict[int, list[_Annotation]] = {id_: [] for id_ in sorted(sizes)}
    seen: set[int] = set()
    dropped = 0
    for i, record in enumerate(document["annotations"]):
        try:
            image, category = _field(record, "image_id"), _field(record, "category_id")
            id_ = i + 1 if record.get("id") is None else _field(record, "id")
        except ValueError as error:
            faults.append(Fault("malformed annotation", file, f"annotations[{i}]", str(error)))
            continue
        item = f"annotation {id_} of image {image}"
        kinds: list[tuple[str, str]] = []
        if id_ in seen:
            kinds.append(("duplicate annotation id", "got its id twice"))
        seen.add(id_)
        if image not in sizes:
            kinds.append(("unknown image", f"got {image}, which is the id of no image"))
        if category not in labels:
            listed = ", ".join(map(str, list(labels)[:10])) + (", …" if len(labels) > 10 else "")
            kinds.append(("unknown category", f"got {category}, expected one of {listed}"))
        if not kinds:
            annotation = _annotation(record, id_, labels[category], sizes[image], masks, kinds)
            if drop and _is_dropped(annotation, kinds, sizes[image]):
                dropped += 1
                continue
            if annotation is not None:
                by_image[image].append(annotation)
        tolerated = _DROPPABLE if drop else ()
        faults += [Fault(k, file, item, detail) for k, detail in kinds if k not in tolerated]
    return Parsed(_index(categories, files, sizes, by_image, masks, dropped), faults)


def _check_categories(
    records: Sequence[Any], file: str, categories: Mapping[int, str], faults: list[Fault]
) -> None:
    ids: dict[int, str] = {}
    names: set[str] = set()
    for i, record in enumerate(records):
        try:
            id_ = _field(record, "id")
            name = record.get("name")
            if not isinstance(name, str) or not name.strip():
                raise ValueError(f"name: got {name!r:.40}, expected a text")
        except ValueError as error:
            faults.append(Fault("malformed category", file, f"categories[{i}]", str(error)))
            continue
        item = f"category {id_} ({name!r})"
        if id_ in ids:
            faults.append(Fault("duplicate category", file, item, "got its id twice"))
        elif name in names and id_ in categories:
            faults.append(Fault("duplicate category", file, item, "got its name twice"))
        if id_ in categories:
            names.add(name)
        ids.setdefault(id_, name)


def _field(record: Any, key: str) -> int:
    """Return an integer of a record; JSON of some tools has 3.0 or "3" for 3."""
    if not isinstance(record, dict):
        raise ValueError(f"got {record!r:.40}, expected a record")
    if key not in record:
        raise ValueError(f"{key}: is missing")
    value = _integer(record[key])
    if value is None:
        raise ValueError(f"{key}: got {record[key]!r:.40}, expected an integer")
    return value


def _integer(value: Any) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"\s*-?\d{1,18}\s*", value):
        return int(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return int(value) if is_number and float(value).is_integer() else None


def _size(record: Mapping[str, Any], size_of: Callable[[str], Size | None]) -> Size:
    if record.get("height") is None or record.get("width") is None:
        size = size_of(record["file_name"])
        if size is not None:
            return size
    return _field(record, "height"), _field(record, "width")


def _annotation(
    record: Mapping[str, Any],
    id_: int,
    label: int,
    size: Size,
    masks: bool,
    kinds: list[tuple[str, str]],
) -> _Annotation | None:
    """Return an annotation without a fault, or None; append what is wrong to `kinds`."""
    crowd, area = record.get("iscrowd"), record.get("area")
    if crowd not in (None, 0, 1, "0", "1"):
        kinds.append(("malformed annotation", f"iscrowd: got {crowd!r:.40}, expected 0 or 1"))
    if area is not None and not (_is_number(area) and area >= 0):
        kinds.append(("malformed annotation", f"area: got {area!r:.40}, expected a number ≥ 0"))
    segmentation, box, mask = record.get("segmentation"), record.get("bbox"), b""
    if masks or (segmentation and not box):
        try:
            mask = rle.compress([] if segmentation in (None, {}) else segmentation, *size)
            if not mask:
                got = "one that covers no pixel" if segmentation else f"{segmentation!r}"
                wanted = "polygons of 3 points or more, or run lengths"
                kinds.append(("empty segmentation", f"got {got}, expected {wanted}"))
        except ValueError as error:
            kinds.append(("bad segmentation", str(error)))
    if box in (None, []) and mask:
        box = rle.box(mask, *size)
    kind = _box_fault(box, size)
    if kind is not None:
        kinds.insert(0, (kind[0], f"got {box!r:.60}, expected {kind[1]}"))
    if any(kind not in _DROPPABLE for kind, _ in kinds) or not isinstance(box, list):
        return None
    x, y, width, height = map(float, box)
    if area is None:
        x2, y2 = min(x + width, size[1]), min(y + height, size[0])
        area = max(0.0, x2 - max(x, 0.0)) * max(0.0, y2 - max(y, 0.0))
    return _Annotation(id_, (x, y, x + width, y + height), label, crowd in (1, "1"), area, mask)


def _is_dropped(
    annotation: _Annotation | None, kinds: Sequence[tuple[str, str]], size: Size
) -> bool:
    if annotation is None:
        return False
    x1, y1, x2, y2 = annotation.box
    width, height = min(x2, size[1]) - max(x1, 0), min(y2, size[0]) - max(y1, 0)
    return bool(min(width, height) < 1 or annotation.area <= 0 or _is_empty(kinds))


def _is_empty(kinds: Iterable[tuple[str, str]]) -> bool:
    return any(kind == "empty segmentation" for kind, _ in kinds)


def _box_fault(box: Any, size: Size) -> tuple[str, str] | None:
    """Return the kind of what is wrong with a box, and what is expected."""
    if box is None or box == []:
        return "empty box", "[x, y, width, height]"
    if not isinstance(box, list) or len(box) != 4:
        return "malformed box", "[x, y, width, height]"
    if not all(map(_is_number, box)):
        return "box not finite", "four finite numbers"
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return "degenerate box", "width and height above 0"
    right, bottom = size[1] + _TOLERANCE, size[0] + _TOLERANCE
    inside = min(x, y) >= -_TOLERANCE and x + width <= right and y + height <= bottom
    # A box that lies in the tolerance alone has nothing of the image in it.
    visible = x < size[1] and y < size[0] and x + width > 0 and y + height > 0
    if not (inside and visible):
        return "box outside the image", f"a box within {size[1]}×{size[0]} px"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _index(
    categories: Mapping[int, str],
    files: Mapping[int, str],
    sizes: Mapping[int, Size],
    by_image: Mapping[int, list[_Annotation]],
    masks: bool,
    dropped: int,
) -> CocoIndex:
    rows = [row for group in by_image.values() for row in sorted(group, key=lambda row: row.id)]
    counts = np.array([len(group) for group in by_image.values()], dtype=np.int64)
    size = np.array([sizes[id_] for id_ in by_image], dtype=np.int64).reshape(-1, 2)
    boxes = np.array([row.box for row in rows], dtype=np.float64).reshape(-1, 4)
    limits = np.repeat(size[:, [1, 0, 1, 0]], counts, axis=0)
    return CocoIndex(
        categories=dict(categories),
        ids=np.array(list(by_image), dtype=np.int64),
        files=np.array([files[id_] for id_ in by_image]),
        sizes=size,
        starts=np.concatenate([[0], np.cumsum(counts)]),
        boxes=boxes.clip(0, limits).astype(np.float32),
        labels=np.array([row.label for row in rows], dtype=np.int64),
        crowds=np.array([row.crowd for row in rows], dtype=bool),
        areas=np.array([row.area for row in rows], dtype=np.float32),
        masks=Packed([row.mask for row in rows]) if masks else None,
        dropped=dropped,
    )


def has_masks(document: Mapping[str, Any]) -> bool:
    """Whether any annotation has a segmentation: a set with boxes only lacks none."""
    return any(isinstance(r, dict) and bool(r.get("segmentation")) for r in document["annotations"])
