"""`lightning predict`: what is written can be read back by others, and pictures show it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from spanet_lightning import cli, pictures
from spanet_lightning.cli.overlays import picture
from spanet_lightning.cli.predictions import PredictionWriter
from spanet_lightning.data import CocoDataModule, DigitScenesDataModule, rle
from spanet_lightning.tasks import DetectionTask
from tests import dense_sets, helpers

DETECTOR = str(helpers.CONFIGS / "digits" / "mask_rcnn.yaml")
SEGMENTER = str(helpers.CONFIGS / "digits" / "semantic_fpn.yaml")
FEW = ("--trainer.logger=false", "--trainer.enable_progress_bar=false")
SCENES = ("--data.test_scenes=5", "--data.batch_size=2")


def folder_of(config: str, *args: str) -> Path:
    """Predict and return the folder of the predictions."""
    experiment = cli.run(["predict", "--config", config, *FEW, *args])
    (writer,) = (c for c in experiment.trainer.callbacks if isinstance(c, PredictionWriter))
    return writer.folder


def test_detections_are_cocos_results_of_every_image() -> None:
    folder = folder_of(DETECTOR, *SCENES, "--num_visualizations=3")
    results = json.loads((folder / "results.json").read_text())
    images = json.loads((folder / "images.json").read_text())
    assert images == [{"id": i, "file_name": f"test/{i}"} for i in range(1, 6)]
    for found in results[:20]:
        assert rle.compress(found["segmentation"], 160, 160) is not None
        assert found["category_id"] in range(1, 11)
    names = sorted(path.name for path in (folder / "pictures").iterdir())
    assert names == ["test-1.png", "test-2.png", "test-3.png"]
    assert not list(folder.glob(".part*"))


def test_a_second_prediction_leaves_the_first_alone() -> None:
    few = (*SCENES, "--trainer.limit_predict_batches=1")
    first, second = folder_of(SEGMENTER, *few), folder_of(SEGMENTER, *few)
    assert first.name == "predictions"
    assert second.name == "predictions-2"


def test_segmentation_is_masks_with_a_palette() -> None:
    folder = folder_of(SEGMENTER, *SCENES, "--num_visualizations=1")
    masks = sorted((folder / "masks").rglob("*.png"))
    assert [path.name for path in masks] == [f"{i}.png" for i in range(1, 6)]
    with Image.open(masks[0]) as mask:
        assert (mask.mode, mask.size) == ("P", (160, 160))
        assert np.array(mask).max() <= 10
        palette = mask.getpalette()
    assert palette is not None
    assert len({tuple(palette[3 * i : 3 * i + 3]) for i in range(11)}) == 11
    with Image.open(folder / "pictures" / "test-1.png") as shown:
        assert shown.width > 2 * 160


def test_classes_are_a_table_with_paths(tmp_path: Path) -> None:
    helpers.images(tmp_path / "set")
    experiment = cli.run(
        [
            *("predict", "--config", helpers.DIGITS, *FEW),
            *("--data", "ImageClassificationDataModule", "--data.root", str(tmp_path / "set")),
            *("--data.image_size=32", "--data.num_workers=0", "--data.batch_size=3"),
        ]
    )
    (writer,) = (c for c in experiment.trainer.callbacks if isinstance(c, PredictionWriter))
    with (writer.folder / "predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    expected = [f"{label}/{i}.png" for label in ("cat", "dog") for i in range(4)]
    assert [row["path"].split("val/")[1] for row in rows] == expected
    for row in rows:
        assert {row["class_1"], row["class_2"]} == {"cat", "dog"}
        assert float(row["probability_1"]) >= float(row["probability_2"])


def test_pictures_of_a_classifier_say_class_and_probability(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    helpers.images(tmp_path / "set")
    data = ["--data", "ImageClassificationDataModule", "--data.root", str(tmp_path / "set")]
    sizes = ["--data.image_size=32", "--data.num_workers=0", "--data.batch_size=3"]
    cli.main(["predict", "--config", helpers.DIGITS, *data, *sizes, "--num_visualizations=4"])
    pictures = sorted(Path("runs/digits-spanetv2/predictions/pictures").iterdir())
    assert [p.name for p in pictures] == [f"cat-{i}.png" for i in range(4)]
    with Image.open(pictures[0]) as shown:  # enlarged, above the label and two classes
        assert shown.size == (192, 192 + 3 * 18)
    with pytest.raises(SystemExit):
        cli.main(["predict", "--config", DETECTOR, *FEW, "--num_visualizations=-1"])
    assert "num_visualizations: got -1, expected at least 0" in capsys.readouterr().err


class Oracle(DetectionTask):
    """Finds exactly what is annotated."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)


def test_written_truth_scores_one_by_pycocotools(tmp_path: Path) -> None:
    """Ids, the form of boxes and the masks are right, or AP would not be 1."""
    from pycocotools.cocoeval import COCOeval

    root = dense_sets.coco(tmp_path / "set")
    data = CocoDataModule(str(root), **dense_sets.COCO_FOLDERS, masks=True)
    data.setup("test")
    writer = PredictionWriter(tmp_path / "run")
    trainer: Any = type("Trainer", (), {})()
    trainer.is_global_zero, trainer.global_rank, trainer.world_size = True, 0, 1
    trainer.datamodule = data
    trainer.strategy = type(
        "Strategy", (), {"broadcast": lambda self, x: x, "barrier": lambda self: None}
    )()
    task = Oracle()
    writer.on_predict_start(trainer, task)
    for batch in data.test_dataloader():
        found = [
            {**target, "scores": torch.ones(len(target["boxes"])), "path": path}
            for target, path in zip(batch.targets, batch.paths, strict=True)
        ]
        writer.write_on_batch_end(trainer, task, found, None, batch, 0, 0)
    writer.on_predict_end(trainer, task)
    truth = COCO(str(data.annotation_file("test")))
    truth.dataset.setdefault("info", {})
    results = truth.loadRes(str(writer.folder / "results.json"))
    for kind in ("bbox", "segm"):
        scored = COCOeval(truth, results, kind)
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
        assert scored.stats[0] == pytest.approx(1.0), kind


def test_a_picture_holds_boxes_masks_names_and_the_image() -> None:
    data = DigitScenesDataModule(val_scenes=1)
    data.setup("fit")
    (batch,) = map(data.normalized, data.val_dataloader())
    target = batch.targets[0]
    found = {**target, "scores": torch.ones(len(target["boxes"]))}
    shown = np.array(picture(batch, 0, found, data))
    sample = data.splits["val"][0]
    left = shown[18 : 18 + 160, :160]
    assert shown.shape[1] == 2 * 160 + 4
    assert shown.shape[0] > 18 + 160  # the legend
    far = np.ones((160, 160), dtype=bool)  # where nothing is drawn, the image is as it was
    for x1, y1, x2, y2 in target["boxes"].int().tolist():
        far[max(0, y1 - 16) : y2 + 16, max(0, x1 - 4) : x2 + 60] = False
    assert far.sum() > 500
    image = sample.image.permute(1, 2, 0).numpy()
    assert np.abs(left[far].astype(int) - image[far].astype(int)).max() <= 1
    inside = target["masks"].any(dim=0).numpy()
    assert (left[inside] != image[inside]).any(axis=1).mean() > 0.9


def test_boxes_of_low_scores_are_not_drawn() -> None:
    image = torch.zeros(3, 20, 20, dtype=torch.uint8)
    found = {
        "boxes": torch.tensor([[2.0, 2.0, 9.0, 9.0]]),
        "labels": torch.tensor([1]),
        "scores": torch.tensor([pictures.LEAST_SCORE - 0.01]),
    }
    assert torch.equal(pictures.with_objects(image, found, ["a"], [(255, 0, 0)]), image)


def test_ignored_pixels_stay_as_they_are() -> None:
    image = torch.full((3, 2, 2), 50, dtype=torch.uint8)
    labels = torch.tensor([[0, 255], [1, 255]])
    shown = pictures.with_labels(image, labels, [(250, 0, 0), (0, 250, 0)])
    assert shown[:, 0, 0].tolist() == [170, 20, 20]
    assert shown[:, 1, 0].tolist() == [20, 170, 20]
    assert shown[:, :, 1].eq(50).all()
