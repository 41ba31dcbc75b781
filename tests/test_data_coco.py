"""COCO data: what is read, how batches are formed, and one error for whatever is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from spanet_lightning.data import CocoDataModule
from spanet_lightning.errors import ConfigError, DataError
from tests import dense_sets


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return dense_sets.coco(tmp_path / "set")


def module(root: Path, **arguments: Any) -> CocoDataModule:
    small: dict[str, Any] = {"long_side": 128, "short_side": 96, "short_sides": (64, 96)}
    return CocoDataModule(str(root), **{**dense_sets.COCO_FOLDERS, **small, **arguments})


def fitted(root: Path, **arguments: Any) -> CocoDataModule:
    data = module(root, **arguments)
    data.setup("fit")
    return data


def test_nothing_is_read_before_it_is_asked_for() -> None:
    module(Path("no/such/folder"))


def test_classes_come_from_the_annotations(root: Path) -> None:
    data = module(root)
    assert data.num_classes == 10
    assert data.class_names == tuple(f"digit {i}" for i in range(10))
    assert data.category_ids == dense_sets.CATEGORY_IDS


# pycocotools 2.0.11 on NumPy 2, in its own decoder.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_evaluation_agrees_with_pycocotools(root: Path) -> None:
    data = fitted(root, masks=True)
    truth = COCO(str(data.annotation_file("val")))
    seen = 0
    for batch in data.val_dataloader():
        (target,) = batch.targets
        expected = truth.loadAnns(truth.getAnnIds(target["image_id"]))
        seen += 1
        assert batch.paths[0].endswith(truth.loadImgs(target["image_id"])[0]["file_name"])
        boxes = np.array([annotation["bbox"] for annotation in expected])
        boxes[:, 2:] += boxes[:, :2]
        assert np.array_equal(target["boxes"].numpy(), boxes)
        labels = [dense_sets.CATEGORY_IDS.index(a["category_id"]) + 1 for a in expected]
        assert target["labels"].tolist() == labels
        masks = np.stack([truth.annToMask(annotation) for annotation in expected])
        assert np.array_equal(target["masks"].numpy(), masks)
        assert target["area"].tolist() == [annotation["area"] for annotation in expected]
        assert batch.images.shape[-1] % 32 == batch.images.shape[-2] % 32 == 0
        height, width = batch.original_sizes[0]
        factor = min(128 / max(height, width), 96 / min(height, width))
        assert batch.sizes[0] == (round(height * factor), round(width * factor))
    assert seen == 3


def test_training_batches_are_of_one_aspect_and_masks_fit_their_boxes(root: Path) -> None:
    data = fitted(root, masks=True, augmentation="flip")
    batches = list(data.train_dataloader())
    assert len(batches) == 2  # three wide and three tall images make one full batch each
    for batch in map(data.normalized, batches):
        assert len({height >= width for height, width in batch.sizes}) == 1
        for image, size, target in zip(batch.images, batch.sizes, batch.targets, strict=True):
            assert image[:, size[0] :].eq(0).all()
            assert image[:, :, size[1] :].eq(0).all()
            assert target["masks"].shape[1:] == size
            for mask, box in zip(target["masks"], target["boxes"], strict=True):
                columns = mask.any(dim=0).nonzero().reshape(-1)
                assert abs(float(columns[0]) - float(box[0])) <= 1.5
                assert abs(float(columns[-1]) + 1 - float(box[2])) <= 1.5


def test_images_depend_on_seed_epoch_and_number_alone(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pixels(seed: int, epoch: int) -> dict[str, torch.Tensor]:
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        loader = fitted(root, batch_size=1).train_dataloader()
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]  # as Lightning does
        torch.rand(3)  # what a process has drawn before must not matter
        return {batch.paths[0]: batch.images for batch in loader}

    def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
        return all(torch.equal(a[path], b[path]) for path in a)

    first = pixels(1, 0)
    assert equal(first, pixels(1, 0))
    assert not equal(first, pixels(1, 1))
    assert not equal(first, pixels(2, 0))


def test_crowds_are_left_out_of_training_alone(root: Path) -> None:
    def crowd(document: Any) -> None:
        for annotation in document["annotations"]:
            annotation["iscrowd"] = 1

    dense_sets.edit(root, "val", lambda d: d["annotations"][0].update(iscrowd=1))
    (first, *_) = fitted(root).val_dataloader()
    assert first.targets[0]["iscrowd"].tolist()[:2] == [True, False]
    dense_sets.edit(root, "train", crowd)
    with pytest.raises(DataError, match="no image to train on"):
        fitted(root)
    (batch, *_) = fitted(root, keep_empty=True).train_dataloader()
    assert all(len(target["boxes"]) == 0 for target in batch.targets)


def test_images_without_boxes_and_small_ones_are_not_trained_on(root: Path) -> None:
    def change(document: Any) -> None:
        empty, small = document["images"][0], document["images"][1]
        document["annotations"] = [
            a for a in document["annotations"] if a["image_id"] != empty["id"]
        ]
        small["width"] = 31

    dense_sets.edit(root, "train", change)
    data = module(root, masks=False, bad_boxes="drop")
    data.setup("fit")
    assert len(data.train_dataloader().dataset) == 4  # type: ignore[arg-type]
    assert len(fitted(root, keep_empty=True, bad_boxes="drop").train_dataloader().dataset) == 5  # type: ignore[arg-type]


def test_bad_boxes_are_dropped_or_clipped_where_told(root: Path) -> None:
    def change(document: Any) -> None:
        ours = [a for a in document["annotations"] if a["image_id"] == 20]
        ours[0]["bbox"][2] = 0
        ours[1]["bbox"] = [40.0, 40.0, 500.0, 20.0]

    dense_sets.edit(root, "train", change)
    with pytest.raises(DataError, match="degenerate box"):
        fitted(root)
    data = fitted(root, bad_boxes="drop", augmentation="none", group_by_aspect=False, batch_size=1)
    target = next(b.targets[0] for b in data.train_dataloader() if b.targets[0]["image_id"] == 20)
    before = json.loads((root / "annotations/instances_train.json").read_text())["annotations"]
    assert len(target["boxes"]) == sum(a["image_id"] == 20 for a in before) - 1
    assert target["boxes"][:, 2].max() <= 96


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("augmentation", "flp"),
        ("bad_boxes", "keep"),
        ("short_sides", ()),
        ("short_side", 16),
        ("long_side", 64),
        ("batch_size", 0),
        ("hflip", 2.0),
        ("std", (1.0, 0.0, 1.0)),
        ("test_images", "val"),
    ],
)
def test_arguments_are_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=r"expected|null exactly"):
        module(Path(), **{key: value})


def test_scales_that_are_not_drawn_from_limit_nothing() -> None:
    sides = {"long_side": 480, "short_side": 320}
    CocoDataModule(root="x", augmentation="none", **sides)
    with pytest.raises(ConfigError, match="long_side: got 480, expected at least 800"):
        CocoDataModule(root="x", augmentation="multi_scale_crop", **sides)


def test_missing_files_are_named(root: Path) -> None:
    with pytest.raises(DataError, match=r"train_annotations: found no file at .*no\.json"):
        fitted(root, train_annotations="annotations/no.json")
    with pytest.raises(DataError, match=r"train_images: found no folder at .*trian.*'train'"):
        fitted(root, train_images="trian")
    with pytest.raises(DataError, match="root: found no folder at nowhere"):
        _ = module(Path("nowhere")).num_classes


def test_an_image_of_another_size_is_named_when_it_is_read(root: Path) -> None:
    def change(document: Any) -> None:
        document["images"][0]["width"] += 1

    dense_sets.edit(root, "val", change)
    data = fitted(root)
    with pytest.raises(
        DataError, match=r"image .*007\.jpg \(index 0, id 70\): got 96×80 px, expected 97×80"
    ):
        list(data.val_dataloader())


def test_other_categories_in_validation_are_refused(root: Path) -> None:
    def change(document: Any) -> None:
        document["categories"][0]["name"] = "zero"

    dense_sets.edit(root, "val", change)
    with pytest.raises(
        DataError,
        match=r"val_annotations: .*: category 3 is 'zero', expected 'digit 0' as in training",
    ):
        fitted(root)


def test_a_folder_of_images_is_predicted(root: Path) -> None:
    data = module(root, predict_root=str(root / "val"))
    data.setup("predict")
    batches = list(data.predict_dataloader())
    assert [batch.targets[0]["image_id"] for batch in batches] == [1, 2, 3]
    assert all(len(batch.targets[0]["boxes"]) == 0 for batch in batches)
