"""From the YAML of a study to its definition; every mistake is one line that names file and line.

This looks at the study alone: whether its keys and values mean anything to the experiment is
checked by `check.check_study`, against the configuration itself.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from spanet_lightning.cli import config_files
from spanet_lightning.errors import ConfigError, invalid, invalid_choice
from spanet_lightning.sweep import sources
from spanet_lightning.sweep.definition import (
    COSTS,
    Ablation,
    At,
    Goal,
    Objective,
    Search,
    Study,
)
from spanet_lightning.sweep.overrides import override_key, overrides_of, plain_value
from spanet_lightning.sweep.parse_ablation import read_ablation
from spanet_lightning.sweep.parse_search import read_search
from spanet_lightning.sweep.reading import (
    Section,
    items,
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
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def read_study(path: str | Path) -> Study:
    """Read the YAML of a study.

    Args:
        path: The file.

    Raises:
        ConfigError: If anything in it is wrong.
    """
    file = config_files.find(str(path), "sweeps")
    root = Section(sources.read(str(file), "study"), "", _STUDY)
    where: dict[str, str] = {}
    has = [key for key in ("ablation", "search") if root.has(key)]
    if len(has) != 1:
        got = "both" if has else "neither"
        raise ConfigError(f"{path}: got {got} of ablation and search, expected one of them")
    overrides = overrides_of(root, where, "set")
    objectives = _objectives(root, where)
    method: Ablation | Search
    if root.has("ablation"):
        method = read_ablation(root.children["ablation"], where)
        if objectives[0].metric in COSTS:
            raise invalid(root.at("objective"), objectives[0].metric, "a metric that runs log")
    else:
        method = read_search(root.children["search"], where, objectives)
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
        key = override_key(name.removeprefix("--"), name)
        node = sources.collect([f"--value{item[len(name) :]}"]).value["value"]
        added[key] = plain_value(node, name)
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
        section = Section(child, name, ("metric", "goal", "at", "margin"))
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
                section.number("margin", None, 0),
            )
        )
    names = [objective.metric for objective in found]
    unique(names, lambda i: place(nodes[i].where, f"objective[{i}].metric"), "objective")
    return tuple(found)
