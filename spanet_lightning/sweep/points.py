"""The points of a study that say everything about it: every arm, or every value of a space."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from spanet_lightning.sweep.definition import (
    Ablation,
    Choice,
    Parameter,
    Search,
    Study,
)


@dataclass(frozen=True)
class Point:
    """One way to train.

    Attributes:
        name: Of an arm, or the parameters by name; of a space that is not run as a grid, those that
            differ from the first point's.
        overrides: What it changes of the study's experiment.
        keys: For each key that it sets, where the study says so: a key of `Study.where`.
        where: The same of the point as a whole.
    """

    name: str
    overrides: Mapping[str, Any]
    keys: Mapping[str, str]
    where: str


def points(study: Study) -> list[Point]:
    """Return every arm of an ablation, or points that hold every value of a search's space.

    Of a search with a grid it is the whole grid. Of others, each choice and both ends of each range
    stand in one point at least, beside the first value of all others: combinations are too many.

    Args:
        study: The study.
    """
    if isinstance(study.method, Ablation):
        return [
            Point(
                arm.name,
                arm.overrides,
                {key: f"arm/{arm.name}/{key}" for key in arm.overrides},
                f"arm/{arm.name}",
            )
            for arm in study.method.arms
        ]
    space = {parameter.name: parameter for parameter in study.method.space}
    found: dict[str, Point] = {}
    first: dict[str, str | float] = {}
    for chosen in _assignments(study.method):
        first = first or chosen
        whole = study.method.sampler == "grid" or chosen is first
        told = chosen if whole else {n: v for n, v in chosen.items() if first.get(n) != v}
        name = ", ".join(f"{n}={_shown(value)}" for n, value in told.items())
        overrides = {space[n].key: value_of(space[n], value) for n, value in chosen.items()}
        keys = {space[n].key: f"space/{n}" for n in chosen}
        where = f"space/{list(told or chosen)[-1]}"
        found[json.dumps(overrides, sort_keys=True)] = Point(name, overrides, keys, where)
    return list(found.values())


def value_of(parameter: Parameter, value: str | float) -> Any:
    """Return what the configuration gets for a label or a number of a parameter."""
    return parameter.values[str(value)] if isinstance(parameter, Choice) else value


def _assignments(search: Search) -> Iterator[dict[str, str | float]]:
    if search.sampler == "grid":
        values = [_grid(parameter) for parameter in search.space]
        for point in itertools.product(*values):
            yield dict(zip((p.name for p in search.space), point, strict=True))
        return
    for parameter in search.space:
        for value in _ends(parameter):
            yield _completed(search, {**_ancestors(search, parameter), parameter.name: value})


def _completed(search: Search, fixed: Mapping[str, str | float]) -> dict[str, str | float]:
    """Return a point with the first value of every parameter that exists and is not fixed."""
    point: dict[str, str | float] = {}
    for parameter in search.space:
        when = parameter.when
        if when is not None and point.get(when.parameter) not in when.values:
            continue
        point[parameter.name] = fixed.get(parameter.name, _ends(parameter)[0])
    return point


def _ancestors(search: Search, parameter: Parameter) -> dict[str, str | float]:
    """Return values of other parameters under which this one exists."""
    found: dict[str, str | float] = {}
    while parameter.when is not None:
        when = parameter.when
        found[when.parameter] = when.values[0]
        parameter = next(other for other in search.space if other.name == when.parameter)
    return found


def _ends(parameter: Parameter) -> list[Any]:
    if isinstance(parameter, Choice):
        return list(parameter.values)
    return [parameter.low, parameter.high]


def _grid(parameter: Parameter) -> list[Any]:
    if isinstance(parameter, Choice):
        return list(parameter.values)
    step = parameter.step or 1
    count = round((parameter.high - parameter.low) / step)
    values = [parameter.low + i * step for i in range(count + 1)]
    # 0.5 + 3·0.1 has more digits than anybody wrote.
    return [v if parameter.kind == "int" else round(v, 10) for v in values]


def _shown(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:g}"
