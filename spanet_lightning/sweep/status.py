"""How far a study is: a row for each trial, from what the storage holds."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from spanet_lightning.sweep import space
from spanet_lightning.sweep.records import TrialRecord
from spanet_lightning.sweep.study import Study

_NAMES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}
_COLOURS = {
    "complete": "green",
    "pruned": "yellow",
    "failed": "red",
    "stopped": "dim",
    "retried": "dim",
    "dropped": "dim",
    "duplicate": "dim",
    "running": "cyan",
    "waiting": "dim",
}


@dataclass(frozen=True)
class Row:
    """One trial.

    Attributes:
        number: Its number.
        state: "waiting", "running", "complete", "pruned" or "failed"; "retried" where another trial
            of the same cell came after it, "dropped" of an arm that gets no more seeds,
            "duplicate" of a point that was trained before.
        what: Its arm, or its parameters.
        seed: Seed of the training; None where unknown yet.
        attempt: Which attempt it is.
        metric: Last value of the first objective; of a complete trial, the one that counts.
        epoch: Last epoch, from 1.
        epochs: Epochs of the whole trial; None where unknown.
        seconds: How long it has run.
        left: Seconds until its end, at the pace of its epochs so far; None where unknown.
        reason: Why it failed.
        run_id: Run of the tracker's.
        folder: Folder of the run.
    """

    number: int
    state: str
    what: str
    seed: int | None
    attempt: int
    metric: float | None
    epoch: int | None
    epochs: int | None
    seconds: float | None
    left: float | None
    reason: str
    run_id: str
    folder: str


def rows(study: optuna.Study, definition: Study) -> list[Row]:
    """Return a row for each trial, by number.

    Args:
        study: Optuna's.
        definition: Of the study.
    """
    epochs = study.user_attrs.get("epochs")
    trials = study.get_trials(deepcopy=False)
    followed = {*study.user_attrs.get("superseded", [])}
    for trial in trials:
        followed.add(trial.user_attrs.get("retry_of"))
    return [_row(trial, definition, epochs, followed) for trial in trials]


def as_json(study: optuna.Study, definition: Study) -> dict[str, Any]:
    """Return the same as plain values.

    Args:
        study: Optuna's.
        definition: Of the study.
    """
    found = rows(study, definition)
    return {
        "study": definition.name,
        "question": definition.question,
        "objectives": definition.as_dict()["objective"],
        "declared": definition.declared,
        "counts": _counts(found),
        "trials": [asdict(row) for row in found],
    }


def view(study: optuna.Study, definition: Study, height: int | None = None) -> Group:
    """Return the table, with a line above it.

    Args:
        study: Optuna's.
        definition: Of the study.
        height: Most lines of it; those that end or run come first. None is no limit.
    """
    found = rows(study, definition)
    counts = _counts(found)
    total = definition.declared
    done = counts.get("complete", 0) + counts.get("pruned", 0)
    parts = [f"{done} of {total} done" if total is not None else f"{done} done"]
    parts += [f"{n} {name}" for name, n in counts.items() if name not in ("complete", "pruned")]
    title = Text.assemble((definition.name, "bold"), f": {', '.join(parts)}")
    shown = found
    if height is not None and len(found) > height:
        order = {"running": 0, "waiting": 2}
        shown = sorted(found, key=lambda row: (order.get(row.state, 1), -row.number))[:height]
        shown.sort(key=lambda row: row.number)
    lines: list[Any] = [title, _table(shown, definition)]
    if len(shown) < len(found):
        lines.append(Text(f"… and {len(found) - len(shown)} more", style="dim"))
    return Group(*lines)


def clock(seconds: float | None) -> str:
    """Return a time as `1:02:03` or `2:03`; empty where it is unknown.

    Args:
        seconds: The time.
    """
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _table(shown: Sequence[Row], definition: Study) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for name, right in (
        ("trial", True),
        ("state", False),
        ("arm" if definition.is_ablation else "parameters", False),
        ("seed", True),
        (definition.objectives[0].metric, True),
        ("epoch", True),
        ("time", True),
        ("left", True),
        ("", False),
    ):
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in shown:
        epoch = "" if row.epoch is None else str(row.epoch)
        again = f" ({row.attempt})" if row.attempt > 1 else ""
        table.add_row(
            str(row.number),
            Text(row.state + again, style=_COLOURS.get(row.state, "")),
            escape(row.what),
            "" if row.seed is None else str(row.seed),
            "" if row.metric is None else f"{row.metric:.4g}",
            f"{epoch}/{row.epochs}" if epoch and row.epochs else epoch,
            clock(row.seconds),
            clock(row.left),
            escape(row.reason),
        )
    return table


def _row(
    trial: FrozenTrial, definition: Study, epochs: int | None, followed: set[int | None]
) -> Row:
    record = TrialRecord.from_attrs(trial.user_attrs)
    params = trial.params or trial.system_attrs.get("fixed_params", {})
    state = _NAMES[trial.state]
    if trial.number in followed:
        state = "retried"
    elif trial.state == TrialState.FAIL and record.failure == "dropped":
        state = "dropped"
    elif record.duplicate_of is not None:
        state = "duplicate"
    curve = trial.intermediate_values
    last = max(curve, default=None)
    metric = curve[last] if last is not None else None
    if trial.state == TrialState.COMPLETE and trial.values:
        metric = trial.values[0]
    seconds = left = None
    if trial.datetime_start is not None:
        end = trial.datetime_complete or datetime.datetime.now()
        seconds = (end - trial.datetime_start).total_seconds()
        if state == "running" and epochs and last:
            left = max(0.0, seconds / last * (epochs - last))
    failed = trial.state == TrialState.FAIL
    return Row(
        number=trial.number,
        state=state,
        what=str(params["arm"])
        if definition.is_ablation and "arm" in params
        else ", ".join(f"{name}={value}" for name, value in params.items()),
        seed=space.seed(definition, params) if params else None,
        attempt=record.attempt if trial.state != TrialState.WAITING else 1,
        metric=metric,
        epoch=last,
        epochs=epochs,
        seconds=seconds,
        left=left,
        reason=f"{record.failure}: {record.reason}" if failed and record.failure else "",
        run_id=record.run_id,
        folder=record.folder,
    )


def _counts(found: Sequence[Row]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in found:
        counts[row.state] = counts.get(row.state, 0) + 1
    return counts
