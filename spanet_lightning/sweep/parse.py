"""From the YAML of a study to its definition; every mistake is one line that names file and line.

This looks at the study alone: whether its keys and values mean anything to the experiment is
checked by `check.check_study`, against the configuration itself.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

from spanet_lightning.cli import sources
from spanet_lightning.cli.sources import Node
from spanet_lightning.errors import ConfigError, did_you_mean, invalid, invalid_choice
from spanet_lightning.sweep.definition import (
    COSTS,
    Ablation,
    Arm,
    At,
    Choice,
    Condition,
    Goal,
    Objective,
    Parameter,
    PrunerName,
    Range,
    SamplerName,
    Search,
    Study,
)
from spanet_lightning.sweep.reading import (
    OVERRIDE,
    Section,
    is_integer,
    is_number,
    items,
    mapping,
    named,
    place,
    unique,
)

_STUDY = (
    "name",
    "question",
    "config",
    "set",
    "objective",
    "test",
    "note",
    "ablation",
    "search",
)
_RESERVED = {
    "seed_everything": "ablation.seeds or search.train_seed say the seeds",
    "name": "the sweep names each run",
    "ckpt_path": "the sweep resumes each trial by itself",
    "config": "configurations stand under 'config'",
    "trainer.default_root_dir": "the sweep gives each trial its folder",
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def read_study(path: str | Path) -> Study:
    """Read the YAML of a study.

    Args:
        path: The file.

    Raises:
        ConfigError: If anything in it is wrong.
    """
    file = Path(path)
    root = Section(sources.read(str(path), "study"), "", _STUDY)
    where: dict[str, str] = {}
    has = [key for key in ("ablation", "search") if root.has(key)]
    if len(has) != 1:
        got = "both" if has else "neither"
        raise ConfigError(f"{path}: got {got} of ablation and search, expected one of them")
    overrides = _overrides(root, where, "set")
    objectives = _objectives(root, where)
    method: Ablation | Search
    if root.has("ablation"):
        method = _ablation(root.children["ablation"], where)
        if objectives[0].metric in COSTS:
            raise invalid(root.at("objective"), objectives[0].metric, "a metric that runs log")
    else:
        method = _search(root.children["search"], where, objectives)
    name = root.text("name", study_name(file))
    if not _NAME.fullmatch(name):
        accepted = "1 to 100 letters, digits, '.', '_' and '-', the first a letter or digit"
        raise invalid(root.at("name"), name, accepted)
    test = root.text("test", "") or None
    if test is not None:
        where["test"] = root.children["test"].where
        if not test.startswith("test/"):
            raise invalid(root.at("test"), test, "a metric of the test split, such as 'test/top1'")
    return Study(
        name=name,
        question=root.text("question"),
        configs=_configs(root, file),
        objectives=objectives,
        method=method,
        overrides=overrides,
        test=test,
        note=root.text("note", ""),
        where=where,
    )


def study_name(file: Path) -> str:
    """Name a study after its file: `sweeps/digits/srf.yaml` is "digits-srf".

    Args:
        file: The file.
    """
    parts = [*file.resolve().parent.parts, file.stem]
    below = len(parts) - 1
    if "sweeps" in parts[:-1]:
        below = len(parts) - 1 - parts[:-1][::-1].index("sweeps")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts[below:])).strip("-._") or "study"


def with_overrides(study: Study, args: list[str]) -> Study:
    """Return a study with overrides of the command line, which apply to every trial.

    Args:
        study: As its file defines it.
        args: As `lightning fit` takes them: `--data.root=PATH`.

    Raises:
        ConfigError: If one is no override, or is the sweep's own business.
    """
    added: dict[str, Any] = {}
    for item in args:
        name, equals, _ = item.partition("=")
        if not name.startswith("--") or not equals:
            raise ConfigError(f"{item}: expected an override of the experiment, as --KEY=VALUE")
        key = _override_key(name.removeprefix("--"), name)
        node = sources.collect([f"--value{item[len(name) :]}"]).value["value"]
        added[key] = _value(node, name)
    return replace(study, overrides={**study.overrides, **added})


# -- what every study has


def _configs(root: Section, file: Path) -> tuple[str, ...]:
    node = root.node("config", "a configuration of an experiment, or a list of them")
    nodes = node.value if isinstance(node.value, list) and node.value else [node]
    found = []
    for child in nodes:
        at = place(child.where, "config")
        if not isinstance(child.value, str) or not child.value:
            raise invalid(at, child.plain(), "the path of a YAML file, or a list of them")
        found.append(_config(child.value, file, at))
    return tuple(found)


def _config(path: str, file: Path, at: str) -> str:
    """Return a path below the working directory, or else below the study's folder."""
    beside = file.parent / path
    if not Path(path).is_file() and beside.is_file():
        return os.path.relpath(beside)
    sources.read(path, at)  # refuses what is no file, or no YAML
    return path


def _objectives(root: Section, where: dict[str, str]) -> tuple[Objective, ...]:
    node = root.node("objective", "{metric: NAME, goal: max}, or a list of them")
    is_list = isinstance(node.value, list)
    nodes = items(node, "objective", "at least one objective") if is_list else [node]
    found = []
    for i, child in enumerate(nodes):
        name = f"objective[{i}]" if is_list else "objective"
        section = Section(child, name, ("metric", "goal", "at"))
        metric = section.text("metric")
        at = section.at("metric")
        where[f"objective/{metric}"] = section.children["metric"].where
        if metric.startswith("test/"):
            raise invalid(at, metric, "a metric of validation: the test split is seen once")
        if metric.startswith("cost/") and metric not in COSTS:
            raise invalid_choice(at, metric, COSTS)
        if i == 0 and metric in COSTS:
            accepted = "a metric that runs log: trials are compared and pruned by the first one"
            raise invalid(at, metric, accepted)
        found.append(
            Objective(
                metric,
                section.choice("goal", get_args(Goal)),
                section.choice("at", get_args(At), "best"),
            )
        )
    names = [objective.metric for objective in found]
    unique(names, lambda i: place(nodes[i].where, f"objective[{i}].metric"), "objective")
    return tuple(found)


def _overrides(section: Section, where: dict[str, str], name: str) -> dict[str, Any]:
    """Return what `set` says, by dotted key; where it stands goes to `where` under `name`/KEY."""
    if not section.has("set"):
        return {}
    found: dict[str, Any] = {}

    def add(children: Mapping[str, Node], outer: str) -> None:
        for written, child in children.items():
            at = place(child.where, f"{section.key('set')}.{outer}{written}")
            key = _override_key(f"{outer}{written}", at)
            # {trainer: {max_epochs: 8}} is trainer.max_epochs; a class with its arguments is one
            # value.
            if isinstance(child.value, dict) and child.value and not child.is_class:
                add(child.value, f"{outer}{written}.")
                continue
            if key in found:
                raise ConfigError(f"{at}: {key} is set twice; expected each key once")
            found[key] = _value(child, at)
            where[f"{name}/{key}"] = child.where

    accepted = "overrides of the experiment by dotted key ({trainer.max_epochs: 8})"
    node = section.children["set"]
    add(mapping(node, section.key("set"), accepted), "")
    return found


def _override_key(written: str, at: str) -> str:
    """Return a key as the command line spells it, without `init_args`."""
    key = re.sub(r"\.(init_args|class_path)(?=\.|$)", "", written.removeprefix("--"))
    if not OVERRIDE.fullmatch(key):
        raise invalid(at, written, "a dotted key of the experiment, such as model.backbone.srf")
    if key in _RESERVED:
        raise ConfigError(f"{at}: is not for a study to set: {_RESERVED[key]}")
    return key


def _value(node: Node, at: str) -> Any:
    """Return a plain value that a command line can carry."""
    value = node.plain()
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        raise invalid(at, value, "a finite number") from None
    return value


# -- ablations


def _ablation(node: Node, where: dict[str, str]) -> Ablation:
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
    control = control if isinstance(control, str) else _label(control)
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
        overrides = _overrides(arm, where, f"arm/{name}")
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
        key = _override_key(axis.text("key"), axis.at("key"))
        if any(key == other[0][1] for other in axes):
            raise ConfigError(f"{at}: {key} is varied twice; expected each key once")
        values = _labelled(axis.node("values", "values by label, or a list"), axis.key("values"))
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


def _labelled(node: Node, name: str) -> dict[str, Any]:
    """Return values by label: a mapping as it is, a list by what its values look like."""
    if isinstance(node.value, dict):
        children = list(node.value.items())
    else:
        accepted = "values by label ({small: [3, 5]}), or a list"
        children = [(_label(item.plain()), item) for item in items(node, name, accepted)]
    found: dict[str, Any] = {}
    for label, child in children:
        at = place(child.where, name)
        named(label, at, "a value")
        value = _value(child, at)
        for other, known in found.items():
            if label == other or (known == value and type(known) is type(value)):
                raise ConfigError(f"{at}: {label!r} is the same value as {other!r}")
        found[label] = value
    if not found:
        raise invalid(place(node.where, name), {}, "at least one value")
    return found


def _label(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


# -- searches


def _search(node: Node, where: dict[str, str], objectives: tuple[Objective, ...]) -> Search:
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
    key = _override_key(section.text("key"), section.at("key"))
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
        values = _labelled(section.children["choices"], section.key("choices"))
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
            label = value if isinstance(value, str) else _label(value)
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


# -- from storage


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
