"""What a study would run: its trials with what each costs, before anything is spent or written."""

from __future__ import annotations

import json
import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from rich import box
from rich.table import Table

from spanet_lightning.cli.error_messages import one_line
from spanet_lightning.cli.experiment import Experiment
from spanet_lightning.errors import SpanetError
from spanet_lightning.summary import console, scaled
from spanet_lightning.sweep.check import ASSUMED_CLASSES, checked
from spanet_lightning.sweep.command import fit_command
from spanet_lightning.sweep.space import Point
from spanet_lightning.sweep.study import Ablation, Study

FLAGGED = 0.05
"""Share of the control's MACs that an arm may differ by before it is flagged."""

_STEPS = 6  # the first one, which is slow, and five that are timed
_MOST_TIMED = 12  # points; of more, only the control is, and the others are scaled by their MACs
_LONGEST = 60  # characters of the overrides in the table


@dataclass(frozen=True)
class Row:
    """An arm of an ablation, or a point of a search's space.

    Attributes:
        name: Of the arm, or the parameters by name (see `space.Point`).
        trials: How many of it run: its seeds; 0 where a sampler decides.
        overrides: What it changes of the study's experiment.
        parameters: Of the model; None where they can't be counted.
        macs: Per image, with those of spectral operators.
        relative: MACs over those of the control, or of the first row of a search.
        seconds: Of one trial's training, estimated; None where it was not.
        published: The paper's figure, where there is one.
    """

    name: str
    trials: int
    overrides: Mapping[str, Any]
    parameters: int | None
    macs: int | None
    relative: float | None
    seconds: float | None
    published: float | None

    @property
    def is_flagged(self) -> bool:
        """Whether the cost is not comparable with the control's."""
        return self.relative is not None and abs(self.relative - 1) > FLAGGED


@dataclass(frozen=True)
class Plan:
    """What a study would run.

    Attributes:
        study: The study.
        rows: Its arms, or points that hold every value of its space.
        trials: How many trials end in all; None where only hours are given.
        notes: What a reader should know about the figures.
    """

    study: Study
    rows: tuple[Row, ...]
    trials: int | None
    notes: tuple[str, ...]

    @property
    def hours(self) -> float | None:
        """Hours of training in all, one trial after the other; None where unknown."""
        times = [row.seconds for row in self.rows if row.seconds is not None]
        if self.trials is None or not times or len(times) < len(self.rows):
            return None
        return self.trials * sum(times) / len(times) / 3600


def plan(study: Study, *, timed: bool = True) -> Plan:
    """Return what a study would run; nothing is written.

    Args:
        study: The study.
        timed: Whether to estimate times, which takes a few steps of training for each arm.

    Raises:
        SpanetError: If any trial could not start. A data set that is not here is no reason.
    """
    built = checked(study, data=False)
    names = [each.point.name for each in built]
    control = names.index(study.ablation.control) if study.ablation else 0
    costs = [each.run.cost for each in built]
    # The spectral operators of one arm may be what another has not.
    macs = [None if cost is None else cost.macs + cost.spectral_macs for cost in costs]
    reference, notes = macs[control], list[str]()
    seconds: list[float | None] = [None] * len(built)
    if not all(each.has_data for each in built):
        notes.append(f"The data is not here: counted with {ASSUMED_CLASSES} classes, not timed.")
    elif timed:
        seconds = _timed(study, [each.point for each in built], macs, control, notes)
    trials = 0
    if study.search is None or study.search.sampler == "grid":
        trials = len(study.ablation.seeds) if study.ablation else 1
    else:
        if study.search.points is not None:
            notes.append(f"The space has {study.search.points} points; none is trained twice.")
        notes.append(
            "A search samples its trials; each row but the first has a value of its own, and the "
            "first one's for the rest."
        )
    arms = study.ablation.arms if study.ablation else {}
    rows = [
        Row(
            name=each.point.name,
            trials=trials,
            overrides=each.point.overrides,
            parameters=None if cost is None else cost.parameters,
            macs=mac,
            relative=mac / reference if mac and reference else None,
            seconds=time_,
            published=arms[each.point.name].published if arms else None,
        )
        for each, cost, mac, time_ in zip(built, costs, macs, seconds, strict=True)
    ]
    return Plan(study, tuple(rows), study.declared, tuple(notes))


# -- time


def _timed(
    study: Study, points: list[Point], macs: list[int | None], control: int, notes: list[str]
) -> list[float | None]:
    """Return the estimated seconds of training for each point."""
    chosen = [control] if len(points) > _MOST_TIMED else range(len(points))
    seconds: list[float | None] = [None] * len(points)
    for i in chosen:
        try:
            seconds[i] = training_seconds(fit_command(study, points[i].overrides, 0))
        except (SpanetError, ImportError) as error:
            # Such as the accelerator of a cluster, on the laptop that the study is planned on.
            notes.append(f"Not timed: {one_line(str(error))}")
            return [None] * len(points)
    reference, known = macs[control], seconds[control]
    if len(chosen) < len(points):
        seconds = [known * m / reference if known and m and reference else None for m in macs]
        notes.append("Times are those of the first row or the control, scaled by the MACs.")
    notes.append(
        "Time: a few steps on this machine as it is now, times the steps of the run. Early "
        "stopping and pruning would shorten it."
    )
    return seconds


def training_seconds(argv: list[str]) -> float:
    """Return how long a command would train, from a few of its steps.

    Args:
        argv: What follows `lightning`.

    Raises:
        SpanetError: If it can't be run here.
    """
    with _quietly():
        run = _Probe(
            [
                *argv,
                f"--trainer.fast_dev_run={_STEPS}",  # no folder, no checkpoint, no tracker
                "--trainer.enable_progress_bar=false",
                "--trainer.enable_model_summary=false",
            ]
        )
    flat, data = run.flat_config(), run.datamodule
    batches = _limited(len(data.train_dataloader()), flat["trainer.limit_train_batches"])
    evaluated = _limited(len(data.val_dataloader()), flat["trainer.limit_val_batches"])
    epochs, steps = flat["trainer.max_epochs"], flat["trainer.max_steps"]
    if steps is not None and steps > 0:
        by_steps = steps * run.trainer.accumulate_grad_batches / max(batches, 1)
        epochs = by_steps if epochs in (None, -1) else min(epochs, by_steps)
    every = flat["trainer.check_val_every_n_epoch"] or 1
    one_epoch = batches * run.clock.train + evaluated * run.clock.validation / every
    return float(epochs * one_epoch)


class _Clock(Callback):
    """Times batches from end to end, loading and the optimizer's step within; not the first."""

    def __init__(self) -> None:
        self.ends: dict[str, list[float]] = {"train": [], "validation": []}

    def on_train_batch_end(self, *_: Any) -> None:
        """Note the time."""
        self.ends["train"].append(time.perf_counter())

    def on_validation_batch_end(self, *_: Any) -> None:
        """Note the time."""
        self.ends["validation"].append(time.perf_counter())

    @property
    def train(self) -> float:
        """Seconds for a batch of training."""
        return self._mean("train")

    @property
    def validation(self) -> float:
        """Seconds for a batch of validation."""
        return self._mean("validation")

    def _mean(self, kind: str) -> float:
        ends = self.ends[kind]
        return (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else 0.0


class _Probe(Experiment):
    """An experiment whose steps are timed."""

    def __init__(self, args: list[str]) -> None:
        self.clock = _Clock()
        super().__init__(args, show_results=False)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with the clock."""
        trainer = super().instantiate_trainer(**kwargs)
        trainer.callbacks.append(self.clock)  # type: ignore[attr-defined]
        return trainer


def _limited(batches: int, limit: float | None) -> int:
    if limit is None:
        return batches
    return int(batches * limit) if isinstance(limit, float) else min(batches, limit)


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep Lightning's talk off the screen, and its seed out of what is started later."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    seed = os.environ.get("PL_GLOBAL_SEED")
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if seed is None:
            os.environ.pop("PL_GLOBAL_SEED", None)
        else:
            os.environ["PL_GLOBAL_SEED"] = seed


# -- the table


def show(planned: Plan) -> None:
    """Print a plan on stdout.

    Args:
        planned: The plan.
    """
    study = planned.study
    is_ablation = isinstance(study.method, Ablation)
    first = "arm" if is_ablation else "point"
    table = Table(title=f"{study.name}: {study.question}", title_justify="left", box=box.SIMPLE)
    table.add_column(first, overflow="fold")
    if is_ablation:
        table.add_column("overrides", overflow="fold")
    for name in ("trials", "parameters", "MACs", "relative", "time a trial", "published"):
        if name != "published" or any(row.published is not None for row in planned.rows):
            table.add_column(name, justify="right", no_wrap=True)
    for row in planned.rows:
        control = isinstance(study.method, Ablation) and row.name == study.method.control
        relative = "–" if row.relative is None else f"{100 * (row.relative - 1):+.1f} %"
        cells = [f"{row.name} (control)" if control else row.name]
        if is_ablation:
            cells.append(_short(row.overrides))
        cells += [
            str(row.trials or "–"),
            "–" if row.parameters is None else f"{row.parameters:,}",
            "–" if row.macs is None else scaled(row.macs),
            f"{relative} !" if row.is_flagged and is_ablation else relative,
            "–" if row.seconds is None else duration(row.seconds),
            "–" if row.published is None else f"{row.published:g}",
        ]
        table.add_row(*cells[: len(table.columns)])
    out = console(least=120)
    out.print(table)
    trials = "as many trials as fit" if planned.trials is None else f"{planned.trials} trials"
    hours = "" if planned.hours is None else f", about {duration(3600 * planned.hours)} in all"
    out.print(f"{trials}{hours}, one after the other; nothing was written.", highlight=False)
    out.print(
        "MACs: for one image, with those of spectral operators; relative to "
        + ("the control's." if is_ablation else "the first point's."),
        highlight=False,
    )
    if is_ablation and any(row.is_flagged for row in planned.rows):
        out.print(
            f"!: costs differ by more than {100 * FLAGGED:g} %: a difference of accuracy may be "
            "one of size.",
            highlight=False,
        )
    for note in planned.notes:
        out.print(note, highlight=False)


def duration(seconds: float) -> str:
    """Write a time in the unit that suits it."""
    for unit, size in (("days", 48 * 3600), ("h", 2 * 3600), ("min", 120)):
        if seconds >= size:
            return f"{seconds / {'days': 86400, 'h': 3600, 'min': 60}[unit]:.1f} {unit}"
    return f"{seconds:.1f} s"


def _short(overrides: Mapping[str, Any]) -> str:
    """Write overrides in the space of a cell: their keys by the last name."""
    text = ", ".join(f"{k.rpartition('.')[2]}={_value(v)}" for k, v in overrides.items())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
