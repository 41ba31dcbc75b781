"""What can be wrong with an annotation file in COCO's instances format, each by its name.

The check of a data set lists all of it; a data module refuses a file at the first. Both ask here,
so that nothing can pass the one and break the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from spanet_lightning.data.faults import Fault
from spanet_lightning.data.listing import name_fault
from spanet_lightning.data.rle import is_empty, segmentation_fault

TOLERANCE = 1.0
"""Pixels that a box may stick out of its image: published annotations are rounded."""

BOX_FAULTS = ("degenerate box", "box outside the image")
"""Faults that a training set may be told to leave out, as the published runs did."""


def record_faults(
    document: Mapping[str, Any], file: str, *, masks: bool, thorough: bool = False
) -> Iterator[Fault]:
    """Yield the faults of the records of an annotation file, in their order.

    Args:
        document: The file as `coco_file.read` returns it: a mapping with three lists.
        file: Its name, for the messages.
        masks: Whether segmentations are needed, and so looked at.
        thorough: Whether to draw each segmentation, to find those that cover no pixel.
    """
    categories: set[int] = set()
    names: set[str] = set()
    for i, record in enumerate(document["categories"]):
        problem = _problem(record, {"id": int, "name": str})
        if problem:
            yield Fault("malformed category", file, f"categories[{i}]", problem)
            continue
        item = f"category {record['id']} ({record['name']!r})"
        if record["id"] in categories:
            yield Fault("duplicate category", file, item, "got its id twice, expected once")
        elif record["name"] in names:
            yield Fault("duplicate category", file, item, "got its name twice, expected once")
        categories.add(record["id"])
        names.add(record["name"])
    sizes: dict[int, tuple[int, int]] = {}
    files: dict[str, int] = {}
    for i, record in enumerate(document["images"]):
        problem = _problem(record, {"id": int, "file_name": str, "height": int, "width": int})
        if problem:
            yield Fault("malformed image", file, f"images[{i}]", problem)
            continue
        item = f"image {record['id']} ({record['file_name']})"
        outside = name_fault(record["file_name"])
        if outside:
            yield Fault("name out of the folder", file, item, outside)
        if record["id"] in sizes:
            yield Fault("duplicate image id", file, item, "got its id twice, expected once")
        elif record["file_name"] in files:
            other = files[record["file_name"]]
            yield Fault("duplicate image file", file, item, f"got the file of image {other}")
        if min(record["height"], record["width"]) < 1:
            got = f"got {record['width']}×{record['height']} px, expected at least 1×1"
            yield Fault("malformed image", file, item, got)
        sizes.setdefault(record["id"], (record["height"], record["width"]))
        files.setdefault(record["file_name"], record["id"])
    seen: set[int] = set()
    for i, record in enumerate(document["annotations"]):
        problem = _problem(record, {"id": int, "image_id": int, "category_id": int})
        if problem:
            yield Fault("malformed annotation", file, f"annotations[{i}]", problem)
            continue
        item = f"annotation {record['id']} of image {record['image_id']}"
        if record["id"] in seen:
            yield Fault("duplicate annotation id", file, item, "got its id twice, expected once")
        seen.add(record["id"])
        size = sizes.get(record["image_id"])
        if size is None:
            got = f"got {record['image_id']}, which no image has"
            yield Fault("unknown image", file, item, got)
        if record["category_id"] not in categories:
            known = ", ".join(map(str, sorted(categories)[:10]))
            got = f"got {record['category_id']}, expected one of {known}"
            more = f" and {len(categories) - 10} more" if len(categories) > 10 else ""
            yield Fault("unknown category", file, item, f"{got}{more}")
        for key, accepted in (("iscrowd", (0, 1)), ("area", None)):
            value = record.get(key, 0)
            if accepted is not None and value not in accepted:
                yield Fault("malformed annotation", file, item, f"{key}: got {value!r}, not 0 or 1")
            elif not _is_number(value) or value < 0:
                got = f"{key}: got {value!r}, expected a number of at least 0"
                yield Fault("malformed annotation", file, item, got)
        found = _box_fault(record.get("bbox"), size)
        if found:
            yield Fault(found[0], file, item, f"got {record.get('bbox')!r}, expected {found[1]}")
        if masks and size is not None:
            yield from _mask_faults(record.get("segmentation"), size, file, item, thorough)


def has_masks(document: Mapping[str, Any]) -> bool:
    """Whether any annotation holds a segmentation: a set of boxes alone lacks none."""
    return any(
        isinstance(record, dict) and bool(record.get("segmentation"))
        for record in document["annotations"]
    )


def _box_fault(box: Any, size: tuple[int, int] | None) -> tuple[str, str] | None:
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
    if size is not None:
        right, bottom = size[1] + TOLERANCE, size[0] + TOLERANCE
        inside = min(x, y) >= -TOLERANCE and x + width <= right and y + height <= bottom
        # A box that lies in the tolerance alone has nothing of the image in it.
        visible = x < size[1] and y < size[0] and x + width > 0 and y + height > 0
        if not (inside and visible):
            return "box outside the image", f"a box within {size[1]}×{size[0]} px"
    return None


def _mask_faults(
    segmentation: Any, size: tuple[int, int], file: str, item: str, thorough: bool
) -> Iterator[Fault]:
    if segmentation is None or segmentation in ([], {}):
        yield Fault("empty segmentation", file, item, "got none, expected polygons or run lengths")
        return
    problem = segmentation_fault(segmentation, *size)
    if problem:
        yield Fault("bad segmentation", file, item, problem)
    elif thorough and is_empty(segmentation, *size):
        yield Fault("empty segmentation", file, item, "got one that covers no pixel of the image")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _problem(record: Any, wanted: Mapping[str, type]) -> str | None:
    """Return which key of a record is missing or of another type, or None."""
    if not isinstance(record, dict):
        return f"got {record!r:.40}, expected a record with {', '.join(wanted)}"
    for key, kind in wanted.items():
        if key not in record:
            return f"{key}: is missing"
        # A bool is an int to Python.
        if not isinstance(record[key], kind) or isinstance(record[key], bool):
            expected = "an integer" if kind is int else "a text"
            return f"{key}: got {record[key]!r:.40}, expected {expected}"
    return None
