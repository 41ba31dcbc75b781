"""A study in its storage: what there is to do, who does it, and what came of it.

Whatever reads and then writes does so under one lock of the study. That is what makes the number of
trials exact for any number of workers, and for any number of times that a command is repeated.
"""

from __future__ import annotations

import datetime
import json
import socket
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from spanet_lightning.errors import ConfigError
from spanet_lightning.sweep import folders, lock, space
from spanet_lightning.sweep.command import fit_command
from spanet_lightning.sweep.comparison import comparable, differences, is_free
from spanet_lightning.sweep.definition import Study
from spanet_lightning.sweep.records import TrialRecord
from spanet_lightning.sweep.recovery import Recovery
from spanet_lightning.sweep.samplers import make_pruner, make_sampler
from spanet_lightning.sweep.storage import Pulse, definition_of, open_storage, safe_url
from spanet_lightning.sweep.stored_trial import (
    WORKER_DIED,
    attempt_of,
    key_of,
    point_of,
    pruned_values,
    write_attr,
    write_record,
)

_DONE = (TrialState.COMPLETE, TrialState.PRUNED)


class LostError(RuntimeError):
    """The trial was given to somebody else, as this worker showed no sign of life for too long."""


class Idle(Enum):
    """Why there is no trial to be had."""

    WAIT = "others still run some"
    OVER = "all are done"


@dataclass(frozen=True)
class Budget:
    """When a study is at its end.

    Attributes:
        trials: Trials, complete or pruned; None is no limit.
        hours: Since its first trial began; None is no limit.
    """

    trials: int | None = None
    hours: float | None = None


@dataclass
class Claim:
    """A trial that a worker has.

    Attributes:
        trial: Optuna's.
        params: Its parameters.
        record: What is known of it.
        folder: Its files.
        file: The lock of its folder, taken.
        resume: Whether an earlier attempt is to be gone on with.
    """

    trial: optuna.Trial
    params: dict[str, Any]
    record: TrialRecord
    folder: folders.TrialFolder
    file: folders.ClaimFile
    resume: bool

    @property
    def number(self) -> int:
        """Number of the trial."""
        return self.trial.number


class Ledger:
    """A study in its storage.

    Args:
        url: The storage.
        definition: The study.
        pulse: How workers show that they live.
        root: Folder of all studies on this machine.
    """

    def __init__(
        self,
        url: str,
        definition: Study,
        pulse: Pulse | None = None,
        root: str = folders.ROOT,
    ) -> None:
        self.url = url
        self.definition = definition
        self.pulse = pulse or Pulse()
        self.root = root
        self.storage = open_storage(url, pulse=self.pulse)
        self.study: optuna.Study
        self.recovery: Recovery

    # -- the study

    def create(self, config: Mapping[str, Any] | None = None) -> optuna.Study:
        """Create the study, or find it again, and enqueue what is still missing.

        Args:
            config: The resolved configuration that all trials share, by dotted key.

        Raises:
            ConfigError: If the name is taken by another definition or configuration.
        """
        with self._locked():
            names = [study.study_name for study in self.storage.get_all_studies()]
            if self.definition.name in names:
                self.attach()
                self._compare(config)
            else:
                self._create(config)
            self._enqueue()
        return self.study

    def attach(self) -> optuna.Study:
        """Find a study that exists."""
        self.study = optuna.load_study(
            study_name=self.definition.name,
            storage=self.storage,
            sampler=make_sampler(self.definition, 0),
        )
        self.study.pruner = make_pruner(self.definition, self.study.user_attrs.get("epochs"))
        self.recovery = Recovery(self.study, self.storage, self.folder, self.pulse)
        return self.study

    def _create(self, config: Mapping[str, Any] | None) -> None:
        objectives = self.definition.objectives
        study = optuna.create_study(
            study_name=self.definition.name,
            storage=self.storage,
            directions=[
                "maximize" if objective.goal == "max" else "minimize" for objective in objectives
            ],
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names([objective.metric for objective in objectives])
        if config is not None:
            study.set_user_attr("config", json.dumps(comparable(config)))
            study.set_user_attr("epochs", config.get("trainer.max_epochs"))
        study.set_user_attr("question", self.definition.question)
        study.set_user_attr("uid", uuid.uuid4().hex)
        # Last: what has a definition is whole.
        study.set_user_attr("definition", json.dumps(self.definition.as_dict()))
        self.attach()

    def _compare(self, config: Mapping[str, Any] | None) -> None:
        attrs = self.study.user_attrs
        if "definition" not in attrs and "uid" not in attrs and not self.study.get_trials():
            self.storage.delete_study(self.study._study_id)  # torn: its maker was killed
            self._create(config)
            return
        stored = definition_of(self.study)
        new = self.definition.as_dict()
        changes = differences(stored.as_dict(), new)
        fixed = [line for key, line in changes.items() if not is_free(key)]
        if not fixed and config is not None and "config" in attrs:
            old = comparable(json.loads(attrs["config"]))
            fixed = list(differences(old, comparable(config)).values())
        if fixed:
            raise ConfigError(
                f"study: {self.definition.name!r} in {safe_url(self.url)} has another definition: "
                f"{'; '.join(fixed[:8])}{'; …' if len(fixed) > 8 else ''}; give this one another "
                "name, or undo the change"
            )
        if changes:
            self.study.set_user_attr("definition", json.dumps(new))

    def _enqueue(self) -> None:
        wanted = space.queue(self.definition)
        if wanted is None:
            return
        have = {point_of(trial) for trial in self.study.get_trials(deepcopy=False)}
        for params in wanted:
            if key_of(params) not in have:
                self.study.enqueue_trial(params)

    # -- the next trial

    def claim(self, worker: str, budget: Budget) -> Claim | Idle:
        """Return the next trial, or whether to wait for one.

        Args:
            worker: Who asks.
            budget: When the study is at its end.
        """
        with self._locked():
            self.recovery.settle()
            trials = self.study.get_trials(deepcopy=False)
            if not self._is_due(trials, budget):
                # What others run may come back into the queue, if they are killed.
                running = any(trial.state == TrialState.RUNNING for trial in trials)
                return Idle.WAIT if running else Idle.OVER
            claim = self._take(worker, trials)
        if isinstance(claim, Claim):
            write_record(self.storage, claim.trial._trial_id, claim.number, claim.record)
        return claim

    def _is_due(self, trials: Sequence[FrozenTrial], budget: Budget) -> bool:
        counts = dict.fromkeys(TrialState, 0)
        for trial in trials:
            counts[trial.state] += 1
        started = [trial.datetime_start for trial in trials if trial.datetime_start is not None]
        if budget.hours is not None and started:
            spent = datetime.datetime.now() - min(started)
            if spent > datetime.timedelta(hours=budget.hours):
                return False
        taken = counts[TrialState.RUNNING] + sum(counts[state] for state in _DONE)
        if budget.trials is not None and taken >= budget.trials:
            return False
        return counts[TrialState.WAITING] > 0 or space.queue(self.definition) is None

    def _take(self, worker: str, trials: Sequence[FrozenTrial]) -> Claim | Idle:
        self.study.sampler = make_sampler(self.definition, len(trials))
        with warnings.catch_warnings():
            # We give the signs of life ourselves; of enqueued values all are in the space.
            warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed")
            trial = self.study.ask()
        params = space.suggest(trial, self.definition)
        attrs = trial.user_attrs
        earlier = TrialRecord.from_attrs(attrs)
        attempt, source = attempt_of(
            attrs, self.storage.get_trial(trial._trial_id).system_attrs, earlier
        )
        cell = attrs.get("cell") or folders.cell_name(self.definition, params, trial.number)
        token = f"{trial.number}:{uuid.uuid4().hex}"
        where = folders.trial_folder(self.folder(), cell)
        file = folders.ClaimFile(where.claim, token)
        if not file.take():
            # Its last worker was given up but still works on these files, on a shared disk.
            self.recovery.release(trial.number, "its folder is still in use by an earlier attempt")
            return Idle.WAIT
        seed = space.seed(self.definition, params)
        own = space.overrides(self.definition, params)
        record = TrialRecord(
            overrides={**self.definition.overrides, **own},
            seed=seed,
            arm=str(params.get("arm", "")) if self.definition.is_ablation else "",
            attempt=attempt,
            retry_of=source,
            command=("lightning", *fit_command(self.definition, own, seed)),
            folder=str(where.run),
            worker=worker,
            # How it ends if nobody is left to say.
            failure="killed",
            reason=f"{WORKER_DIED} {worker} was killed or cut off",
        )
        write_attr(self.storage, trial._trial_id, attrs, "cell", cell)
        write_attr(self.storage, trial._trial_id, attrs, "token", token)
        self.storage.record_heartbeat(trial._trial_id)
        resume = source is not None and earlier.failure != "nan"
        return Claim(trial, params, record, where, file, resume)

    def folder(self) -> Any:
        """Return the folder of the study on this machine."""
        owner = str(self.study.user_attrs["uid"])
        return folders.study_folder(self.definition.name, owner, self.root)

    # -- while it runs

    def beat(self, claim: Claim) -> None:
        """Show that the worker of a trial lives.

        Args:
            claim: The trial.
        """
        self.storage.record_heartbeat(claim.trial._trial_id)

    def report(self, claim: Claim, epoch: int, value: float) -> bool:
        """Store a point of the first objective's curve; return whether to prune.

        Args:
            claim: The trial.
            epoch: From 1.
            value: The objective.

        Raises:
            LostError: If the trial is somebody else's by now.
        """
        try:
            if len(self.definition.objectives) > 1:  # Optuna's `report` has no such thing
                self.storage.set_trial_intermediate_value(claim.trial._trial_id, epoch, value)
                return False
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # told already, before an outage
                claim.trial.report(value, epoch)
            return claim.trial.should_prune()
        except UpdateFinishedTrialError:
            raise LostError(f"trial {claim.number} was given to another worker") from None

    def note(self, claim: Claim, record: TrialRecord) -> None:
        """Store what became known of a trial that runs.

        Args:
            claim: The trial.
            record: The record.
        """
        claim.record = replace(record, failure=claim.record.failure, reason=claim.record.reason)
        try:
            write_record(self.storage, claim.trial._trial_id, claim.number, claim.record)
        except UpdateFinishedTrialError:
            raise LostError(f"trial {claim.number} was given to another worker") from None

    # -- how it ends

    def finish(
        self,
        claim: Claim,
        record: TrialRecord,
        state: TrialState,
        values: Sequence[float] | None = None,
    ) -> None:
        """Store how a trial ended.

        Args:
            claim: The trial.
            record: All that is known of it.
            state: Complete, pruned or failed.
            values: Its objectives, where it is complete.

        Raises:
            LostError: If the trial is somebody else's by now.
        """
        with self._locked():
            frozen = self.storage.get_trial(claim.trial._trial_id)
            told = pruned_values(frozen) if state == TrialState.PRUNED else values
            digest = record.digest(claim.number, state.name, None if told is None else tuple(told))
            if frozen.state.is_finished():
                if frozen.user_attrs.get("digest") == digest and frozen.state == state:
                    return  # the answer of the database was lost, not what we wrote
                raise LostError(f"trial {claim.number} was given to another worker")
            write_record(self.storage, frozen._trial_id, claim.number, record, digest)
            self.study.set_user_attr(f"ended:{claim.number}", digest)
            self.study.tell(claim.number, values, state)

    def give_back(self, claim: Claim, record: TrialRecord, why: str) -> None:
        """End an attempt that was stopped, and put its trial back into the queue.

        Args:
            claim: The trial.
            record: All that is known of the attempt.
            why: Who stopped it.
        """
        self.finish(claim, replace(record, failure="stopped", reason=why), TrialState.FAIL)
        with self._locked():
            self.recovery.put_back()

    def retry_failed(self) -> list[int]:
        """Put each trial back into the queue that failed and was not tried again since.

        Returns:
            Their numbers.
        """
        with self._locked():
            return self.recovery.retry_failed()

    def reconnected(self) -> None:
        """Remember that the storage was away: others may not have been able to show life either."""
        self.recovery.reconnected()

    # -- stopping

    def stop(self, now: bool) -> None:
        """Ask all workers to end.

        Args:
            now: Whether to stop their trials as well, rather than after them.
        """
        with self._locked():
            count, _ = self.stops()
            self.study.set_user_attr("stop", {"count": count + 1, "now": now})

    def stops(self) -> tuple[int, bool]:
        """Return how often workers were asked to end, and whether at once the last time."""
        stored = self.study.user_attrs.get("stop", {})
        return int(stored.get("count", 0)), bool(stored.get("now", False))

    def close(self) -> None:
        """Close the connections to the storage."""
        self.storage.engine.dispose()

    # -- details

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with lock.exclusive(self.storage.engine, self.definition.name):
            yield


def this_worker(pid: int) -> str:
    """Return the name of a worker of this machine.

    Args:
        pid: Its process.
    """
    return f"{socket.gethostname()}:{pid}"
