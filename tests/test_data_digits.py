"""The embedded digits: a split that never moves, and images as described."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from lightning import seed_everything

from spanet_lightning.data.digits import (
    FEWEST,
    DigitsDataModule,
    load,
    random_affine,
    split_indices,
)
from spanet_lightning.errors import ConfigError


@pytest.fixture
def digits() -> DigitsDataModule:
    data = DigitsDataModule()
    data.setup("fit")
    return data


def test_split_is_the_one_that_results_were_published_on() -> None:
    """Another split makes other accuracies: a change here has to be a decision."""
    assert DigitsDataModule().split_id == "digits-0-b9f446a0"
    assert DigitsDataModule(split_seed=1).split_id == "digits-1-43870487"


def test_splits_are_disjoint_complete_and_stratified() -> None:
    labels = load()[1]
    splits = split_indices(labels.tolist(), seed=0)
    assert sorted(chain(*splits.values())) == list(range(1797))
    for split, share in (("train", 0.7), ("val", 0.1), ("test", 0.2)):
        counts = labels[splits[split]].bincount(minlength=10)
        # within one image of the share of each class
        assert torch.all((counts - share * labels.bincount()).abs() <= 1), split


def test_few_shot_leaves_the_test_split_alone_and_validates_on_the_rest() -> None:
    """Else a study of few images would be selected on what it is reported on."""
    labels = load()[1]
    whole = split_indices(labels.tolist(), seed=0)
    few = split_indices(labels.tolist(), seed=0, train_per_class=25)
    assert few["test"] == whole["test"]
    assert labels[few["train"]].bincount().tolist() == [25] * 10
    assert set(few["train"]) < set(whole["train"])
    assert sorted(chain(*few.values())) == list(range(1797))
    most = split_indices(labels.tolist(), seed=0, train_per_class=FEWEST)
    assert min(labels[most["train"]].bincount()) == min(labels[whole["train"]].bincount()) == FEWEST


def test_more_images_of_a_class_than_there_are_is_one_clear_line() -> None:
    with pytest.raises(ConfigError, match="train_per_class: got 123, expected 1 to 122"):
        DigitsDataModule(train_per_class=123)


@pytest.mark.parametrize(("size", "channels"), [(32, 3), (40, 1)])
def test_images_are_enlarged_and_normalised(size: int, channels: int) -> None:
    data = DigitsDataModule(image_size=size, in_chans=channels)
    data.setup("fit")
    images = torch.cat([split.tensors[0] for split in data.splits.values()])
    assert images.shape == (1797, channels, size, size)
    assert images.mean() == pytest.approx(0, abs=0.01)
    assert images.std() == pytest.approx(1, abs=0.01)


def test_training_batches_are_whole_and_others_lose_nothing(digits: DigitsDataModule) -> None:
    assert {len(labels) for _, labels in digits.train_dataloader()} == {digits.batch_size}
    assert sum(len(labels) for _, labels in digits.val_dataloader()) == len(digits.splits["val"])
    assert sum(len(labels) for _, labels in digits.test_dataloader()) == len(digits.splits["test"])


def test_order_follows_the_seed_and_the_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        seed_everything(seed, verbose=False)
        torch.rand(3)  # what a process has drawn before must not matter
        data = DigitsDataModule(augment=False)
        data.setup("fit")
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]  # as Lightning does
        return torch.cat([labels for _, labels in loader]).tolist()

    assert order(seed=1, epoch=3) == order(seed=1, epoch=3)
    assert order(seed=1, epoch=3) != order(seed=1, epoch=4)
    assert order(seed=1, epoch=3) != order(seed=2, epoch=3)


def test_augmentation_moves_images_one_by_one() -> None:
    image = torch.zeros(1, 1, 32, 32)
    image[..., 12:20, 12:20] = 1
    moved = random_affine(image.repeat(8, 1, 1, 1), range(8))
    assert moved.shape == (8, 1, 32, 32)
    assert all(not torch.equal(moved[0], other) for other in moved[1:])
    # a square of 8 pixels, 10 % larger or smaller at most, its edges smoothed
    assert torch.all((moved.sum((1, 2, 3)) / 64 - 1).abs() < 0.25)
    # an image moves by its own seed, whatever batch it is in
    assert torch.equal(moved[5:6], random_affine(image, [5]))


def test_augmentation_of_nothing_is_the_identity() -> None:
    image = torch.rand(2, 3, 32, 32)
    still = random_affine(image, [0, 1], degrees=0, scale=0, shift=0)
    torch.testing.assert_close(still, image, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 16}, "image_size: got 16, expected at least 32"),
        ({"in_chans": 2}, "in_chans: got 2, expected 1 or 3"),
        ({"batch_size": 0}, "batch_size: got 0"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DigitsDataModule(**arguments)  # type: ignore[arg-type]
