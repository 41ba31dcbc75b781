"""Masks of instances in COCO's three forms: polygons, run lengths, and run lengths as text.

Run lengths count the pixels of a mask column by column, zeros first. As text each count is written
in base 32, lowest digits first, from the fourth on as a difference to the count two before it.
"""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import torch
from faster_coco_eval.core import mask as coco_mask
from jaxtyping import Bool
from torch import Tensor

Segmentation = list[list[float]] | dict[str, Any]


def decode(segmentation: Segmentation, height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """Return the mask of an instance, which `segmentation_fault` has found nothing wrong with.

    Args:
        segmentation: Polygons [x, y, x, y, …] in pixels, or run lengths.
        height: Of the image, in pixels.
        width: Of the image, in pixels.
    """
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
    elif segmentation:
        runs: Any = coco_mask.frPyObjects(cast("Any", segmentation), height, width)
        counts = coco_mask.merge(runs)["counts"]
    else:
        counts = [height * width]
    if not isinstance(counts, list):
        counts = _numbers(counts if isinstance(counts, str) else counts.decode("ascii"))
    ends = np.cumsum(counts).tolist()
    # By slices: the library's decoder writes pixel by pixel, which takes five times as long.
    mask = np.zeros(height * width, dtype=bool)
    for start, end in zip(ends[0::2], ends[1::2], strict=False):  # the last zeros have no ones
        mask[start:end] = True
    return mask.reshape(width, height).T


def encode(mask: Bool[Tensor, "h w"]) -> dict[str, Any]:
    """Return a mask as run lengths in text, as COCO's results hold them: `size`, `counts`."""
    runs = coco_mask.encode(cast("Any", np.asfortranarray(mask.cpu().numpy().astype(np.uint8))))
    counts = runs["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {"size": [int(side) for side in runs["size"]], "counts": text}


def stacked(segmentations: list[Segmentation], height: int, width: int) -> Bool[Tensor, "n h w"]:
    """Return the masks of all instances of an image."""
    masks = np.zeros((len(segmentations), height, width), dtype=bool)
    for i, segmentation in enumerate(segmentations):
        masks[i] = decode(segmentation, height, width)
    return torch.from_numpy(masks)


def segmentation_fault(segmentation: Any, height: int, width: int) -> str | None:
    """Return what is wrong with a segmentation, or None.

    A decoder of run lengths trusts what it is given and writes past the mask; so nothing is decoded
    that has not passed here.

    Args:
        segmentation: What an annotation holds under that name.
        height: Of the image, in pixels.
        width: Of the image, in pixels.
    """
    if isinstance(segmentation, dict):
        return _runs_fault(segmentation, height, width)
    if not isinstance(segmentation, list):
        return f"got {_short(segmentation)}, expected a list of polygons or run lengths"
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            got = f"{len(polygon)} numbers" if isinstance(polygon, list) else _short(polygon)
            return f"got a polygon of {got}, expected x, y of 3 points or more"
        try:
            finite = math.isfinite(math.fsum(polygon))
        except (TypeError, ValueError, OverflowError):
            finite = False
        if not finite:
            return "got a polygon with a coordinate that is no finite number"
    return None


def is_empty(segmentation: Any, height: int, width: int) -> bool:
    """Whether a segmentation without fault covers no pixel of its image."""
    if not segmentation:
        return True
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        return sum((_numbers(counts) if isinstance(counts, str) else counts)[1::2]) == 0
    return not decode(segmentation, height, width).any()


def _runs_fault(segmentation: dict[str, Any], height: int, width: int) -> str | None:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        return f"got run lengths of size {_short(size)}, expected [{height}, {width}]"
    if isinstance(counts, str):
        try:
            numbers = _numbers(counts)
        except ValueError as error:
            return f"got run lengths that can't be read: {error}"
    elif isinstance(counts, list) and all(type(count) is int for count in counts):
        numbers = counts
    else:
        return f"got counts {_short(counts)}, expected integers, or text that encodes them"
    if any(count < 0 for count in numbers):
        return "got a negative run length"
    if sum(numbers) != height * width:
        return f"got run lengths of {sum(numbers)} pixels, expected {height * width}"
    return None


def _numbers(text: str) -> list[int]:
    """Return the run lengths that a text encodes.

    Raises:
        ValueError: If it encodes none.
    """
    raw = np.frombuffer(text.encode("latin-1", "replace"), dtype=np.uint8).astype(np.int64) - 48
    if len(raw) == 0 or raw.min() < 0 or raw.max() > 63:
        raise ValueError("a character outside '0' to 'o'" if len(raw) else "no character")
    more = (raw & 32) != 0
    if more[-1]:
        raise ValueError("the last number is cut off")
    ends = np.flatnonzero(~more)
    starts = np.concatenate([[0], ends[:-1] + 1])
    digits = ends - starts + 1
    if digits.max() > 7:  # 35 bits: no image has as many pixels
        raise ValueError("a number of more than 7 digits")
    place = np.arange(len(raw)) - np.repeat(starts, digits)
    values = np.add.reduceat((raw & 31) << (5 * place), starts)
    negative = (raw[ends] & 16) != 0
    values = np.where(negative, values - (1 << (5 * digits)), values)
    # From the fourth on a difference to the one two before: odd and even ones sum up apart, but
    # for the first, which nothing refers to.
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return [int(value) for value in values]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
