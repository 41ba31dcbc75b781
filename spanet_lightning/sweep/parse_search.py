"""The `search` of a study's YAML: a space, a sampler, a pruner and a budget."""

from __future__ import annotations

from dataclasses import fields
from typing import get_args

from spanet_lightning.errors import ConfigError, did_you_mean, invalid, invalid_choice
from spanet_lightning.sweep.definition import (
    Choice,
    Condition,
    Objective,
    Parameter,
    PrunerName,
    Range,
    SamplerName,
    Search,
)
from spanet_lightning.sweep.overrides import label_of, labelled, override_key
from spanet_lightning.sweep.reading import (
    Section,
    is_integer,
    is_number,
    items,
    mapping,
    named,
    place,
)
from spanet_lightning.sweep.sources import Node


def read_search(node: Node, where: dict[str, str], objectives: tuple[Objective, ...]) -> Search:
    """Read a search.

    Args:
        node: What stands under `search`.
        where: Takes up where in the file parameters stand.
        objectives: Of the study; several exclude a pruner.

    Raises:
        ConfigError: If anything in it is wrong.
    """
    keys = tuple(field.name for field in fields(Search))
    section = Section(node, "search", (*keys[1:], keys[0]))
    sampler: SamplerName = section.choice("sampler", get_args(SamplerName), "tpe")
    pruner: PrunerName = section.choice("pruner", get_args(PrunerName), "none")
    trials = section.integer("trials", None, 1)
    hours = section.number("hours", None, 0.0)
    if trials is None and hours is None and sampler != "grid":
        raise ConfigError(f"{section.at('trials')}: is missing; expected trials, hours or both")
    if pruner != "none" and len(objectives) > 1:
        accepted = "'none' where there are several objectives"
        raise invalid(section.at("pruner"), pruner, accepted)
    space: list[Parameter] = []
    children = section.node("space", "parameters by name")
    for name, child in mapping(children, "search.space", "parameters by name").items():
        at = place(child.where, f"search.space.{name}")
        parameter = _parameter(named(name, at, "a parameter"), child, space)
        for other in space:
            if parameter.key == other.key and not _exclusive(parameter.when, other.when):
                raise ConfigError(f"{at}: {parameter.key} is varied by {other.name!r} already")
        if sampler == "grid" and (parameter.when is not None or not _finite(parameter)):
            accepted = "choices, or a range with a step, and no 'when': the sampler is a grid"
            raise ConfigError(f"{at}: got a parameter without a grid, expected {accepted}")
        where[f"space/{name}"] = child.where
        space.append(parameter)
    if not space:
        raise invalid(place(children.where, "search.space"), {}, "at least one parameter")
    return Search(
        space=tuple(space),
        sampler=sampler,
        pruner=pruner,
        trials=trials,
        hours=hours,
        seed=section.integer("seed", 0, 0) or 0,
        train_seed=section.integer("train_seed", 0, 0) or 0,
    )


def _parameter(name: str, node: Node, before: list[Parameter]) -> Parameter:
    keys = ("key", "choices", "int", "float", "step", "log", "when")
    section = Section(node, f"search.space.{name}", keys)
    key = override_key(section.text("key"), section.at("key"))
    kinds = [kind for kind in ("choices", "int", "float") if section.has(kind)]
    at = place(node.where, section.name)
    if len(kinds) != 1:
        got = " and ".join(kinds) or "none"
        raise ConfigError(f"{at}: got {got} of choices, int and float, expected one of them")
    when = _condition(section, before) if section.has("when") else None
    if kinds[0] == "choices":
        for other in ("step", "log"):
            if section.has(other):
                raise ConfigError(f"{section.at(other)}: only a range has it, not choices")
        values = labelled(section.children["choices"], section.key("choices"))
        return Choice(name, key, values, when)
    return _range(section, name, key, kinds[0], when)


def _range(section: Section, name: str, key: str, kind: str, when: Condition | None) -> Range:
    whole = kind == "int"
    accepted = f"[LEAST, GREATEST], two {'integers' if whole else 'numbers'}"
    bounds = section.children[kind].plain()
    fits = is_integer if whole else is_number
    if not (isinstance(bounds, list) and len(bounds) == 2 and all(map(fits, bounds))):
        raise invalid(section.at(kind), bounds, accepted)
    low, high = bounds
    if low >= high:
        raise invalid(section.at(kind), bounds, f"{accepted}, the first one less")
    log = section.boolean("log", False)
    step: float | None = section.number("step", None, 0.0)
    if whole and step is not None:
        step = section.integer("step", None, 1)
    if log and low <= 0:
        raise invalid(section.at(kind), bounds, "bounds above 0, as log is true")
    if log and step is not None:
        raise invalid(section.at("step"), step, "none, as log is true")
    if step is not None:
        count = (high - low) / step
        if abs(count - round(count)) > 1e-6 or count < 1:
            raise invalid(section.at("step"), step, f"a step that leads from {low} to {high}")
    low, high = (low, high) if whole else (float(low), float(high))
    return Range(name, key, "int" if whole else "float", low, high, step, log, when)


def _condition(section: Section, before: list[Parameter]) -> Condition:
    node = section.children["when"]
    name = section.key("when")
    accepted = "one earlier parameter and its values: {NAME: VALUE} or {NAME: [VALUE, VALUE]}"
    children = mapping(node, name, accepted)
    if len(children) != 1:
        raise invalid(place(node.where, name), node.plain(), accepted)
    other, child = next(iter(children.items()))
    at = place(child.where, name)
    parents = {parameter.name: parameter for parameter in before}
    if other not in parents:
        hint = did_you_mean(other, parents)
        raise invalid(at, other, f"a parameter that stands earlier in the space{hint}")
    parent = parents[other]
    nodes = items(child, name, accepted) if isinstance(child.value, list) else [child]
    values: list[str | float] = []
    for item in nodes:
        value = item.plain()
        if isinstance(parent, Choice):
            label = value if isinstance(value, str) else label_of(value)
            if label not in parent.values:
                raise invalid_choice(at, label, parent.values)
            values.append(label)
        elif is_number(value) and parent.low <= value <= parent.high:
            values.append(value)
        else:
            raise invalid(at, value, f"a number from {parent.low} to {parent.high}")
    return Condition(other, tuple(values))


def _exclusive(first: Condition | None, second: Condition | None) -> bool:
    """Whether two parameters never exist at once."""
    if first is None or second is None or first.parameter != second.parameter:
        return False
    return not set(first.values) & set(second.values)


def _finite(parameter: Parameter) -> bool:
    if isinstance(parameter, Choice):
        return True
    return not parameter.log and (parameter.kind == "int" or parameter.step is not None)
