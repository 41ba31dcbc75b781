"""What the storage says about a study, verified, as frozen values."""

from __future__ import annotations

import datetime
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from spanet_lightning.errors import ConfigError
from spanet_lightning.sweep.definition import Ablation, Choice, Study
from spanet_lightning.sweep.records import TrialRecord

ENDED = "ended:"
"""Prefix of the study's attributes that keep each ended trial's fingerprint, by its number."""


@dataclass(frozen=True)
class Trial:
    """One trial as it is stored.

    Attributes:
        number: Optuna's number of it.
        state: Optuna's name of its state.
        values: Its objectives; empty where it has none.
        params: Optuna's parameters.
        distributions: What they were drawn from.
        curve: Epoch and value of the first objective.
        record: What the engine kept.
        started: When a worker took it.
        ended: When it ended.
    """

    number: int
    state: str
    values: tuple[float, ...]
    params: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    curve: tuple[tuple[int, float], ...]
    record: TrialRecord
    started: datetime.datetime | None
    ended: datetime.datetime | None

    @property
    def complete(self) -> bool:
        """Whether its values may enter a mean."""
        return self.state == TrialState.COMPLETE.name

    @property
    def hours(self) -> float:
        """Return how long it took, in hours; 0 where it has not ended."""
        if self.started is None or self.ended is None:
            return 0.0
        return (self.ended - self.started).total_seconds() / 3600


@dataclass(frozen=True)
class Budget:
    """What a study has cost.

    Attributes:
        declared: Trials that the definition asks for; None where it only says how many hours.
        complete: Trials with values.
        pruned: Trials that the pruner ended.
        failed: Trials that went wrong, all attempts.
        stopped: Trials that were stopped by hand; they are tried again.
        retried: Attempts beyond the first, of trials whose worker was killed.
        running: Trials that are under way.
        waiting: Trials that nobody has begun.
        hours: Of all trials, one after the other.
        elapsed: Hours from the first begin to the last end.
    """

    declared: int | None
    complete: int
    pruned: int
    failed: int
    stopped: int
    retried: int
    running: int
    waiting: int
    hours: float
    elapsed: float

    @property
    def unfinished(self) -> bool:
        """Whether trials are missing that were asked for."""
        ended = self.complete + self.pruned
        return self.running + self.waiting > 0 or (
            self.declared is not None and ended < self.declared
        )


@dataclass(frozen=True)
class Gathered:
    """A study and its trials.

    Attributes:
        study: The definition.
        trials: By number.
        budget: What they have cost.
        run_id: MLflow's run of the study; empty where there is none.
    """

    study: Study
    trials: tuple[Trial, ...]
    budget: Budget
    run_id: str

    @property
    def complete(self) -> tuple[Trial, ...]:
        """The trials whose values count."""
        return tuple(trial for trial in self.trials if trial.complete)


def gather(stored: optuna.Study, study: Study) -> Gathered:
    """Return what is stored of a study.

    Args:
        stored: Optuna's study.
        study: Its definition.

    Raises:
        ConfigError: If a trial was deleted or changed since it ended, or a cell of an ablation has
            two results.
    """
    frozen = stored.get_trials(deepcopy=False)
    _verify(stored, frozen)
    trials = tuple(_trial(one) for one in sorted(frozen, key=lambda t: t.number))
    for trial in trials:
        _check_params(study, trial)
    _check_cells(study, trials)
    return Gathered(study, trials, _budget(study, trials), str(stored.user_attrs.get("run_id", "")))


def _trial(frozen: FrozenTrial) -> Trial:
    # A retry that has only been queued is given what the engine kept of the attempt before it.
    ended = frozen.state.is_finished()
    return Trial(
        number=frozen.number,
        state=frozen.state.name,
        values=tuple(frozen.values or ()),
        params=dict(frozen.params or frozen.system_attrs.get("fixed_params", {})),
        distributions=dict(frozen.distributions),
        curve=tuple(sorted(frozen.intermediate_values.items())),
        record=TrialRecord.from_attrs(frozen.user_attrs),
        started=frozen.datetime_start,
        ended=frozen.datetime_complete if ended else None,
    )


def _verify(stored: optuna.Study, trials: Sequence[FrozenTrial]) -> None:
    """Refuse trials that are not what they were when they ended."""
    name = stored.study_name
    kept = {
        int(key.removeprefix(ENDED)): digest
        for key, digest in stored.user_attrs.items()
        if key.startswith(ENDED)
    }
    numbers = {trial.number for trial in trials}
    for number in sorted(kept):
        if number not in numbers:
            raise ConfigError(f"study {name!r}: trial {number} was deleted after it ended")
    for trial in trials:
        number, state = trial.number, trial.state
        values = None if trial.values is None else tuple(trial.values)
        record = TrialRecord.from_attrs(trial.user_attrs)
        if number in kept:
            # A worker writes the fingerprint, and then that the trial has ended.
            ending = not state.is_finished() and values is None
            if ending and trial.user_attrs.get("digest") == kept[number]:
                continue
            if record.digest(number, state.name, values) != kept[number]:
                raise ConfigError(
                    f"study {name!r}: trial {number}{_who(record)} was changed after it ended: "
                    "what is stored of it does not match its fingerprint"
                )
        elif state in (TrialState.COMPLETE, TrialState.PRUNED):
            # A trial that failed without one is a killed worker's, which could not write it.
            raise ConfigError(
                f"study {name!r}: trial {number}{_who(record)} is {state.name.lower()}, but was "
                "not ended by `spanet sweep run`: it has no fingerprint"
            )


def _check_params(study: Study, trial: Trial) -> None:
    """Refuse parameters of Optuna's that contradict the record, which the fingerprint covers."""
    if not trial.complete:
        return
    record, params = trial.record, trial.params
    if isinstance(study.method, Ablation):
        expected: dict[str, Any] = {"arm": record.arm, "seed": record.seed}
        names = [arm.name for arm in study.method.arms]
        wrong = record.arm not in names or record.seed not in study.method.seeds
    else:
        expected, wrong = {}, False
        for parameter in study.method.space:
            value = params.get(parameter.name)
            if value is None or parameter.key not in record.overrides:
                continue
            meant = parameter.values.get(value) if isinstance(parameter, Choice) else value
            if meant == record.overrides[parameter.key]:
                expected[parameter.name] = value
            else:
                wrong = True
    if wrong or any(params.get(name) != value for name, value in expected.items()):
        raise ConfigError(
            f"study {study.name!r}: trial {trial.number}{_who(record)} was changed after it ended: "
            f"its parameters {dict(params)} are not those that it was trained with"
        )


def _check_cells(study: Study, trials: Sequence[Trial]) -> None:
    """Refuse two results of one cell: which of them would count?"""
    if not isinstance(study.method, Ablation):
        return
    seen: dict[tuple[str, int], int] = {}
    for trial in trials:
        if not trial.complete:
            continue
        cell = trial.record.arm, trial.record.seed
        if cell in seen:
            raise ConfigError(
                f"study {study.name!r}: trials {seen[cell]} and {trial.number} are both arm "
                f"{cell[0]!r}, seed {cell[1]}: each may count once"
            )
        seen[cell] = trial.number


def _budget(study: Study, trials: Sequence[Trial]) -> Budget:
    method = study.method
    if isinstance(method, Ablation):
        declared: int | None = len(method.arms) * len(method.seeds)
    else:
        declared = method.trials
    states = Counter(trial.state for trial in trials)
    failures = [t for t in trials if t.state == TrialState.FAIL.name]
    stopped = sum(t.record.failure == "stopped" for t in failures)
    begins = [t.started for t in trials if t.started and t.ended]
    ends = [t.ended for t in trials if t.started and t.ended]
    elapsed = (max(ends) - min(begins)).total_seconds() / 3600 if ends else 0.0
    return Budget(
        declared=declared,
        complete=states[TrialState.COMPLETE.name],
        pruned=states[TrialState.PRUNED.name],
        failed=len(failures) - stopped,
        stopped=stopped,
        retried=sum(t.record.attempt > 1 and t.started is not None for t in trials),
        running=states[TrialState.RUNNING.name],
        waiting=states[TrialState.WAITING.name],
        hours=math.fsum(t.hours for t in trials),
        elapsed=elapsed,
    )


def _who(record: TrialRecord) -> str:
    return f" (arm {record.arm!r}, seed {record.seed})" if record.arm else ""
