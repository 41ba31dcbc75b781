"""A study in its storage: what there is to run, who runs it, and how it ended.

Each cell of an ablation is one trial of Optuna's, from the queue to its result. A trial whose
supervisor stops or dies goes back into the queue as it is, with its parameters and its curve.
"""

from __future__ import annotations

import datetime
import json
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from spanet_lightning.errors import ConfigError
from spanet_lightning.sweep import folders, space, storage
from spanet_lightning.sweep.command import fit_command
from spanet_lightning.sweep.records import TrialRecord
from spanet_lightning.sweep.statistics import cannot_win
from spanet_lightning.sweep.study import Study, changes, comparable, differences, with_added_seeds

FORMAT = 2
_DONE = (TrialState.COMPLETE, TrialState.PRUNED)


class TrialReassignedError(Exception):
    """A trial was given to another supervisor, as this one showed no life for too long."""


class Idle(Enum):
    """Why there is no trial to run."""

    WAIT = "others are running trials, which may come back"
    OVER = "nothing is left to run"


@dataclass(frozen=True)
class Budget:
    """When a study is at its end: trials complete or pruned, and hours since the first started."""

    trials: int | None = None
    hours: float | None = None


@dataclass
class Claim:
    """A trial that this process runs.

    Attributes:
        trial: Optuna's.
        params: Its parameters.
        record: What is known of it.
        folder: Where it runs.
        fresh: Whether to start from scratch though there is a checkpoint.
        reported: Epochs whose value is stored.
        deaths: How often its process died.
    """

    trial: optuna.Trial
    params: dict[str, Any]
    record: TrialRecord
    folder: folders.TrialFolder
    fresh: bool
    reported: set[int]
    deaths: int

    @property
    def number(self) -> int:
        """Number of the trial."""
        return self.trial.number

    def __str__(self) -> str:
        record = self.record
        what = record.arm or ", ".join(f"{name}={value}" for name, value in self.params.items())
        again = f", attempt {record.attempt}" if record.attempt > 1 else ""
        return f"trial {self.number} ({what}, seed {record.seed}{again})"


class StudyStore:
    """A study in its storage.

    Args:
        url: The storage.
        definition: The study.
        root: Folder of all studies on this machine.
        heartbeat: Seconds between heartbeats, on a server.
        grace: Seconds without one until a trial is given up.
    """

    def __init__(
        self,
        url: str,
        definition: Study,
        root: str = folders.ROOT,
        heartbeat: int = storage.HEARTBEAT,
        grace: int = storage.GRACE,
    ) -> None:
        self.url = url
        self.definition = definition
        self.root = root
        self.storage = storage.open_storage(url, heartbeat=heartbeat, grace=grace)
        self.study: optuna.Study
        # The others need time for a heartbeat after an outage, or before we came.
        self._patience = 2.0 * heartbeat
        self._trusted_after = time.monotonic() + self._patience

    # -- the study

    def create(self, config: Mapping[str, Any] | None = None) -> StudyStore:
        """Create the study, or open it, and enqueue what is missing.

        Args:
            config: The resolved configuration that all trials share, by dotted key.

        Raises:
            ConfigError: If the name is taken by another definition or configuration.
        """
        with storage.one_line(self.url), storage.exclusive(self.storage.engine):
            if self.definition.name in storage.names(self.storage):
                self.attach()
                self._compare(config)
            else:
                self._create(config)
            self._enqueue()
        return self

    def attach(self) -> StudyStore:
        """Open a study that exists."""
        self.study = optuna.load_study(
            study_name=self.definition.name,
            storage=self.storage,
            sampler=space.make_sampler(self.definition, 0),
        )
        self.study.pruner = space.make_pruner(self.definition, self.study.user_attrs.get("epochs"))
        return self

    def _create(self, config: Mapping[str, Any] | None) -> None:
        objectives = self.definition.objectives
        study = optuna.create_study(
            study_name=self.definition.name,
            storage=self.storage,
            directions=[objective.direction for objective in objectives],
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names([objective.metric for objective in objectives])
        if config is not None:
            study.set_user_attr("config", json.dumps(comparable(config)))
            study.set_user_attr("epochs", config.get("trainer.max_epochs"))
        study.set_user_attr("question", self.definition.question)
        study.set_user_attr("format", FORMAT)
        study.set_user_attr("uid", uuid.uuid4().hex)
        # Last: a study with a definition is whole.
        study.set_user_attr("definition", json.dumps(self.definition.as_dict()))
        self.attach()

    def _compare(self, config: Mapping[str, Any] | None) -> None:
        attrs, name = self.study.user_attrs, self.definition.name
        if "definition" not in attrs and not self.study.get_trials():
            self.storage.delete_study(self.study._study_id)  # its creator was killed
            self._create(config)
            return
        stored = storage.definition_of(self.study)
        if attrs.get("format") != FORMAT:
            raise ConfigError(
                f"study: {name!r} in {storage.safe_url(self.url)} was begun by version 1, which "
                f"alone can continue it; report it with `spanet report {name}`, and run this file "
                "under another name"
            )
        extended = attrs.get("extended", ())
        self.definition = with_added_seeds(self.definition, stored, extended)
        fixed = changes(stored, self.definition)
        if not fixed and config is not None and "config" in attrs:
            fixed = list(differences(json.loads(attrs["config"]), comparable(config)).values())
        if fixed:
            raise ConfigError(
                f"study: {name!r} in {storage.safe_url(self.url)} has another definition: "
                f"{'; '.join(fixed[:8])}{'; …' if len(fixed) > 8 else ''}; give this one another "
                "name, or undo the change"
            )
        if stored.as_dict() != self.definition.as_dict():
            self.study.set_user_attr("definition", json.dumps(self.definition.as_dict()))

    def _enqueue(self) -> None:
        dropped = self.study.user_attrs.get("dropped", {})
        have = {space.point_of(trial) for trial in self.trials()}
        for params in space.queue(self.definition) or []:
            if json.dumps(params, sort_keys=True) not in have and params.get("arm") not in dropped:
                self.study.enqueue_trial(params)

    def trials(self) -> list[FrozenTrial]:
        """Return all trials by number."""
        return self.study.get_trials(deepcopy=False)

    def folder(self) -> Path:
        """Return the folder of the study on this machine."""
        owner = str(self.study.user_attrs["uid"])
        return folders.study_folder(self.definition.name, owner, self.root)

    def close(self) -> None:
        """Close the connections to the storage."""
        self.storage.engine.dispose()

    # -- the next trial

    def recover(self, *, alone: bool) -> list[int]:
        """Put the trials of dead supervisors back into the queue; return their numbers.

        Args:
            alone: Whether this process is the only supervisor.
        """
        running = [trial for trial in self.trials() if trial.state == TrialState.RUNNING]
        stale: Sequence[int] = ()
        if not alone and running and time.monotonic() > self._trusted_after:
            stale = self.storage._get_stale_trial_ids(self.study._study_id)
        found = []
        for trial in running:
            # Without a worker, its supervisor was killed between two steps of claiming it.
            if alone or trial._trial_id in stale or not trial.user_attrs.get("worker"):
                self._requeue(trial._trial_id)
                found.append(trial.number)
        return found

    def claim(self, worker: str, budget: Budget) -> Claim | Idle:
        """Return the next trial, or why there is none.

        Args:
            worker: Who asks.
            budget: When the study is at its end.
        """
        with storage.exclusive(self.storage.engine):
            if self.storage.heartbeat_interval is not None:
                self.recover(alone=False)
            trials = self.trials()
            if not self._is_due(trials, budget):
                running = any(trial.state == TrialState.RUNNING for trial in trials)
                return Idle.WAIT if running else Idle.OVER
            return self._take(worker, trials)

    def _is_due(self, trials: Sequence[FrozenTrial], budget: Budget) -> bool:
        gone = self.superseded()
        states = Counter(trial.state for trial in trials if trial.number not in gone)
        started = [trial.datetime_start for trial in trials if trial.datetime_start is not None]
        if budget.hours is not None and started:
            spent = datetime.datetime.now() - min(started)
            if spent > datetime.timedelta(hours=budget.hours):
                return False
        duplicates = sum(trial.user_attrs.get("duplicate_of") is not None for trial in trials)
        taken = states[TrialState.RUNNING] + sum(states[state] for state in _DONE) - duplicates
        if budget.trials is not None and taken >= budget.trials:
            return False
        if states[TrialState.WAITING]:
            return True
        search = self.definition.search
        if search is None or search.sampler == "grid":
            return False
        # A sampler that finds no new point will hardly find one later.
        return (search.points is None or taken < search.points) and duplicates < 20 + 5 * taken

    def _take(self, worker: str, trials: Sequence[FrozenTrial]) -> Claim | Idle:
        definition = self.definition
        self.study.sampler = space.make_sampler(definition, len(trials))
        with warnings.catch_warnings():
            # The supervisor sends the heartbeats; all that is enqueued is in the space.
            warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed")
            trial = self.study.ask()
            params = space.suggest(trial, definition)
        attrs = trial.user_attrs
        if definition.search and self._is_duplicate(trial, params, trials):
            return Idle.WAIT
        cell = attrs.get("cell") or folders.cell_name(definition, params, trial.number)
        where = folders.trial_folder(self.folder(), cell)
        seed, own = space.seed(definition, params), space.overrides(definition, params)
        record = replace(
            TrialRecord.from_attrs(attrs),
            overrides={**definition.overrides, **own},
            seed=seed,
            arm=str(params["arm"]) if definition.ablation else "",
            attempt=1 + int(attrs.get("deaths", 0)) + int(attrs.get("retries", 0)),
            command=("lightning", *fit_command(definition, own, seed)),
            folder=str(where.run),
            worker=worker,
            failure=None,
            reason="",
        )
        if self.storage.heartbeat_interval is not None:
            self.storage.record_heartbeat(trial._trial_id)
        self._set(trial._trial_id, cell=cell, **record.as_attrs())
        reported = set(self.storage.get_trial(trial._trial_id).intermediate_values)
        deaths = int(attrs.get("deaths", 0))
        return Claim(trial, params, record, where, bool(attrs.get("fresh")), reported, deaths)

    def _is_duplicate(
        self, trial: optuna.Trial, params: Mapping[str, Any], trials: Sequence[FrozenTrial]
    ) -> bool:
        """Give a trial the result of an equal one; one that runs is waited for in the queue."""
        point = json.dumps(dict(params), sort_keys=True)
        gone = self.superseded()
        for other in trials:
            if other.number in (trial.number, *gone) or space.point_of(other) != point:
                continue
            if other.state == TrialState.RUNNING:
                self._requeue(trial._trial_id)
                return True
            if other.state in _DONE:
                record = replace(
                    TrialRecord.from_attrs(other.user_attrs), duplicate_of=other.number
                )
                self._set(trial._trial_id, **record.as_attrs())
                for epoch, value in other.intermediate_values.items():
                    self.storage.set_trial_intermediate_value(trial._trial_id, epoch, value)
                values = other.values if other.state == TrialState.COMPLETE else None
                self.study.tell(trial.number, values, other.state)
                return True
        return False

    # -- while it runs

    def outage(self) -> None:
        """Remember that the storage was unreachable, to other supervisors too."""
        self._trusted_after = time.monotonic() + self._patience

    def heartbeat(self, claim: Claim) -> None:
        """Show that the supervisor of a trial lives.

        Raises:
            TrialReassignedError: If the trial belongs to another one by now.
        """
        if self.storage.heartbeat_interval is not None:
            self._check_owner(claim)
            self.storage.record_heartbeat(claim.trial._trial_id)

    def report(self, claim: Claim, epoch: int, value: float) -> bool:
        """Store a point of the first objective's curve; return whether to prune.

        Args:
            claim: The trial.
            epoch: From 1.
            value: The objective.

        Raises:
            TrialReassignedError: If the trial belongs to another supervisor by now.
        """
        if epoch in claim.reported:
            return False
        try:
            if len(self.definition.objectives) > 1:  # Optuna's `report` refuses
                self.storage.set_trial_intermediate_value(claim.trial._trial_id, epoch, value)
                claim.reported.add(epoch)
                return False
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # stored already, before an outage
                claim.trial.report(value, epoch)
            claim.reported.add(epoch)
            return claim.trial.should_prune()
        except UpdateFinishedTrialError:
            raise TrialReassignedError(f"{claim} was given to another supervisor") from None

    def update(self, claim: Claim, record: TrialRecord) -> None:
        """Store what became known of a trial that runs."""
        claim.record = record
        try:
            self._set(claim.trial._trial_id, **record.as_attrs())
        except UpdateFinishedTrialError:
            raise TrialReassignedError(f"{claim} was given to another supervisor") from None

    def started(self, claim: Claim) -> None:
        """Remember that what an earlier attempt left is put aside: this one may be resumed."""
        if claim.fresh:
            claim.fresh = False
            self._set(claim.trial._trial_id, fresh=False)

    # -- how it ends

    def finish(
        self,
        claim: Claim,
        record: TrialRecord,
        state: TrialState,
        values: Sequence[float] | None = None,
    ) -> None:
        """Store how a trial ended; the same again changes nothing.

        Args:
            claim: The trial.
            record: All that is known of it.
            state: Complete, pruned or failed.
            values: Its objectives, where it is complete.

        Raises:
            TrialReassignedError: If the trial belongs to another supervisor by now.
        """
        with storage.exclusive(self.storage.engine):
            if self._check_owner(claim).state.is_finished():
                return  # the storage's answer was lost, not what was sent
            self._set(claim.trial._trial_id, **record.as_attrs())
            self.study.tell(claim.number, values, state)
            if self.definition.ablation and self.definition.ablation.stop_losers:
                self._drop_losers()

    def put_back(self, claim: Claim, record: TrialRecord, *, died: bool = False) -> None:
        """Put a trial back into the queue.

        Args:
            claim: The trial.
            record: What is known of it.
            died: Whether its process died, which is an attempt.
        """
        with storage.exclusive(self.storage.engine):
            deaths = int(self._check_owner(claim).user_attrs.get("deaths", 0)) + died
            self._set(claim.trial._trial_id, deaths=deaths, **record.as_attrs())
            self._requeue(claim.trial._trial_id)

    def _drop_losers(self) -> None:
        """Give no more seeds to arms that can no longer be better than the control."""
        ablation, objective = self.definition.ablation, self.definition.objectives[0]
        if ablation is None:
            return
        values: dict[str, dict[int, float]] = {arm: {} for arm in ablation.arms}
        for trial in self.trials():
            if trial.state == TrialState.COMPLETE and trial.number not in self.superseded():
                values[trial.params["arm"]][trial.params["seed"]] = trial.values[0]
        control, dropped = values[ablation.control], dict(self.study.user_attrs.get("dropped", {}))
        for arm, mine in values.items():
            pairs = [objective.sign * (mine[s] - control[s]) for s in mine if s in control]
            if arm in dropped or arm == ablation.control or not cannot_win(pairs, objective.margin):
                continue
            dropped[arm] = len(pairs)
            self.study.set_user_attr("dropped", dropped)
            why = f"after {len(pairs)} seeds it could no longer be better than the control"
            for trial in self.trials():
                params = trial.system_attrs.get("fixed_params", trial.params)
                if trial.state == TrialState.WAITING and params.get("arm") == arm:
                    record = TrialRecord(
                        arm=arm, seed=params["seed"], failure="dropped", reason=why
                    )
                    self._set(trial._trial_id, **record.as_attrs())
                    self.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)

    # -- by the user

    def superseded(self) -> list[int]:
        """Return the trials that are to be run again, or were: their results do not count."""
        return list(self.study.user_attrs.get("superseded", []))

    def retry(self, numbers: Sequence[int] | None = None, *, deleted: bool = False) -> list[int]:
        """Put trials back into the queue that failed, or whose run was deleted.

        Args:
            numbers: Which trials, whatever their state; None is all failed ones.
            deleted: Rather those that are complete and have no run folder any more.

        Returns:
            Their numbers.

        Raises:
            ConfigError: If a number is none of an ended trial's.
        """
        with storage.exclusive(self.storage.engine):
            trials, gone = self.trials(), set(self.superseded())
            last = {}  # the last attempt of each cell counts
            for trial in trials:
                if trial.user_attrs.get("duplicate_of") is None:
                    last[trial.user_attrs.get("cell") or space.point_of(trial)] = trial
            chosen = []
            for trial in last.values():
                record = TrialRecord.from_attrs(trial.user_attrs)
                failed = trial.state == TrialState.FAIL and record.failure != "dropped"
                lost = trial.state in _DONE and record.folder and not Path(record.folder).exists()
                if numbers is not None:
                    wanted = trial.number in numbers and trial.state.is_finished()
                else:
                    wanted = bool(lost) if deleted else failed
                if wanted:
                    chosen.append(trial)
            unknown = set(numbers or ()) - {trial.number for trial in chosen}
            if unknown:
                text = "expected numbers of trials that ended and were not tried again since"
                raise ConfigError(f"TRIAL: got {', '.join(map(str, sorted(unknown)))}, {text}")
            for trial in chosen:
                gone |= {trial.number} if trial.state in _DONE else set()
                self.study.set_user_attr("superseded", sorted(gone))
                attrs = trial.user_attrs
                fresh = trial.state in _DONE or attrs.get("failure") == "nan"
                retries = int(attrs.get("retries", 0)) + int(attrs.get("deaths", 0)) + 1
                keep = {"cell": attrs["cell"]} if "cell" in attrs else {}
                more = {"retry_of": trial.number, "retries": retries, "fresh": fresh, **keep}
                params = trial.params or trial.system_attrs.get("fixed_params", {})
                self.study.enqueue_trial(params, user_attrs=more)
        return sorted(trial.number for trial in chosen)

    def extend(self, seeds: int) -> tuple[int, ...]:
        """Add seeds to an ablation; return them.

        Args:
            seeds: How many.

        Raises:
            ConfigError: If the study is a search.
        """
        with storage.exclusive(self.storage.engine):
            ablation = self.definition.ablation
            if ablation is None:
                raise ConfigError(f"study: {self.definition.name!r} is a search, which has no arms")
            first = max(ablation.seeds) + 1
            added = tuple(range(first, first + seeds))
            before = self.study.user_attrs.get("extended") or []
            self.study.set_user_attr("extended", [*before, len(ablation.seeds)])
            more = ablation.model_copy(update={"seeds": (*ablation.seeds, *added)})
            self.definition = self.definition.model_copy(update={"ablation": more})
            self.study.set_user_attr("definition", json.dumps(self.definition.as_dict()))
            self._enqueue()
        return added

    def stop(self, *, now: bool) -> None:
        """Ask all supervisors to end, after their trials or `now`."""
        with storage.exclusive(self.storage.engine):
            self.study.set_user_attr("stop", {"count": self.stops()[0] + 1, "now": now})

    def stops(self) -> tuple[int, bool]:
        """Return how often supervisors were asked to end, and whether at once the last time."""
        stored = self.study.user_attrs.get("stop", {})
        return int(stored.get("count", 0)), bool(stored.get("now", False))

    # -- details

    def _check_owner(self, claim: Claim) -> FrozenTrial:
        trial = self.storage.get_trial(claim.trial._trial_id)
        if trial.user_attrs.get("worker") != claim.record.worker or (
            trial.state == TrialState.WAITING
        ):
            raise TrialReassignedError(f"{claim} was given to another supervisor")
        return trial

    def _requeue(self, trial_id: int) -> None:
        self._set(trial_id, worker="")
        self.storage.set_trial_state_values(trial_id, TrialState.WAITING)

    def _set(self, trial_id: int, **attrs: Any) -> None:
        """Write the attributes that are not stored as they are; each is a transaction."""
        stored = {**TrialRecord().as_attrs(), **self.storage.get_trial(trial_id).user_attrs}
        for name, value in attrs.items():
            if name not in stored or stored[name] != value:
                self.storage.set_trial_user_attr(trial_id, name, value)
