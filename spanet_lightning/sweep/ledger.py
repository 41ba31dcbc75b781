"""A study in its storage: what there is to do, who does it, and what came of it.

Whatever reads and then writes does so under one lock of the study. That is what makes the number of
trials exact for any number of workers, and for any number of times that a command is repeated.
"""

from __future__ import annotations

import datetime
import json
import socket
import time
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
from spanet_lightning.sweep.definition import Study
from spanet_lightning.sweep.records import TrialRecord
from spanet_lightning.sweep.samplers import make_pruner, make_sampler
from spanet_lightning.sweep.storage import Pulse, definition_of, open_storage, safe_url

# A change of these changes no trial: the stored definition takes it over.
_FREE = ("question", "note", "method.trials", "method.hours")
_WORKER_DIED = "its worker"
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
        self._connected = time.monotonic()

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
            study.set_user_attr("config", json.dumps(_comparable(config)))
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
        fixed = [line for key, line in changes.items() if not _is_free(key)]
        if not fixed and config is not None and "config" in attrs:
            old = json.loads(attrs["config"])
            fixed = list(differences(old, _comparable(config)).values())
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
        have = {_point(trial) for trial in self.study.get_trials(deepcopy=False)}
        for params in wanted:
            if _key(params) not in have:
                self.study.enqueue_trial(params)

    # -- the next trial

    def claim(self, worker: str, budget: Budget) -> Claim | Idle:
        """Return the next trial, or whether to wait for one.

        Args:
            worker: Who asks.
            budget: When the study is at its end.
        """
        with self._locked():
            self._settle()
            trials = self.study.get_trials(deepcopy=False)
            if not self._is_due(trials, budget):
                # What others run may come back into the queue, if they are killed.
                running = any(trial.state == TrialState.RUNNING for trial in trials)
                return Idle.WAIT if running else Idle.OVER
            claim = self._take(worker, trials)
        if isinstance(claim, Claim):
            self._write(claim.trial._trial_id, claim.number, claim.record)
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
        attempt, source = _attempt(
            attrs, self.storage.get_trial(trial._trial_id).system_attrs, earlier
        )
        cell = attrs.get("cell") or folders.cell_name(self.definition, params, trial.number)
        token = f"{trial.number}:{uuid.uuid4().hex}"
        where = folders.trial_folder(self.folder(), cell)
        file = folders.ClaimFile(where.claim, token)
        if not file.take():
            # Its last worker was given up but still works on these files, on a shared disk.
            self._release(trial.number, "its folder is still in use by an earlier attempt")
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
            reason=f"{_WORKER_DIED} {worker} was killed or cut off",
        )
        self._write_attr(trial._trial_id, attrs, "cell", cell)
        self._write_attr(trial._trial_id, attrs, "token", token)
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
            self._write(claim.trial._trial_id, claim.number, claim.record)
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
            told = _pruned_values(frozen) if state == TrialState.PRUNED else values
            digest = record.digest(claim.number, state.name, None if told is None else tuple(told))
            if frozen.state.is_finished():
                if frozen.user_attrs.get("digest") == digest and frozen.state == state:
                    return  # the answer of the database was lost, not what we wrote
                raise LostError(f"trial {claim.number} was given to another worker")
            self._write(frozen._trial_id, claim.number, record, digest)
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
            self._put_back()

    def retry_failed(self) -> list[int]:
        """Put each trial back into the queue that failed and was not tried again since.

        Returns:
            Their numbers.
        """
        with self._locked():
            self._settle()
            trials = self.study.get_trials(deepcopy=False)
            last: dict[str, FrozenTrial] = {}
            for trial in trials:  # by number: the last attempt of each counts
                last[str(trial.user_attrs.get("cell", f"#{trial.number}"))] = trial
            waiting = {_point(trial) for trial in trials if trial.state == TrialState.WAITING}
            failed = [
                trial
                for trial in last.values()
                if trial.state == TrialState.FAIL and _point(trial) not in waiting
            ]
            for trial in failed:
                earlier = TrialRecord.from_attrs(trial.user_attrs)
                self._requeue(trial, earlier.attempt + 1, fresh=True)
            return [trial.number for trial in failed]

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

    def reconnected(self) -> None:
        """Remember that the storage was away: others may not have been able to show life either."""
        self._connected = time.monotonic()

    # -- details

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with lock.exclusive(self.storage.engine, self.definition.name):
            yield

    def _trial(self, number: int) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[number]

    def _settle(self) -> None:
        """Fail the trials whose workers are dead, and put them back into the queue, once."""
        running = [
            trial
            for trial in self.study.get_trials(deepcopy=False)
            if trial.state == TrialState.RUNNING
        ]
        for trial in running:
            token = str(trial.user_attrs.get("token", ""))
            if not token.startswith(f"{trial.number}:"):
                # We have the lock, so whoever began to claim it is dead: nothing was run.
                self._release(trial.number, "its worker was killed before it began")
                continue
            where = folders.trial_folder(self.folder(), str(trial.user_attrs["cell"]))
            alive = folders.lives(where.claim, token)
            if alive:
                self.storage.record_heartbeat(trial._trial_id)
            elif alive is False:
                self.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        # After an outage each worker gets the time to show that it lives.
        if time.monotonic() - self._connected > 2 * self.pulse.interval:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                optuna.storages.fail_stale_trials(self.study)
        for trial in running:
            if self._trial(trial.number).state == TrialState.FAIL:
                self._mark(trial.number)
        self._put_back()

    def _put_back(self) -> None:
        """Put into the queue again what was stopped, and what died with its worker, once.

        Looked for each time anew: who failed a trial may have been killed before putting it back.
        """
        trials = self.study.get_trials(deepcopy=False)
        followed = {trial.user_attrs.get("requeued", {}).get("of") for trial in trials}
        for trial in trials:
            followed.update(trial.system_attrs.get("retry_history", []))
        for trial in trials:
            if trial.state != TrialState.FAIL or trial.number in followed:
                continue
            record = TrialRecord.from_attrs(trial.user_attrs)
            if record.failure in (None, "stopped"):  # None: killed before it could say anything
                self._requeue(trial, record.attempt)
            elif record.failure == "killed" and record.reason.startswith(_WORKER_DIED):
                callback = self.storage.get_heartbeat_stale_trial_callback()
                if callback is not None:  # Optuna's, which counts how often it was tried
                    callback(self.study, self.storage.get_trial(trial._trial_id))

    def _mark(self, number: int) -> None:
        """Keep the fingerprint of a failed trial; a worker that was killed may have kept another.

        That is one which had written how well it ended, but not yet that it did.
        """
        attrs = self._trial(number).user_attrs
        if "digest" in attrs:
            digest = TrialRecord.from_attrs(attrs).digest(number, TrialState.FAIL.name, None)
            self.study.set_user_attr(f"ended:{number}", digest)

    def _release(self, number: int, why: str) -> None:
        """Fail a trial of which nothing was run, and put it back into the queue."""
        trial = self._trial(number)
        earlier = TrialRecord.from_attrs(trial.user_attrs)
        record = replace(earlier, failure="stopped", reason=why)
        self._write(trial._trial_id, number, record)
        self._mark(number)
        self.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        self._put_back()

    def _requeue(self, trial: FrozenTrial, attempt: int, *, fresh: bool = False) -> None:
        kept = {
            key: value
            for key, value in trial.system_attrs.items()
            if not (fresh and key in ("failed_trial", "retry_history"))
        }
        cell = trial.user_attrs.get("cell")
        attrs = {
            "requeued": {"of": trial.number, "attempt": attempt},
            "failure": trial.user_attrs.get("failure"),
            **({} if cell is None else {"cell": cell}),
        }
        run_id = trial.user_attrs.get("run_id")
        self.study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.WAITING,
                params=trial.params,
                distributions=trial.distributions,
                system_attrs=kept,
                user_attrs={**attrs, **({"run_id": run_id} if run_id else {})},
            )
        )

    def _write(
        self, trial_id: int, number: int, record: TrialRecord, digest: str | None = None
    ) -> None:
        """Write the fields that are not stored as they are; each is a transaction of its own."""
        stored = self.storage.get_trial(trial_id).user_attrs
        known = TrialRecord.from_attrs(stored).as_attrs()
        for name, value in record.as_attrs().items():
            if known[name] != value:
                self.storage.set_trial_user_attr(trial_id, name, value)
        digest = digest or record.digest(number, TrialState.FAIL.name, None)
        self._write_attr(trial_id, stored, "digest", digest)

    def _write_attr(self, trial_id: int, stored: Mapping[str, Any], name: str, value: Any) -> None:
        if stored.get(name) != value:
            self.storage.set_trial_user_attr(trial_id, name, value)


def this_worker(pid: int) -> str:
    """Return the name of a worker of this machine.

    Args:
        pid: Its process.
    """
    return f"{socket.gethostname()}:{pid}"


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Return what differs between two definitions, a line for each key.

    Args:
        old: The stored one.
        new: The one that is to be run.
    """
    before, after = _flat(old), _flat(new)
    lines = {}
    for key in [*after, *(key for key in before if key not in after)]:
        if before.get(key, _NONE) != after.get(key, _NONE):
            lines[key] = f"{key} was {_text(before, key)}, is {_text(after, key)}"
    return lines


_NONE = object()


def _text(flat: Mapping[str, Any], key: str) -> str:
    return json.dumps(flat[key]) if key in flat else "absent"


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return plain values by dotted key; the arms of an ablation by their names."""
    if isinstance(value, Mapping) and value:
        pairs = [(str(key), inner) for key, inner in value.items()]
    elif isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        pairs = [
            (str(inner.get("name", i)) if isinstance(inner, Mapping) else str(i), inner)
            for i, inner in enumerate(value)
        ]
    else:
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, inner in pairs:
        found |= _flat(inner, f"{prefix}.{key}" if prefix else key)
    return found


def _is_free(key: str) -> bool:
    published = key.startswith("method.arms.") and key.endswith(".published")
    return key in _FREE or published or _is_place(key.removeprefix("overrides."))


def _is_place(key: str) -> bool:
    """Whether a key says where data lies, which each machine knows for itself."""
    return key.startswith("data.") and key.rpartition(".")[2] == "root"


def _comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a configuration says how a trial trains: not where it is recorded."""
    aside = ("trainer.logger", "trainer.default_root_dir", "name", "seed_everything", "ckpt_path")
    plain: dict[str, Any] = json.loads(json.dumps(dict(config), default=str))
    return {
        key: value
        for key, value in plain.items()
        if not key.startswith(aside) and not _is_place(key)
    }


def _key(params: Mapping[str, Any]) -> str:
    return json.dumps(dict(params), sort_keys=True)


def _point(trial: FrozenTrial) -> str:
    return _key(trial.params or trial.system_attrs.get("fixed_params", {}))


def _attempt(
    attrs: Mapping[str, Any], system: Mapping[str, Any], earlier: TrialRecord
) -> tuple[int, int | None]:
    """Return which attempt it is, and the number of the one before."""
    history = system.get("retry_history", [])
    requeued = attrs.get("requeued", {"of": -1, "attempt": 1})
    killed = history[-1] if history else -1
    if killed > requeued["of"]:  # put back by Optuna's callback, with all attributes
        return earlier.attempt + 1, killed
    return requeued["attempt"], requeued["of"] if requeued["of"] >= 0 else None


def _pruned_values(trial: FrozenTrial) -> list[float] | None:
    """Return what Optuna makes the value of a pruned trial: its last point."""
    step = trial.last_step
    if step is None:
        return None
    value = trial.intermediate_values[step]
    return None if value != value else [value]
