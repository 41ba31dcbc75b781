"""From a definition to trials: points of the space, Optuna's samplers and pruners."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna import pruners, samplers
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from spanet_lightning.sweep.study import Ablation, Parameter, Search, Study, exists

_POPULATION = 50  # Optuna's default for NSGA-II
_MAX_SEED = 2**32 - 1


def overrides(study: Study, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a trial sets beside what the study sets for all.

    Args:
        study: The definition.
        params: Optuna's parameters of the trial.
    """
    method = study.method
    if isinstance(method, Ablation):
        return dict(method.arms[params["arm"]].overrides)
    return {p.key: p.value(params[p.name]) for p in method.space.values() if p.name in params}


def seed(study: Study, params: Mapping[str, Any]) -> int:
    """Return the seed that a trial trains with."""
    method = study.method
    return int(params["seed"]) if isinstance(method, Ablation) else method.train_seed


def queue(study: Study) -> list[dict[str, Any]] | None:
    """Return the parameters of all trials where they are known in advance, else None.

    Those of an ablation are, and those of a grid, of which each point is tried once.
    """
    method = study.method
    if isinstance(method, Ablation):
        return [{"arm": arm, "seed": number} for arm, number in method.cells]
    if method.sampler != "grid":
        return None
    points = _grid(method)
    if method.trials is not None and method.trials < len(points):
        random.Random(method.seed).shuffle(points)  # noqa: S311 - a sample, not the grid's corner
        points = points[: method.trials]
    return points


def suggest(trial: optuna.Trial, study: Study) -> dict[str, Any]:
    """Let Optuna choose the parameters of a trial; those that were enqueued stay as they are."""
    method = study.method
    if isinstance(method, Ablation):
        return {
            "arm": trial.suggest_categorical("arm", list(method.arms)),
            "seed": trial.suggest_int("seed", 0, _MAX_SEED),  # a range: seeds may be added
        }
    params: dict[str, Any] = {}
    for parameter in method.space.values():
        if exists(parameter, params):
            params[parameter.name] = _suggest(trial, parameter)
    return params


def point_of(trial: FrozenTrial) -> str:
    """Return the parameters of a trial, started or enqueued, as text: equal for equal points."""
    params = trial.params or trial.system_attrs.get("fixed_params", {})
    return json.dumps(dict(params), sort_keys=True)


def make_sampler(study: Study, number: int) -> BaseSampler:
    """Return the sampler of one trial.

    Its seed derives from the study's and the trial's number: it does not matter which supervisor
    samples the trial, and no two trials share a stream of numbers.

    Args:
        study: The definition.
        number: Number of the trial.
    """
    search = study.search
    if search is None:
        return samplers.RandomSampler(seed=0)  # all is enqueued: nothing is sampled
    derived = int.from_bytes(hashlib.sha256(f"{search.seed}/{number}".encode()).digest()[:4], "big")
    if search.sampler == "tpe":
        # Running trials count as bad ones, so that parallel trials keep their distance.
        return samplers.TPESampler(seed=derived, constant_liar=True)
    if search.sampler == "qmc":
        # One sequence for all: the position in it is in the storage.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return samplers.QMCSampler(
                scramble=True,
                seed=search.seed,
                independent_sampler=samplers.RandomSampler(seed=derived),
                warn_independent_sampling=False,
            )
    if search.sampler == "nsga2":
        # With Optuna's 50, a study of 40 trials would be a random search.
        budget = search.trials or 5 * _POPULATION
        size = max(8, min(_POPULATION, budget // 5))
        return samplers.NSGAIISampler(population_size=size, seed=derived)
    return samplers.RandomSampler(seed=derived)  # a grid is enqueued


def make_pruner(study: Study, epochs: int | None) -> BasePruner:
    """Return the pruner.

    Args:
        study: The definition.
        epochs: Epochs of a trial, where they are known.
    """
    pruner = study.search.pruner if study.search else "none"
    if pruner == "median":
        return pruners.MedianPruner()
    if pruner == "hyperband":
        return pruners.HyperbandPruner(max_resource=epochs or "auto")
    return pruners.SuccessiveHalvingPruner() if pruner == "asha" else pruners.NopPruner()


# -- points that are checked before the first trial


@dataclass(frozen=True)
class Point:
    """One way to train.

    Attributes:
        name: Of the arm, or the parameters with their values where they differ from the first.
        overrides: What it changes of the study's experiment.
        keys: Dotted key in the study's file for each override, for errors.
    """

    name: str
    overrides: Mapping[str, Any]
    keys: Mapping[str, str]


def points(study: Study) -> list[Point]:
    """Return the arms, a grid's points, or points with each choice and both ends of ranges."""
    method = study.method
    if isinstance(method, Ablation):
        return [
            Point(
                arm.name,
                arm.overrides,
                {key: f"ablation.arms.{arm.name}.overrides.{key}" for key in arm.overrides},
            )
            for arm in method.arms.values()
        ]
    space, found = method.space, dict[str, Point]()
    first: dict[str, Any] = {}
    for chosen in _assignments(method):
        first = first or chosen
        whole = method.sampler == "grid" or chosen is first
        named = chosen if whole else {n: v for n, v in chosen.items() if first.get(n) != v}
        name = ", ".join(f"{n}={v if isinstance(v, str) else f'{v:g}'}" for n, v in named.items())
        values = {space[n].key: space[n].value(value) for n, value in chosen.items()}
        keys = {space[n].key: f"search.space.{n}" for n in chosen}
        # An error that names no key is about the value that this point is there for.
        keys[""] = f"search.space.{list(named or chosen)[-1]}"
        found.setdefault(json.dumps(values, sort_keys=True), Point(name, values, keys))
    return list(found.values())


def _assignments(search: Search) -> Iterator[dict[str, Any]]:
    if search.sampler == "grid":
        yield from _grid(search)
        return
    for parameter in search.space.values():
        for value in _ends(parameter):
            fixed = {parameter.name: value}
            parent = parameter
            while parent.when is not None:
                ((name, values),) = parent.when.items()
                fixed[name], parent = values[0], search.space[name]
            point: dict[str, Any] = {}
            for each in search.space.values():
                if exists(each, point):
                    point[each.name] = fixed.get(each.name, _ends(each)[0])
            yield point


def _grid(search: Search) -> list[dict[str, Any]]:
    values = [parameter.values or [] for parameter in search.space.values()]
    return [dict(zip(search.space, point, strict=True)) for point in itertools.product(*values)]


def _ends(parameter: Parameter) -> list[Any]:
    return list(parameter.choices) if parameter.choices else [parameter.low, parameter.high]


def _suggest(trial: optuna.Trial, parameter: Parameter) -> Any:
    name = parameter.name
    if parameter.choices is not None:
        return trial.suggest_categorical(name, list(parameter.choices))
    low, high, step = parameter.low, parameter.high, parameter.step
    if parameter.int_range:
        return trial.suggest_int(name, int(low), int(high), step=int(step or 1), log=parameter.log)
    return trial.suggest_float(name, low, high, step=step, log=parameter.log)
