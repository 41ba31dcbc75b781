"""The classification task: its loss, its metrics, its seeds, its checkpoints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from spanet_lightning import Backbone, ClassificationTask, DigitsDataModule, SPANet, SPANetV2
from spanet_lightning.cli import run
from spanet_lightning.errors import CheckpointError, ConfigError, DataError
from spanet_lightning.tasks.optim import OptimizerConfig, ScheduleConfig


def backbone(num_classes: int = 10, **arguments: Any) -> Backbone:
    return SPANet("test", num_classes=num_classes, img_size=32, **arguments)


def plain_task(**arguments: Any) -> ClassificationTask:
    unmixed = {"mixup_alpha": 0.0, "cutmix_alpha": 0.0, "label_smoothing": 0.0}
    return ClassificationTask(**{"backbone": backbone(), **unmixed, **arguments})


def trainer(folder: Path, **arguments: Any) -> Trainer:
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "default_root_dir": folder,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(**{**quiet, **arguments})


class FixedLogits(Backbone):
    """Returns its input, so that a test chooses the logits."""

    def __init__(self, num_classes: int) -> None:
        torch.nn.Module.__init__(self)
        self.num_classes = num_classes

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


# Metrics


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the expected calibration error over 15 equal bins of the confidence."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.ceil(confidence * 15)
    of_bin = [bins == i for i in np.unique(bins)]
    return sum(abs(right[b].sum() - confidence[b].sum()) for b in of_bin) / len(labels)


@pytest.mark.parametrize("classes", [10, 5])
def test_metrics_equal_numpy_over_uneven_batches(tmp_path: Path, classes: int) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(23, classes)).astype(np.float32)
    labels = rng.integers(0, classes, size=23)
    logits[np.arange(23), labels] += 1
    # All of the first batch is right, so top-1 and top-5 agree on it: they must not be merged.
    logits[np.arange(8), labels[:8]] += 20
    ranks = (logits > logits[np.arange(23), labels][:, None]).sum(axis=1)
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    expected = {
        "val/top1": (ranks < 1).mean(),
        "val/top5": (ranks < 5).mean(),
        "val/loss": -log_p[np.arange(23), labels].mean(),
        "val/ece": calibration_error(np.exp(log_p), labels),
    }
    if classes == 5:
        del expected["val/top5"]  # it would be 1 whatever the network does
    data = TensorDataset(torch.from_numpy(logits)[:, :, None, None], torch.from_numpy(labels))
    loader = DataLoader(data, batch_size=8)
    assert {len(y) for _, y in loader} == {8, 7}
    task = ClassificationTask(FixedLogits(classes))
    runner = trainer(tmp_path)
    for split in ("val", "test"):
        evaluate = runner.validate if split == "val" else runner.test
        (found,) = evaluate(task, loader, verbose=False)
        assert found == pytest.approx(
            {key.replace("val", split): value for key, value in expected.items()}, rel=1e-5
        )


# Loss


def test_unmixed_loss_is_smoothed_cross_entropy() -> None:
    task = plain_task(backbone=FixedLogits(4), label_smoothing=0.1)
    task.log = lambda *_args, **_kwargs: None  # type: ignore[method-assign]
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    targets = torch.full((6, 4), 0.1 / 4)
    targets[torch.arange(6), labels] += 0.9
    loss = task.training_step((logits[:, :, None, None], labels), 0)
    torch.testing.assert_close(loss, -(targets * logits.log_softmax(1)).sum(1).mean())


@pytest.mark.parametrize(("mixup_alpha", "cutmix_alpha"), [(0.8, 0.0), (0.0, 1.0)])
def test_mixed_loss_is_that_of_the_smoothed_soft_targets(
    mixup_alpha: float, cutmix_alpha: float
) -> None:
    classes, smoothing = 10, 0.1
    task = ClassificationTask(backbone(), mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha)
    images = torch.rand(6, 3, 32, 32)
    labels = torch.tensor([0, 1, 2, 3, 4, 5])
    np.random.seed(3)  # noqa: NPY002 - timm's Mixup draws from it
    mixed, targets = task.mixed(images.clone(), labels)
    # The share of the own image, read off the images: the pairs are the batch and its reverse.
    if mixup_alpha:
        own = ((mixed - images.flip(0)) / (images - images.flip(0)))[0].median().item()
    else:
        own = (mixed == images)[0].float().mean().item()
    assert 0 < own < 1
    one_hot = torch.full((6, classes), smoothing / classes)
    one_hot[torch.arange(6), labels] += 1 - smoothing
    torch.testing.assert_close(
        targets, own * one_hot + (1 - own) * one_hot.flip(0), rtol=0, atol=1e-4
    )
    task.eval()
    task.log = lambda *_args, **_kwargs: None  # type: ignore[method-assign]
    np.random.seed(3)  # noqa: NPY002 - the same draw again
    loss = task.training_step((images.clone(), labels), 0)
    log_p = task.backbone(mixed).log_softmax(1)
    torch.testing.assert_close(loss, -(targets * log_p).sum(1).mean())


@pytest.mark.parametrize("count", [5, 1])
def test_odd_batches_train_on_all_their_images(count: int) -> None:
    images = torch.rand(count, 3, 32, 32)
    mixed, targets = ClassificationTask(backbone()).mixed(images.clone(), torch.arange(count))
    assert mixed.shape == images.shape
    assert targets.shape == (count, 10)
    torch.testing.assert_close(targets.sum(1), torch.ones(count))


def test_mixing_single_images_is_refused(tmp_path: Path) -> None:
    data = DigitsDataModule(batch_size=1)
    with pytest.raises(ConfigError, match=r"data.batch_size: got 1, expected at least 2: Mixup"):
        trainer(tmp_path, max_epochs=1).fit(ClassificationTask(backbone()), datamodule=data)
    trainer(tmp_path, fast_dev_run=True).fit(plain_task(), datamodule=data)


def test_forward_returns_the_logits() -> None:
    task = plain_task().eval()
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(task(x), task.backbone(x))


# Whole runs


def fit(folder: Path, seed: int, **arguments: Any) -> tuple[ClassificationTask, list[float]]:
    """Train for a few steps; return the task and the loss after each epoch."""
    losses: list[float] = []

    class Recorded(ClassificationTask):
        def on_train_epoch_end(self) -> None:
            losses.append(float(self.trainer.callback_metrics["loss"]))

    seed_everything(seed, workers=True, verbose=False)
    task = Recorded(
        backbone(drop_path_rate=0.2),
        schedule=ScheduleConfig(warmup_epochs=1, cooldown_epochs=0, update="step"),
    )
    ckpt_path = arguments.pop("ckpt_path", None)
    defaults = {"max_epochs": 3, "limit_train_batches": 3, "limit_val_batches": 1}
    runner = trainer(folder, **{**defaults, **arguments})
    runner.fit(task, datamodule=DigitsDataModule(batch_size=16), ckpt_path=ckpt_path)
    return task, losses


def test_the_seed_decides_the_losses(tmp_path: Path) -> None:
    first = fit(tmp_path, seed=1)[1]
    assert len(first) == 3
    assert fit(tmp_path, seed=1)[1] == first
    assert fit(tmp_path, seed=2)[1] != first


def test_a_run_without_a_seed_draws_one_and_leaves_none_behind(tmp_path: Path) -> None:
    seeds = []

    class Seen(ClassificationTask):
        def on_train_start(self) -> None:
            super().on_train_start()
            seeds.append(os.environ["PL_GLOBAL_SEED"])

    for _ in range(2):
        runner = trainer(tmp_path, max_epochs=1, limit_train_batches=1, limit_val_batches=0)
        runner.fit(Seen(backbone()), datamodule=DigitsDataModule(batch_size=4))
    assert seeds[0] != seeds[1]
    assert "PL_GLOBAL_SEED" not in os.environ


# Lightning warns of a folder with checkpoints in it, which is what a resumed run continues in.
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_resumed_run_repeats_the_unbroken_one(tmp_path: Path) -> None:
    """Order, augmentation, mixing, drop path, learning rate and optimizer state included."""
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    whole, losses = fit(tmp_path, seed=1, callbacks=[saver], enable_checkpointing=True)
    resumed, tail = fit(
        tmp_path,
        seed=1,
        callbacks=[ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)],
        enable_checkpointing=True,
        ckpt_path=tmp_path / "epoch=0.ckpt",
    )
    assert tail == losses[1:]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_each_process_draws_its_own_numbers(tmp_path: Path) -> None:
    seed_everything(1, verbose=False)
    drawn = []
    for rank in (0, 1):
        task = ClassificationTask(backbone())
        task._trainer = type(  # type: ignore[assignment]
            "Stub", (), {"current_epoch": 0, "global_rank": rank}
        )()
        task.on_train_batch_start(None, 0)
        drawn.append((torch.rand(1).item(), np.random.rand()))  # noqa: NPY002 - as timm draws
    assert drawn[0] != drawn[1]


def test_moving_average_of_weights_is_what_is_evaluated(tmp_path: Path) -> None:
    """Lightning's own callback is the project's EMA; a decay of 1 keeps the first update."""
    average = EMAWeightAveraging(decay=1.0)
    task, _ = fit(tmp_path, seed=1, callbacks=[average], max_epochs=1)
    first, _ = fit(tmp_path, seed=1, max_epochs=1, limit_train_batches=1)
    for name, value in first.backbone.named_parameters():
        torch.testing.assert_close(task.backbone.get_parameter(name).data, value.data)


# Checkpoints


def test_checkpoint_of_a_run_reloads_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Lightning warns where both the program and its caller have arguments.
    monkeypatch.setattr("sys.argv", ["lightning"])
    settings = {
        "model": "spanet_lightning.ClassificationTask",
        "model.backbone": "spanet_lightning.SPANetV2",
        "model.backbone.variant": "test",
        "model.backbone.img_size": "32",
        "model.optimizer.lr": "0.01",
        "data": "spanet_lightning.DigitsDataModule",
        "trainer.default_root_dir": str(tmp_path),
        "trainer.accelerator": "cpu",
        "trainer.logger": "false",
        "trainer.max_epochs": "1",
        "trainer.limit_train_batches": "1",
        "trainer.limit_val_batches": "1",
    }
    trained = run(["fit", *(f"--{key}={value}" for key, value in settings.items())]).model.eval()
    (checkpoint,) = tmp_path.rglob("best.ckpt")
    damaged = bytearray(Path(checkpoint).read_bytes())
    damaged[len(damaged) // 2] ^= 1  # Lightning loads it without a word
    (tmp_path / "damaged.ckpt").write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"damaged\.ckpt: is damaged"):
        ClassificationTask.load_from_checkpoint(tmp_path / "damaged.ckpt")
    loaded = ClassificationTask.load_from_checkpoint(checkpoint, weights_only=True).eval()
    assert isinstance(loaded.backbone, SPANetV2)
    assert loaded.optimizer_config == OptimizerConfig(lr=0.01)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.backbone(images), trained.backbone(images))


def test_checkpoint_of_a_task_built_by_hand_reloads_with_its_backbone(tmp_path: Path) -> None:
    task = plain_task(label_smoothing=0.2)
    saver = ModelCheckpoint(tmp_path, filename="run")
    runner = trainer(tmp_path, fast_dev_run=False, max_epochs=1, limit_train_batches=1,
                     limit_val_batches=1, callbacks=[saver], enable_checkpointing=True)  # fmt: skip
    runner.fit(task, datamodule=DigitsDataModule())
    loaded = ClassificationTask.load_from_checkpoint(
        tmp_path / "run.ckpt", backbone=backbone(), weights_only=True
    )
    assert loaded.label_smoothing == 0.2
    assert torch.equal(
        loaded.state_dict()["backbone.head.weight"], task.state_dict()["backbone.head.weight"]
    )


def test_training_starts_from_given_weights(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(1)
    source = backbone()
    file = tmp_path / "weights.safetensors"
    save_file(source.state_dict(), file)
    torch.manual_seed(2)
    task = plain_task(weights=str(file))
    for name, value in source.state_dict().items():
        assert torch.equal(task.backbone.state_dict()[name], value), name
    # a checkpoint of the task holds the weights: the file need not exist when it is reloaded
    assert task.hparams["weights"] is None


# Prediction


def test_prediction_gives_probabilities_and_the_best_classes() -> None:
    task = ClassificationTask(FixedLogits(7))
    logits = torch.randn(3, 7)
    found = task.predict_step((logits[:, :, None, None], torch.tensor([-1, -1, -1])))
    torch.testing.assert_close(found["probabilities"], logits.softmax(1))
    assert torch.equal(found["top_classes"], logits.argsort(1, descending=True)[:, :5])
    assert found["top_probabilities"].shape == (3, 5)


# What can be wrong


def test_labels_outside_the_classes_are_named() -> None:
    task = plain_task()
    with pytest.raises(DataError, match="labels: got 10, expected 0 to 9"):
        task.check((torch.zeros(2, 3, 32, 32), torch.tensor([3, 10])))
    with pytest.raises(DataError, match="labels: got -1, expected 0 to 9"):
        task.check((torch.zeros(2, 3, 32, 32), torch.tensor([-1, 2])))


def test_images_that_are_not_finite_are_refused() -> None:
    images = torch.zeros(2, 3, 32, 32)
    images[1, 2, 3, 4] = torch.nan
    with pytest.raises(DataError, match="images: got a value that is not finite"):
        plain_task().check((images, torch.tensor([0, 1])))


def test_backbone_for_other_classes_is_refused_before_training(tmp_path: Path) -> None:
    task = plain_task(backbone=backbone(num_classes=1000))
    with pytest.raises(ConfigError, match=r"backbone.num_classes: got 1000, expected 10"):
        trainer(tmp_path, fast_dev_run=True).fit(task, datamodule=DigitsDataModule())


def test_a_run_without_an_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"trainer.max_epochs: got -1, expected at least 1"):
        trainer(tmp_path, max_epochs=-1).fit(plain_task(), datamodule=DigitsDataModule())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixup_alpha": -1.0}, "mixup_alpha: got -1.0"),
        ({"cutmix_alpha": float("inf")}, "cutmix_alpha: got inf"),
        ({"mixup_prob": 2.0}, "mixup_prob: got 2.0"),
        ({"mixup_switch_prob": -0.1}, "mixup_switch_prob: got -0.1"),
        ({"label_smoothing": 1.1}, "label_smoothing: got 1.1"),
        ({"backbone": FixedLogits(1)}, "backbone.num_classes: got 1"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plain_task(**arguments)
