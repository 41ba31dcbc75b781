"""A study as frozen values: what a YAML in `sweeps/` says, once it has been read.

A study asks one question. An *ablation* answers it by named arms, each trained with the same seeds
as the control; a *search* looks for the best point of a space. Both are a list of overrides of one
experiment, the one that `lightning fit` would run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Goal = Literal["max", "min"]
At = Literal["best", "last"]
SamplerName = Literal["tpe", "random", "grid", "qmc", "nsga2"]
PrunerName = Literal["none", "median", "hyperband", "asha"]
Overrides = Mapping[str, Any]
"""Values of a configuration by dotted key, as `lightning fit --KEY=VALUE` takes them."""

COSTS = ("cost/parameters", "cost/macs", "cost/images_per_second", "cost/train_seconds")
"""Objectives that no run logs as a metric: they are measured by the engine."""


@dataclass(frozen=True)
class Objective:
    """What a study optimises or compares.

    Attributes:
        metric: Name that the run logs, such as `val/top1`, or one of `COSTS`.
        goal: Whether more or less of it is better.
        at: Its value at the best epoch (by the first objective) or at the last one.
        margin: Differences below it do not matter, in units of the metric: arms within ±margin of
            the control may be called equivalent. None claims no equivalence.
    """

    metric: str
    goal: Goal = "max"
    at: At = "best"
    margin: float | None = None


@dataclass(frozen=True)
class Arm:
    """One way to train, of those that an ablation compares.

    Attributes:
        name: What tables and figures call it.
        overrides: What it changes of the study's experiment.
        published: The figure of the paper, in the paper's unit, where there is one.
    """

    name: str
    overrides: Overrides = field(default_factory=dict)
    published: float | None = None


@dataclass(frozen=True)
class Ablation:
    """A control and its arms, each trained with every seed.

    Attributes:
        control: Name of the arm that the others are compared with.
        arms: All arms, the control among them, in the order of the tables.
        seeds: The same for every arm, so that differences are paired.
    """

    control: str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]

    def arm(self, name: str) -> Arm:
        """Return the arm of that name.

        Raises:
            KeyError: If there is none.
        """
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise KeyError(name)


@dataclass(frozen=True)
class Condition:
    """When a parameter exists: only where another one has one of some values.

    Attributes:
        parameter: Name of the other parameter, which stands earlier in the space.
        values: Labels (of a choice) or numbers that it must have.
    """

    parameter: str
    values: tuple[str | float, ...]


@dataclass(frozen=True)
class Choice:
    """A parameter with named values; a value may be a list, such as a set of kernel sizes.

    Attributes:
        name: What dashboards and reports call the parameter.
        key: Key of the configuration that it sets.
        values: The values by label, in order.
        when: When the parameter exists; None is always.
    """

    name: str
    key: str
    values: Mapping[str, Any]
    when: Condition | None = None


@dataclass(frozen=True)
class Range:
    """A parameter with a range of numbers, both ends included.

    Attributes:
        name: What dashboards and reports call the parameter.
        key: Key of the configuration that it sets.
        kind: Whole numbers or real ones.
        low: Least value.
        high: Greatest value.
        step: Distance of allowed values; None is 1 for whole numbers, anything for real ones.
        log: Whether to draw on a logarithmic scale.
        when: When the parameter exists; None is always.
    """

    name: str
    key: str
    kind: Literal["int", "float"]
    low: float
    high: float
    step: float | None = None
    log: bool = False
    when: Condition | None = None


Parameter = Choice | Range


@dataclass(frozen=True)
class Search:
    """A space, who draws from it, and how much may be spent.

    Attributes:
        space: The parameters; one that depends on another comes after it.
        sampler: Optuna's sampler.
        pruner: Optuna's pruner; only "none" with several objectives, as Optuna has it.
        trials: How many trials end, complete or pruned; None is no limit (a grid: all of it).
        hours: How long the study may take, counted from its first trial; None is no limit.
        seed: Seed of the sampler.
        train_seed: `seed_everything` of each trial.
    """

    space: tuple[Parameter, ...]
    sampler: SamplerName = "tpe"
    pruner: PrunerName = "none"
    trials: int | None = None
    hours: float | None = None
    seed: int = 0
    train_seed: int = 0


@dataclass(frozen=True)
class Study:
    """One question and how it is answered.

    Attributes:
        name: Name of the study in the storage, the tracker and the report.
        question: The question, in a sentence.
        configs: Configurations of the experiment, layered in this order.
        overrides: What every trial changes of them.
        objectives: The first one is what arms are compared by and trials pruned by.
        method: How the question is answered.
        test: Metric that is reported once for each trial, on the test split, such as `test/top1`;
            None where the experiment has none.
        note: Anything a reader should know, such as where published figures are from.
        where: File and line of what was written, by its key, for errors; no part of the definition.
    """

    name: str
    question: str
    configs: tuple[str, ...]
    objectives: tuple[Objective, ...]
    method: Ablation | Search
    overrides: Overrides = field(default_factory=dict)
    test: str | None = None
    note: str = ""
    where: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def is_ablation(self) -> bool:
        """Whether the method is an ablation."""
        return isinstance(self.method, Ablation)

    def as_dict(self) -> dict[str, Any]:
        """Return the definition in plain values, for storage and for comparison."""
        kind = "ablation" if self.is_ablation else "search"
        plain: dict[str, Any] = json.loads(json.dumps({**asdict(self), "kind": kind}))
        del plain["where"]
        for objective in plain["objectives"]:
            if objective["margin"] is None:
                del objective["margin"]  # as studies were stored before there were margins
        return plain

    def digest(self) -> str:
        """Return a fingerprint of the definition: 12 hexadecimal digits."""
        text = json.dumps(self.as_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]
