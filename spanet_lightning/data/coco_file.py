"""Annotation files in COCO's instances format, as compact tables of boxes by image."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from spanet_lightning.data import rle
from spanet_lightning.data.batches import DetectionTarget
from spanet_lightning.data.coco_faults import BOX_FAULTS, record_faults
from spanet_lightning.data.faults import refuse
from spanet_lightning.errors import DataError

LISTS = ("images", "annotations", "categories")


class CocoImage(NamedTuple):
    """An image as its annotation file states it; sides in pixels."""

    id: int
    file: str
    height: int
    width: int


class Packed:
    """A sequence of values kept as bytes in two arrays.

    Worker processes share the memory of their parent until something is written to it, and reading
    a Python object writes its reference count: a million lists would be copied for each worker.

    Args:
        values: What to keep.
    """

    def __init__(self, values: Iterable[Any]) -> None:
        texts = [pickle.dumps(value, protocol=5) for value in values]
        self.ends = np.cumsum([0, *map(len, texts)])
        self.bytes = np.frombuffer(b"".join(texts), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> Any:
        text = self.bytes[self.ends[index] : self.ends[index + 1]].tobytes()
        return pickle.loads(text)  # noqa: S301 - our own bytes, of this process


@dataclass(frozen=True)
class CocoIndex:
    """The annotations of a split, without fault, by image.

    Attributes:
        category_ids: The id of each class in the annotation file, in increasing order: a class's
            label is its place here, from 1.
        class_names: Their names.
        images: The images, a `CocoImage` each.
        sizes: Their heights and widths in pixels, shape (images, 2).
        starts: Where the annotations of each image begin, shape (images + 1,).
        boxes: Corners x1, y1, x2, y2 in pixels, clipped to the image; shape (annotations, 4).
        labels: The class of each, from 1.
        crowds: Whether each is a crowd.
        areas: Area of each, in pixels.
        segmentations: What each image's annotations hold under that name; None where not asked for.
        dropped: Annotations that were left out, as told.
    """

    category_ids: tuple[int, ...]
    class_names: tuple[str, ...]
    images: Packed
    sizes: np.ndarray
    starts: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowds: np.ndarray
    areas: np.ndarray
    segmentations: Packed | None = None
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.images)

    def boxes_of(self, index: int) -> slice:
        """Return where the annotations of an image are."""
        return slice(int(self.starts[index]), int(self.starts[index + 1]))

    def trained_boxes(self) -> np.ndarray:
        """Return the number of boxes of each image that are no crowds."""
        counts = np.concatenate([[0], np.cumsum(~self.crowds)])
        found: np.ndarray = counts[self.starts[1:]] - counts[self.starts[:-1]]
        return found

    def target(self, index: int, *, crowds: bool, masks: bool) -> DetectionTarget:
        """Return the annotations of an image, at its stored size.

        Args:
            index: Which image.
            crowds: Whether to keep the crowds.
            masks: Whether to draw the instance masks.
        """
        here = self.boxes_of(index)
        chosen = np.flatnonzero(~self.crowds[here] | crowds)
        target = DetectionTarget(
            boxes=torch.from_numpy(self.boxes[here][chosen]),
            labels=torch.from_numpy(self.labels[here][chosen]),
            iscrowd=torch.from_numpy(self.crowds[here][chosen]),
            area=torch.from_numpy(self.areas[here][chosen]),
            image_id=self.images[index].id,
        )
        if masks and self.segmentations is not None:
            found = self.segmentations[index]
            height, width = (int(side) for side in self.sizes[index])
            target["masks"] = rle.stacked([found[i] for i in chosen], height, width)
        return target


def read(file: Path, key: str = "annotations") -> dict[str, Any]:
    """Read an annotation file.

    Args:
        file: Where it is.
        key: Argument that named it, for the message.

    Returns:
        A mapping that has the lists `images`, `annotations` and `categories`.

    Raises:
        DataError: If it is missing, no JSON, or lacks one of those.
    """
    if not file.is_file():
        raise DataError(f"{key}: found no file at {file}, expected annotations in COCO's format")
    try:
        with file.open("rb") as stream:
            document = json.load(stream)
    except (ValueError, OSError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{key}: {file} is no JSON: {reason}") from error
    lacking = [
        name
        for name in LISTS
        if not isinstance(document, dict) or not isinstance(document.get(name), list)
    ]
    if lacking:
        raise DataError(
            f"{key}: {file} has no list {', '.join(map(repr, lacking))}, expected annotations in "
            "COCO's instances format"
        )
    return dict(document)


def categories(document: Mapping[str, Any], file: str) -> dict[int, str]:
    """Return the names of the categories by id, in increasing order of ids.

    Raises:
        DataError: If they are not as they have to be, or there are none.
    """
    only = {"categories": document["categories"], "images": [], "annotations": []}
    refuse(record_faults(only, file, masks=False), _command(file))
    if not document["categories"]:
        raise DataError(f"{file}: categories: got none, expected one or more")
    return {record["id"]: record["name"] for record in _by_id(document["categories"])}


def index(
    document: Mapping[str, Any], file: str, *, masks: bool = False, drop_bad_boxes: bool = False
) -> CocoIndex:
    """Return the annotations of a file by image, in increasing order of ids.

    Args:
        document: What `read` returned.
        file: Its name, for the messages.
        masks: Whether to keep the segmentations.
        drop_bad_boxes: Whether to leave out annotations with less than a pixel of width or height
            inside the image, or no area, as the published runs did; false refuses boxes without
            extent or outside the image.

    Raises:
        DataError: For the first fault of the file.
    """
    faults = record_faults(document, file, masks=masks)
    if drop_bad_boxes:
        faults = (fault for fault in faults if fault.kind not in BOX_FAULTS)
    refuse(faults, _command(file))
    names = categories(document, file)
    label_of = {category: label for label, category in enumerate(names, 1)}
    images = _by_id(document["images"])
    if not images:
        raise DataError(f"{file}: images: got none, expected one or more")
    by_image: dict[int, list[Any]] = {record["id"]: [] for record in images}
    for record in _by_id(document["annotations"]):
        by_image[record["image_id"]].append(record)
    found = [(image, record) for image in images for record in by_image[image["id"]]]
    boxes = np.array([record["bbox"] for _, record in found], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    sides = np.array([(image["width"], image["height"]) for image, _ in found]).reshape(-1, 2)
    boxes = boxes.clip(0, np.tile(sides, 2))
    extents = boxes[:, 2:] - boxes[:, :2]
    areas = np.array(
        [record.get("area", w * h) for (_, record), (w, h) in zip(found, extents, strict=True)],
        dtype=np.float64,
    )
    kept = np.ones(len(found), dtype=bool)
    if drop_bad_boxes:
        kept = (extents >= 1).all(axis=1) & (areas > 0)
    counts = np.array([len(by_image[image["id"]]) for image in images])
    owner = np.repeat(np.arange(len(images)), counts)[kept]
    starts = np.searchsorted(owner, np.arange(len(images) + 1))
    rows = [record for (_, record), keep in zip(found, kept, strict=True) if keep]
    return CocoIndex(
        category_ids=tuple(names),
        class_names=tuple(names.values()),
        images=Packed(
            CocoImage(record["id"], record["file_name"], record["height"], record["width"])
            for record in images
        ),
        sizes=np.array([(record["height"], record["width"]) for record in images]),
        starts=starts,
        boxes=boxes[kept].astype(np.float32),
        labels=np.array([label_of[record["category_id"]] for record in rows], dtype=np.int64),
        crowds=np.array([bool(record.get("iscrowd", 0)) for record in rows], dtype=bool),
        areas=areas[kept].astype(np.float32),
        segmentations=Packed(
            [record["segmentation"] for record in rows[start:end]]
            for start, end in pairwise(starts)
        )
        if masks
        else None,
        dropped=int((~kept).sum()),
    )


def _by_id(records: Sequence[Any]) -> list[Any]:
    return sorted(records, key=lambda record: record["id"])


def _command(file: str) -> str:
    parent = Path(file).parent
    return f"spanet data check {parent.parent if parent.name == 'annotations' else parent}"
