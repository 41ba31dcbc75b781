"""The arms of an ablation: values, costs, and how each compares with the control."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spanet_lightning.errors import ConfigError
from spanet_lightning.report.results import Results, Trial
from spanet_lightning.sweep.statistics import (
    Comparison,
    Interval,
    compare,
    interval,
    mean_sd,
    paired,
)
from spanet_lightning.sweep.study import Arm

COST_TOLERANCE = 0.05
"""Share of the control's MACs by which an arm may differ before it is flagged."""


@dataclass(frozen=True)
class Quantity:
    """A metric of an arm over its seeds.

    Attributes:
        values: By seed.
        mean: Their mean.
        sd: Their standard deviation; NaN for one seed.
        difference: Mean of arm minus control by seed; None where they can't be paired.
        interval: Of the mean difference.
    """

    values: Mapping[int, float]
    mean: float
    sd: float
    difference: float | None
    interval: Interval | None


@dataclass(frozen=True)
class ArmResult:
    """One arm.

    Attributes:
        arm: Its definition.
        is_control: Whether the others are compared with it.
        trials: The complete ones, by seed.
        quantities: The objectives by name, then the metric of the test split, if any.
        comparison: By the first objective; None for the control and where there can't be one.
        refusal: Why there can't be one.
        parameters: Of the model.
        macs: Of the model, per image.
        relative_macs: Relative to the control's.
        images_per_second: In training, mean over the seeds.
        train_seconds: Mean over the seeds.
    """

    arm: Arm
    is_control: bool
    trials: tuple[Trial, ...]
    quantities: Mapping[str, Quantity]
    comparison: Comparison | None
    refusal: str
    parameters: int | None
    macs: int | None
    relative_macs: float | None
    images_per_second: float | None
    train_seconds: float | None

    @property
    def differs_in_cost(self) -> bool:
        """Whether its cost differs so much from the control's that it may explain the result."""
        return self.relative_macs is not None and abs(self.relative_macs - 1) > COST_TOLERANCE


def arm_results(results: Results) -> tuple[ArmResult, ...]:
    """Return the arms in the order of the definition.

    Args:
        results: Those of an ablation.
    """
    study, method = results.study, results.ablation
    objective = study.objectives[0]
    trials = {
        arm.name: tuple(
            sorted(
                (t for t in results.complete if t.record.arm == arm.name),
                key=lambda t: t.record.seed,
            )
        )
        for arm in method.arms.values()
    }
    metrics = {
        name: {arm: _values(results, mine, name) for arm, mine in trials.items()}
        for name in metric_names(results)
    }
    main = metrics[objective.metric]
    control = main[method.control]
    others = [arm.name for arm in method.arms.values() if arm.name != method.control]
    refusals: dict[str, str] = {}
    for name in others:
        if name in results.dropped:
            refusals[name] = (
                f"{name} was dropped after {results.dropped[name]} seeds: it could no longer be "
                "better than the control"
            )
            continue
        try:
            paired(main[name], control, name)
            if not control:
                raise ConfigError(f"arm {name!r}: neither it nor the control has a complete trial")
        except ConfigError as error:
            refusals[name] = str(error)
    comparisons = compare(
        {name: main[name] for name in others if name not in refusals},
        control,
        maximize=objective.sign > 0,
        margin=objective.margin,
        family=len(others),
    )
    control_macs = _common([t.record.macs for t in trials[method.control]])
    found = []
    for arm in method.arms.values():
        mine = trials[arm.name]
        macs = _common([t.record.macs for t in mine])
        found.append(
            ArmResult(
                arm=arm,
                is_control=arm.name == method.control,
                trials=mine,
                quantities={
                    name: _quantity(by_arm[arm.name], by_arm[method.control])
                    for name, by_arm in metrics.items()
                },
                comparison=comparisons.get(arm.name),
                refusal=refusals.get(arm.name, ""),
                parameters=_common([t.record.parameters for t in mine]),
                macs=macs,
                relative_macs=macs / control_macs if macs and control_macs else None,
                images_per_second=_mean([t.record.images_per_second for t in mine]),
                train_seconds=_mean([t.record.train_seconds for t in mine]),
            )
        )
    return tuple(found)


def metric_names(results: Results) -> list[str]:
    """Return the objectives, then the metric of the test split, if any."""
    names = [objective.metric for objective in results.study.objectives]
    return [*names, results.study.test] if results.study.test else names


def _values(results: Results, trials: Sequence[Trial], name: str) -> dict[int, float]:
    """Return a metric by seed."""
    for i, objective in enumerate(results.study.objectives):
        if objective.metric == name:
            return {t.record.seed: t.values[i] for t in trials}
    return {t.record.seed: t.record.test[name] for t in trials if name in t.record.test}


def _quantity(values: Mapping[int, float], control: Mapping[int, float]) -> Quantity:
    mean, sd = mean_sd(list(values.values()))
    try:
        differences = list(paired(values, control).values())
    except ConfigError:
        differences = []
    difference = mean_sd(differences)[0] if differences else None
    return Quantity(values, mean, sd, difference, interval(differences) if differences else None)


def _common(values: Sequence[int | None]) -> int | None:
    """Return what all seeds share; None where it is unknown or differs."""
    known = {value for value in values if value is not None}
    return known.pop() if len(known) == 1 else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
