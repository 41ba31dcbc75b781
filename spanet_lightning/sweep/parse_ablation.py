"""The `ablation` of a study's YAML: a control, and arms by name or as a grid, under seeds."""

from __future__ import annotations

import itertools
import math
from typing import Any

from spanet_lightning.errors import ConfigError, invalid, invalid_choice
from spanet_lightning.sweep.definition import Ablation, Arm
from spanet_lightning.sweep.overrides import label_of, labelled, override_key, overrides_of
from spanet_lightning.sweep.reading import (
    Section,
    is_integer,
    items,
    mapping,
    named,
    place,
    unique,
)
from spanet_lightning.sweep.sources import Node


def read_ablation(node: Node, where: dict[str, str]) -> Ablation:
    """Read an ablation.

    Args:
        node: What stands under `ablation`.
        where: Takes up where in the file arms and overrides stand.

    Raises:
        ConfigError: If anything in it is wrong.
    """
    section = Section(node, "ablation", ("seeds", "control", "arms", "grid"))
    if section.has("arms") == section.has("grid"):
        got = "both" if section.has("arms") else "neither"
        at = place(section.where, "ablation")
        raise ConfigError(f"{at}: got {got} of arms and grid, expected one of them")
    arms = _arms(section, where) if section.has("arms") else _grid(section, where)
    if len(arms) < 2:
        at = section.at("arms" if section.has("arms") else "grid")
        raise invalid(at, [arm.name for arm in arms], "the control and at least one other arm")
    names = [arm.name for arm in arms]
    control = section.node("control", f"one of {', '.join(map(repr, names))}").plain()
    control = control if isinstance(control, str) else label_of(control)
    if control not in names:
        raise invalid_choice(section.at("control"), control, names)
    accepted = "a list of integers of at least 0, one a seed"
    seeds = items(section.node("seeds", accepted), "ablation.seeds", accepted)
    for i, seed in enumerate(seeds):
        if not is_integer(seed.value) or not 0 <= seed.value < 2**32:
            at = place(seed.where, f"ablation.seeds[{i}]")
            raise invalid(at, seed.plain(), "an integer from 0 to 4294967295")
    values = [seed.value for seed in seeds]
    unique(values, lambda i: place(seeds[i].where, "ablation.seeds"), "seed")
    return Ablation(control, tuple(arms), tuple(values))


def _arms(section: Section, where: dict[str, str]) -> list[Arm]:
    arms = []
    node = section.children["arms"]
    for name, child in mapping(node, "ablation.arms", "arms by name").items():
        named(name, place(child.where, "ablation.arms"), "an arm")
        where[f"arm/{name}"] = child.where
        inner = child if child.value is not None else Node({}, child.where)
        arm = Section(inner, f"ablation.arms.{name}", ("set", "published"))
        overrides = overrides_of(arm, where, f"arm/{name}")
        arms.append(Arm(name, overrides, arm.number("published", None, -math.inf)))
    return arms


def _grid(section: Section, where: dict[str, str]) -> list[Arm]:
    """Return an arm for each point of a grid, named by the labels of its values."""
    axes: list[list[tuple[str, str, Any]]] = []
    node = section.children["grid"]
    accepted = "axes by name: {NAME: {key: KEY, values: {LABEL: VALUE}}}"
    for name, child in mapping(node, "ablation.grid", accepted).items():
        at = place(child.where, f"ablation.grid.{name}")
        named(name, at, "an axis")
        axis = Section(child, f"ablation.grid.{name}", ("key", "values"))
        key = override_key(axis.text("key"), axis.at("key"))
        if any(key == other[0][1] for other in axes):
            raise ConfigError(f"{at}: {key} is varied twice; expected each key once")
        values = labelled(axis.node("values", "values by label, or a list"), axis.key("values"))
        axes.append([(f"{name}={label}", key, value) for label, value in values.items()])
        where[f"key/{key}"] = child.where
    if not axes:
        raise invalid(section.at("grid"), {}, accepted)
    arms = []
    for point in itertools.product(*axes):
        name = ", ".join(label for label, _, _ in point)
        arms.append(Arm(name, {key: value for _, key, value in point}))
        where[f"arm/{name}"] = node.where
        where |= {f"arm/{name}/{key}": where[f"key/{key}"] for _, key, _ in point}
    return arms
