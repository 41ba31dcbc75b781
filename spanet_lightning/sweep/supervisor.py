"""Running a study on this machine: one process asks, tells and watches over N trials at a time.

Trials are forked from a server process that has imported everything once, so that one starts within
a second; a trial on several devices is a command of its own. In an SQLite file a study has one
supervisor. On a PostgreSQL server any number share Optuna's queue, and there is nothing between
them but the storage.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import connection
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import filelock
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from spanet_lightning.errors import ConfigError, did_you_mean, invalid
from spanet_lightning.sweep import child, failures, folders, status, storage
from spanet_lightning.sweep.command import fit_command
from spanet_lightning.sweep.records import Event, Progress, value
from spanet_lightning.sweep.server import PRELOAD, safe_path, start_server
from spanet_lightning.sweep.space import overrides
from spanet_lightning.sweep.store import Budget, Claim, Idle, StudyStore, TrialReassignedError
from spanet_lightning.sweep.study import COSTS, Study

T = TypeVar("T")
_TICK = 0.2
_LOOK = 1.0  # seconds between looks at the storage while there is nothing to claim
_END_SECONDS = 30.0  # that trials get to save a checkpoint and end
_OUTAGE_SECONDS = 3600.0  # that the storage may be unreachable
_FAILURES = (StorageInternalError, SQLAlchemyError, filelock.Timeout)


@dataclass(frozen=True)
class Settings:
    """How a study is run on this machine.

    Attributes:
        url: The storage.
        workers: Trials at a time; None is one, or as `workers_per_device` has it.
        workers_per_device: Trials at a time on each GPU.
        trials: Ends the study earlier or later than its definition.
        hours: The same.
        failures: Failed trials in a row after which the command ends.
        root: Folder of all studies.
        heartbeat: Seconds between heartbeats, on a server.
        grace: Seconds without a heartbeat until a trial is given up.
        entry: Module whose `run(spec, link)` runs a trial.
        preload: What the server imports that trials are forked from.
    """

    url: str = storage.DEFAULT_URL
    workers: int | None = None
    workers_per_device: int | None = None
    trials: int | None = None
    hours: float | None = None
    failures: int = 3
    root: str = folders.ROOT
    heartbeat: int = storage.HEARTBEAT
    grace: int = storage.GRACE
    entry: str = "spanet_lightning.sweep.trial"
    preload: str = PRELOAD

    def check(self) -> None:
        """Check the values.

        Raises:
            ConfigError: If one is out of range.
        """
        for key in ("workers", "workers_per_device", "trials", "failures"):
            number = getattr(self, key)
            if number is not None and number < 1:
                raise invalid(f"--{key.replace('_', '-')}", number, "at least 1")
        if self.workers is not None and self.workers_per_device is not None:
            raise ConfigError("--workers-per-device: excludes --workers, which is for all devices")
        if self.hours is not None and not self.hours > 0:
            raise invalid("--hours", self.hours, "more than 0")

    def budget(self, study: Study) -> Budget:
        """Return when a study is at its end."""
        search = study.search
        trials = search.trials if search and search.sampler != "grid" else None
        hours = search.hours if search else None
        return Budget(self.trials or trials, self.hours or hours)


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        counts: Trials by state, as `status.Row` names them.
        interrupted: Number of the signal that ended the command; 0 is none.
        stopped: Why it ended before the study; empty where nothing is left to do.
    """

    counts: Mapping[str, int]
    interrupted: int = 0
    stopped: str = ""


def shares(settings: Settings) -> list[dict[str, str]]:
    """Return the devices of each trial that runs at a time, as variables of its environment.

    Devices are shared out in runs of neighbours, so that a trial on several has near ones; where
    there are fewer than trials, several share one.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        devices = [part.strip() for part in given.split(",") if part.strip()]
    else:
        import torch

        devices = [str(i) for i in range(torch.cuda.device_count())]
    count = settings.workers or (settings.workers_per_device or 1) * max(
        1, len(devices) if settings.workers_per_device else 1
    )
    if not devices:
        return [{} for _ in range(count)]
    if len(devices) < count:
        return [{"CUDA_VISIBLE_DEVICES": devices[i % len(devices)]} for i in range(count)]
    bounds = [i * len(devices) // count for i in range(count + 1)]
    return [
        {"CUDA_VISIBLE_DEVICES": ",".join(devices[bounds[i] : bounds[i + 1]])} for i in range(count)
    ]


class Process:
    """The process of a trial and the pipe to it.

    Args:
        spec: What it runs.
        forked: Whether it is forked from the server, or started as a command.
        preload: What the server imports.
    """

    def __init__(self, spec: child.Spec, *, forked: bool, preload: str) -> None:
        self._forked = forked
        path = spec.save()
        self.pipe, other = multiprocessing.Pipe()
        if forked:
            start_server(preload)
            context = multiprocessing.get_context("forkserver")
            self._process: Any = context.Process(target=child.main, args=(spec, other))
            with safe_path():
                self._process.start()
            self.sentinel: Any = self._process.sentinel
        else:
            words = [sys.executable, "-P", "-m", child.__name__, str(path), str(other.fileno())]
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(other.fileno(),),
                env={**os.environ, **(spec.environment or {})},
            )
            self.sentinel = None
        other.close()
        self.pid: int = self._process.pid

    @property
    def exit_code(self) -> int | None:
        """The exit code; None while the process runs."""
        code: int | None = self._process.exitcode if self._forked else self._process.poll()
        return code

    def events(self) -> Iterator[Event]:
        """Yield what it has reported since."""
        with suppress(EOFError, OSError):
            while self.pipe.poll():
                yield self.pipe.recv()

    def prune(self) -> None:
        """Ask it to end early."""
        with suppress(OSError):
            self.pipe.send("prune")

    def signal(self, number: int) -> None:
        """Send a signal to it and to all that it started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def close(self) -> None:
        """End what is left of it."""
        self.signal(signal.SIGKILL)
        if self._forked:
            self._process.join(5)
        else:
            self._process.wait()
        self.pipe.close()


@dataclass
class _Running:
    """A trial that runs in a slot."""

    claim: Claim
    process: Process
    progress: Progress = field(default_factory=Progress)
    noted: dict[str, Any] = field(default_factory=dict)


class Supervisor:
    """Asks for trials, runs each in a process, and tells how it ended.

    Args:
        store: The study.
        settings: How to run it.
        say: Called with a line for the user.
        config: The resolved configuration that all trials share.
        parent: The study's run in MLflow; empty without one.
        show: Called a few times a second.
    """

    def __init__(
        self,
        store: StudyStore,
        settings: Settings,
        say: Callable[[str], None],
        config: Mapping[str, Any] | None = None,
        parent: str = "",
        show: Callable[[], None] | None = None,
    ) -> None:
        self.store = store
        self.settings = settings
        self.say = say
        self.config = config or {}
        self.parent = parent
        self.show = show
        self.name = f"{socket.gethostname()}:{os.getpid()}:{os.urandom(3).hex()}"
        self.running: dict[int, _Running] = {}  # by slot
        self.signals: list[int] = []
        self.stopping = ""  # why, once no more trials are started
        self.mistake = ""
        self._looked = self._deadline = 0.0

    def run(self) -> Outcome:
        """Run the study until nothing is left to do, or a signal comes.

        Raises:
            ConfigError: If another command runs it, or every trial would fail of the same mistake.
        """
        name = self.store.definition.name
        lock = storage.supervisor_lock(self.store.storage, name)
        try:
            with lock or nullcontext(), self._listening():
                self._loop(alone=lock is not None)
        except filelock.Timeout:
            raise ConfigError(
                f"study: {name!r} is being run by another command; in an SQLite file a study has "
                "one at a time: give that one more --workers, or use PostgreSQL (--storage URL)"
            ) from None
        if self.mistake:
            raise ConfigError(self.mistake)
        rows = status.rows(self.store.study, self.store.definition)
        counts = Counter(row.state for row in rows)
        return Outcome(counts, self.signals[0] if self.signals else 0, self.stopping)

    # -- the loop

    def _loop(self, *, alone: bool) -> None:
        shared = shares(self.settings)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        # Trials with more threads than there are cores wait for each other most of the time.
        threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // len(shared)))
        slots = {i: {**devices, "OMP_NUM_THREADS": threads} for i, devices in enumerate(shared)}
        start_server(self.settings.preload)
        if alone:
            for number in self._stored(lambda: self.store.recover(alone=True)) or ():
                self.say(f"trial {number} was running when its command ended: back in the queue")
        stops, budget = self.store.stops()[0], self.settings.budget(self.store.definition)
        in_a_row, look, beat = 0, 0.0, 0.0
        while True:
            now = time.monotonic()
            idle = None
            for slot in slots.keys() - self.running.keys():
                if self.stopping or now < look:
                    break
                claim = self._stored(lambda: self.store.claim(self.name, budget))
                if not isinstance(claim, Claim):
                    idle, look = claim, now + _LOOK
                    break
                self._start(slot, claim, slots[slot])
            if not self.running and (self.stopping or idle is Idle.OVER):
                return
            if now >= beat:
                beat = now + self.settings.heartbeat
                for slot in list(self.running):
                    self._owned(slot, self.store.heartbeat)
            self._wait()
            for slot in list(self.running):
                failed = self._follow(slot)
                if failed is not None:
                    look = 0.0
                    in_a_row = in_a_row + 1 if failed else 0
            if in_a_row >= self.settings.failures and not self.stopping:
                self.stopping = f"{in_a_row} trials failed in a row"
                self.say(f"{self.stopping}: no more are started")
            self._stop(stops)
            if self.show is not None:
                with suppress(*_FAILURES):
                    self.show()

    def _wait(self) -> None:
        waited: list[Any] = [one.process.pipe for one in self.running.values()]
        waited += [s for one in self.running.values() if (s := one.process.sentinel) is not None]
        if waited:
            connection.wait(waited, _TICK)
        else:
            time.sleep(_TICK)

    def _stop(self, stops: int) -> None:
        """Act on signals, on a mistake and on `spanet sweep stop`."""
        now, at_once = time.monotonic(), False
        if now >= self._looked + _LOOK:
            self._looked = now
            count, at_once = self._stored(self.store.stops)
            if count != stops:
                self.stopping = self.stopping or "`spanet sweep stop`"
            at_once = at_once and count != stops
        if (self.signals or self.mistake or at_once) and not self._deadline:
            self.stopping = self.stopping or "a signal"
            self._deadline = now + _END_SECONDS
            if self.running:
                self.say("ending: running trials save a checkpoint and go back into the queue")
            for one in self.running.values():
                one.process.signal(signal.SIGTERM)
        if self._deadline and (now > self._deadline or len(self.signals) > 1):
            for one in self.running.values():
                one.process.signal(signal.SIGKILL)

    # -- one trial

    def _start(self, slot: int, claim: Claim, environment: dict[str, str]) -> None:
        study, record, where = self.store.definition, claim.record, claim.folder
        own = overrides(study, claim.params)
        tags = {
            "study": study.name,
            "trial": str(claim.number),
            "seed": str(record.seed),
            "overrides": json.dumps(own),
            **({"arm": record.arm} if record.arm else {}),
            **({"mlflow.parentRunId": self.parent} if self.parent else {}),
        }
        root, name = str(where.run.parent), where.run.name
        spec = child.Spec(
            entry=self.settings.entry,
            command=tuple(fit_command(study, own, record.seed, folder_root=root, name=name)),
            run=str(where.run),
            files=str(where.files),
            objectives=tuple(objective.model_dump() for objective in study.objectives),
            test=study.test,
            tags=tags,
            run_id=record.run_id,
            environment=environment,
            fresh=claim.fresh,
        )
        devices = len(environment.get("CUDA_VISIBLE_DEVICES", "").split(","))
        forked = on_one_device({**self.config, **study.overrides, **own}, devices)
        process = Process(spec, forked=forked, preload=self.settings.preload)
        self.running[slot] = _Running(claim, process)
        self.say(str(claim))

    def _follow(self, slot: int) -> bool | None:
        """Take in what a trial reported; return whether it failed, or None while it runs."""
        one = self.running[slot]
        code = one.process.exit_code  # before the last events are read
        objectives = self.store.definition.objectives
        for event in one.process.events():
            one.progress.add(event)
            if event["event"] == "process":
                self._owned(slot, self.store.started)
        if slot not in self.running:
            return None
        self._check_objectives(one.progress)
        if one.progress.model != one.noted:
            one.noted = dict(one.progress.model)
            record = one.progress.fill(one.claim.record, objectives)
            self._owned(slot, lambda claim: self.store.update(claim, record))
        for epoch, number in one.progress.curve(objectives[0].metric).items():
            if epoch in one.claim.reported or slot not in self.running:
                continue
            if self._owned(slot, partial(self.store.report, epoch=epoch, value=number)):
                one.process.prune()
        if code is None or slot not in self.running:
            return None
        one.process.close()
        try:
            failed = self._end(one, code)
        except TrialReassignedError as error:
            self.say(str(error))
            failed = None
        del self.running[slot]
        return failed

    def _end(self, one: _Running, code: int) -> bool | None:
        """Store how a trial ended; return whether it failed, or None if it is back in the queue."""
        claim, progress, study = one.claim, one.progress, self.store.definition
        record = progress.fill(claim.record, study.objectives)
        ended = progress.ended
        if self.mistake:
            ended = "failed"
            progress.failure, progress.reason = "error", self.mistake
        if ended == "stopped" or (not ended and self.stopping and code in (-15, -9, 143, 130)):
            if self.stopping:
                self._stored(lambda: self.store.put_back(claim, record))
                return None
            ended, code = "", -signal.SIGTERM  # by somebody else
        values = [value(record, objective) for objective in study.objectives]
        states = {"end": TrialState.COMPLETE, "pruned": TrialState.PRUNED}
        state = states.get(ended, TrialState.FAIL)
        failure, reason = progress.failure, progress.reason
        if ended == "end" and None in values:
            missing = study.objectives[values.index(None)].metric
            state, failure, reason = TrialState.FAIL, "nan", f"{missing} was never finite"
        elif state == TrialState.FAIL and failure is None:
            failure, reason = failures.of_exit(code, _last_line(claim.folder.log))
            if not claim.deaths:
                self.say(f"{claim}: {reason}; tried again from its checkpoint")
                self._stored(lambda: self.store.put_back(claim, record, died=True))
                return None
        failed = state == TrialState.FAIL
        if failed:
            record = replace(record, failure=failure, reason=reason)
        known = [number for number in values if number is not None]
        complete = known if state == TrialState.COMPLETE else None
        self._stored(lambda: self.store.finish(claim, record, state, complete))
        said = f"failed, {failure}: {reason}" if failed else state.name.lower()
        if complete:
            said += ", " + ", ".join(f"{number:.5g}" for number in complete)
        self.say(f"{claim}: {said}")
        return failed

    def _check_objectives(self, progress: Progress) -> None:
        """Notice an objective that no run logs at the first validation, not at the end."""
        logged = {name for found in progress.metrics.values() for name in found}
        if not any(name.startswith("val/") for name in logged):
            return
        for objective in self.store.definition.objectives:
            if objective.metric not in logged and objective.metric not in COSTS:
                names = ", ".join(sorted(logged))
                self.mistake = (
                    f"objective.metric: got {objective.metric!r}, which no run logs; it logs "
                    f"{names}{did_you_mean(objective.metric, logged)}"
                )

    # -- the storage

    def _owned(self, slot: int, action: Callable[[Claim], T]) -> T | None:
        """Store something of a trial that runs; end it here if it belongs to another supervisor."""
        one = self.running.get(slot)
        if one is None:
            return None
        try:
            return self._stored(lambda: action(one.claim))
        except TrialReassignedError as error:
            self.say(str(error))
            one.process.close()
            del self.running[slot]
            return None

    def _stored(self, action: Callable[[], T]) -> T:
        """Do something with the storage, again and again while it is unreachable.

        Raises:
            ConfigError: If it is damaged, or unreachable for too long.
        """
        began, pause = time.monotonic(), 0.5
        while True:
            try:
                return action()
            except _FAILURES as error:
                text = f"--storage: {storage.safe_url(self.settings.url)}"
                if not storage.is_outage(error):
                    self._abandon()
                    raise ConfigError(f"{text} is damaged ({storage.reason(error)})") from None
                if time.monotonic() - began > _OUTAGE_SECONDS or len(self.signals) > 1:
                    self._abandon()
                    raise ConfigError(f"{text} is unreachable ({storage.reason(error)})") from None
                if pause == 0.5:
                    self.say(f"the storage is unreachable, retrying ({storage.reason(error)})")
                self.store.outage()
                time.sleep(pause)
                pause = min(5.0, 2 * pause)

    def _abandon(self) -> None:
        """End the trials without storing anything: the next command puts them back."""
        for one in self.running.values():
            one.process.signal(signal.SIGTERM)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Collect SIGINT and SIGTERM instead of being ended by them."""

        def catch(number: int, _: FrameType | None) -> None:
            self.signals.append(number)

        before = {one: signal.signal(one, catch) for one in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)
            for each in self.running.values():
                each.process.pipe.close()


def on_one_device(config: Mapping[str, Any], visible: int) -> bool:
    """Whether a trial runs in one process, which may be forked.

    Args:
        config: Its resolved configuration by dotted key.
        visible: GPUs that it gets.
    """
    devices, strategy = config.get("trainer.devices"), config.get("trainer.strategy", "auto")
    alone = str(devices) in ("1", "[0]") or (devices in ("auto", None, -1, "-1") and visible <= 1)
    return alone and int(config.get("trainer.num_nodes") or 1) == 1 and strategy == "auto"


def _last_line(path: Path) -> str:
    with suppress(OSError):
        text = path.read_bytes()[-4096:].decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return lines[-1][:300] if lines else ""
    return ""
