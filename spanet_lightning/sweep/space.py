"""What there is to try: the cells of an ablation, the points of a space."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

import optuna

from spanet_lightning.errors import ConfigError
from spanet_lightning.sweep.definition import (
    Ablation,
    Choice,
    Condition,
    Parameter,
    Search,
    Study,
)


def cells(study: Study) -> list[tuple[str, int]]:
    """Return every arm with every seed; all arms of one seed first, so that each is early seen.

    Args:
        study: An ablation.
    """
    method = _ablation(study)
    return [(arm.name, seed) for seed in method.seeds for arm in method.arms]


def overrides(study: Study, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a trial sets beside what the study sets for all.

    Args:
        study: The definition.
        params: Optuna's parameters of the trial.
    """
    method = study.method
    if isinstance(method, Ablation):
        return dict(method.arm(params["arm"]).overrides)
    found = {}
    for parameter in method.space:
        if parameter.name in params:
            value = params[parameter.name]
            found[parameter.key] = (
                parameter.values[value] if isinstance(parameter, Choice) else value
            )
    return found


def seed(study: Study, params: Mapping[str, Any]) -> int:
    """Return the seed that a trial trains with.

    Args:
        study: The definition.
        params: Optuna's parameters of the trial.
    """
    method = study.method
    return int(params["seed"]) if isinstance(method, Ablation) else method.train_seed


def queue(study: Study) -> list[dict[str, Any]] | None:
    """Return the parameters of all trials where they are known beforehand, else None.

    Those of an ablation are, and those of a grid, of which each point is tried once.

    Args:
        study: The definition.
    """
    method = study.method
    if isinstance(method, Ablation):
        return [{"arm": arm, "seed": number} for arm, number in cells(study)]
    if method.sampler != "grid":
        return None
    points = grid(method)
    if method.trials is not None and method.trials < len(points):
        random.Random(method.seed).shuffle(points)  # noqa: S311 - a sample of it, not its corner
        points = points[: method.trials]
    return points


def suggest(trial: optuna.Trial, study: Study) -> dict[str, Any]:
    """Let Optuna choose the parameters of a trial; those that were enqueued are as they were.

    Args:
        trial: As `ask` returned it.
        study: The definition.
    """
    method = study.method
    if isinstance(method, Ablation):
        return {
            "arm": trial.suggest_categorical("arm", [arm.name for arm in method.arms]),
            "seed": trial.suggest_categorical("seed", method.seeds),
        }
    params: dict[str, Any] = {}
    for parameter in method.space:
        if exists(parameter.when, params):
            params[parameter.name] = _suggest(trial, parameter)
    return params


def exists(when: Condition | None, params: Mapping[str, Any]) -> bool:
    """Whether a parameter exists beside the values of those before it.

    Args:
        when: Its condition.
        params: The values so far.
    """
    return when is None or (when.parameter in params and params[when.parameter] in when.values)


def grid(search: Search) -> list[dict[str, Any]]:
    """Return each point of a space once, the last parameter changing fastest.

    Args:
        search: A search whose ranges have steps.

    Raises:
        ConfigError: If a range has no end of values.
    """
    points: list[dict[str, Any]] = [{}]
    for parameter in search.space:
        values = _values(parameter)
        points = [
            {**point, **extra}
            for point in points
            for extra in (
                [{parameter.name: value} for value in values]
                if exists(parameter.when, point)
                else [{}]
            )
        ]
    return points


def _suggest(trial: optuna.Trial, parameter: Parameter) -> Any:
    name = parameter.name
    if isinstance(parameter, Choice):
        return trial.suggest_categorical(name, list(parameter.values))
    low, high, step = parameter.low, parameter.high, parameter.step
    if parameter.kind == "int":
        return trial.suggest_int(name, int(low), int(high), step=int(step or 1), log=parameter.log)
    return trial.suggest_float(name, low, high, step=step, log=parameter.log)


def _values(parameter: Parameter) -> list[Any]:
    """Return all values of a parameter, in order."""
    if isinstance(parameter, Choice):
        return list(parameter.values)
    step = parameter.step or (1 if parameter.kind == "int" else None)
    if step is None:
        raise ConfigError(
            f"search.space.{parameter.name}.step: is missing; a grid needs the distance of values"
        )
    count = math.floor((parameter.high - parameter.low) / step + 1e-9) + 1
    values = [parameter.low + i * step for i in range(count)]
    # Rounded, so that 0.1 + 2 * 0.1 is the 0.3 that a reader expects.
    return [int(v) if parameter.kind == "int" else float(f"{v:.12g}") for v in values]


def _ablation(study: Study) -> Ablation:
    if not isinstance(study.method, Ablation):
        raise TypeError(f"{study.name} is a search, which has no cells")
    return study.method
