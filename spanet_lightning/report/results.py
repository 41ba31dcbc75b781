"""The stored trials of a study as frozen values."""

from __future__ import annotations

import datetime
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from spanet_lightning.errors import ConfigError
from spanet_lightning.sweep.records import TrialRecord
from spanet_lightning.sweep.study import Ablation, Study


@dataclass(frozen=True)
class Trial:
    """One trial as it is stored.

    Attributes:
        number: Its number in Optuna.
        state: Name of its state in Optuna.
        values: Its objectives; empty without a result.
        params: Its parameters in Optuna.
        curve: Epoch and value of the first objective.
        record: What the engine stored with it.
        started: When it was started.
        ended: When it ended.
    """

    number: int
    state: str
    values: tuple[float, ...]
    params: Mapping[str, Any]
    curve: tuple[tuple[int, float], ...]
    record: TrialRecord
    started: datetime.datetime | None
    ended: datetime.datetime | None

    @property
    def complete(self) -> bool:
        """Whether its values count."""
        return self.state == TrialState.COMPLETE.name

    @property
    def hours(self) -> float:
        """Wall-clock hours; 0 for a trial that has not ended."""
        if self.started is None or self.ended is None:
            return 0.0
        return (self.ended - self.started).total_seconds() / 3600


@dataclass(frozen=True)
class Budget:
    """What a study has cost.

    Attributes:
        declared: Trials that the definition asks for; None where it limits hours only.
        complete: Trials with values.
        pruned: Trials ended by the pruner.
        failed: Trials that failed, all attempts.
        stopped: Trials stopped by the user.
        dropped: Trials saved by `stop_losers`.
        retried: Attempts beyond the first.
        running: Trials under way.
        waiting: Trials in the queue.
        hours: Sum over all trials.
        elapsed: Wall-clock hours from the first start to the last end.
    """

    declared: int | None
    complete: int
    pruned: int
    failed: int
    stopped: int
    dropped: int
    retried: int
    running: int
    waiting: int
    hours: float
    elapsed: float

    @property
    def unfinished(self) -> bool:
        """Whether declared trials are missing."""
        ended = self.complete + self.pruned + self.dropped
        missing = self.declared is not None and ended < self.declared
        return self.running + self.waiting > 0 or missing


@dataclass(frozen=True)
class Results:
    """A study and its trials.

    Attributes:
        study: The definition.
        stored: Optuna's study.
        trials: By number.
        budget: What they have cost.
        run_id: The study's run in MLflow; empty without one.
        extended: How many seeds an ablation had before each `spanet sweep extend`.
        dropped: Arms that `stop_losers` gave no more seeds, and after how many.
    """

    study: Study
    stored: optuna.Study
    trials: tuple[Trial, ...]
    budget: Budget
    run_id: str
    extended: tuple[int, ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)

    @property
    def complete(self) -> tuple[Trial, ...]:
        """The trials whose values count."""
        known = (trial for trial in self.trials if trial.record.duplicate_of is None)
        return tuple(trial for trial in known if trial.complete)

    @property
    def ablation(self) -> Ablation:
        """The method, of a study that is an ablation."""
        if not isinstance(self.study.method, Ablation):
            raise TypeError(f"study {self.study.name!r} is a search")
        return self.study.method


def load_results(stored: optuna.Study, study: Study) -> Results:
    """Return what is stored of a study.

    Args:
        stored: Optuna's study.
        study: Its definition.

    Raises:
        ConfigError: If a cell of an ablation has two results, or a result of no declared cell.
    """
    gone = stored.user_attrs.get("superseded", [])  # their cells were run again
    frozen = sorted(stored.get_trials(deepcopy=False), key=lambda trial: trial.number)
    trials = tuple(_trial(one) for one in frozen if one.number not in gone)
    if isinstance(study.method, Ablation):
        _check_cells(study, study.method, trials)
    run_id = str(stored.user_attrs.get("run_id", ""))
    return Results(
        study,
        stored,
        trials,
        _budget(study, trials),
        run_id,
        extended=tuple(stored.user_attrs.get("extended", ())),
        dropped=stored.user_attrs.get("dropped", {}),
    )


def _trial(frozen: FrozenTrial) -> Trial:
    # A retry that is still queued carries the record of the attempt before it.
    return Trial(
        number=frozen.number,
        state=frozen.state.name,
        values=tuple(frozen.values or ()),
        params=dict(frozen.params or frozen.system_attrs.get("fixed_params", {})),
        curve=tuple(sorted(frozen.intermediate_values.items())),
        record=TrialRecord.from_attrs(frozen.user_attrs),
        started=frozen.datetime_start,
        ended=frozen.datetime_complete if frozen.state.is_finished() else None,
    )


def _check_cells(study: Study, method: Ablation, trials: tuple[Trial, ...]) -> None:
    names = list(method.arms)
    seen: dict[tuple[str, int], int] = {}
    for trial in (trial for trial in trials if trial.complete):
        cell = trial.record.arm, trial.record.seed
        which = f"arm {cell[0]!r}, seed {cell[1]}"
        if cell in seen:
            raise ConfigError(
                f"study {study.name!r}: trials {seen[cell]} and {trial.number} are both {which}: "
                "each cell may count once"
            )
        if cell[0] not in names or cell[1] not in method.seeds:
            raise ConfigError(
                f"study {study.name!r}: trial {trial.number} is {which}, which the study does not "
                "declare"
            )
        seen[cell] = trial.number


def _budget(study: Study, trials: tuple[Trial, ...]) -> Budget:
    states = Counter(trial.state for trial in trials)
    failures = [t for t in trials if t.state == TrialState.FAIL.name]
    stopped, dropped = (
        sum(t.record.failure == kind for t in failures) for kind in ("stopped", "dropped")
    )
    spans = [(t.started, t.ended) for t in trials if t.started and t.ended]
    elapsed = 0.0
    if spans:
        first, last = min(s for s, _ in spans), max(e for _, e in spans)
        elapsed = (last - first).total_seconds() / 3600
    return Budget(
        declared=study.declared,
        complete=states[TrialState.COMPLETE.name],
        pruned=states[TrialState.PRUNED.name],
        failed=len(failures) - stopped - dropped,
        stopped=stopped,
        dropped=dropped,
        retried=sum(t.record.attempt > 1 and t.started is not None for t in trials),
        running=states[TrialState.RUNNING.name],
        waiting=states[TrialState.WAITING.name],
        hours=math.fsum(t.hours for t in trials),
        elapsed=elapsed,
    )
