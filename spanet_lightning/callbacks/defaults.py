"""The callbacks that a run has without being asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import (
    Callback,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelSummary,
    ProgressBar,
)

from spanet_lightning.callbacks.progress import ImagesPerSecond, ParameterTable, progress_bar
from spanet_lightning.tracking.models import ModelArtifacts
from spanet_lightning.tracking.options import TrackingOptions
from spanet_lightning.tracking.pictures import picture_callbacks
from spanet_lightning.tracking.telemetry import Telemetry


def default_callbacks(
    trainer: Mapping[str, Any],
    given: Sequence[Callback],
    throughput: ImagesPerSecond,
    saver: ModelCheckpoint | None,
) -> list[Callback]:
    """Return the callbacks to add, each left out where the user gave one of its kind.

    Args:
        trainer: The trainer's arguments.
        given: The user's callbacks.
        throughput: The meter of training speed.
        saver: Saves the best and the last checkpoint; None where nothing is trained.
    """
    if trainer["barebones"]:
        return []

    def absent(kind: type[Callback]) -> bool:
        return not any(isinstance(callback, kind) for callback in given)

    def enabled(name: str) -> bool:
        return trainer[f"enable_{name}"] is not False  # null, the default, is a yes

    callbacks: list[Callback] = []
    if saver is not None:
        callbacks.append(throughput)
    if enabled("progress_bar") and absent(ProgressBar):
        callbacks.append(progress_bar(throughput))
    if saver is None:
        return callbacks
    if enabled("model_summary") and absent(ModelSummary):
        callbacks.append(ParameterTable())
    if trainer["logger"] and absent(LearningRateMonitor):
        callbacks.append(LearningRateMonitor())
    if enabled("checkpointing") and absent(ModelCheckpoint):
        callbacks.append(saver)
    return callbacks


def tracked(
    options: TrackingOptions,
    saver: ModelCheckpoint | None,
    throughput: ImagesPerSecond,
    model: LightningModule,
) -> list[Callback]:
    """Return the callbacks that record more than the task's own metrics.

    Args:
        options: What to record.
        saver: Saves checkpoints; None where nothing is trained.
        throughput: The meter of training speed.
        model: The task.
    """
    if saver is None:
        return []
    found: list[Callback] = [Telemetry(throughput, options.grad_norm, options.system_metrics)]
    if options.checkpoints != "none" or options.register is not None:
        found.append(ModelArtifacts(options.checkpoints, options.register))
    return [*found, *picture_callbacks(options, model)]
