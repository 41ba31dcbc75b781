"""Checks every trial that a study can start, in seconds, before any is started.

Each arm, and each value of a space, goes through what `lightning fit` does before it trains: keys
and types are checked, data and model are built (without memory for weights), the Trainer reads its
arguments. Nothing is trained or written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

from spanet_lightning.cli.error_messages import one_line
from spanet_lightning.errors import ConfigError, DataError, SpanetError, invalid_choice
from spanet_lightning.sweep.command import Resolved, fingerprint, fit_command, resolver
from spanet_lightning.sweep.space import Point, points
from spanet_lightning.sweep.study import COSTS, Study
from spanet_lightning.tasks.logged import Logged, logged

_Result = TypeVar("_Result")

ASSUMED_CLASSES = 1000
"""Classes of a model whose data is not here, where that is allowed."""
_SEED = 0  # any: it changes nothing that is checked


class Built(NamedTuple):
    """One way to train, with its data and model.

    Attributes:
        point: Which one.
        run: Its command, built.
        has_data: Whether the data set is here.
    """

    point: Point
    run: Resolved
    has_data: bool


def check_study(study: Study, *, data: bool = True) -> None:
    """Refuse a study of which any trial could not start.

    Args:
        study: The study.
        data: Whether the data set must be here; where it need not, and is not, the model is built
            for `ASSUMED_CLASSES`.

    Raises:
        ConfigError: For the first arm, value or name of a metric that is wrong, with its place.
        DataError: If the data set is not here.
    """
    checked(study, data=data)


def checked(study: Study, *, data: bool = True) -> list[Built]:
    """Check a study as `check_study` does; return what was built for it.

    Args:
        study: The study.
        data: Whether the data set must be here.

    Raises:
        SpanetError: As `check_study`.
    """
    # Spelling first, of all of them: it is what is wrong most often, and the fastest to check.
    runs = resolved(study)
    same: dict[str, str] = {}
    for point, run in runs:
        other = same.setdefault(fingerprint(run.flat), point.name)
        if other != point.name and study.is_ablation:
            raise ConfigError(
                f"{study.place(f'ablation.arms.{point.name}', 'ablation')}the arms "
                f"{other!r} and {point.name!r} train the same; expected a difference"
            )
    found = []
    trainers: set[str] = set()
    for point, run in runs:
        found.append(Built(point, run, build(study, point, run, data=data)))
        trainer = json.dumps(_trainer(run.flat), sort_keys=True, default=str)
        if trainer not in trainers:
            trainers.add(trainer)
            with_place(study, point, run.check_trainer)
        check_metrics(study, point, run)
    return found


def resolved(study: Study) -> list[tuple[Point, Resolved]]:
    """Parse the command of every point.

    Args:
        study: The study.

    Raises:
        ConfigError: If a key or a value is wrong; it names the place in the study.
    """
    parser = resolver()
    found = []
    for point in points(study):
        argv = fit_command(study, point.overrides, _SEED)
        found.append((point, with_place(study, point, partial(parser.parse, argv))))
    return found


def build(study: Study, point: Point, run: Resolved, *, data: bool = True) -> bool:
    """Build data and model of a point.

    Args:
        study: The study, for the places of errors.
        point: The point.
        run: Its command, parsed.
        data: Whether the data set must be here.

    Returns:
        Whether the data set is here; the model is for `ASSUMED_CLASSES` where it is not.

    Raises:
        SpanetError: If anything is wrong.
    """

    def step() -> bool:
        try:
            run.build()
        except DataError:
            counts = "num_classes" in run.config[str(run.subcommand)].data.get("init_args", {})
            if data or not counts:
                raise
            run.build(ASSUMED_CLASSES)
            return False
        return True

    return with_place(study, point, step)


def check_metrics(study: Study, point: Point, run: Resolved) -> None:
    """Refuse an objective, or a metric that checkpoints go by, that no run logs.

    Args:
        study: The study.
        point: One of its points.
        run: Its command, built.

    Raises:
        ConfigError: If there is one.
    """
    known = logged(run.model)
    if known is None:
        return
    for objective in study.objectives:
        if objective.metric not in COSTS:
            at = f"{study.place('objective.metric')}objective.metric"
            _known(known, objective.metric, at, ("val", "train"))
    if study.test is not None:
        _known(known, study.test, f"{study.place('test')}test", ("test",))
    monitor = run.flat.get("checkpoint.monitor")
    if isinstance(monitor, str):
        with_place(
            study, point, lambda: _known(known, monitor, "checkpoint.monitor", ("val", "train"))
        )


def _known(logged_: Logged, metric: str, at: str, splits: tuple[str, ...]) -> None:
    if not logged_.has(metric):
        extra = COSTS if at.endswith("objective.metric") else ()
        raise invalid_choice(at, metric, [*logged_.of(*splits), *extra])


def with_place(study: Study, point: Point, step: Callable[[], _Result]) -> _Result:
    """Take a step, and let its error name the place in the study that it is about.

    Args:
        study: The study, which knows file and line.
        point: What the step is done for.
        step: Called without arguments; its result is returned.

    Raises:
        SpanetError: The step's own, with the place in front. What a constructor of somebody
            else's raises is one as well.
    """
    try:
        return step()
    except SpanetError as error:
        raise type(error)(f"{_place(study, point, str(error))}{error}") from error
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
        text = one_line(str(error))
        raise ConfigError(f"{_place(study, point, text)}{type(error).__name__}: {text}") from error


def _place(study: Study, point: Point, text: str) -> str:
    """Return where a study sets the key that an error begins with."""
    named = f"arm {point.name!r}: " if study.is_ablation else ""
    if not study.is_ablation and point.name:
        named = f"trial with {point.name}: "
    for key in sorted({**study.overrides, **point.overrides}, key=len, reverse=True):
        if re.match(rf"{re.escape(key)}[\[:.]", text):
            if key not in point.overrides:
                return f"{study.place(f'overrides.{key}', 'overrides')}overrides: "
            where = point.keys[key]
            if where.startswith("search."):
                named = f"{where}: "
            # Nested keys and grids have no line of their own.
            return study.place(where, *_parents(where), "ablation.grid") + named
    if re.match(r"\S+:\d+: ", text):  # a line of a configuration
        return ""
    default = f"ablation.arms.{point.name}"
    return study.place(point.keys.get("", default), "ablation.grid") + named


def _parents(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:n]) for n in range(len(parts) - 1, 1, -1)]


def _trainer(flat: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in flat.items() if key.startswith("trainer.")}
