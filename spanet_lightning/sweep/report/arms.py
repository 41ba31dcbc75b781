"""The rows of an ablation: each arm's values, costs, and how it compares with the control."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spanet_lightning.errors import ConfigError
from spanet_lightning.sweep.definition import Ablation, Arm
from spanet_lightning.sweep.report.gather import Gathered, Trial
from spanet_lightning.sweep.statistics import (
    Comparison,
    Interval,
    compare,
    interval,
    mean_sd,
    paired,
)

COSTLY = 0.05
"""Share of the control's MACs by which an arm may differ before it is flagged."""


@dataclass(frozen=True)
class Quantity:
    """A metric of an arm, over its seeds.

    Attributes:
        values: By seed.
        mean: Of them.
        sd: Of them; NaN of one.
        difference: Mean of arm minus control, by seed; None where they can't be paired.
        difference_sd: Standard deviation of the differences; NaN of one seed.
        interval: Of the mean difference.
    """

    values: Mapping[int, float]
    mean: float
    sd: float
    difference: float | None
    difference_sd: float | None
    interval: Interval | None


@dataclass(frozen=True)
class Row:
    """One arm.

    Attributes:
        arm: Its definition.
        is_control: Whether it is what the others are compared with.
        trials: Those that are complete, by seed.
        quantities: The objectives by name, and then the metric of the test split, if any.
        comparison: By the first objective; None of the control and of what can't be compared.
        refused: Why it can't be compared.
        parameters: Of the model.
        macs: Of the model, for one image.
        relative_macs: Over those of the control.
        images_per_second: In training, mean over the seeds.
        train_seconds: Mean over the seeds.
    """

    arm: Arm
    is_control: bool
    trials: tuple[Trial, ...]
    quantities: Mapping[str, Quantity]
    comparison: Comparison | None
    refused: str
    parameters: int | None
    macs: int | None
    relative_macs: float | None
    images_per_second: float | None
    train_seconds: float | None

    @property
    def costly(self) -> bool:
        """Whether its cost differs so much from the control's that it may explain the result."""
        return self.relative_macs is not None and abs(self.relative_macs - 1) > COSTLY


def rows(found: Gathered) -> tuple[Row, ...]:
    """Return a row for each arm, in the order of the definition.

    Args:
        found: An ablation.
    """
    study, method = found.study, found.study.method
    if not isinstance(method, Ablation):
        raise TypeError("rows: the study is no ablation")
    first = study.objectives[0]
    mine = {
        arm.name: tuple(
            sorted(
                (t for t in found.complete if t.record.arm == arm.name),
                key=lambda t: t.record.seed,
            )
        )
        for arm in method.arms
    }
    metrics = {
        name: {arm: _values(found, trials, name) for arm, trials in mine.items()}
        for name in metric_names(found)
    }
    main = metrics[first.metric]
    control = main[method.control]
    refused: dict[str, str] = {}
    for arm in method.arms:
        if arm.name == method.control:
            continue
        try:
            paired(main[arm.name], control, arm.name)
            if not control:
                raise ConfigError("there is no complete trial of it or of the control")
        except ConfigError as error:
            refused[arm.name] = str(error)
    family = len(method.arms) - 1
    comparable = {
        arm.name: main[arm.name]
        for arm in method.arms
        if arm.name != method.control and arm.name not in refused
    }
    compared = compare(comparable, control, goal=first.goal, family=family)
    control_macs = _same([t.record.macs for t in mine[method.control]])
    made = []
    for arm in method.arms:
        trials = mine[arm.name]
        macs = _same([t.record.macs for t in trials])
        made.append(
            Row(
                arm=arm,
                is_control=arm.name == method.control,
                trials=trials,
                quantities={
                    name: _quantity(by_arm[arm.name], by_arm[method.control], arm.name)
                    for name, by_arm in metrics.items()
                },
                comparison=compared.get(arm.name),
                refused=refused.get(arm.name, ""),
                parameters=_same([t.record.parameters for t in trials]),
                macs=macs,
                relative_macs=macs / control_macs if macs and control_macs else None,
                images_per_second=_mean([t.record.images_per_second for t in trials]),
                train_seconds=_mean([t.record.train_seconds for t in trials]),
            )
        )
    return tuple(made)


def metric_names(found: Gathered) -> list[str]:
    """Return the objectives, and then the metric of the test split, if any."""
    names = [objective.metric for objective in found.study.objectives]
    return [*names, found.study.test] if found.study.test else names


def _values(found: Gathered, trials: Sequence[Trial], name: str) -> dict[int, float]:
    """Return a metric by seed."""
    for i, objective in enumerate(found.study.objectives):
        if objective.metric == name:
            return {t.record.seed: t.values[i] for t in trials}
    return {t.record.seed: t.record.test[name] for t in trials if name in t.record.test}


def _quantity(values: Mapping[int, float], control: Mapping[int, float], name: str) -> Quantity:
    mean, sd = mean_sd(list(values.values()))
    try:
        differences = list(paired(values, control, name).values()) if values else []
    except ConfigError:
        differences = []
    difference, difference_sd = mean_sd(differences) if differences else (None, None)
    return Quantity(
        values=values,
        mean=mean,
        sd=sd,
        difference=difference,
        difference_sd=difference_sd,
        interval=interval(differences) if differences else None,
    )


def _same(values: Sequence[int | None]) -> int | None:
    """Return what all seeds of an arm share; None where it is unknown or differs."""
    known = {value for value in values if value is not None}
    return known.pop() if len(known) == 1 else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
