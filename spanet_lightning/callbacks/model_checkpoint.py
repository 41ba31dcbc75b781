"""`last.ckpt` is the last state and `best.ckpt` holds the weights that were measured."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from spanet_lightning.tasks.metrics import direction


class ModelCheckpoint(lightning_callbacks.ModelCheckpoint):
    """Lightning's `ModelCheckpoint` with two promises that it does not make (2.6.6).

    `last.ckpt` is written after every epoch and every validation, and with `every_n_train_steps` or
    `train_time_interval` also within an epoch. Lightning's writes it only together with one of the
    best checkpoints: after an epoch that is no better, it stays that of an earlier epoch.

    The best checkpoints are written right after the validation that measured them. Lightning's also
    writes them between validations and gives them the last measured value, whatever the weights
    have become since. Without a `monitor`, or with "step" or "epoch" (which keeps the newest
    ones), they are written together with `last.ckpt`.

    The name is Lightning's, because it is part of the key of the callback's state in a checkpoint.

    Args:
        dirpath: Folder of the checkpoints; null takes the folder of the run.
        filename: Name of a best checkpoint, without its ending.
        monitor: The metric that decides what is best; null keeps the newest.
        mode: Whether the smallest or the largest value is best; null goes by the metric.
        every_n_train_steps: Optimizer steps between two checkpoints within an epoch.
        train_time_interval: Time between two checkpoints within an epoch.
        kwargs: Arguments of Lightning's callback.

    Attributes:
        best_metrics: The metrics of the best checkpoint, and its epoch, from 0.
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        filename: str | None = None,
        *,
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            dirpath,
            filename,
            monitor,
            mode=mode or direction(monitor or ""),
            every_n_train_steps=every_n_train_steps,
            train_time_interval=train_time_interval,
            **kwargs,
        )
        self.best_metrics: dict[str, float] = {}
        self._steps = every_n_train_steps or 0
        self._interval = train_time_interval
        self._saved_at = 0.0  # seconds on the monotonic clock
        self._saved_step = 0
        self._value_before: Tensor | None = None
        self._validation_logs_monitor = False
        self._validated = False  # since the process began
        self._measured = False  # by a validation, and not yet considered for the best checkpoints

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of `train_time_interval`."""
        self._saved_at = time.monotonic()
        self._saved_step = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save within an epoch, where an interval of steps or time, or the run, is over."""
        if (
            trainer.global_step == self._saved_step  # gradients are being accumulated
            or trainer.fit_loop.epoch_loop.batch_progress.is_last_batch  # saved at the epoch's end
            or not self._saves(trainer)
        ):
            return
        due = bool(self._steps) and trainer.global_step % self._steps == 0
        if self._interval is not None:
            over = time.monotonic() - self._saved_at >= self._interval.total_seconds()
            due = bool(trainer.strategy.broadcast(due or over))  # clocks differ between processes
        # At the end of an epoch that was cut short, the checkpoint would count it as complete.
        over = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
        if due or over or trainer.should_stop:
            self._save(trainer, best=due and not self._is_measured)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the monitored value aside, to see whether this validation measures it."""
        if self._is_measured and self._saves(trainer):
            self._value_before = trainer.callback_metrics.pop(str(self.monitor), None)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what was measured; at the end of an epoch, once the epoch's metrics are there."""
        if not self._saves(trainer):
            return
        self._validated = True
        if self._is_measured:
            self._measured = self.monitor in trainer.callback_metrics
            if self._measured:
                self._validation_logs_monitor = True
            elif self._value_before is not None:
                trainer.callback_metrics[str(self.monitor)] = self._value_before
        at_epoch_end = self._should_save_on_train_epoch_end(trainer)
        if not (at_epoch_end and trainer.fit_loop.epoch_loop.batch_progress.is_last_batch):
            self._save(trainer, best=self._measured or not self._is_measured)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of the epoch."""
        if not self._saves(trainer):
            return
        # A monitor that no validation logs is one of the training epoch.
        best = self._measured or not self._validation_logs_monitor
        # Lightning warns or raises where the monitor is missing: not before the first validation.
        known = self._validated or not self._is_measured
        known = known or self.monitor in trainer.callback_metrics
        cut_short = not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        saved = cut_short and self._saved_step == trainer.global_step
        self._save(trainer, best=best and known, last=not saved)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do nothing: the end of the last epoch has been saved."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run has to know."""
        return {
            **super().state_dict(),
            "validation_logs_monitor": self._validation_logs_monitor,
            "best_metrics": self.best_metrics,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state of the run that is resumed."""
        super().load_state_dict(state_dict)
        self._validation_logs_monitor = state_dict.get("validation_logs_monitor", False)
        self.best_metrics = dict(state_dict.get("best_metrics", {}))

    def format_checkpoint_name(
        self,
        metrics: dict[str, Tensor],
        filename: str | None = None,
        ver: int | None = None,
        prefix: str | None = None,
    ) -> str:
        """Return the path of a checkpoint; a `/` in a metric's name makes no folder."""
        folder = str(self.dirpath or "")
        path = super().format_checkpoint_name(metrics, filename, ver, prefix)
        name = os.path.relpath(path, folder) if folder else path
        return str(Path(folder) / name.replace("/", "-"))

    @property
    def _is_measured(self) -> bool:
        """Whether the monitored value belongs to weights, and is not a count that always exists."""
        return self.monitor not in (None, "step", "epoch")

    def _saves(self, trainer: Trainer) -> bool:
        """Whether this is a run that saves checkpoints, at a moment when it does."""
        return (
            trainer.state.fn == TrainerFn.FITTING
            and not trainer.sanity_checking
            and not trainer.fast_dev_run  # type: ignore[attr-defined]
        )

    def _save(self, trainer: Trainer, best: bool, last: bool = True) -> None:
        """Write the best checkpoints, where they are due, and then the last one."""
        self._saved_at = time.monotonic()
        self._saved_step = trainer.global_step
        candidates = self._monitor_candidates(trainer)
        if best and self._is_candidate(trainer):
            score = self.best_model_score
            self._save_topk_checkpoint(trainer, candidates)
            if self.best_model_score is not score:
                self.best_metrics = {
                    name: float(value)
                    for name, value in candidates.items()
                    if name.startswith(("val/", "train/")) or name == "epoch"
                }
        self._measured = False
        if last:
            self._save_last_checkpoint(trainer, candidates)

    def _is_candidate(self, trainer: Trainer) -> bool:
        """Whether this epoch is one of those that may have a best checkpoint."""
        if self._steps or self._interval is not None:
            return True
        every = self.every_n_epochs or 0
        return every > 0 and (trainer.current_epoch + 1) % every == 0
