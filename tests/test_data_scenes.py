"""The embedded scenes: repeatable, labelled to the pixel, of digits that no other split has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.precision import HalfPrecision

from spanet_lightning.data import DigitScenesDataModule
from spanet_lightning.errors import ConfigError


def scenes(**arguments: object) -> DigitScenesDataModule:
    few = {"train_scenes": 12, "val_scenes": 5, "test_scenes": 3, "batch_size": 4}
    data = DigitScenesDataModule(**{**few, **arguments})  # type: ignore[arg-type]
    data.setup("fit")
    return data


def test_scenes_are_those_that_results_were_measured_on() -> None:
    """Other scenes make other figures: a change here has to be a decision."""
    assert DigitScenesDataModule().split_id == "digit-scenes-0-38335463"
    assert DigitScenesDataModule(split_seed=1).split_id != DigitScenesDataModule().split_id


def test_annotations_fit_each_other() -> None:
    data = scenes()
    count = 0
    for batch in data.val_dataloader():
        for target in batch.targets:
            masks, boxes = target["masks"], target["boxes"]
            count += len(boxes)
            assert masks.sum(dim=0).max() <= 1  # no pixel is of two digits
            assert torch.equal(target["area"], masks.flatten(1).sum(dim=1).float())
            assert ((target["labels"] >= 1) & (target["labels"] <= 10)).all()
            for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
                assert mask[y1:y2, x1:x2].sum() == mask.sum()
                assert mask[y1].any()
                assert mask[y2 - 1].any()
                assert mask[:, x1].any()
                assert mask[:, x2 - 1].any()
    assert count >= 15


def test_both_tasks_see_the_same_scenes() -> None:
    boxes, pixels = scenes().splits["val"][1], scenes(task="segmentation").splits["val"][1]
    assert torch.equal(boxes.image, pixels.image)
    present = set(pixels.mask.unique().tolist()) - {0}  # type: ignore[union-attr]
    assert present == set(boxes.target["labels"].tolist())  # type: ignore[union-attr]


def test_number_of_classes_counts_the_ground_for_pixels_alone() -> None:
    assert scenes().num_classes == 10
    data = scenes(task="segmentation")
    assert data.num_classes == len(data.class_names) == 11
    (batch, *_) = data.train_dataloader()
    assert max(int(mask.max()) for mask in batch.masks) <= 10


@pytest.mark.parametrize(("fresh", "same"), [(True, False), (False, True)])
def test_epochs_have_new_scenes_where_asked(fresh: bool, same: bool) -> None:
    def sums(epoch: int) -> list[int]:
        loader = scenes(fresh=fresh, batch_size=1).train_dataloader()
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]  # as Lightning does
        return sorted(int(batch.images.sum()) for batch in loader)

    assert sums(0) == sums(0)
    assert (sums(0) == sums(1)) is same


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_a_run_gets_normalised_images_in_its_precision(task: Any) -> None:
    """Lightning converts floats before the hook, where there were none."""
    data = scenes(task=task)
    stored = next(iter(data.val_dataloader()))
    assert stored.images.dtype == torch.uint8
    data.trainer = SimpleNamespace(precision_plugin=HalfPrecision("bf16-true"))  # type: ignore[assignment]
    batch = data.on_after_batch_transfer(stored, 0)
    assert batch.images.dtype == torch.bfloat16
    assert torch.equal(batch.images, data.normalized(stored).images.bfloat16())
    assert batch[1:] == stored[1:]


def test_splits_have_digits_of_their_own() -> None:
    data = scenes()
    shares = [data.splits[split].images.flatten(1).tolist() for split in data.splits]
    assert [len(share) for share in shares] == [1259, 179, 359]
    sets = [set(map(tuple, share)) for share in shares]
    # A few of the 1,797 scans are equal to the last grey level.
    assert all(len(a & b) <= 2 for a, b in ((sets[0], sets[1]), (sets[0], sets[2])))


@pytest.mark.parametrize(
    ("key", "value"), [("task", "boxes"), ("image_size", 32), ("digits_per_scene", 0)]
)
def test_arguments_are_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{key}: got"):
        DigitScenesDataModule(**{key: value})  # type: ignore[arg-type]
