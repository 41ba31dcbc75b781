"""The statement of classes that a checkpoint keeps, and what differs from it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from spanet_lightning.data.info import DataInfo, check_same, info_of
from spanet_lightning.errors import DataError

ABC = DataInfo(("a", "b", "c"), mean=(0.5,) * 3, std=(0.2,) * 3)


def test_it_survives_json_and_checkpoints() -> None:
    info = DataInfo(("a", "b"), (3, 7), ((1, 2, 3), (4, 5, 6)), (0.1,), (0.2,), 1)
    assert DataInfo.from_dict(json.loads(json.dumps(info.to_dict()))) == info
    assert DataInfo.from_dict(ABC.to_dict()) == ABC


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ("a", "b", "d")}, "class 'd' is not known to the checkpoint"),
        ({"classes": ("a", "b", "c", "d")}, "class 'd' is not known"),
        ({"classes": ("a", "c")}, "class 'b' of the checkpoint is not among"),
        ({"classes": ("a", "c", "b")}, "another order .* label 1 is 'c' in the data, 'b'"),
        ({"channels": 1}, "images have 1 channels, the checkpoint was trained on 3"),
        ({"mean": (0.4, 0.5, 0.5)}, r"data\.mean: got \[0\.4, 0\.5, 0\.5\], expected"),
        ({"std": (0.2, 0.2, 0.3)}, r"data\.std: "),
    ],
)
def test_data_that_mean_something_else_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_same(ABC, dataclasses.replace(ABC, **change))


def test_ids_and_colours_may_differ() -> None:
    check_same(ABC, dataclasses.replace(ABC, ids=(1, 2, 5), palette=((0, 0, 0),) * 3))


def test_a_name_given_twice_is_refused() -> None:
    with pytest.raises(DataError, match=r"'cat' for 2 classes \(labels 0, 2\)"):
        DataInfo(("cat", "dog", "cat"))


def test_a_data_module_of_a_user_is_asked_for_its_names() -> None:
    class Own:
        class_names = ("a", "b")

    assert info_of(Own()) == DataInfo(("a", "b"))
    assert info_of(object()) is None
