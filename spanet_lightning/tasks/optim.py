"""Optimizers and learning-rate schedules as values of a configuration.

`OptimizerConfig` and `ScheduleConfig` are what a YAML or the command line fills in; each builds the
torch object it describes. The formula of the schedule is a pure function, so that it can be
checked against published values without training anything. Defaults are those of the published
ImageNet recipe of SPANet; each `configs/*/*.yaml` states where its recipe differs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]  # re-exported
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from spanet_lightning.backbones import TimmBackbone
from spanet_lightning.errors import invalid, invalid_choice

OptimizerName = Literal["adamw", "lamb"]
ScheduleName = Literal["cosine", "constant", "step", "poly"]
UpdateInterval = Literal["epoch", "step"]
NoDecay = Literal["norms_and_biases", "none"]
DecayRule = Literal["layer", "stage"]

_BLOCKS_A_LAYER = 3  # blocks of stage 3 that share a rate under the layer rule
_PART = re.compile(
    r"(?:backbone\.)?(?:model\.)?(?:(?P<stem>stem)|stages\.(?P<stage>\d+)\.(?:blocks\.(?P<block>\d+)|downsample))\."
)


@dataclass(frozen=True)
class LayerDecay:
    """Learning rates that fall from the head towards the image (arXiv:2106.08254, Appendix).

    A parameter's rate is `lr · rate^(num_layers + 1 - id)`: the head, the norms of the features
    and whatever else is no stem or stage has the full rate, id `num_layers + 1`. Ids of the rest:

    - `rule="layer"` (published with detection): 0 stem, 1 stage 1, 2 stage 2, 3, 4, ... for each
      three blocks of stage 3, `num_layers` stage 4; a down-sampling layer goes with the first
      blocks of the stage it leads to.
    - `rule="stage"` (published with UPerNet): 0 stem and all down-sampling layers, 1 to 4 the
      stages.

    The same holds for timm's models with four stages of blocks (ConvNeXt, of whose recipe the rules
    are, CAFormer, PoolFormer). Other models of timm's are grouped as they say themselves, by block
    or by stage; `num_layers` then stretches their ids to that depth.

    Args:
        rate: Factor from one id to the one below.
        rule: How ids are given.
        num_layers: Id of stage 4 under the layer rule. Null takes the least that keeps the ids in
            order: 6 for 9 blocks in stage 3, 9 for 18 (with the published 6, the last blocks of 18
            would learn faster than the head). The stage rule has no such least: published are 7
            (S18) and 11 (S36).

    Raises:
        ConfigError: If a value is out of its range.
    """

    rate: float
    rule: DecayRule = "layer"
    num_layers: int | None = None

    def __post_init__(self) -> None:
        key = "optimizer.layer_decay"
        if not 0 < self.rate <= 1:
            raise invalid(f"{key}.rate", self.rate, "a number in (0, 1]")
        if self.rule not in get_args(DecayRule):
            raise invalid_choice(f"{key}.rule", self.rule, get_args(DecayRule))
        if self.rule == "stage" and (self.num_layers is None or self.num_layers < 4):
            accepts = "at least 4 with rule 'stage' (published: 7 for S18, 11 for S36)"
            raise invalid(f"{key}.num_layers", self.num_layers, accepts)

    def exponents_of(self, model: nn.Module, names: Sequence[str]) -> Mapping[str, float]:
        """Return the power of `rate` for each parameter of a backbone or a dense model.

        Raises:
            ConfigError: If timm's model states no groups, or as `exponents`.
        """
        backbone = getattr(model, "backbone", model)
        stages = {m["stage"] for m in map(_PART.match, names) if m and m["block"]}
        if not isinstance(backbone, TimmBackbone) or (stages and stages <= set("0123")):
            return self.exponents(names)
        group = backbone.group_matcher(coarse=self.rule == "stage")
        prefix = "" if backbone is model else "backbone."
        ids = {n: group(n.removeprefix(prefix)) for n in names if n.startswith(f"{prefix}model.")}
        top = max(ids.values(), default=0) + (backbone.num_classes == 0)  # then the head's id
        depth = top if self.num_layers is None else self.num_layers + 1
        return {name: (top - ids.get(name, top)) * depth / top for name in names}

    def exponents(self, names: Sequence[str]) -> dict[str, int]:
        """Return the power of `rate` for each parameter's name of a model of ours.

        Raises:
            ConfigError: If `num_layers` is too small for the depth of stage 3.
        """
        parts = {name: _PART.match(name) for name in names}
        blocks = (int(m["block"]) for m in parts.values() if m and m["block"] and m["stage"] == "2")
        least = 4 + max(blocks, default=0) // _BLOCKS_A_LAYER
        layers = least if self.num_layers is None else self.num_layers
        if self.rule == "layer" and layers < least:
            accepts = f"at least {least}, or the last blocks of stage 3 would outpace the head"
            raise invalid("optimizer.layer_decay.num_layers", layers, accepts)
        return {
            name: layers + 1 - (layers + 1 if part is None else self._id(part, layers))
            for name, part in parts.items()
        }

    def _id(self, part: re.Match[str], layers: int) -> int:
        if part["stem"]:
            return 0
        stage = int(part["stage"])
        if self.rule == "stage":
            return 0 if part["block"] is None else stage + 1
        if stage == 3:
            return layers
        return stage + 1 + (int(part["block"] or 0) // _BLOCKS_A_LAYER if stage == 2 else 0)


@dataclass(frozen=True)
class OptimizerConfig:
    """Which optimizer updates the weights, and how.

    Frozen parameters are left out altogether.

    Args:
        name: Optimizer: AdamW (arXiv:1711.05101) or LAMB (arXiv:1904.00962), as timm builds them.
        lr: Peak learning rate, reached at the end of warm-up.
        weight_decay: Decay of the parameters that are not spared.
        no_decay: What decay spares: what has at most one dimension, what is named `*.bias` and what
            the model's `no_weight_decay()` lists, or nothing.
        layer_decay: Rates that fall from the head towards the image; null for one rate.
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
    no_decay: NoDecay = "norms_and_biases"
    layer_decay: LayerDecay | None = None

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
        if self.no_decay not in get_args(NoDecay):
            raise invalid_choice("optimizer.no_decay", self.no_decay, get_args(NoDecay))

    def build(self, model: nn.Module) -> Optimizer:
        """Return the optimizer of `model`'s trainable parameters, in groups of one decay and rate.

        Args:
            model: The model to train; where it has `no_weight_decay()`, those names are spared.

        Raises:
            ConfigError: If `layer_decay` does not fit the model.
        """
        options: dict[str, Any] = {"betas": self.betas}
        if self.eps is not None:
            options["eps"] = self.eps
        if self.name == "lamb":
            options["max_grad_norm"] = self.max_grad_norm
        spares = self.no_decay != "none"
        parameters: Any = model
        if self.layer_decay is not None:
            parameters = list(self._groups(model, self.layer_decay))
        optimizer: Optimizer = create_optimizer_v2(
            parameters,
            opt=self.name,
            lr=self.lr,
            weight_decay=self.weight_decay,
            filter_bias_and_bn=spares,
            **options,
        )
        return optimizer

    def _groups(self, model: nn.Module, layer_decay: LayerDecay) -> Iterator[dict[str, Any]]:
        """Yield the parameters that share learning rate and weight decay."""
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        listed: set[str] = getattr(model, "no_weight_decay", set)()
        exponents = layer_decay.exponents_of(model, list(trained))
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, parameter in trained.items():
            spared = self.no_decay != "none" and (
                parameter.ndim <= 1 or name.endswith(".bias") or name in listed
            )
            groups.setdefault((exponents[name], spared), []).append(parameter)
        for (exponent, spared), parameters in groups.items():
            yield {
                "params": parameters,
                "lr": self.lr * layer_decay.rate**exponent,
                "weight_decay": 0.0 if spared else self.weight_decay,
            }


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate moves over a run.

    The cosine spans `trainer.max_epochs - cooldown_epochs` epochs; the cool-down stays at `min_lr`.
    Warm-up replaces the first epochs of the cosine and does not shift it: the rate jumps from the
    line onto the curve, which by then lies a little below the peak.

    Args:
        name: Cosine; constant (at the peak, after the same warm-up); step (times `gamma` at each of
            `milestones`); or poly, (1 - t)^power from the end of warm-up, t = 0, to the last step
            of the run, t = 1: of `trainer.max_steps` if that is given, else of `max_epochs`.
        warmup_epochs: Epochs of the linear rise from `warmup_lr` to the optimizer's `lr`. Unused by
            `poly`.
        warmup_lr: Learning rate that warm-up starts from.
        min_lr: Learning rate that cosine and poly end at and the cool-down keeps.
        cooldown_epochs: Epochs at `min_lr` at the end of the cosine.
        update: When the rate changes: once an epoch, as published for ImageNet, or after each
            optimizer step, which `poly` and `warmup_images` need.
        milestones: Epochs after which `step` lowers the rate.
        gamma: Factor of `step` at each milestone.
        power: Power of `poly`.
        warmup_images: Images seen during the linear rise, instead of `warmup_epochs`: the same
            warm-up whatever the batch size and its accumulation. 0 for none.
        warmup_factor: Where the rise starts as a share of the peak, instead of `warmup_lr`.

    Raises:
        ConfigError: If a value is out of its range.
    """

    name: ScheduleName = "cosine"
    warmup_epochs: int = 5
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    cooldown_epochs: int = 10
    update: UpdateInterval = "epoch"
    milestones: tuple[int, ...] = (8, 11)
    gamma: float = 0.1
    power: float = 0.9
    warmup_images: int | None = None
    warmup_factor: float | None = None

    def __post_init__(self) -> None:
        if self.name not in get_args(ScheduleName):
            raise invalid_choice("schedule.name", self.name, get_args(ScheduleName))
        if self.update not in get_args(UpdateInterval):
            raise invalid_choice("schedule.update", self.update, get_args(UpdateInterval))
        for key in ("warmup_epochs", "warmup_lr", "min_lr", "cooldown_epochs"):
            value = getattr(self, key)
            if not 0 <= value < math.inf:
                raise invalid(f"schedule.{key}", value, "a number of at least 0")
        if (
            list(self.milestones) != sorted(set(self.milestones))
            or min(self.milestones, default=1) < 1
        ):
            raise invalid("schedule.milestones", list(self.milestones), "rising epochs from 1 on")
        if not 0 < self.gamma <= 1:
            raise invalid("schedule.gamma", self.gamma, "a number in (0, 1]")
        if not 0 < self.power < math.inf:
            raise invalid("schedule.power", self.power, "a number above 0")
        if self.warmup_images is not None and self.warmup_images < 0:
            raise invalid("schedule.warmup_images", self.warmup_images, "null or at least 0")
        if self.warmup_factor is not None and not 0 <= self.warmup_factor <= 1:
            raise invalid(
                "schedule.warmup_factor", self.warmup_factor, "null or a number in [0, 1]"
            )
        if self.update == "epoch" and (self.name == "poly" or self.warmup_images):
            raise invalid("schedule.update", self.update, "'step' with poly and warmup_images")

    @property
    def needs_epochs(self) -> bool:
        """Whether the schedule spans `trainer.max_epochs`."""
        return self.name == "cosine"

    def lr_at(self, epoch: float, lr: float, max_epochs: int) -> float:
        """Return the learning rate at `epoch` of a run of `max_epochs`, the peak being `lr`.

        Poly does not count epochs: see `poly_lr`.

        Args:
            epoch: Epochs done so far; a fraction where the rate changes after each step.
            lr: Peak learning rate.
            max_epochs: Length of the whole run in epochs, cool-down included.
        """
        start = self._start(lr)
        warmup_epochs = self.warmup_epochs if self.warmup_images is None else 0
        if self.name != "cosine":
            passed = sum(epoch >= m for m in self.milestones) if self.name == "step" else 0
            if epoch < warmup_epochs:
                return warmup_lr(epoch, lr, warmup_epochs, start)
            return lr * self.gamma**passed
        return cosine_lr(
            epoch,
            lr,
            # A run cut shorter than its cool-down still needs a cosine of some length.
            epochs=max(1, max_epochs - self.cooldown_epochs),
            warmup_epochs=warmup_epochs,
            start_lr=start,
            min_lr=self.min_lr,
        )

    def _start(self, lr: float) -> float:
        return self.warmup_lr if self.warmup_factor is None else self.warmup_factor * lr

    def build(
        self,
        optimizer: Optimizer,
        *,
        max_epochs: int,
        steps_per_epoch: Callable[[], float],
        total_steps: Callable[[], float] | None = None,
        images_per_step: Callable[[], float] | None = None,
    ) -> LambdaLR:
        """Return the scheduler of `optimizer`, to be stepped once for each `update`.

        Args:
            optimizer: Its `lr` is the peak. A group with another `lr` keeps its ratio to the peak.
            max_epochs: Length of the whole run in epochs, cool-down included.
            steps_per_epoch: Tells the optimizer steps in an epoch; asked after the first of them,
                and only with `update="step"`.
            total_steps: Tells the optimizer steps of the run; asked likewise, for `poly`.
            images_per_step: Tells the images of an optimizer step; asked for `warmup_images`.
        """
        peak: float = optimizer.defaults["lr"]

        def factor(updates: int) -> float:
            if updates == 0 and self.warmup_images:
                return self._start(peak) / peak
            warmup = 0.0
            if self.warmup_images and images_per_step is not None:
                warmup = self.warmup_images / images_per_step()
                if updates < warmup:
                    line = self._start(peak)
                    return (line + updates * (peak - line) / warmup) / peak
            if self.name == "poly":
                total = total_steps() if updates > 0 and total_steps is not None else math.inf
                return poly_lr(updates, peak, warmup, total, self.power, self.min_lr) / peak
            in_steps = self.update == "step" and updates > 0
            epoch = updates / steps_per_epoch() if in_steps else float(updates)
            return self.lr_at(epoch, peak, max_epochs) / peak

        return LambdaLR(optimizer, factor)


def warmup_lr(epoch: float, lr: float, warmup_epochs: int, start_lr: float) -> float:
    """Return the rate of a line from `start_lr` to `lr`, and `lr` from `warmup_epochs` on."""
    if epoch >= warmup_epochs:
        return lr
    return start_lr + epoch * (lr - start_lr) / warmup_epochs


def poly_lr(
    step: float, lr: float, warmup: float, total: float, power: float, min_lr: float
) -> float:
    """Return the rate at `step` of a fall from `lr` at `warmup` to `min_lr` at `total` steps.

    m + (lr - m) (1 - (s - w) / (T - w))^p
    """
    if step >= total:
        return min_lr
    left = 1 - (step - warmup) / (total - warmup)
    return min_lr + (lr - min_lr) * math.pow(min(left, 1.0), power)


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
