"""From what a storage holds to the definition of a study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spanet_lightning.errors import ConfigError
from spanet_lightning.sweep.definition import (
    Ablation,
    Arm,
    Choice,
    Condition,
    Objective,
    Parameter,
    Range,
    Search,
    Study,
)


def study_from_dict(plain: Mapping[str, Any]) -> Study:
    """Return the study that `Study.as_dict` gave.

    Args:
        plain: The definition, as the storage holds it.

    Raises:
        ConfigError: If it is none, such as one of an other version.
    """
    try:
        method = plain["method"]
        is_ablation = plain["kind"] == "ablation"
        return Study(
            name=plain["name"],
            question=plain["question"],
            configs=tuple(plain["configs"]),
            objectives=tuple(Objective(**objective) for objective in plain["objectives"]),
            method=_ablation_from(method) if is_ablation else _search_from(method),
            overrides=dict(plain["overrides"]),
            test=plain["test"],
            note=plain["note"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            "definition: the storage holds one that this version can't read "
            f"({type(error).__name__}: {error})"
        ) from None


def _ablation_from(plain: Mapping[str, Any]) -> Ablation:
    arms = tuple(Arm(**arm) for arm in plain["arms"])
    return Ablation(plain["control"], arms, tuple(plain["seeds"]))


def _search_from(plain: Mapping[str, Any]) -> Search:
    space: list[Parameter] = []
    for parameter in plain["space"]:
        when = parameter["when"]
        if when is not None:
            when = Condition(when["parameter"], tuple(when["values"]))
        kind = Choice if "values" in parameter else Range
        space.append(kind(**{**parameter, "when": when}))
    return Search(**{**plain, "space": tuple(space)})
