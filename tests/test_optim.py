"""Optimizer groups and learning-rate schedules against the published recipe."""

from __future__ import annotations

import math

import pytest
import torch
from timm.optim import Lamb
from torch import nn
from torch.optim import AdamW

from spanet_lightning import SPANet, SPANetV2
from spanet_lightning.errors import ConfigError
from spanet_lightning.tasks.optim import OptimizerConfig, ScheduleConfig, cosine_lr

V1 = ScheduleConfig(warmup_epochs=5)
V2 = ScheduleConfig(warmup_epochs=20)


class OneWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))


@pytest.mark.parametrize(
    ("schedule", "lr", "epoch", "expected"),
    [
        # values that the published runs logged, five digits
        (V1, 1e-3, 5, 9.9932e-4),
        (V2, 4e-3, 20, 3.9564e-3),
        (V2, 8e-3, 20, 7.9127e-3),
        (V1, 1e-3, 150, 5.05e-4),
        (V2, 4e-3, 150, 2.005e-3),
        (V2, 8e-3, 150, 4.005e-3),
        # both ends of the warm-up, the last epoch of the cosine and the cool-down
        (V1, 1e-3, 0, 1e-6),
        (V1, 1e-3, 4, 1e-6 + 4 * (1e-3 - 1e-6) / 5),
        (V1, 1e-3, 299, 1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + math.cos(math.pi * 299 / 300))),
        (V1, 1e-3, 300, 1e-5),
        (V1, 1e-3, 309, 1e-5),
    ],
)
def test_lr_matches_the_published_schedule(
    schedule: ScheduleConfig, lr: float, epoch: int, expected: float
) -> None:
    assert schedule.lr_at(epoch, lr, max_epochs=310) == pytest.approx(expected, rel=1e-4)


def test_lr_agrees_with_timm() -> None:
    """Timm's scheduler is what the published runs used; it is an independent implementation."""
    from timm.scheduler import CosineLRScheduler

    optimizer = AdamW(OneWeight().parameters(), lr=4e-3)
    timm_schedule = CosineLRScheduler(
        optimizer, t_initial=300, lr_min=1e-5, warmup_t=20, warmup_lr_init=1e-6
    )
    for epoch in range(310):
        timm_schedule.step(epoch)
        expected = optimizer.param_groups[0]["lr"]
        assert V2.lr_at(epoch, 4e-3, 310) == pytest.approx(expected, rel=1e-12), epoch


def test_scheduler_follows_the_formula_by_epoch() -> None:
    optimizer = OptimizerConfig(lr=4e-3).build(OneWeight())

    def unused() -> float:
        raise AssertionError("epochs need no number of steps")

    scheduler = V2.build(optimizer, max_epochs=310, steps_per_epoch=unused)
    for epoch in range(310):
        lr = optimizer.param_groups[0]["lr"]
        assert lr == pytest.approx(V2.lr_at(epoch, 4e-3, 310), rel=1e-9)
        optimizer.step()
        scheduler.step()


def test_scheduler_by_step_passes_through_the_same_values() -> None:
    schedule = ScheduleConfig(warmup_epochs=2, cooldown_epochs=1, update="step")
    optimizer = OptimizerConfig().build(OneWeight())
    scheduler = schedule.build(optimizer, max_epochs=5, steps_per_epoch=lambda: 4.0)
    for step in range(20):
        expected = cosine_lr(step / 4, 1e-3, epochs=4, warmup_epochs=2, start_lr=1e-6, min_lr=1e-5)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-9)
        optimizer.step()
        scheduler.step()


def test_a_group_keeps_its_ratio_to_the_peak() -> None:
    """Layer-wise decay gives groups their own rates; one schedule has to drive them all."""
    first, second = OneWeight(), OneWeight()
    groups = [
        {"params": first.parameters(), "lr": 1e-3},
        {"params": second.parameters(), "lr": 5e-4},
    ]
    optimizer = AdamW(groups, lr=1e-3)
    scheduler = V1.build(optimizer, max_epochs=310, steps_per_epoch=lambda: 1.0)
    for _ in range(40):
        optimizer.step()
        scheduler.step()
        whole, half = (group["lr"] for group in optimizer.param_groups)
        assert half == pytest.approx(whole / 2)


def test_constant_keeps_the_peak_after_warm_up() -> None:
    schedule = ScheduleConfig(name="constant", warmup_epochs=2)
    assert [schedule.lr_at(e, 1e-3, 10) for e in (0, 2, 9)] == pytest.approx([1e-6, 1e-3, 1e-3])


@pytest.mark.parametrize("backbone", [SPANet, SPANetV2])
def test_weight_decay_spares_vectors_biases_and_frozen_parameters(
    backbone: type[SPANet] | type[SPANetV2],
) -> None:
    model = backbone("test", num_classes=10, img_size=32)
    frozen = next(name for name, p in model.named_parameters() if p.ndim > 1)
    model.get_parameter(frozen).requires_grad_(False)
    optimizer = OptimizerConfig(weight_decay=0.05).build(model)
    decay = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    assert set(decay.values()) == {0.0, 0.05}
    for name, parameter in model.named_parameters():
        if name == frozen:
            assert id(parameter) not in decay
            continue
        spared = parameter.ndim <= 1 or name.endswith(".bias")
        assert decay[id(parameter)] == (0.0 if spared else 0.05), name


def test_spectral_filters_of_v2_are_decayed() -> None:
    model = SPANetV2("test", num_classes=10, img_size=32)
    optimizer = OptimizerConfig(weight_decay=0.05).build(model)
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    filters = [p for _, p in model.named_parameters() if p.ndim == 3]
    assert filters
    assert all(id(p) in decayed for p in filters)


def test_names_that_the_model_exempts_are_spared() -> None:
    class Exempting(OneWeight):
        def no_weight_decay(self) -> set[str]:
            return {"weight"}

    groups = OptimizerConfig().build(Exempting()).param_groups
    assert [group["weight_decay"] for group in groups if group["params"]] == [0.0]


def test_optimizers_have_the_published_settings() -> None:
    adamw = OptimizerConfig().build(OneWeight())
    assert isinstance(adamw, AdamW)
    assert adamw.defaults["betas"] == (0.9, 0.999)
    assert adamw.defaults["eps"] == 1e-8
    lamb = OptimizerConfig(name="lamb").build(OneWeight())
    assert isinstance(lamb, Lamb)
    published = {
        "betas": (0.9, 0.999),
        "eps": 1e-6,
        "bias_correction": True,
        "grad_averaging": True,
        "max_grad_norm": 1.0,
        "trust_clip": False,
        "always_adapt": False,
    }
    assert {key: lamb.defaults[key] for key in published} == published


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "adamv"}, "optimizer.name: got 'adamv', .* did you mean 'adamw'"),
        ({"lr": 0.0}, "optimizer.lr: got 0.0"),
        ({"lr": math.nan}, "optimizer.lr: got nan"),
        ({"weight_decay": -1.0}, "optimizer.weight_decay: got -1.0"),
        ({"betas": (0.9, 1.0)}, "optimizer.betas: got"),
        ({"eps": 0.0}, "optimizer.eps: got 0.0"),
        ({"max_grad_norm": 0.0}, "optimizer.max_grad_norm: got 0.0"),
    ],
)
def test_optimizer_names_what_is_wrong(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OptimizerConfig(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "cosin"}, "schedule.name: got 'cosin', .* did you mean 'cosine'"),
        ({"update": "batch"}, "schedule.update: got 'batch'"),
        ({"warmup_epochs": -1}, "schedule.warmup_epochs: got -1"),
        ({"min_lr": math.inf}, "schedule.min_lr: got inf"),
    ],
)
def test_schedule_names_what_is_wrong(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ScheduleConfig(**arguments)  # type: ignore[arg-type]
