"""On real images: no false faults, batches that are right, metrics that agree with pycocotools.

The sets lie beside the repository where it is developed (`../shared/data`); elsewhere these tests
are skipped, and nothing in the project needs them.
"""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from spanet_lightning import app
from spanet_lightning.cli.overlays import picture
from spanet_lightning.data import CocoDataModule, SegmentationFoldersDataModule, rle
from spanet_lightning.tasks.metrics import COCO_NUMBERS, CocoMetric, SegmentationMetric
from tests.dense_sets import COCO_FOLDERS, as_array
from tests.test_metrics_dense import numpy_miou

SETS = Path(__file__).parents[2] / "shared" / "data"
PERSONS, CAMVID, ADE = SETS / "coco_person", SETS / "camvid", SETS / "camvid" / "ade20k_sample"


def there(root: Path) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        not root.is_dir(), reason=f"there is no {root.name} in ../shared/data"
    )


def persons(**arguments: Any) -> CocoDataModule:
    data = CocoDataModule(str(PERSONS), masks=True, **{**COCO_FOLDERS, **arguments})
    data.setup("fit")
    return data


def streets(root: Path = CAMVID, **arguments: Any) -> SegmentationFoldersDataModule:
    data = SegmentationFoldersDataModule(str(root), num_workers=0, **arguments)
    data.setup("fit")
    return data


@pytest.mark.parametrize(
    ("root", "images", "classes"),
    [
        pytest.param(root, images, classes, marks=there(root), id=root.name)
        for root, images, classes in ((PERSONS, 169, 1), (CAMVID, 468, 11), (ADE, 3, 150))
    ],
)
def test_a_sound_set_has_no_fault(
    root: Path, images: int, classes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    app.main(["data", "check", str(root), "--json"])  # ends with 1 where there are faults
    found = json.loads(capsys.readouterr().out)
    assert found["faults"] == []
    # Three images of ADE20K's 150 classes lack most of them.
    assert all(note.startswith("classes without pixels") for note in found["notes"])
    assert sum(split["images"] for split in found["splits"].values()) == images
    assert len(found["classes"]) == classes


# -- COCO


@there(PERSONS)
def test_training_objects_lie_in_their_images_and_masks_in_their_boxes() -> None:
    data = persons(long_side=320, short_side=192, short_sides=(160, 192))
    assert data._indices["train"].crowds.sum() == 12
    objects = 0
    for number, batch in enumerate(map(data.normalized, data.train_dataloader())):
        assert batch.images.isfinite().all()
        assert 0.3 < batch.images.std() < 3
        for (height, width), target in zip(batch.sizes, batch.targets, strict=True):
            boxes, masks = target["boxes"], target["masks"]
            objects += len(boxes)
            assert not target["iscrowd"].any()
            assert masks.shape == (len(boxes), height, width)
            assert (boxes >= 0).all()
            assert (boxes <= torch.tensor([width, height, width, height])).all()
            for mask, (x1, y1, x2, y2) in zip(masks, boxes.tolist(), strict=True):
                # A crop may leave a corner of the box and nothing of the person.
                rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
                if len(rows):
                    assert columns.min() >= x1 - 2
                    assert columns.max() < x2 + 2
                    assert rows.min() >= y1 - 2
                    assert rows.max() < y2 + 2
        if number == 15:
            break
    assert objects > 40


@there(PERSONS)
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
def test_evaluation_has_the_annotations_of_the_file_crowds_included() -> None:
    data = persons()
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(data.annotation_file("val")))
    index = data._indices["val"]
    crowds = 0
    for number in range(len(index)):
        target = index.target(number, crowds=True, masks=True)
        expected = truth.loadAnns(truth.getAnnIds(target["image_id"]))
        assert target["iscrowd"].tolist() == [bool(a["iscrowd"]) for a in expected]
        crowds += int(target["iscrowd"].sum())
        for mask, annotation in zip(target["masks"], expected, strict=True):
            assert np.array_equal(mask.numpy(), truth.annToMask(annotation))
    assert crowds == 8


def perturbed(target: Any, rng: np.random.Generator) -> Any:
    """Return what a middling detector would find: most objects, moved, and some that are none."""
    height, width = target["masks"].shape[1:]
    kept = np.flatnonzero(~target["iscrowd"].numpy() & (rng.random(len(target["boxes"])) < 0.8))
    boxes, masks = [], []
    for i in [*kept, *kept[rng.random(len(kept)) < 0.3]]:
        sides = (target["boxes"][i, 2:] - target["boxes"][i, :2]).repeat(2).numpy()
        boxes.append(target["boxes"][i].numpy() + sides * rng.normal(0, 0.08, 4))
        shift = rng.integers(-1 - int(0.06 * sides[0]), 2 + int(0.06 * sides[0]))
        masks.append(torch.roll(target["masks"][i], int(shift), dims=1))
    for corner in rng.random((int(rng.integers(4)), 2)) * (width / 2, height / 2):
        boxes.append(np.array([*corner, corner[0] + width / 5, corner[1] + height / 4]))
        x1, y1, x2, y2 = boxes[-1].astype(int)
        mask = torch.zeros(height, width, dtype=torch.bool)
        mask[y1:y2, x1:x2] = True
        masks.append(mask)
    corners = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    return {
        "boxes": torch.from_numpy(corners),
        "labels": torch.ones(len(boxes), dtype=torch.int64),
        "scores": torch.from_numpy(rng.random(len(boxes)).astype(np.float32)),
        "masks": torch.stack(masks) if masks else target["masks"][:0],
    }


@there(PERSONS)
def test_figures_of_real_annotations_are_those_of_pycocotools() -> None:
    """Crowds, objects of all three sizes, and images where nothing is found."""
    data = persons()
    index = data._indices["val"]
    rng = np.random.default_rng(0)
    metric = CocoMetric(masks=True)
    results: dict[str, list[Any]] = {"bbox": [], "segm": []}
    for number in range(len(index)):
        target = index.target(number, crowds=True, masks=True)
        found = perturbed(target, rng)
        metric.add([found], [target])
        for i, (x1, y1, x2, y2) in enumerate(found["boxes"].double().tolist()):
            result = {"image_id": target["image_id"], "category_id": data.category_ids[0]}
            result["score"] = float(found["scores"][i])
            results["bbox"].append({**result, "bbox": [x1, y1, x2 - x1, y2 - y1]})
            results["segm"].append({**result, "segmentation": rle.encode(found["masks"][i])})
    ours = metric.numbers()
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(data.annotation_file("val")))
            truth.dataset.setdefault("info", {})
            theirs = COCOeval(truth, truth.loadRes(results[kind]), kind)
            theirs.evaluate()
            theirs.accumulate()
            theirs.summarize()
        figures = [float(ours[f"{name}_{number}"]) for number in COCO_NUMBERS.values()]
        assert figures == pytest.approx(list(theirs.stats), abs=1e-6)
        assert 0.1 < figures[0] < 0.9
        assert min(figures) > 0  # no size is missing


@there(PERSONS)
def test_objects_are_drawn_on_their_image(tmp_path: Path) -> None:
    data = persons(long_side=640, short_side=480, short_sides=(480,))
    batch = data.normalized(next(iter(data.val_dataloader())))
    (target,) = batch.targets
    found = {**target, "scores": torch.ones(len(target["boxes"]))}
    drawn = picture(batch, 0, found, data)
    drawn.save(tmp_path / "a.png")
    height, width = batch.original_sizes[0]
    assert drawn.width == 2 * width + 4
    shown = np.array(drawn)[18 : 18 + height, :width].astype(int)
    with Image.open(batch.paths[0]) as image:
        stored = np.array(image.convert("RGB")).astype(int)
    changed = np.abs(shown - stored).mean(axis=2)
    inside = target["masks"].any(dim=0).numpy()
    assert changed[inside].mean() > 20
    far = np.ones((height, width), dtype=bool)
    for x1, y1, x2, y2 in target["boxes"].int().tolist():
        far[max(0, y1 - 20) : y2 + 20, max(0, x1 - 20) : x2 + 20] = False
    assert changed[far].mean() < 8


# -- images and masks


def explained(image: torch.Tensor, mask: torch.Tensor) -> float:
    """Return the share of the colours' variance that lies between the classes."""
    labels = mask[mask != 255]
    colours = image[:, mask != 255].double()
    between = 0.0
    for label in labels.unique():
        part = colours[:, labels == label]
        between += part.shape[1] * float(((part.mean(1) - colours.mean(1)) ** 2).sum())
    return between / float(((colours - colours.mean(1, keepdim=True)) ** 2).sum())


@there(CAMVID)
def test_augmented_masks_lie_on_what_they_label() -> None:
    data = streets(crop_size=256, long_side=1440, short_side=360, batch_size=8)
    batch = data.normalized(next(iter(data.train_dataloader())))
    assert batch.images.shape == (8, 3, 256, 256)
    right, mirrored, upside = 0.0, 0.0, 0.0
    for image, mask, (height, width) in zip(batch.images, batch.masks, batch.sizes, strict=True):
        assert mask.shape == (256, 256)
        assert set(mask.unique().tolist()) <= {*range(11), 255}
        assert mask[height:].eq(255).all()
        assert image[:, height:].eq(0).all()
        image, mask = image[:, :height, :width], mask[:height, :width]
        right += explained(image, mask)
        mirrored += explained(image, mask.flip(1))
        upside += explained(image, mask.flip(0))
    assert right > 1.3 * mirrored
    assert right > 1.3 * upside


@there(CAMVID)
def test_evaluation_keeps_camvids_masks_and_counts_as_numpy_does() -> None:
    data = streets(short_side=180, long_side=720)
    metric = SegmentationMetric(data.num_classes)
    rng = np.random.default_rng(0)
    pairs = []
    for number in range(0, 101, 8):
        sample = data.evaluated("val")[number]
        assert min(sample.image.shape[1:]) == 180
        file = Path(sample.path.replace("/images/", "/annotations/")).with_suffix(".png")
        stored = as_array(file).astype(int)
        assert np.array_equal(sample.mask.numpy(), np.where(stored == 0, 255, stored - 1))
        # A middling prediction: the labels of somewhere near, and some of any class.
        found = np.roll(np.where(sample.mask == 255, 0, sample.mask), rng.integers(4, 20), axis=1)
        found = np.where(rng.random(found.shape) < 0.1, rng.integers(0, 11, found.shape), found)
        metric.update(torch.from_numpy(found), sample.mask)
        pairs.append((found, sample.mask.numpy()))
    figures = metric.compute()
    names = ("miou", "mean_accuracy", "pixel_accuracy")
    expected = numpy_miou(pairs, 11)
    assert [float(figures[name]) for name in names] == pytest.approx(expected, abs=1e-6)
    assert 0.3 < expected[0] < 0.9


@there(CAMVID)
def test_a_street_is_drawn_in_the_colours_of_its_classes() -> None:
    data = streets()
    batch = data.normalized(next(iter(data.val_dataloader())))
    labels = torch.where(batch.masks[0] == 255, 0, batch.masks[0])
    drawn = np.array(picture(batch, 0, {"labels": labels}, data)).astype(int)
    height, width = batch.masks[0].shape
    panel = drawn[18 : 18 + height, :width]
    for label in (0, 3):  # sky and road
        here = (batch.masks[0] == label).numpy()
        assert here.sum() > 500
        with Image.open(batch.paths[0]) as image:
            mixed = 0.4 * np.array(image.convert("RGB")) + 0.6 * np.array(data.palette[label])
        assert np.abs(panel - mixed)[here].mean() < 4


@there(ADE)
def test_ade20ks_own_files_are_read() -> None:
    data = streets(ADE, train_split="validation")
    assert data.num_classes == 150
    assert data.class_names[0].startswith("wall")
    sample = data.evaluated("val")[0]
    assert sample.mask.shape == as_array(Path(sample.path)).shape[:2]
    assert 3 < len(sample.mask.unique()) < 60
