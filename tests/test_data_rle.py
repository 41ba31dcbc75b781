"""Masks as run lengths: read as pycocotools reads them, and nothing unsound is decoded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pycocotools import mask as reference

from spanet_lightning.data import rle


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (40, 300)])
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_all_three_forms_agree_with_pycocotools(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for share in (0.0, 0.05, 0.5, 1.0):
        mask = rng.random(shape) < share
        text = rle.encode(torch.from_numpy(mask))
        theirs = reference.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert text["counts"] == theirs["counts"].decode()
        assert rle.segmentation_fault(text, *shape) is None
        assert np.array_equal(rle.decode(text, *shape), mask)
        numbers = {"size": list(shape), "counts": rle._numbers(text["counts"])}
        assert rle.segmentation_fault(numbers, *shape) is None
        assert np.array_equal(rle.decode(numbers, *shape), mask)
        assert rle.is_empty(text, *shape) == rle.is_empty(numbers, *shape) == (not mask.any())
    polygons = [[1.2, 1.0, 30.5, 3.0, 20.0, 33.3], [50.0, 2.0, 70.0, 2.0, 70.0, 9.0, 50.0, 9.0]]
    runs = reference.merge(reference.frPyObjects(polygons, 40, 300))
    assert np.array_equal(rle.decode(polygons, 40, 300), reference.decode(runs).astype(bool))


def test_run_lengths_are_differences_in_base_32() -> None:
    # 4 zeros, 2 ones, 3 zeros, 40 ones: the fourth is written as 40 - 2 = 38.
    assert rle._numbers("423V1") == [4, 2, 3, 40]


@pytest.mark.parametrize("text", ["", "~", "o", "oooooooo0", "\n", "é"])
def test_text_that_encodes_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"character|number"):
        rle._numbers(text)
