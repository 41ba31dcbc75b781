"""Instance masks: read as pycocotools reads them, and nothing unsound is decoded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as reference

from spanet_lightning.data import rle


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (40, 300)])
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_all_forms_agree_with_pycocotools(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for share in (0.0, 0.05, 0.5, 1.0):
        mask = rng.random(shape) < share
        text = rle.encode(torch.from_numpy(mask))
        theirs = reference.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert text["counts"] == theirs["counts"].decode()
        starts = np.flatnonzero(np.diff(mask.T.ravel(), prepend=False))
        lengths = np.diff([0, *starts, mask.size]).tolist()
        for runs in (text, {"size": list(shape), "counts": lengths}):
            counts = rle.compress(runs, *shape)
            assert counts == (theirs["counts"] if mask.any() else b"")
            assert not counts or np.array_equal(rle.decode([counts], *shape)[0], mask)
    polygons = [[1.2, 1.0, 30.5, 3.0, 20.0, 33.3], [50.0, 2.0, 70.0, 2.0, 70.0, 9.0, 50.0, 9.0]]
    runs = reference.merge(reference.frPyObjects(polygons, 40, 300))
    counts = rle.compress([*polygons, [1, 2, 3, 4]], 40, 300)
    assert np.array_equal(rle.decode([counts], 40, 300)[0], reference.decode(runs))


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ("rle", "expected polygons or run lengths"),
        ([1, 2, 3, 4, 5, 6], "brackets are missing"),
        ([[1, 2, 3]], "3 numbers"),
        ([[1, 2, 3, float("nan"), 4, 5]], "not a finite number"),
        ([[1, 2, 3, "4", 4, 5]], "not a finite number"),
        ([[1e9, 2, 3, 4, 4, 5]], "coordinate of 1e"),
        ({"size": [3, 3], "counts": [9]}, "expected .10, 12."),
        ({"size": [10, 12], "counts": [7, 3]}, "10 pixels, expected 120"),
        ({"size": [10, 12], "counts": [123, -3]}, "at least 0"),
        ({"size": [10, 12], "counts": [float("inf")]}, "at least 0"),
        ({"size": [10, 12], "counts": None}, "counts None"),
        *(({"size": [10, 12], "counts": t}, "got run lengths") for t in ("", "o", "~~", "é", "\n")),
    ],
)
def test_what_is_no_segmentation_is_described(segmentation: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rle.compress(segmentation, 10, 12)


@pytest.mark.parametrize(
    "segmentation", [[], [[]], [[1, 2, 3, 4]], [[5] * 6], [[40, 40, 50, 40, 50, 50]]]
)
def test_polygons_without_a_pixel_are_empty(segmentation: Any) -> None:
    assert rle.compress(segmentation, 10, 12) == b""
