"""A study as its YAML defines it, and the one list of what may change in a study that has begun.

A study asks one question. An *ablation* answers it by named arms, each trained with the same seeds
as the control; a *search* looks for the best point of a space. Both are lists of overrides of one
experiment, the one that `lightning fit` would run.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from spanet_lightning.cli import config_files
from spanet_lightning.errors import ConfigError, did_you_mean

COSTS = ("cost/parameters", "cost/macs", "cost/images_per_second", "cost/train_seconds")
"""Objectives that no run logs as a metric: the engine measures them."""
Overrides = Mapping[str, Any]
"""Values of a configuration by dotted key, as `lightning fit --KEY=VALUE` takes them."""

_RENAMED = {"set": "overrides", "goal": "direction: maximize or direction: minimize"}
_RESERVED = {
    "seed_everything": "ablation.seeds or search.train_seed set the seeds",
    "name": "the sweep names each run",
    "ckpt_path": "the sweep resumes each trial itself",
    "resume": "the sweep resumes each trial itself",
    "config": "configurations are listed under 'config'",
    "trainer.default_root_dir": "the sweep gives each trial a folder",
}
_KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*\+?")


def _key(value: Any) -> str:
    """Return a key as the command line spells it, without `init_args`."""
    key = re.sub(r"\.(init_args|class_path)(?=\.|$)", "", str(value).removeprefix("--"))
    if not _KEY.fullmatch(key):
        raise ValueError(f"got {str(value)!r}, expected a dotted key such as model.backbone.srf")
    if key in _RESERVED:
        raise ValueError(f"{key} is not for a study to set: {_RESERVED[key]}")
    return key


def _value(value: Any) -> Any:
    """Return a plain value that a command line can carry."""
    value = config_files.plain(value)
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        raise ValueError(f"got {value!r}, expected a finite number") from None
    return value


def _overrides(value: Any) -> dict[str, Any]:
    """Flatten overrides: `{trainer: {max_epochs: 8}}` is `trainer.max_epochs`."""
    if not isinstance(value, Mapping):
        text = "expected overrides by dotted key, as {trainer.max_epochs: 8}"
        raise ValueError(f"got {config_files.plain(value)!r}, {text}")
    found: dict[str, Any] = {}

    def add(mapping: Mapping[str, Any], prefix: str) -> None:
        for name, child in mapping.items():
            key = _key(f"{prefix}{name}")
            is_class = isinstance(child, Mapping) and {"class_path", "init_args"} & child.keys()
            if isinstance(child, Mapping) and child and not is_class:
                add(child, f"{prefix}{name}.")
            elif key in found:
                raise ValueError(f"{key} is set twice; expected each key once")
            else:
                found[key] = _value(child)

    add(value, "")
    return found


def _labels(value: Any) -> dict[str, Any]:
    """Return values by label: a mapping as it is, the values of a list labelled by themselves."""
    if isinstance(value, list):
        pairs = [(label_of(item), item) for item in value]
    elif isinstance(value, Mapping):
        pairs = list(value.items())
    else:
        pairs = []
    if not pairs:
        text = "expected values by label, as {small: [3, 5]}, or a list"
        raise ValueError(f"got {config_files.plain(value)!r}, {text}")
    found: dict[str, Any] = {}
    for label, item in pairs:
        plain = _value(item)
        for other, known in found.items():
            if label == other or (known == plain and type(known) is type(plain)):
                raise ValueError(f"{label!r} is the same value as {other!r}")
        found[label] = plain
    return found


def label_of(value: Any) -> str:
    """Return the label of a value without one: text as it is written, anything else as JSON."""
    return str(value) if isinstance(value, str) else json.dumps(config_files.plain(value))


def _names(value: Any) -> Any:
    """Check the names of arms, axes and parameters, which become texts of folders and tables."""
    for name in value if isinstance(value, Mapping) else ():
        if not str(name).strip() or len(name) > 100 or not str(name).isprintable():
            raise ValueError(f"got {name!r}, expected a name of 1 to 100 printable characters")
    if not isinstance(value, Mapping):
        return value
    return {name: {} if child is None else child for name, child in value.items()}


Key = Annotated[str, BeforeValidator(_key)]
Values = Annotated[dict[str, Any], BeforeValidator(_labels)]
_OverridesField = Annotated[dict[str, Any], BeforeValidator(_overrides)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Objective(_Model):
    """What a study optimises or compares.

    Attributes:
        metric: Name that the run logs, such as `val/top1`, or one of `COSTS`.
        direction: Whether more or less of it is better.
        at: Its value at the best epoch (by the first objective) or at the last one.
        margin: Differences below it do not matter, in units of the metric: arms within ±margin of
            the control may be called equivalent. None claims no equivalence.
    """

    metric: str
    direction: Literal["maximize", "minimize"]
    at: Literal["best", "last"] = "best"
    margin: float | None = Field(None, gt=0)

    @property
    def sign(self) -> int:
        """1 where more is better, else -1."""
        return 1 if self.direction == "maximize" else -1

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.metric.startswith("test/"):
            text = "expected a validation metric: the test split is evaluated once"
            raise ValueError(f"got {self.metric!r}, {text}")
        if self.metric.startswith("cost/") and self.metric not in COSTS:
            raise ValueError(f"got {self.metric!r}, expected one of {', '.join(map(repr, COSTS))}")
        return self


class Arm(_Model):
    """One of the ways to train that an ablation compares.

    Attributes:
        name: Its name in tables and figures.
        overrides: What it changes of the study's experiment.
        published: The paper's figure, in the paper's unit.
    """

    name: str = ""
    overrides: _OverridesField = {}
    published: float | None = None


class Axis(_Model):
    """One axis of a grid of arms: a key and its values by label."""

    key: Key
    values: Values


class Ablation(_Model):
    """A control and its arms, each trained with every seed.

    Attributes:
        control: Name of the arm that the others are compared with.
        seeds: The same for every arm, so that differences are paired.
        arms: All arms by name, the control among them, in the order of the tables.
        grid: Written instead of `arms`: an arm for every point of a grid.
        stop_losers: Whether arms that can no longer be better than the control get no more seeds.
    """

    control: str
    seeds: tuple[Seed, ...] = Field(min_length=1)
    arms: Annotated[dict[str, Arm], BeforeValidator(_names)] = {}
    grid: Annotated[dict[str, Axis] | None, BeforeValidator(_names)] = Field(None, exclude=True)
    stop_losers: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if bool(self.arms) == bool(self.grid):
            got = "both" if self.arms else "neither"
            raise ValueError(f"got {got} of arms and grid, expected one of them")
        arms = _expanded(self.grid) if self.grid else self.arms
        named = {name: arm.model_copy(update={"name": name}) for name, arm in arms.items()}
        object.__setattr__(self, "arms", named)  # frozen for everybody else
        if len(named) < 2:
            raise ValueError(f"got {list(named)}, expected the control and at least one other arm")
        if self.control not in named:
            known = ", ".join(map(repr, named))
            hint = did_you_mean(self.control, named)
            raise ValueError(f"@control: got {self.control!r}, expected one of {known}{hint}")
        if len(set(self.seeds)) < len(self.seeds):
            twice = next(s for s in self.seeds if self.seeds.count(s) > 1)
            raise ValueError(f"@seeds: got the seed {twice} twice, expected each once")
        return self

    @property
    def cells(self) -> list[tuple[str, int]]:
        """Every arm with every seed, all arms of one seed first."""
        return [(arm, seed) for seed in self.seeds for arm in self.arms]


def _expanded(grid: Mapping[str, Axis]) -> dict[str, Arm]:
    keys = [axis.key for axis in grid.values()]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"@grid: {twice} is varied twice; expected each key once")
    arms = {}
    for point in itertools.product(*(axis.values.items() for axis in grid.values())):
        name = ", ".join(f"{axis}={label}" for axis, (label, _) in zip(grid, point, strict=True))
        values = {key: value for key, (_, value) in zip(keys, point, strict=True)}
        arms[name] = Arm(overrides=values)
    return arms


class Parameter(_Model):
    """A parameter of a search: named values (`choices`), or a range of numbers, ends included.

    Attributes:
        name: Its name in dashboards and reports.
        key: Key of the configuration that it sets.
        choices: Values by label, in order; a value may be a list.
        int_range: Smallest and largest integer.
        float_range: Smallest and largest number.
        step: Distance of allowed values; None is 1 for integers, anything for numbers.
        log: Whether to sample on a logarithmic scale.
        when: Values of one earlier parameter with which this one exists; None is always.
    """

    name: str = ""
    key: Key
    choices: Values | None = None
    int_range: tuple[int, int] | None = Field(None, alias="int")
    float_range: tuple[float, float] | None = Field(None, alias="float")
    step: float | None = Field(None, gt=0)
    log: bool = False
    when: dict[str, Any] | None = None

    @property
    def low(self) -> float:
        """The smallest number of a range."""
        return self._range[0]

    @property
    def high(self) -> float:
        """The largest number of a range."""
        return self._range[1]

    @property
    def values(self) -> list[Any] | None:
        """All labels or numbers, in order; None where there is no end of them."""
        if self.choices is not None:
            return list(self.choices)
        step = self.step or (1 if self.int_range else None)
        if step is None or self.log:
            return [*range(int(self.low), int(self.high) + 1)] if self.int_range else None
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        found = [self.low + i * step for i in range(count)]
        # Rounded: a reader expects 0.3 of 0.1 + 2 · 0.1.
        return [int(v) if self.int_range else float(f"{v:.12g}") for v in found]

    def value(self, chosen: Any) -> Any:
        """Return what the configuration gets for a label or a number."""
        return chosen if self.choices is None else self.choices[str(chosen)]

    @property
    def _range(self) -> tuple[float, float]:
        found = self.int_range or self.float_range
        if found is None:
            raise TypeError(f"{self.name} has choices, not a range")
        return found

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = {"choices": self.choices, "int": self.int_range, "float": self.float_range}
        kinds = [kind for kind, value in given.items() if value is not None]
        if len(kinds) != 1:
            got = " and ".join(kinds) or "none"
            raise ValueError(f"got {got} of choices, int and float, expected one of them")
        if self.choices is not None:
            if self.step is not None or self.log:
                raise ValueError("step and log are for ranges, not for choices")
            return self
        bounds = [self.low, self.high]
        if self.low >= self.high:
            text = f"got {bounds}, expected [LEAST, GREATEST], the first one less"
            raise ValueError(f"@{kinds[0]}: {text}")
        if self.log and self.low <= 0:
            text = f"got {bounds}, expected bounds above 0, as log is true"
            raise ValueError(f"@{kinds[0]}: {text}")
        if self.step is not None:
            count = (self.high - self.low) / self.step
            whole = self.int_range is None or self.step == int(self.step)
            if self.log or not whole or abs(count - round(count)) > 1e-6 or count < 1:
                text = f"a step that leads from {self.low:g} to {self.high:g}"
                expected = "none, as log is true" if self.log else text
                raise ValueError(f"@step: got {self.step:g}, expected {expected}")
        return self


class Search(_Model):
    """A space, a sampler, and what may be spent.

    Attributes:
        space: The parameters by name; one that depends on another comes after it.
        sampler: Optuna's sampler.
        pruner: Optuna's pruner; only "none" with several objectives, as in Optuna.
        trials: How many trials end, complete or pruned; None is no limit (a grid: all of it).
        hours: How long the study may take, counted from its first trial; None is no limit.
        seed: Seed of the sampler.
        train_seed: `seed_everything` of each trial.
    """

    space: Annotated[dict[str, Parameter], BeforeValidator(_names)] = Field(min_length=1)
    sampler: Literal["tpe", "random", "grid", "qmc", "nsga2"] = "tpe"
    pruner: Literal["none", "median", "hyperband", "asha"] = "none"
    trials: int | None = Field(None, ge=1)
    hours: float | None = Field(None, gt=0)
    seed: Seed = 0
    train_seed: Seed = 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.trials is None and self.hours is None and self.sampler != "grid":
            raise ValueError("@trials: is missing; expected trials, hours or both")
        space: dict[str, Parameter] = {}
        for name, parameter in self.space.items():
            when = None
            if parameter.when is not None:
                when = _condition(f"@space.{name}.when", parameter.when, space)
            new = parameter.model_copy(update={"name": name, "when": when})
            for other in space.values():
                if new.key == other.key and not _exclusive(new.when, other.when):
                    text = f"{new.key} is varied by {other.name!r} already"
                    raise ValueError(f"@space.{name}: {text}")
            if self.sampler == "grid" and (when is not None or new.values is None):
                text = "expected choices, or a range with a step, and no 'when', as sampler is grid"
                raise ValueError(f"@space.{name}: got a parameter without a grid, {text}")
            space[name] = new
        object.__setattr__(self, "space", space)
        return self

    @property
    def points(self) -> int | None:
        """How many different points the space has; None where there is no end of them."""
        if any(parameter.values is None for parameter in self.space.values()):
            return None
        points: list[dict[str, Any]] = [{}]
        for name, parameter in self.space.items():
            grown: list[dict[str, Any]] = []
            for point in points:
                here = parameter.values or [] if exists(parameter, point) else [None]
                grown += [{**point, name: value} for value in here]
            if len(grown) > 100_000:
                return None  # as good as endless
            points = grown
        return len(points)


def exists(parameter: Parameter, chosen: Mapping[str, Any]) -> bool:
    """Whether a parameter exists, given the values of those before it."""
    if parameter.when is None:
        return True
    ((other, values),) = parameter.when.items()
    return chosen.get(other) in values


def _condition(at: str, when: Mapping[str, Any], before: Mapping[str, Parameter]) -> dict[str, Any]:
    """Check a condition; return `{NAME: [VALUE, …]}`, with labels of choices."""
    if len(when) != 1:
        text = "expected one earlier parameter and its values, as {NAME: [VALUE, VALUE]}"
        raise ValueError(f"{at}: got {config_files.plain(when)!r}, {text}")
    ((name, given),) = when.items()
    if name not in before:
        text = f"expected a parameter that precedes it{did_you_mean(name, before)}"
        raise ValueError(f"{at}: got {name!r}, {text}")
    parent, values = before[name], []
    for item in given if isinstance(given, list | tuple) else [given]:
        value: Any = label_of(item) if parent.choices is not None else config_files.plain(item)
        if parent.choices is not None and value not in parent.choices:
            known = ", ".join(map(repr, parent.choices))
            raise ValueError(f"{at}: got {value!r}, expected one of {known}")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if parent.choices is None and not (number and parent.low <= value <= parent.high):
            text = f"expected a number from {parent.low:g} to {parent.high:g}"
            raise ValueError(f"{at}: got {value!r}, {text}")
        values.append(value)
    return {name: values}


def _exclusive(first: Mapping[str, Any] | None, second: Mapping[str, Any] | None) -> bool:
    """Whether two parameters never exist at once."""
    if first is None or second is None or first.keys() != second.keys():
        return False
    return not set(*first.values()) & set(*second.values())


class Study(_Model):
    """One question and how it is answered.

    Attributes:
        name: Name of the study in the storage, the tracker and the report.
        question: The question, in a sentence.
        configs: Configurations of the experiment, layered in this order.
        overrides: What every trial changes of them.
        objectives: The first one is what arms are compared by and trials pruned by.
        ablation: An ablation, or …
        search: … a search.
        test: Metric that is reported once for each trial, on the test split, such as `test/top1`.
        note: Anything a reader should know, such as where published figures are from.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    question: str = Field(min_length=1)
    configs: tuple[str, ...] = Field(alias="config", min_length=1)
    overrides: _OverridesField = {}
    objectives: tuple[Objective, ...] = Field(alias="objective", min_length=1)
    ablation: Ablation | None = None
    search: Search | None = None
    test: str | None = Field(None, pattern="^test/.+")
    note: str = ""
    _where: dict[str, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, data: Any) -> Any:
        """Take one configuration or objective for a list of one."""
        if not isinstance(data, Mapping):
            return data
        lists = {
            k: [v] for k in ("config", "objective") if isinstance(v := data.get(k), str | dict)
        }
        return {**data, **lists}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.ablation is None) == (self.search is None):
            got = "neither" if self.ablation is None else "both"
            raise ValueError(f"got {got} of ablation and search, expected one of them")
        metrics = [objective.metric for objective in self.objectives]
        if metrics[0] in COSTS:
            text = "expected a metric that runs log: trials are compared and pruned by the first"
            raise ValueError(f"@objective: got {metrics[0]!r}, {text}")
        if len(set(metrics)) < len(metrics):
            raise ValueError("@objective: a metric is given twice, expected each once")
        if self.search and self.search.pruner != "none" and len(metrics) > 1:
            text = "expected 'none' with several objectives"
            raise ValueError(f"@search.pruner: got {self.search.pruner!r}, {text}")
        return self

    @property
    def is_ablation(self) -> bool:
        """Whether the method is an ablation."""
        return self.ablation is not None

    @property
    def method(self) -> Ablation | Search:
        """How the question is answered."""
        found = self.ablation or self.search
        if found is None:
            raise TypeError("a study is an ablation or a search")
        return found

    @property
    def declared(self) -> int | None:
        """How many trials the study is to have; None where only hours limit it."""
        if self.ablation is not None:
            return len(self.ablation.cells)
        search, points = self.search, self.search.points if self.search else None
        if search is None or (search.sampler != "grid" and search.trials is None):
            return None
        return min(n for n in (search.trials, points) if n is not None)

    def as_dict(self) -> dict[str, Any]:
        """Return the definition in plain values, for storage and comparison."""
        plain: dict[str, Any] = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return plain

    def digest(self) -> str:
        """Return a fingerprint of the definition: 12 hexadecimal digits."""
        text = json.dumps(self.as_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def place(self, *keys: str) -> str:
        """Return "FILE:LINE: " of the first of these dotted keys that the file has, or ""."""
        return next((f"{self._where[key]}: " for key in keys if key in self._where), "")


# -- from a file


def read_study(path: str | Path, args: list[str] | None = None) -> Study:
    """Read the YAML of a study.

    Args:
        path: The file, or the name of a packaged study, such as `digits/v2_srf`. Its `base` may
            list other files, relative to it, over which it is laid.
        args: Overrides of the command line for every trial, as `--data.root=PATH`.

    Raises:
        ConfigError: If anything in it is wrong: one line with place, key and what is accepted.
    """
    file = config_files.find(str(path), "sweeps")
    tree = _layered(config_files.read(str(path), "study", "sweeps"), file)
    where = _places(tree, "")
    tree.setdefault("name", study_name(file))
    study = _validated(tree, str(path), where)
    study._where.update(where)
    configs = tuple(_config(config, file, study.place("config")) for config in study.configs)
    update: dict[str, Any] = {"configs": configs}
    if args:
        update["overrides"] = {**study.overrides, **_command_line(args)}
    return study.model_copy(update=update)


def study_name(file: Path) -> str:
    """Name a study after its file: `sweeps/digits/srf.yaml` is "digits-srf"."""
    parts = [*file.resolve().parent.parts, file.stem]
    below = len(parts) - 1
    if "sweeps" in parts[:-1]:
        below = len(parts) - 1 - parts[:-1][::-1].index("sweeps")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts[below:])).strip("-._") or "study"


def from_stored(plain: Mapping[str, Any]) -> Study:
    """Return the study that `Study.as_dict` gave, of this version or the first.

    Raises:
        ConfigError: If it is neither.
    """
    try:
        return Study.model_validate(_upgraded(plain) if "kind" in plain else plain)
    except (ValidationError, KeyError, TypeError, AttributeError) as error:
        text = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"definition: the storage holds one that this version can't read ({text})"
        ) from None


def _upgraded(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return a definition as the first version stored it, in the form of this one."""
    method = dict(plain["method"])
    found = {k: plain[k] for k in ("name", "question", "overrides", "test", "note")}
    found["config"] = plain["configs"]
    found["objective"] = [
        {
            **{key: value for key, value in objective.items() if key != "goal"},
            "direction": "maximize" if objective["goal"] == "max" else "minimize",
        }
        for objective in plain["objectives"]
    ]
    if plain["kind"] == "ablation":
        found["ablation"] = {**method, "arms": {arm["name"]: arm for arm in method["arms"]}}
        return found
    space = {}
    for old in method["space"]:
        new = {key: old[key] for key in ("name", "key")}
        if old["when"]:
            new["when"] = {old["when"]["parameter"]: old["when"]["values"]}
        if "values" in old:
            new["choices"] = old["values"]
        else:
            new |= {old["kind"]: [old["low"], old["high"]], "step": old["step"], "log": old["log"]}
        space[old["name"]] = new
    found["search"] = {**method, "space": space}
    return found


def _layered(tree: config_files.Tree, file: Path) -> config_files.Tree:
    """Return a study over the ones that its `base` lists, later ones winning."""
    base = tree.pop("base", None)
    joined = config_files.Tree()
    for name in config_files.as_list(base):
        path = file.parent / str(name)
        layer = config_files.read(os.path.relpath(path), f"{tree.where['base']}: base")
        joined = _merged(joined, _layered(layer, path))
    return _merged(joined, tree)


def _merged(base: config_files.Tree, new: config_files.Tree, depth: int = 0) -> config_files.Tree:
    """Merge mappings down to the parts of an arm or a parameter, which are replaced whole."""
    joined = config_files.Tree({**base, **new})
    joined.where = {**base.where, **new.where}
    for key in base.keys() & new.keys():
        pair = base[key], new[key]
        if depth < 3 and all(isinstance(each, config_files.Tree) for each in pair):
            joined[key] = _merged(*pair, depth + 1)
    return joined


def _config(path: str, file: Path, place: str) -> str:
    """Return a path below the working directory, or else below the study's folder."""
    beside = file.parent / path
    if not Path(path).is_file() and beside.is_file():
        return os.path.relpath(beside)
    config_files.read(path, f"{place}config")  # refuses what is no file, or no YAML
    return path


def _command_line(args: list[str]) -> dict[str, Any]:
    added: dict[str, Any] = {}
    for item in args:
        name, equals, text = item.partition("=")
        if not name.startswith("--") or not equals:
            raise ConfigError(f"{item}: expected an override of the experiment, as --KEY=VALUE")
        value = config_files.collect([f"--value={text}"], config_files.Tree())["value"]
        try:
            added[_key(name)] = _value(value)
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from None
    return added


def _places(tree: config_files.Tree, prefix: str) -> dict[str, str]:
    """Return "FILE:LINE" of every dotted key of a file."""
    found = {}
    for key, value in tree.items():
        found[f"{prefix}{key}"] = tree.where[key]
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, config_files.Tree):
                found |= _places(item, f"{prefix}{key}.")
    return found


def _validated(tree: config_files.Tree, path: str, where: Mapping[str, str]) -> Study:
    try:
        return Study.model_validate(tree)
    except ValidationError as error:
        # A key that is misspelt is the cause of one that is missing.
        errors = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        key, text = _explained(errors[0])
    known = key
    while known and known not in where:
        known = known.rpartition(".")[0]
    place = where.get(known, path)
    raise ConfigError(f"{place}: {key}: {text}" if key else f"{place}: {text}")


def _explained(error: ErrorDetails) -> tuple[str, str]:
    """Return the dotted key of a mistake, and what is wrong, in pydantic's terms."""
    parts = [part for part in error["loc"] if not isinstance(part, int) and part != "[key]"]
    key, value = ".".join(map(str, parts)), config_files.plain(error["input"])
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        last = str(parts[-1])
        if last in _RENAMED:
            return key, f"was renamed; write {_RENAMED[last]}"
        fields = _fields(parts[:-1])
        if "." in last:
            return key, "there is no such key; overrides go under 'overrides'"
        hint = did_you_mean(last, fields)
        return key, f"there is no such key; expected one of {', '.join(fields)}{hint}"
    if kind == "missing":
        return key, "is missing"
    if kind == "value_error":
        text = str(context.get("error", error["msg"]))
        if text.startswith("@"):
            inner, _, text = text[1:].partition(": ")
            key = f"{key}.{inner}".lstrip(".")
        return key, text
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", str(context["expected"]))
        expected = f"one of {', '.join(map(repr, known))}{did_you_mean(value, known)}"
    elif kind == "string_pattern_mismatch":
        accepted = {
            "name": "1 to 100 letters, digits, '.', '_' and '-', the first a letter or digit",
            "test": "a metric of the test split, such as 'test/top1'",
        }
        expected = accepted.get(key, str(context["pattern"]))
    else:
        said = re.sub(r"^(Input|Value|Tuple|List) should ", "", error["msg"])
        said = re.sub(r", unable to parse.*", "", said)
        expected = re.sub(r"^(be|have) ", "", said)
    return key, f"got {value!r}, expected {expected}"


def _fields(parts: list[Any]) -> list[str]:
    """Return the keys that are accepted at a dotted key."""
    model: type[_Model] = Study
    inner: dict[str, type[_Model]] = {
        "objective": Objective, "ablation": Ablation, "search": Search,
        "arms": Arm, "grid": Axis, "space": Parameter,
    }  # fmt: skip
    for part in parts:
        model = inner.get(str(part), model)
    fields = model.model_fields.items()
    return [field.alias or name for name, field in fields if name != "name" or model is Study]


# -- what may change

# The one list of what is not the experiment: a change of these keys changes no trial.
_FREE = ("question", "note", "search.trials", "search.hours", "config")
_NOT_THE_EXPERIMENT = (
    "name",
    "ckpt_path",
    "resume",
    "resume_fallback",
    "allow_changes",
    "finite_every",
    "num_visualizations",
    "tracking",
    "trainer.default_root_dir",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.logger",
    "trainer.log_every_n_steps",
)


def is_experiment(key: str) -> bool:
    """Whether a key of a configuration says how a trial trains.

    Where the data is does not: each machine has its own path.
    """
    if key.startswith("data.") and key.rpartition(".")[2] == "root":
        return False
    return not any(key == name or key.startswith(f"{name}.") for name in _NOT_THE_EXPERIMENT)


def comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what all trials of a study share of a configuration: the experiment, not its seed."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(config), default=str))
    return {
        key: value
        for key, value in plain.items()
        if is_experiment(key) and not key.startswith("seed_everything")
    }


def changes(stored: Study, new: Study) -> list[str]:
    """Return what makes two definitions different experiments, a line for each key."""
    old, now = stored.as_dict(), new.as_dict()
    return [line for key, line in differences(old, now).items() if not _is_free(key)]


def _is_free(key: str) -> bool:
    published = key.startswith("ablation.arms.") and key.endswith(".published")
    override = key.removeprefix("overrides.")
    listed = any(key == name or key.startswith(f"{name}.") for name in _FREE)
    return listed or published or (override != key and not is_experiment(override))


def with_added_seeds(new: Study, stored: Study, extended: Sequence[int]) -> Study:
    """Return a definition with the seeds that `spanet sweep extend` added to the stored one.

    Args:
        new: As its file defines it.
        stored: As it is stored.
        extended: How many seeds the stored one had before each extension.
    """
    if new.ablation is None or stored.ablation is None:
        return new
    if not any(stored.ablation.seeds[:count] == new.ablation.seeds for count in extended):
        return new
    ablation = new.ablation.model_copy(update={"seeds": stored.ablation.seeds})
    return new.model_copy(update={"ablation": ablation})


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Return what differs between two nested mappings, a line for each dotted key."""
    before, after = _flat(old, ""), _flat(new, "")

    def text(flat: Mapping[str, Any], key: str) -> str:
        return json.dumps(flat[key]) if key in flat else "absent"

    return {
        key: f"{key} was {text(before, key)}, is {text(after, key)}"
        for key in [*after, *(key for key in before if key not in after)]
        if text(before, key) != text(after, key)
    }


def _flat(value: Any, prefix: str) -> dict[str, Any]:
    pairs: Any = value.items() if isinstance(value, Mapping) else ()
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        pairs = enumerate(value)
    if not pairs:
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, inner in pairs:
        found |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return found
