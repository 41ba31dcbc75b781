"""A run that is broken off anywhere and resumed is the run that was never broken off."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import (
    Checkpoint,
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
)
from lightning.pytorch.loggers.logger import DummyLogger
from torch.utils.data import DataLoader

from spanet_lightning import (
    ClassificationTask,
    DetectionTask,
    DigitScenesDataModule,
    DigitsDataModule,
    FasterRCNN,
    ImageClassificationDataModule,
    SegmentationTask,
    SemanticFPN,
    SPANetV2,
)
from spanet_lightning.tasks import Task
from spanet_lightning.tasks.optim import ScheduleConfig
from tests.helpers import images
from tests.steps import Step, StepLog, digest, read

# Lightning warns of a folder with checkpoints in it, which is what a resumed run continues in.
pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")

BATCHES = 5  # of an epoch
EPOCHS = 3
STEPWISE = ScheduleConfig(warmup_epochs=1, cooldown_epochs=0, update="step")


class KilledError(BaseException):
    """What ends the run in place of `kill -9`: nothing is saved for it."""


class Kill(Checkpoint):
    """Saves a checkpoint at a place, after all other callbacks, and ends the run there.

    Args:
        hook: Which hook.
        epoch: In which epoch.
        batch: After which batch; None at the first call in the epoch.
        file: The checkpoint.
    """

    def __init__(self, hook: str, epoch: int, batch: int | None, file: Path) -> None:
        setattr(self, hook, self._kill)
        self.place = (epoch, batch)
        self.file = file

    def _kill(self, trainer: Trainer, *_: Any) -> None:
        epoch, batch = self.place
        at = trainer.fit_loop.batch_idx if batch is not None else None
        if not trainer.sanity_checking and (trainer.current_epoch, at) == (epoch, batch):
            trainer.save_checkpoint(self.file)
            raise KilledError


class Metrics(DummyLogger):
    """Remembers what was logged, and at which step; times differ and are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.lines.append((step, metrics))


class Run(NamedTuple):
    """What a run did.

    Attributes:
        steps: Each step.
        metrics: What was logged, with its step.
        weights: Digest of the weights at the end; those of an average where there is one.
        best: Score and name of the best checkpoint.
    """

    steps: list[Step]
    metrics: list[tuple[int, dict[str, float]]]
    weights: str
    best: tuple[float, str]


def digits_task(**arguments: Any) -> ClassificationTask:
    return ClassificationTask(
        SPANetV2("test", num_classes=10, img_size=32, drop_path_rate=0.2),
        schedule=STEPWISE,
        **arguments,
    )


def unmixed_task() -> ClassificationTask:
    return digits_task(mixup_alpha=0.0, cutmix_alpha=0.0)


def folder_task() -> ClassificationTask:
    return ClassificationTask(SPANetV2("test", num_classes=2, img_size=32), schedule=STEPWISE)


def segmentation() -> SegmentationTask:
    return SegmentationTask(SPANetV2("test"), SemanticFPN(16, 16), 11)


def detection() -> DetectionTask:
    return DetectionTask(SPANetV2("test"), FasterRCNN(16, 32, 4.0, 60, 30, 32), 10)


def digits() -> LightningDataModule:
    """80 images in five batches of 16."""
    return DigitsDataModule(batch_size=16, train_per_class=8)


def folder(workers: int = 0) -> LightningDataModule:
    root = Path("images")
    if not root.exists():
        images(root, per_class=6)
    return ImageClassificationDataModule(
        str(root), image_size=32, batch_size=4, num_workers=workers, re_prob=0.5
    )


def scenes(task: str) -> LightningDataModule:
    return DigitScenesDataModule(
        task, image_size=64, train_scenes=6, val_scenes=2, digits_per_scene=2, batch_size=2
    )


def run(
    folder: Path,
    task: Callable[[], Task] = digits_task,
    data: Callable[[], LightningDataModule] = digits,
    kill: tuple[str, int, int | None] | None = None,
    resume: bool = False,
    average: bool = False,
    monitor: str | None = "val/loss",
    seed: int = 3,
    more: Callable[[], Any] | None = None,
    every: int | None = None,
    **arguments: Any,
) -> Run:
    """Train; where `kill` names a place, only up to there."""
    folder.mkdir(exist_ok=True)
    seed_everything(seed, verbose=False)
    log, logger = StepLog(str(folder / "steps.jsonl")), Metrics()
    saver = ModelCheckpoint(
        folder / "best",
        filename="{step}",
        monitor=monitor,
        save_last=True,
        every_n_train_steps=every,
        save_top_k=-1 if every else 1,
    )
    callbacks: list[Any] = [saver, log]
    if average:
        callbacks.insert(0, EMAWeightAveraging(decay=0.8))
    file = folder / "killed.ckpt"
    if kill is not None:
        callbacks.append(Kill(*kill, file))
    if more is not None:
        callbacks.append(more())
    model = task()
    torch.rand(5 if resume else 2)  # what a process has drawn before must not matter
    trainer = Trainer(
        **{"max_epochs": EPOCHS, "limit_val_batches": 2} | arguments,
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=callbacks,
        logger=logger,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    try:
        trainer.fit(model, datamodule=data(), ckpt_path=file if resume else None)
    except KilledError:
        assert kill is not None
    best = (float(saver.best_model_score or 0), Path(saver.best_model_path).name)
    return Run(read(log.file), logger.lines, digest(list(model.parameters())), best)


def broken_off(folder: Path, kill: tuple[str, int, int | None], **arguments: Any) -> Run:
    """Train in two processes, so to speak: up to a place, and from there."""
    first = run(folder, kill=kill, **arguments)
    assert (folder / "killed.ckpt").exists(), "was never there"
    second = run(folder, resume=True, **arguments)
    # Both log to one file, so the second has all steps; metrics go to a logger of each.
    return second._replace(metrics=first.metrics + second.metrics)


def assert_same(whole: Run, broken: Run, place: tuple[str, int, int | None]) -> None:
    assert [step.found for step in broken.steps] == [step.found for step in whole.steps]
    metrics = list(whole.metrics)
    if place[0] == "on_train_epoch_end":
        # Lightning logs the epoch after this hook: killed in between, the epoch has no such line.
        metrics = [line for line in metrics if line not in own_line(whole, place[1])]
    assert broken.metrics == metrics
    assert broken.weights == whole.weights
    assert broken.best == whole.best


def own_line(whole: Run, epoch: int) -> list[tuple[int, dict[str, float]]]:
    """Return what was logged at the end of an epoch of training."""
    return [
        line for line in whole.metrics if line[1].get("epoch") == epoch and "train/loss" in line[1]
    ]


PLACES = {
    "after the first batch": ("on_train_batch_end", 0, 0),
    "amid an epoch": ("on_train_batch_end", 1, 2),
    "after the last batch, before the validation": ("on_train_batch_end", 1, BATCHES - 1),
    "amid a validation": ("on_validation_batch_end", 1, None),
    "after a validation": ("on_validation_end", 1, None),
    "at the end of an epoch": ("on_train_epoch_end", 1, None),
    "at the end of the first epoch": ("on_train_epoch_end", 0, None),
    "at the start of an epoch": ("on_train_epoch_start", 2, None),
    "after the last validation": ("on_validation_end", EPOCHS - 1, None),
}


Unbroken = Callable[..., Run]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    """Returns the run of some settings that nothing disturbs; each is done once."""
    done: dict[str, Run] = {}

    def found(**settings: Any) -> Run:
        key = repr(sorted(settings.items()))
        if key not in done:
            done[key] = run(tmp_path_factory.mktemp("whole"), **settings)
        return done[key]

    return found


@pytest.mark.parametrize("place", PLACES)
def test_classification_goes_on_from_anywhere(
    place: str, tmp_path: Path, unbroken: Unbroken
) -> None:
    """With Mixup, CutMix, drop path, augmentation, and an average of the weights."""
    whole = unbroken(average=True)
    assert len(whole.steps) == EPOCHS * BATCHES
    broken = broken_off(tmp_path, PLACES[place], average=True)
    assert_same(whole, broken, PLACES[place])


@pytest.mark.parametrize(
    ("settings", "place"),
    [
        # A validation after every second batch: batch 3 has one, batch 2 has not.
        ({"val_check_interval": 2}, ("on_train_batch_end", 1, 3)),
        ({"val_check_interval": 2}, ("on_train_batch_end", 1, 2)),
        ({"val_check_interval": 2}, ("on_validation_end", 1, 3)),
        # None at all after the second epoch.
        ({"check_val_every_n_epoch": 3}, ("on_train_batch_end", 1, BATCHES - 1)),
        # Fewer batches than there are.
        ({"limit_train_batches": 3, "check_val_every_n_epoch": 3}, ("on_train_batch_end", 1, 2)),
        # By steps, of which Lightning restarts each epoch, the ended one included.
        ({"max_steps": 13}, ("on_train_batch_end", 1, 2)),
        ({"max_steps": 13}, ("on_train_epoch_end", 1, None)),
        # Two batches to an update: within one, and after one.
        ({"accumulate_grad_batches": 2}, ("on_train_batch_end", 1, 2)),
        ({"accumulate_grad_batches": 2, "val_check_interval": 3}, ("on_validation_end", 1, 2)),
    ],
    ids=str,
)
def test_under_any_settings(
    settings: dict[str, Any], place: tuple[str, int, int | None], tmp_path: Path, unbroken: Unbroken
) -> None:
    broken = broken_off(tmp_path, place, task=unmixed_task, **settings)
    assert_same(unbroken(task=unmixed_task, **settings), broken, place)


@pytest.mark.parametrize(
    ("workers", "place"),
    [
        (0, ("on_train_batch_end", 1, 1)),
        (2, ("on_train_batch_end", 1, 1)),
        # Workers load ahead, before Lightning has told the sampler of the next epoch.
        (2, ("on_train_epoch_end", 1, None)),
    ],
    ids=str,
)
def test_images_of_a_folder(
    workers: int, place: tuple[str, int, int | None], tmp_path: Path, unbroken: Unbroken
) -> None:
    """Crops, RandAugment and erasing of the published recipe, loaded by workers or without."""
    whole = unbroken(task=folder_task, data=folder)
    broken = broken_off(tmp_path, place, task=folder_task, data=partial(folder, workers))
    assert_same(whole, broken, place)


@pytest.mark.parametrize("task", [segmentation, detection], ids=["segmentation", "detection"])
def test_dense_tasks(task: Callable[[], Task], tmp_path: Path, unbroken: Unbroken) -> None:
    """Fresh scenes in each epoch; detection draws the boxes that it learns from."""
    data = partial(scenes, task.__name__)
    settings: dict[str, Any] = {"task": task, "data": data, "max_epochs": 2, "monitor": None}
    place = ("on_train_batch_end", 1, 0)
    assert_same(unbroken(**settings), broken_off(tmp_path, place, **settings), place)


def test_another_seed_is_another_run(unbroken: Unbroken, tmp_path: Path) -> None:
    """Batches and weights; the same seed is compared in all the other tests."""
    whole, other = unbroken(average=True), run(tmp_path, seed=4, average=True)
    for one, two in zip(whole.steps, other.steps, strict=True):
        assert one.data != two.data
        assert one.loss != two.loss


def test_a_checkpoint_keeps_the_seed_of_its_run(unbroken: Unbroken, tmp_path: Path) -> None:
    """`seed_everything: true` draws another seed for the process that resumes."""
    place = ("on_train_batch_end", 1, 2)
    first = run(tmp_path, kill=place, average=True)
    second = run(tmp_path, resume=True, seed=5, average=True)
    broken = second._replace(metrics=first.metrics + second.metrics)
    assert_same(unbroken(average=True), broken, place)


# What can't be exact says so


class Loader(LightningDataModule):
    """A loader of the user's own, which knows nothing of restarts."""

    def train_dataloader(self) -> DataLoader[Any]:
        data = digits()
        data.setup("fit")
        return DataLoader(data.splits["train"], batch_size=16, drop_last=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.train_dataloader()


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint")  # Lightning's, of some
def test_a_loader_that_begins_anew_is_told_of(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"data": Loader, "monitor": None, "max_epochs": 1}
    run(tmp_path, kill=("on_train_batch_end", 0, 2), **settings)
    with pytest.warns(UserWarning, match="within an epoch, but its training data can't"):
        run(tmp_path, resume=True, **settings)


@pytest.mark.parametrize("batch", [2, BATCHES - 1])
def test_a_checkpoint_from_within_a_step_is_told_of(batch: int, tmp_path: Path) -> None:
    """The step is done once more, not left out."""
    run(tmp_path, kill=("on_before_zero_grad", 1, batch))
    with pytest.warns(UserWarning, match="written amid a training step"):
        found = run(tmp_path, resume=True)
    places = [(epoch, i) for epoch in range(EPOCHS) for i in range(BATCHES)]
    assert [step.place for step in found.steps] == places


def test_checkpoints_by_step_are_those_of_the_unbroken_run(tmp_path: Path) -> None:
    """The metric that they are compared by is of the validation before the run was broken off."""
    run(tmp_path / "whole", every=4)
    broken_off(tmp_path / "broken", ("on_train_batch_end", 1, 0), every=4)
    whole, broken = (
        sorted(file.name for file in (tmp_path / name / "best").iterdir())
        for name in ("whole", "broken")
    )
    assert broken == whole
    assert "step=8.ckpt" in whole


@pytest.mark.parametrize(("mode", "epochs"), [("max", 2), ("min", EPOCHS)])
def test_early_stopping_is_not_forgotten(mode: str, epochs: int, tmp_path: Path) -> None:
    """It had decided to stop, or not to, when the checkpoint of that epoch's end was written."""
    stop = partial(EarlyStopping, "val/loss", mode=mode, patience=0)
    whole = run(tmp_path / "whole", more=stop)
    assert len(whole.steps) == epochs * BATCHES
    place = ("on_train_epoch_end", 1, None)
    assert_same(whole, broken_off(tmp_path / "broken", place, more=stop), place)
