"""Instance masks as COCO stores them: polygons, or run lengths as numbers or as text.

faster-coco-eval converts between the forms. What is here decides which segmentations are valid:
its functions raise errors of C++ for others, or accept them with pixels missing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from faster_coco_eval.core import mask as coco_mask
from jaxtyping import Bool
from torch import Tensor

_MAX_OUTSIDE = 10  # image sides that a polygon may leave its image by: edges cost memory


def compress(segmentation: Any, height: int, width: int) -> bytes:
    """Return the run lengths of a segmentation, compressed; empty where it covers no pixel.

    Args:
        segmentation: What an annotation holds under that name: polygons [[x, y, x, y, …], …] in
            pixels, of which those with fewer than three points cover nothing, or run lengths.
        height: Of the image, in pixels.
        width: Of the image, in pixels.

    Raises:
        ValueError: If it is none of these; the message states what it is.
    """
    if isinstance(segmentation, dict):
        segmentation = _check_runs(segmentation, height, width)
    elif isinstance(segmentation, list):
        segmentation = _check_polygons(segmentation, max(height, width))
        if not segmentation:
            return b""
    else:
        raise ValueError(f"got {segmentation!r:.40}, expected polygons or run lengths")
    runs: dict[str, Any] = coco_mask.segmToRle(segmentation, width, height)
    counts = runs["counts"]
    compressed: bytes = counts.encode() if isinstance(counts, str) else counts
    return compressed if coco_mask.area([runs])[0] else b""


def decode(counts: Sequence[bytes], height: int, width: int) -> Bool[Tensor, "n h w"]:
    """Return the masks of compressed run lengths."""
    if not counts:
        return torch.zeros(0, height, width, dtype=torch.bool)
    runs = [{"size": [height, width], "counts": text} for text in counts]
    masks: np.ndarray = coco_mask.decode(runs)
    return torch.from_numpy(np.ascontiguousarray(masks.transpose(2, 0, 1))).view(torch.bool)


def encode(mask: Bool[Tensor, "h w"]) -> dict[str, Any]:
    """Return a mask as run lengths in text, as COCO's results hold them: `size`, `counts`."""
    runs = coco_mask.encode(np.asfortranarray(mask.cpu().numpy().astype(np.uint8)))
    return {"size": [int(side) for side in runs["size"]], "counts": runs["counts"].decode()}


def box(counts: bytes, height: int, width: int) -> list[float]:
    """Return the box around a mask: x, y, width, height in pixels."""
    boxes = coco_mask.toBbox([{"size": [height, width], "counts": counts}])
    return [float(value) for value in boxes[0]]


def _check_polygons(polygons: list[Any], side: int) -> list[list[float]]:
    if polygons and not any(isinstance(polygon, list) for polygon in polygons):
        raise ValueError(
            f"got a flat list of {len(polygons)} numbers, expected a list of polygons: brackets "
            "are missing, [[x, y, …]]"
        )
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) % 2:
            got = f"{len(polygon)} numbers" if isinstance(polygon, list) else f"{polygon!r:.40}"
            raise ValueError(f"got a polygon of {got}, expected x and y of each point")
        try:
            finite = math.isfinite(math.fsum(polygon))
        except (TypeError, ValueError, OverflowError):
            finite = False
        if not finite:
            raise ValueError("got a polygon with a coordinate that is not a finite number")
        if polygon and max(map(abs, polygon)) > (_MAX_OUTSIDE + 1) * side:
            raise ValueError(f"got a polygon with a coordinate of {max(map(abs, polygon)):g} px")
    return [polygon for polygon in polygons if len(polygon) >= 6]


def _check_runs(runs: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    size, counts = runs.get("size"), runs.get("counts")
    if size != [height, width]:
        raise ValueError(f"got run lengths of size {size!r:.40}, expected [{height}, {width}]")
    if isinstance(counts, str):
        text = counts.encode(errors="replace")
        try:
            lengths = coco_mask._mask.toUncompressedRLE([{"size": size, "counts": text}])
        except (RuntimeError, ValueError) as error:
            raise ValueError("got run lengths in text that can't be decoded") from error
        counts = [int(length) for length in lengths[0]["counts"]]
    elif not isinstance(counts, list):
        raise ValueError(f"got counts {counts!r:.40}, expected integers, or text that encodes them")
    if not all(isinstance(c, int | float) and float(c).is_integer() and c >= 0 for c in counts):
        raise ValueError("got a run length that is not an integer of at least 0")
    if sum(counts) != height * width:
        raise ValueError(f"got run lengths of {sum(counts)} pixels, expected {height * width}")
    return {"size": [height, width], "counts": [int(count) for count in counts]}
