"""If one of these fails, detection or segmentation is trained, scored or predicted wrongly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from spanet_lightning import (
    DetectionTask,
    MaskRCNN,
    RetinaNet,
    SegmentationTask,
    SemanticFPN,
    SPANetV2,
    UPerNet,
    load_official,
)
from spanet_lightning.cli import run
from spanet_lightning.data.batches import DetectionBatch, SegmentationBatch
from spanet_lightning.errors import ConfigError, DataError
from spanet_lightning.tasks.optim import OptimizerConfig, ScheduleConfig

STEADY = ScheduleConfig(name="constant", warmup_epochs=0)


def detection_batch(**changes) -> DetectionBatch:
    mask = torch.zeros(1, 64, 96, dtype=torch.bool)
    mask[0, 10:40, 10:50] = True
    target = {
        "boxes": torch.tensor([[10.0, 10, 50, 40]]),
        "labels": torch.tensor([2]),
        "masks": mask,
        "iscrowd": torch.zeros(1, dtype=torch.bool),
        "area": torch.tensor([1200.0]),
        "image_id": 7,
    }
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    sizes, original = [(64, 96), (64, 90)], [(64, 96), (128, 180)]
    return DetectionBatch(images, sizes, original, [target | changes, target], ["a.png", "b.png"])


def segmentation_batch(train: bool = False) -> SegmentationBatch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 64, 96, generator=generator)
    sizes = [(64, 96), (64, 96) if train else (50, 70)]
    stored = [(64, 96), (64, 96) if train else (100, 140)]
    masks = [torch.randint(0, 3, size, generator=generator) for size in stored]
    return SegmentationBatch(images, sizes, masks, ["a.png", "b.png"])


class Batches(LightningDataModule):
    num_classes = 3
    class_names = ("cat", "dog", "cow")
    batch_size = 2

    def __init__(self, train, evaluation) -> None:
        super().__init__()
        self.train, self.evaluation = train, evaluation

    def train_dataloader(self):
        return DataLoader([self.train] * 2, batch_size=None)

    def val_dataloader(self):
        return DataLoader([self.evaluation] * 2, batch_size=None)

    test_dataloader = predict_dataloader = val_dataloader


def detector(head=None, **options) -> DetectionTask:
    torch.manual_seed(0)
    head = head or MaskRCNN(16, 32, 4.0, 60, 30, 32)
    return DetectionTask(SPANetV2("test"), head, 3, schedule=STEADY, **options)


def segmenter(**options) -> SegmentationTask:
    torch.manual_seed(0)
    schedule = options.pop("schedule", STEADY)
    return SegmentationTask(SPANetV2("test"), SemanticFPN(16, 16), 3, schedule=schedule, **options)


def trainer(folder: Path, **options) -> Trainer:
    return Trainer(
        **{"max_epochs": 1} | options,
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def test_detection_from_training_to_predictions(tmp_path: Path) -> None:
    batch = detection_batch()
    task, data = detector(per_class=True), Batches(batch, batch)
    runner = trainer(tmp_path)
    runner.fit(task, data)
    names = set(runner.callback_metrics)
    assert {"train/loss", "train/loss_mask", "val/box_ap", "val/mask_ap", "val/box_ap/dog"} <= names
    # Objects are of one size: the other sizes have no figures.
    assert {"val/box_ap_medium", "val/mask_ar100"} <= names
    assert "val/box_ap_large" not in names
    tested = runner.test(task, data, verbose=False)[0]
    assert tested["test/box_ap"] == pytest.approx(float(runner.callback_metrics["test/box_ap"]))
    found = runner.predict(task, data)[0]
    assert [f["path"] for f in found] == ["a.png", "b.png"]
    assert found[0]["image_id"] == 7
    for f, (height, width) in zip(found, batch.original_sizes, strict=True):
        assert f["masks"].shape == (len(f["boxes"]), height, width)
        assert (f["boxes"] <= torch.tensor([width, height, width, height])).all()


def test_segmentation_from_training_to_predictions(tmp_path: Path) -> None:
    task, data = segmenter(per_class=True), Batches(segmentation_batch(True), segmentation_batch())
    runner = trainer(tmp_path)
    runner.fit(task, data)
    names = {"val/miou", "val/mean_accuracy", "val/pixel_accuracy", "val/iou/dog", "train/loss"}
    assert names <= set(runner.callback_metrics)
    found = runner.predict(task, data)[0]
    assert [tuple(f["labels"].shape) for f in found] == [(64, 96), (100, 140)]
    assert found[0]["labels"].dtype == torch.int64


def test_padding_changes_no_prediction() -> None:
    task = segmenter().eval()
    batch = segmentation_batch()
    alone = SegmentationBatch(batch.images[1:, :, :50, :70], [(50, 70)], batch.masks[1:], ["b.png"])
    with torch.no_grad():
        together, single = list(task.label_maps(batch))[1], next(task.label_maps(alone))
    assert torch.equal(together, single)


def test_forward_is_the_inference_result() -> None:
    x = torch.randn(1, 3, 64, 96)
    slide = {"inference": "slide", "window_stride": 32}
    with torch.no_grad():
        whole = segmenter().eval()(x)
        assert whole.shape == (1, 3, 64, 96)
        torch.testing.assert_close(whole, segmenter(**slide, window=128).eval()(x))
        assert not torch.allclose(whole, segmenter(**slide, window=48).eval()(x))
        (found,) = detector().eval()(x)
    assert found["masks"].shape == (len(found["boxes"]), 64, 96)


def test_batch_of_one_image_is_refused_where_pooled_maps_are_normalised(tmp_path: Path) -> None:
    task = SegmentationTask(SPANetV2("test"), UPerNet(8), 3, schedule=STEADY)
    data = Batches(segmentation_batch(True), segmentation_batch())
    data.batch_size = 1
    with pytest.raises(ConfigError, match=r"data.batch_size: got 1, expected at least 2: UPerNet"):
        trainer(tmp_path, max_epochs=1).fit(task, data)


def test_what_can_not_be_scored_is_not_logged_and_an_empty_test_is_refused(tmp_path: Path) -> None:
    batch = segmentation_batch()
    for mask in batch.masks:
        mask[mask == 2] = 1
    task, data = segmenter(per_class=True), Batches(segmentation_batch(True), batch)
    task.layers.conv_seg.bias.data[2] = -100.0  # class 2 is neither there nor predicted
    runner = trainer(tmp_path)
    (figures,) = runner.test(task, data, verbose=False)
    assert "test/iou/cow" not in figures
    assert all(value >= 0 for value in figures.values())
    for mask in batch.masks:
        mask[:] = 255
    with pytest.raises(DataError, match=r"test/miou: nothing to score.* a pixel with a class"):
        runner.test(task, data, verbose=False)
    empty = detection_batch(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64),
                            masks=torch.zeros(0, 64, 96).bool(), area=torch.zeros(0),
                            iscrowd=torch.zeros(0).bool())  # fmt: skip
    empty = empty._replace(targets=[empty.targets[0]] * 2)
    with pytest.raises(DataError, match=r"test/box_ap: nothing to score.* an object"):
        runner.test(detector(RetinaNet(16, 3.0)), Batches(empty, empty), verbose=False)


def test_a_run_of_steps_with_poly_ends_at_zero(tmp_path: Path) -> None:
    poly = ScheduleConfig(
        name="poly", min_lr=0.0, update="step", warmup_images=2, warmup_factor=0.5
    )
    task = segmenter(schedule=poly, optimizer=OptimizerConfig(lr=1e-3))
    data = Batches(segmentation_batch(True), segmentation_batch())
    runner = trainer(tmp_path, max_epochs=-1, max_steps=3, limit_val_batches=0)
    runner.fit(task, data)
    assert runner.global_step == 3
    assert runner.optimizers[0].param_groups[0]["lr"] == 0


def test_checkpoint_of_a_run_reloads_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["lightning"])
    config = Path(__file__).parent.parent / "configs" / "digits" / "semantic_fpn.yaml"
    settings = {
        "trainer.default_root_dir": str(tmp_path),
        "trainer.logger": "false",
        "trainer.max_epochs": "1",
        "trainer.limit_train_batches": "1",
        "trainer.limit_val_batches": "1",
        "data.batch_size": "2",
    }
    args = [f"--{key}={value}" for key, value in settings.items()]
    trained = run(["fit", "--config", str(config), *args]).model.eval()
    (checkpoint,) = tmp_path.rglob("best.ckpt")
    loaded = SegmentationTask.load_from_checkpoint(checkpoint, weights_only=True).eval()
    assert loaded.model.num_classes == 11
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(x), trained(x))
    report = load_official(trained.model, checkpoint)
    assert not report.missing


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": torch.tensor([4])}, r"a.png: label 4: expected 1 to 3"),
        ({"labels": torch.tensor([0])}, r"a.png: label 0: expected 1 to 3"),
        ({"labels": torch.tensor([1, 1])}, r"a.png: got 2 labels for 1 boxes"),
        ({"boxes": torch.tensor([[5.0, 5, 5, 9]])}, r"a.png: box \[5.0, 5.0, 5.0, 9.0\]: expected"),
        ({"boxes": torch.tensor([[5.0, 5, float("nan"), 9]])}, r"a.png: box .*nan.*finite"),
    ],
)
def test_targets_that_cannot_be_learnt_are_named(changes: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        detector().check(detection_batch(**changes))


def test_mask_values_beyond_the_classes_are_named() -> None:
    batch = segmentation_batch()
    batch.masks[1][3, 3] = 3
    with pytest.raises(DataError, match=r"b.png: mask value 3: expected 0 to 2, or 255"):
        segmenter().check(batch)
    batch.masks[1][3, 3] = 255
    segmenter().check(batch)


def test_data_of_other_classes_or_without_masks_are_refused(tmp_path: Path) -> None:
    batch = detection_batch()
    data = Batches(batch, batch)
    data.num_classes = 5
    with pytest.raises(ConfigError, match=r"num_classes: got 3, expected 5"):
        trainer(tmp_path).fit(detector(), data)
    data = Batches(batch, batch)
    data.masks = False
    with pytest.raises(ConfigError, match=r"data.masks: got False, expected true"):
        trainer(tmp_path).fit(detector(), data)
    trainer(tmp_path, fast_dev_run=True).fit(detector(RetinaNet(16, 3.0)), data)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inference": "slid"}, r"inference: got 'slid'.*did you mean 'slide'"),
        ({"window": 8}, r"window: got 8, expected at least 32 pixels"),
        ({"window_stride": 600}, r"window_stride: got 600, expected 1 to 512"),
        ({"scales": ()}, r"scales: got \[\], expected one or more numbers above 0"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        segmenter(**arguments)


@pytest.mark.slow
def test_two_processes_evaluate_seven_images_as_one_does(tmp_path):
    """Lightning's own sampler would give each process four, one of them twice."""
    config = Path(__file__).parents[1] / "configs" / "digits" / "semantic_fpn.yaml"
    figures = []
    for devices in (1, 2):
        command = (
            *(sys.executable, "-m", "spanet_lightning", "validate", f"--config={config}"),
            *("--data.val_scenes=7", f"--trainer.devices={devices}", "--trainer.strategy=ddp"),
        )
        printed = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout
        rows = [line.strip("│ ").split("│") for line in printed.splitlines() if "val/" in line]
        figures.append({name.strip(): value.strip() for name, value in rows})
    assert set(figures[0]) == {"val/miou", "val/mean_accuracy", "val/pixel_accuracy"}
    assert figures[0] == figures[1]
