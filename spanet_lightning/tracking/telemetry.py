"""What a run costs while it trains, and how its optimization goes: a few numbers an epoch.

| metric | unit | when |
|---|---|---|
| `time/epoch_s` | seconds of an epoch with its validation | each epoch |
| `time/images_per_s` | training images a second, all devices, validation left out | each epoch |
| `memory/peak_rss_mb` | MB (10⁶ bytes) the first process held resident at most | each epoch |
| `memory/peak_cuda_mb` | MB of tensors on its accelerator at most | each epoch |
| `optim/grad_norm` | L2 norm of all gradients before clipping | every `log_every_n_steps` |

The best value of `checkpoint.monitor` is a tag, `best.MONITOR`, beside `best.epoch`: as a metric
its chart would be a few dots, in front of those over epochs.

With `tracking.system_metrics`: `system/cpu_percent` (100 is one core of this process),
`system/load_average`, `system/memory_available_mb`, `system/gpu_percent`.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch.optim import Optimizer

from spanet_lightning.callbacks.model_checkpoint import ModelCheckpoint
from spanet_lightning.tracking.logger import MLflowLogger

MEASURED = ("time/", "memory/", "system/", "train_seconds")
"""What the names of metrics begin with that no two runs share, however alike they are."""


class Telemetry(Callback):
    """Records what this module lists, at next to no cost.

    Args:
        throughput: Tells images/s of the last epoch by its attribute `rate`.
        grad_norm: Whether to record the norm of the gradients.
        system: Whether to record the load of the machine.
    """

    def __init__(self, throughput: Any, grad_norm: bool = True, system: bool = False) -> None:
        self.throughput = throughput
        self.grad_norm = grad_norm
        self.system = system
        self._epoch_started = 0.0
        self._best: dict[str, float] = {}
        self._cpu = (0.0, 0.0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to measure."""
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)
        self._cpu = (time.perf_counter(), _cpu_seconds())
        self._epoch_started = time.perf_counter()  # of a run that is resumed within an epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the epoch."""
        self._epoch_started = time.perf_counter()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Record the norm of the gradients, which are whole and not clipped yet."""
        if not self.grad_norm or not _is_due(trainer):
            return
        if not has_whole_tensors(trainer):
            return
        grads = [p.grad for p in pl_module.parameters() if p.grad is not None]
        if grads:
            norm = float(torch.nn.utils.get_total_norm(grads))
            _log(trainer, {"optim/grad_norm": norm}, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the load of the machine, where that is asked for."""
        if self.system and trainer.is_global_zero and trainer.global_step and _is_due(trainer, 0):
            _log(trainer, self._load(pl_module.device), trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record what the epoch took; validation has come before."""
        if not trainer.is_global_zero:
            return
        metrics = {
            "time/epoch_s": time.perf_counter() - self._epoch_started,
            "time/images_per_s": float(self.throughput.rate),
        }
        peak = peak_rss()
        if peak is not None:
            metrics["memory/peak_rss_mb"] = peak / 1e6
        if pl_module.device.type == "cuda":
            most = torch.cuda.max_memory_allocated(pl_module.device)
            metrics["memory/peak_cuda_mb"] = most / 1e6
        # The step that Lightning logs the epoch's metrics at.
        _log(trainer, metrics, max(trainer.global_step - 1, 0))
        self._tag_best(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tag the best value, which the last epoch's checkpoint may have changed."""
        if trainer.is_global_zero:
            self._tag_best(trainer)

    def _tag_best(self, trainer: Trainer) -> None:
        saver = trainer.checkpoint_callback
        if not isinstance(saver, ModelCheckpoint) or saver.best_metrics == self._best:
            return
        self._best = dict(saver.best_metrics)
        best = self._best.get(str(saver.monitor))
        if best is not None:
            tags = {
                f"best.{saver.monitor}": f"{best:.6g}",
                "best.epoch": f"{self._best.get('epoch', trainer.current_epoch) + 1:.0f}",
            }
            for logger in trainer.loggers:
                if isinstance(logger, MLflowLogger):
                    logger.set_tags(tags)

    def _load(self, device: torch.device) -> dict[str, float]:
        """Return how busy the machine is, since the last look."""
        before, self._cpu = self._cpu, (time.perf_counter(), _cpu_seconds())
        passed = self._cpu[0] - before[0]
        metrics = {}
        if passed > 0:
            metrics["system/cpu_percent"] = 100 * (self._cpu[1] - before[1]) / passed
        with suppress(OSError, AttributeError):
            metrics["system/load_average"] = os.getloadavg()[0]
        with suppress(OSError, ValueError, AttributeError):
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            metrics["system/memory_available_mb"] = free / 1e6
        if device.type == "cuda":
            # Needs NVIDIA's own package, which torch asks for by name.
            with suppress(ModuleNotFoundError, RuntimeError):
                metrics["system/gpu_percent"] = float(torch.cuda.utilization(device))
        return metrics


def has_whole_tensors(trainer: Trainer) -> bool:
    """Whether a process holds all of each weight and gradient, not a shard."""
    return isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)


def peak_rss() -> int | None:
    """Return the most memory that this process has held, in bytes; None where unknown."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system


def _is_due(trainer: Trainer, ahead: int = 1) -> bool:
    """Whether Lightning logs this step, or the one that is about to be taken."""
    every = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return bool(every) and (trainer.global_step + ahead) % every == 0


def _log(trainer: Trainer, metrics: dict[str, float], step: int) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step)
