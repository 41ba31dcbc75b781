"""Optimizers and learning-rate schedules as values of a configuration.

`OptimizerConfig` and `ScheduleConfig` are what a YAML or the command line fills in; each builds the
torch object it describes. The formula of the schedule is a pure function, so that it can be
checked against published values without training anything. Defaults are those of the published
ImageNet recipe of SPANet; each `configs/imagenet/*.yaml` states where its variant differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]  # re-exported
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from spanet_lightning.errors import invalid, invalid_choice

OptimizerName = Literal["adamw", "lamb"]
ScheduleName = Literal["cosine", "constant"]
UpdateInterval = Literal["epoch", "step"]


@dataclass(frozen=True)
class OptimizerConfig:
    """Which optimizer updates the weights, and how.

    Weight decay spares what has at most one dimension, what is named `*.bias` and what the model's
    `no_weight_decay()` lists; frozen parameters are left out altogether.

    Args:
        name: Optimizer: AdamW (arXiv:1711.05101) or LAMB (arXiv:1904.00962), as timm builds them.
        lr: Peak learning rate, reached at the end of warm-up.
        weight_decay: Decay of the parameters that are not spared.
        betas: Decay rates of the running means of the gradient and of its square.
        eps: Added to the denominator. Null takes the optimizer's own: 1e-8 (AdamW), 1e-6 (LAMB).
        max_grad_norm: LAMB only: global norm of the gradient above which LAMB itself scales it
            down, whatever `trainer.gradient_clip_val` does before. Null turns that off.

    Raises:
        ConfigError: If a value is out of its range.
    """

    name: OptimizerName = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float | None = None
    max_grad_norm: float | None = 1.0

    def __post_init__(self) -> None:
        if self.name not in get_args(OptimizerName):
            raise invalid_choice("optimizer.name", self.name, get_args(OptimizerName))
        if not 0 < self.lr < math.inf:
            raise invalid("optimizer.lr", self.lr, "a number above 0")
        if not 0 <= self.weight_decay < math.inf:
            raise invalid("optimizer.weight_decay", self.weight_decay, "a number of at least 0")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise invalid("optimizer.betas", self.betas, "two numbers in [0, 1)")
        if self.eps is not None and not 0 < self.eps < math.inf:
            raise invalid("optimizer.eps", self.eps, "null or a number above 0")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise invalid("optimizer.max_grad_norm", self.max_grad_norm, "null or a number above 0")

    def build(self, model: nn.Module) -> Optimizer:
        """Return the optimizer of `model`'s trainable parameters, in two groups by weight decay.

        Args:
            model: The model to train; where it has `no_weight_decay()`, those names are spared.
        """
        options: dict[str, Any] = {"betas": self.betas}
        if self.eps is not None:
            options["eps"] = self.eps
        if self.name == "lamb":
            options["max_grad_norm"] = self.max_grad_norm
        optimizer: Optimizer = create_optimizer_v2(
            model, opt=self.name, lr=self.lr, weight_decay=self.weight_decay, **options
        )
        return optimizer


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate moves over a run of `trainer.max_epochs` epochs.

    The cosine spans `trainer.max_epochs - cooldown_epochs` epochs; the cool-down stays at `min_lr`.
    Warm-up replaces the first epochs of the cosine and does not shift it: the rate jumps from the
    line onto the curve, which by then lies a little below the peak.

    Args:
        name: Cosine, or constant (at the peak, after the same warm-up).
        warmup_epochs: Epochs of the linear rise from `warmup_lr` to the optimizer's `lr`.
        warmup_lr: Learning rate that warm-up starts from.
        min_lr: Learning rate that the cosine ends at and the cool-down keeps.
        cooldown_epochs: Epochs at `min_lr` at the end of the run. Unused by `constant`.
        update: When the rate changes: once an epoch, as published, or after each optimizer step.

    Raises:
        ConfigError: If a value is out of its range.
    """

    name: ScheduleName = "cosine"
    warmup_epochs: int = 5
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    cooldown_epochs: int = 10
    update: UpdateInterval = "epoch"

    def __post_init__(self) -> None:
        if self.name not in get_args(ScheduleName):
            raise invalid_choice("schedule.name", self.name, get_args(ScheduleName))
        if self.update not in get_args(UpdateInterval):
            raise invalid_choice("schedule.update", self.update, get_args(UpdateInterval))
        for key in ("warmup_epochs", "warmup_lr", "min_lr", "cooldown_epochs"):
            value = getattr(self, key)
            if not 0 <= value < math.inf:
                raise invalid(f"schedule.{key}", value, "a number of at least 0")

    def lr_at(self, epoch: float, lr: float, max_epochs: int) -> float:
        """Return the learning rate at `epoch` of a run of `max_epochs`, the peak being `lr`.

        Args:
            epoch: Epochs done so far; a fraction where the rate changes after each step.
            lr: Peak learning rate.
            max_epochs: Length of the whole run in epochs, cool-down included.
        """
        if self.name == "constant":
            return warmup_lr(epoch, lr, self.warmup_epochs, self.warmup_lr)
        return cosine_lr(
            epoch,
            lr,
            # A run cut shorter than its cool-down still needs a cosine of some length.
            epochs=max(1, max_epochs - self.cooldown_epochs),
            warmup_epochs=self.warmup_epochs,
            start_lr=self.warmup_lr,
            min_lr=self.min_lr,
        )

    def build(
        self, optimizer: Optimizer, *, max_epochs: int, steps_per_epoch: Callable[[], float]
    ) -> LambdaLR:
        """Return the scheduler of `optimizer`, to be stepped once for each `update`.

        Args:
            optimizer: Its `lr` is the peak. A group with another `lr` keeps its ratio to the peak.
            max_epochs: Length of the whole run in epochs, cool-down included.
            steps_per_epoch: Tells the optimizer steps in an epoch; asked after the first of them,
                and only with `update="step"`.
        """
        peak: float = optimizer.defaults["lr"]

        def factor(updates: int) -> float:
            in_steps = self.update == "step" and updates > 0
            epoch = updates / steps_per_epoch() if in_steps else float(updates)
            return self.lr_at(epoch, peak, max_epochs) / peak

        return LambdaLR(optimizer, factor)


def warmup_lr(epoch: float, lr: float, warmup_epochs: int, start_lr: float) -> float:
    """Return the rate of a line from `start_lr` to `lr`, and `lr` from `warmup_epochs` on."""
    if epoch >= warmup_epochs:
        return lr
    return start_lr + epoch * (lr - start_lr) / warmup_epochs


def cosine_lr(
    epoch: float,
    lr: float,
    *,
    epochs: int,
    warmup_epochs: int,
    start_lr: float,
    min_lr: float,
) -> float:
    """Return the rate of a half cosine over `epochs`, its first `warmup_epochs` replaced by a line.

    e < W: s + e (lr - s) / W; W <= e < T: m + (lr - m) (1 + cos(pi e / T)) / 2; e >= T: m, with W
    `warmup_epochs`, T `epochs`, s `start_lr`, m `min_lr` (timm's `CosineLRScheduler` without
    restarts and with `warmup_prefix=False`, which the published runs used).

    Args:
        epoch: Epochs done so far (e).
        lr: Peak learning rate.
        epochs: Epochs from the peak to `min_lr`, warm-up included.
        warmup_epochs: Epochs of the line.
        start_lr: Where the line starts.
        min_lr: Where the cosine ends.
    """
    if epoch < warmup_epochs:
        return warmup_lr(epoch, lr, warmup_epochs, start_lr)
    if epoch >= epochs:
        return min_lr
    return min_lr + 0.5 * (lr - min_lr) * (1 + math.cos(math.pi * epoch / epochs))
