"""COCO data: what exports are read as, how batches are formed, one error for whatever is wrong."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from spanet_lightning.data import CocoDataModule
from spanet_lightning.data.batches import DetectionBatch
from spanet_lightning.errors import ConfigError, DataError
from tests import dense_sets

Change = Callable[[Any], None]


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


def plain(root: Path, **arguments: Any) -> list[DetectionBatch]:
    """Return the training images one by one, in order of their ids, not augmented."""
    one: dict[str, Any] = {"augmentation": "none", "batch_size": 1, "group_by_aspect": False}
    batches = fitted(root, **one, **arguments).train_dataloader()
    return sorted(batches, key=lambda batch: batch.targets[0]["image_id"])


def test_nothing_is_read_before_it_is_asked_for() -> None:
    module(Path("no/such/folder"))


def test_classes_come_from_the_annotations(root: Path) -> None:
    data = module(root)
    assert data.num_classes == 10
    assert data.class_names == tuple(f"digit {i}" for i in range(10))
    assert data.category_ids == data.info.ids == dense_sets.CATEGORY_IDS


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


def test_numbers_alone_are_read_as_for_overfitting(root: Path) -> None:
    images = fitted(root).train_dataloader().dataset
    assert torch.equal(images[1].image, images[1].image)


# -- exports


def every(records: str, **values: Any) -> Change:
    return lambda document: [record.update(values) for record in document[records]] and None


def without(records: str, *keys: str) -> Change:
    return lambda d: [r.pop(key, None) for r in d[records] for key in keys] and None


def as_text(document: Any) -> None:
    for records, keys in {"images": ("id", "width"), "annotations": ("image_id", "id")}.items():
        for record in document[records]:
            record |= {key: str(record[key]) for key in keys}
    for record in document["annotations"]:
        record["category_id"] = f"{record['category_id']}"
        record["iscrowd"] = "0"
    for record in document["categories"]:
        record["id"] = float(record["id"])


def from_zero(document: Any) -> None:
    ids = {id_: i for i, id_ in enumerate(dense_sets.CATEGORY_IDS)}
    for record in document["categories"]:
        record["id"] = ids[record["id"]]
    for record in document["annotations"]:
        record["category_id"] = ids[record["category_id"]]


def with_root(document: Any) -> None:
    every("categories", supercategory="digits")(document)
    document["categories"].insert(0, {"id": 0, "name": "digits", "supercategory": "none"})


def names(form: str) -> Change:
    return lambda d: [r.update(file_name=form.format(r["file_name"])) for r in d["images"]] and None


@pytest.mark.parametrize(
    "change",
    [
        as_text,
        from_zero,
        with_root,
        every("annotations", iscrowd=None, area=None),
        without("annotations", "iscrowd", "area", "bbox", "id"),
        without("images", "width", "height"),
        every("images", width=None, height=None),
        names("train/{}"),
        names("train\\{}"),
        names(".\\{}"),
        names("../../label-studio/media/upload/4/{}"),
        names("C:\\Users\\me\\{}"),
        names("https://example.org/d/train/{}?v=1"),
    ],
)
def test_exports_of_tools_are_read_as_what_they_mean(change: Change, root: Path) -> None:
    expected = plain(root, masks=True)
    dense_sets.edit(root, "train", change)
    if change in (from_zero, with_root):
        dense_sets.edit(root, "val", change)
    batches = plain(root, masks=True)
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        assert torch.equal(batch.images, other.images)
        for key in ("boxes", "labels", "masks", "iscrowd"):
            assert torch.equal(batch.targets[0][key], other.targets[0][key]), key  # type: ignore[literal-required]


def test_an_export_with_annotations_beside_its_images_is_found(root: Path) -> None:
    expected = module(root).class_names
    for split, name in (("train", "train"), ("val", "valid")):
        (root / split).rename(root / f"{name}_")
        (root / f"{name}_").rename(root / name)
        file = root / "annotations" / f"instances_{split}.json"
        file.rename(root / name / "_annotations.coco.json")
    data = CocoDataModule(
        str(root), long_side=128, short_side=96, augmentation="flip", num_workers=0
    )
    data.setup("fit")
    assert data.class_names == expected
    assert (len(data.train_dataloader().dataset), len(data.evaluated("val"))) == (6, 3)  # type: ignore[arg-type]
    assert data.annotation_file("test") == data.annotation_file("val")


def test_a_list_of_images_alone_predicts_and_is_not_scored(root: Path) -> None:
    document = json.loads((root / "annotations/instances_val.json").read_text())
    del document["annotations"]
    (root / "annotations/info.json").write_text(json.dumps(document))
    test = {"test_images": "val", "test_annotations": "annotations/info.json"}
    data = module(root, **test)
    data.setup("predict")
    assert [b.targets[0]["image_id"] for b in data.predict_dataloader()] == [70, 80, 90]
    with pytest.raises(DataError, match=r"test_annotations: .*info\.json has no annotations"):
        module(root, **test).setup("test")


def test_a_split_may_lack_categories_but_not_name_them_otherwise(root: Path) -> None:
    def fewer(document: Any) -> None:
        used = {record["category_id"] for record in document["annotations"]}
        document["categories"] = [c for c in document["categories"] if c["id"] in used]

    labels = [b.targets[0]["labels"].tolist() for b in fitted(root).val_dataloader()]
    dense_sets.edit(root, "val", fewer)
    data = fitted(root)
    assert [b.targets[0]["labels"].tolist() for b in data.val_dataloader()] == labels
    assert data.num_classes == 10
    dense_sets.edit(root, "val", lambda d: d["categories"][0].update(name="zero"))
    with pytest.raises(DataError, match=r"val_annotations: .*: category \d+ is 'zero', expected"):
        fitted(root)


def test_categories_without_an_annotation_are_named(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dense_sets.edit(root, "train", lambda d: d["categories"].append({"id": 99, "name": "ten"}))
    with caplog.at_level("INFO"):
        fitted(root)
    assert "categories have no annotation in" in caplog.text
    assert "can't be learned" in caplog.text
    assert ", ten." in caplog.text


# -- what is excluded, dropped or refused


def test_crowds_are_excluded_from_training_only(root: Path) -> None:
    dense_sets.edit(root, "val", lambda d: d["annotations"][0].update(iscrowd=1))
    (first, *_) = fitted(root).val_dataloader()
    assert first.targets[0]["iscrowd"].tolist()[:2] == [True, False]
    dense_sets.edit(root, "train", every("annotations", iscrowd=1))
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
    for keep_empty, count in ((False, 4), (True, 5)):
        data = fitted(root, bad_boxes="drop", keep_empty=keep_empty)
        assert len(data.train_dataloader().dataset) == count  # type: ignore[arg-type]


def test_bad_boxes_and_empty_masks_are_dropped_where_asked(root: Path) -> None:
    """Boxes, labels and masks stay as many as each other."""

    def change(document: Any) -> None:
        ours = [a for a in document["annotations"] if a["image_id"] == 20]
        ours[0]["bbox"][2] = 0
        ours[1]["bbox"] = [40.0, 40.0, 500.0, 20.0]
        other = next(a for a in document["annotations"] if a["image_id"] == 30)
        other["segmentation"] = [[5, 5, 5, 5, 5, 5]]

    before = [len(batch.targets[0]["boxes"]) for batch in plain(root)]
    dense_sets.edit(root, "train", change)
    with pytest.raises(DataError, match="degenerate box"):
        fitted(root)
    targets = [batch.targets[0] for batch in plain(root, bad_boxes="drop", masks=True)]
    after = [[len(target[key]) for key in ("boxes", "labels", "masks")] for target in targets]  # type: ignore[literal-required]
    assert after == [[n - (i in (1, 2))] * 3 for i, n in enumerate(before)]
    assert float(targets[1]["boxes"][:, 2].max()) <= 96
    assert all(target["masks"].flatten(1).any(dim=1).all() for target in targets)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("001.JPG", "there is '001.jpg', which differs in upper and lower case"),
        ("0 01.jpg", "there is '001.jpg', which differs in blanks"),
        ("%30%301.jpg", "there is '001.jpg', which differs in percent encoding"),
        ("gone.jpg", "there is no such file;"),
    ],
)
def test_a_missing_image_is_named_with_the_one_that_is_meant(
    name: str, message: str, root: Path
) -> None:
    dense_sets.edit(root, "train", lambda d: d["images"][0].update(file_name=name))
    with pytest.raises(DataError, match=rf"image 10: missing image: .*{message}"):
        fitted(root)


def test_a_name_in_another_unicode_form_is_named(root: Path) -> None:
    (root / "train/001.jpg").rename(root / "train" / unicodedata.normalize("NFD", "é.jpg"))
    dense_sets.edit(root, "train", lambda d: d["images"][0].update(file_name="é.jpg"))
    with pytest.raises(DataError, match="which differs in Unicode form"):
        fitted(root)


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
    with pytest.raises(ConfigError, match=r"expected|the annotations of"):
        module(Path(), **{key: value})


def test_scales_that_are_not_used_limit_nothing() -> None:
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
        _ = CocoDataModule("nowhere").num_classes


def test_an_image_of_another_size_is_named_when_it_is_read(root: Path) -> None:
    dense_sets.edit(root, "val", lambda d: d["images"][0].update(width=97))
    with pytest.raises(
        DataError, match=r"image .*007\.jpg \(index 0, id 70\): got 96×80 px, expected 97×80"
    ):
        list(fitted(root).val_dataloader())


def test_a_folder_of_images_is_predicted(root: Path) -> None:
    data = module(root, predict_root=str(root / "val"))
    data.setup("predict")
    batches = list(data.predict_dataloader())
    assert [batch.targets[0]["image_id"] for batch in batches] == [1, 2, 3]
    assert all(len(batch.targets[0]["boxes"]) == 0 for batch in batches)
