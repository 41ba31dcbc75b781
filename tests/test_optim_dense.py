"""If one of these fails, parts of a dense model do not learn at the published rates."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from spanet_lightning import SemanticFPN, SPANetV2
from spanet_lightning.errors import ConfigError
from spanet_lightning.heads import DenseModel
from spanet_lightning.tasks.optim import LayerDecay, OptimizerConfig, ScheduleConfig, poly_lr

S18, S36 = (3, 3, 9, 3), (3, 12, 18, 3)
# The published table of detection: part of the name, exponent with num_layers 6.
LAYER_TABLE = {
    "backbone.stem.conv.weight": 7,
    "backbone.stages.0.blocks.2.norm1.weight": 6,
    "backbone.stages.1.downsample.conv.weight": 5,
    "backbone.stages.1.blocks.0.mixer.proj.weight": 5,
    "backbone.stages.2.downsample.conv.weight": 4,
    "backbone.stages.2.blocks.0.norm1.weight": 4,
    "backbone.stages.2.blocks.2.norm1.weight": 4,
    "backbone.stages.2.blocks.3.norm1.weight": 3,
    "backbone.stages.2.blocks.5.norm1.weight": 3,
    "backbone.stages.2.blocks.6.norm1.weight": 2,
    "backbone.stages.2.blocks.8.norm1.weight": 2,
    "backbone.stages.3.downsample.norm.weight": 1,
    "backbone.stages.3.blocks.0.norm1.weight": 1,
    "output_norms.0.weight": 0,
    "head.neck.laterals.0.weight": 0,
    "head.classes.bias": 0,
}
# That of UPerNet, exponents for S18 (num_layers 7) and S36 (num_layers 11).
STAGE_TABLE = {
    "backbone.stem.conv.weight": (8, 12),
    "backbone.stages.1.downsample.conv.weight": (8, 12),
    "backbone.stages.2.downsample.conv.weight": (8, 12),
    "backbone.stages.3.downsample.conv.weight": (8, 12),
    "backbone.stages.0.blocks.0.norm1.weight": (7, 11),
    "backbone.stages.1.blocks.0.norm1.weight": (6, 10),
    "backbone.stages.2.blocks.0.norm1.weight": (5, 9),
    "backbone.stages.2.blocks.8.norm1.weight": (5, 9),
    "backbone.stages.3.blocks.0.norm1.weight": (4, 8),
    "output_norms.3.weight": (0, 0),
    "head.fused.conv.weight": (0, 0),
}


def names(depths: tuple[int, ...]) -> list[str]:
    with torch.device("meta"):
        backbone = SPANetV2("test", dims=(8, 8, 8, 8), depths=depths, num_classes=0)
        model = DenseModel(backbone, SemanticFPN(8, 8), 2)
    return [name for name, _ in model.named_parameters()]


def test_layer_decay_is_the_published_table() -> None:
    exponents = LayerDecay(0.7, "layer", 6).exponents(list(LAYER_TABLE))
    assert exponents == LAYER_TABLE
    factors = [round(0.7**exponent, 4) for exponent in range(8)]
    assert factors == [1, 0.7, 0.49, 0.343, 0.2401, 0.1681, 0.1176, 0.0824]


def test_stage_decay_is_the_published_table() -> None:
    for column, layers in enumerate((7, 11)):
        exponents = LayerDecay(0.9, "stage", layers).exponents(list(STAGE_TABLE))
        assert exponents == {name: row[column] for name, row in STAGE_TABLE.items()}
    assert round(0.9**8, 4) == 0.4305
    assert round(0.9**12, 4) == 0.2824


def test_s36_needs_more_layers_than_s18_and_gets_them() -> None:
    deep = names(S36)
    assert LayerDecay(0.7).exponents(names(S18)) == LayerDecay(0.7, "layer", 6).exponents(
        names(S18)
    )
    assert LayerDecay(0.7).exponents(deep) == LayerDecay(0.7, "layer", 9).exponents(deep)
    last = "backbone.stages.2.blocks.17.norm1.weight"
    assert LayerDecay(0.7).exponents(deep)[last] == 2
    assert min(LayerDecay(0.7).exponents(deep).values()) == 0
    with pytest.raises(ConfigError, match=r"num_layers: got 6, expected at least 9"):
        LayerDecay(0.7, "layer", 6).exponents(deep)


def test_groups_have_the_rates_and_spare_norms_and_biases() -> None:
    model = DenseModel(SPANetV2("test", num_classes=0), SemanticFPN(8, 8), 2)
    config = OptimizerConfig(lr=1e-3, weight_decay=0.05, layer_decay=LayerDecay(0.5, "layer", 6))
    optimizer = config.build(model)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    exponents = LayerDecay(0.5, "layer", 6).exponents([n for n, _ in model.named_parameters()])
    for name, parameter in model.named_parameters():
        group = groups[id(parameter)]
        assert group["lr"] == pytest.approx(1e-3 * 0.5 ** exponents[name])
        spared = parameter.ndim <= 1 or name.endswith(".bias")
        assert group["weight_decay"] == (0.0 if spared else 0.05), name


def test_first_generation_spares_nothing() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    groups = OptimizerConfig(weight_decay=1e-4, no_decay="none").build(model).param_groups
    assert [group["weight_decay"] for group in groups] == [1e-4]
    assert len(groups[0]["params"]) == 4


def rates(schedule: ScheduleConfig, steps: list[int], **run: float) -> list[float]:
    """Return the rate at steps of a run, by the scheduler itself."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    optimizer.defaults["lr"] = 2.0
    scheduler = schedule.build(
        optimizer,
        max_epochs=int(run["epochs"]),
        steps_per_epoch=lambda: run["steps_per_epoch"],
        total_steps=lambda: run["total"],
        images_per_step=lambda: run["images"],
    )
    return [2.0 * scheduler.lr_lambdas[0](step) for step in steps]


def test_step_schedule_with_warmup_by_images() -> None:
    schedule = ScheduleConfig(
        name="step", milestones=(8, 11), update="step", warmup_images=8000, warmup_factor=1e-3
    )
    run = {"epochs": 12, "steps_per_epoch": 1000, "total": 12_000, "images": 16}
    found = rates(schedule, [0, 250, 500, 7999, 8000, 10_999, 11_000, 11_999], **run)
    half = 2e-3 + 0.5 * (2 - 2e-3)
    assert found == pytest.approx([2e-3, half, 2, 2, 0.2, 0.2, 0.02, 0.02])
    # Half the images a step: warm-up takes twice the steps.
    assert rates(schedule, [500, 1000], **(run | {"images": 8})) == pytest.approx([half, 2])


def test_poly_schedules() -> None:
    run = {"epochs": 0, "steps_per_epoch": 1, "total": 40_000, "images": 32}
    plain = ScheduleConfig(name="poly", min_lr=0.0, update="step", warmup_images=0)
    assert rates(plain, [0, 20_000, 40_000], **run) == pytest.approx([2, 2 * 0.5**0.9, 0])
    upernet = ScheduleConfig(
        name="poly",
        power=1.0,
        min_lr=0.0,
        update="step",
        warmup_images=24_000,
        warmup_factor=1e-6,
    )
    run = {"epochs": 0, "steps_per_epoch": 1, "total": 160_000, "images": 16}
    found = rates(upernet, [0, 750, 1500, 80_750, 160_000], **run)
    assert found == pytest.approx([2e-6, 2e-6 + (2 - 2e-6) / 2, 2, 1, 0])
    assert poly_lr(5, 1.0, 0, 10, 2.0, 0.5) == 0.5 + 0.5 * 0.25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"milestones": (11, 8)}, r"schedule.milestones: got \[11, 8\], expected rising epochs"),
        ({"gamma": 0.0}, r"schedule.gamma: got 0.0, expected a number in \(0, 1\]"),
        ({"power": -1.0}, r"schedule.power: got -1.0"),
        ({"name": "poly"}, r"schedule.update: got 'epoch', expected 'step' with poly"),
        ({"warmup_images": -1}, r"schedule.warmup_images: got -1"),
        ({"warmup_factor": math.inf}, r"schedule.warmup_factor: got inf"),
    ],
)
def test_bad_schedules(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ScheduleConfig(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0,), r"layer_decay.rate: got 0.0, expected a number in \(0, 1\]"),
        ((0.9, "stages"), r"layer_decay.rule: got 'stages'.*did you mean 'stage'"),
        ((0.9, "stage"), r"layer_decay.num_layers: got None, expected at least 4"),
    ],
)
def test_bad_layer_decay(arguments: tuple, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LayerDecay(*arguments)
