"""Segmentation folders: pairs, classes, and masks as they are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spanet_lightning.data import SegmentationFoldersDataModule, class_lists
from spanet_lightning.data.segmentation_images import reduced
from spanet_lightning.errors import ConfigError, DataError
from tests import dense_sets


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return dense_sets.masks(tmp_path / "set")


def module(root: Path, **arguments: Any) -> SegmentationFoldersDataModule:
    small: dict[str, Any] = {"crop_size": 64, "long_side": 256, "short_side": 64, "num_workers": 0}
    return SegmentationFoldersDataModule(str(root), **{**small, **arguments})


def test_classes_come_from_the_list(root: Path) -> None:
    data = module(root)
    assert data.num_classes == 10
    assert data.class_names == tuple(f"digit {i}" for i in range(10))
    assert data.palette[2] == (40, 0, 9)
    assert module(root, reduce_zero_label=False).class_names[:2] == ("void", "digit 0")


def test_classes_are_counted_without_a_list(root: Path) -> None:
    (root / "classes.csv").unlink()
    stored = [dense_sets.as_array(path).max() for path in root.glob("annotations/*/*.png")]
    assert module(root).num_classes == max(stored)
    assert module(root, num_classes=12).class_names[-1] == "11"
    assert len(set(module(root, num_classes=150).palette)) == 150


def test_evaluation_keeps_the_stored_mask(root: Path) -> None:
    data = module(root, short_side=40)
    data.setup("validate")
    for batch in data.val_dataloader():
        stored = dense_sets.as_array(
            Path(batch.paths[0].replace("images", "annotations")).with_suffix(".png")
        ).astype(int)
        expected = np.where(stored == 0, 255, stored - 1)
        assert np.array_equal(batch.masks[0].numpy(), expected)
        assert batch.sizes == [(40, 48)]
        assert batch.images.shape == (1, 3, 40, 48)  # no padding


def test_training_batches_have_one_size_whatever_the_images_have(root: Path) -> None:
    data = module(root, scale=(0.5, 0.6))
    data.setup("fit")
    (batch,) = map(data.normalized, data.train_dataloader())
    assert batch.images.shape == (4, 3, 64, 64)
    assert torch.stack(batch.masks).shape == (4, 64, 64)
    for image, mask, (height, width) in zip(batch.images, batch.masks, batch.sizes, strict=True):
        assert height < 64
        assert image[:, height:].eq(0).all()
        assert mask[:, width:].eq(255).all()


def test_images_depend_on_seed_epoch_and_number_alone(root: Path) -> None:
    def pixels(epoch: int) -> torch.Tensor:
        data = module(root)
        data.setup("fit")
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]  # as Lightning does
        torch.rand(3)  # what a process has drawn before must not matter
        return torch.cat([batch.images for batch in loader])

    assert torch.equal(pixels(0), pixels(0))
    assert not torch.equal(pixels(0), pixels(1))


def test_zero_is_left_out_and_256_does_not_become_255() -> None:
    mask = torch.tensor([[0, 1, 150, 255, 256]])
    assert reduced(mask, True).tolist() == [[255, 0, 149, 255, 256]]
    assert reduced(mask, False) is mask


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Idx\tRatio\tName\n1\t0.1\twall\n2\t0.2\ta, b\n", {1: "wall", 2: "a, b"}),
        ("id,name\n0,sky\n1,road\n", {0: "sky", 1: "road"}),
        ("sky\nroad\n", {0: "sky", 1: "road"}),
    ],
)
def test_lists_of_classes_have_three_forms(
    text: str, names: dict[int, str], tmp_path: Path
) -> None:
    path = tmp_path / "classes.txt"
    path.write_text(text)
    assert class_lists.read(path).names == names


@pytest.mark.parametrize("text", ["", "id,name\nx,sky\n", "id,name\n1,a\n1,b\n"])
def test_a_broken_list_is_refused(text: str, root: Path) -> None:
    (root / "classes.csv").write_text(text)
    with pytest.raises(DataError, match=r"classes\.csv: "):
        _ = module(root).num_classes


@pytest.mark.parametrize(
    ("key", "value"),
    [("crop_size", 8), ("long_side", 32), ("num_classes", 300), ("scale", (0.0, 1.0))],
)
def test_arguments_are_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{key}: got"):
        module(Path(), **{key: value})


def test_missing_folders_are_named(root: Path) -> None:
    with pytest.raises(DataError, match=r"train_split: got 'trianing'.*did you mean 'training'"):
        module(root, train_split="trianing").setup("fit")
    with pytest.raises(DataError, match="images: found no folder at"):
        module(root, images="imgs").setup("fit")
    with pytest.raises(ConfigError, match="num_classes: got 12, expected 10, as many as"):
        _ = module(root, num_classes=12).num_classes
