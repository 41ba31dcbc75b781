"""A worker: takes one trial after the other, until nothing is left to do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import IntEnum
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from optuna.trial import TrialState

from spanet_lightning.errors import SpanetError, did_you_mean
from spanet_lightning.exit import message
from spanet_lightning.sweep import failures, folders
from spanet_lightning.sweep.command import fit_command
from spanet_lightning.sweep.definition import COSTS, Study
from spanet_lightning.sweep.events import EventReader, EventWriter, Progress, value
from spanet_lightning.sweep.ledger import Budget, Claim, Idle, Ledger, LostError, this_worker
from spanet_lightning.sweep.records import TrialRecord
from spanet_lightning.sweep.space import overrides
from spanet_lightning.sweep.spec import WATCHED, Spec
from spanet_lightning.sweep.storage import Pulse, Unreachable, reason

T = TypeVar("T")
RUNNER = (sys.executable, "-m", "spanet_lightning.sweep.trial")
_TICK = 0.1  # seconds between looks at a trial
_LOOK = 1.0  # seconds between looks at the storage while there is nothing to do
_END = 15.0  # seconds that a trial's process gets to end by itself
_AWAY = 3600.0  # seconds that the storage may be away


class End(IntEnum):
    """Why a worker ended, as the exit code of its process."""

    DONE = 0
    SICK = 4
    STOPPED = 5
    MISTAKE = 2
    CUT_OFF = 6


@dataclass(frozen=True)
class Order:
    """What a worker is to do.

    Attributes:
        url: The storage.
        study: The definition.
        budget: When the study is at its end.
        parent: Run of the tracker's that the trials' runs are children of; empty is none.
        failures: Failed trials in a row after which a worker takes itself for sick.
        pulse: How the worker shows that it lives.
        root: Folder of all studies.
        environment: Variables of the trials' processes: their cores and devices.
        runner: Command of a trial's process, which gets the path of its specification.
    """

    url: str
    study: Study
    budget: Budget
    parent: str = ""
    failures: int = 3
    pulse: Pulse = field(default_factory=Pulse)
    root: str = folders.ROOT
    environment: tuple[tuple[str, str], ...] = ()
    runner: tuple[str, ...] = RUNNER


class _StoppedError(Exception):
    """The worker is to end before its trial has."""


class Worker:
    """Takes trials and runs each in a process of its own.

    Args:
        order: What to do.
        say: Called with what a person may want to know.
    """

    def __init__(self, order: Order, say: Callable[[str], None]) -> None:
        self.order = order
        self.say = say
        self.name = this_worker(os.getpid())
        self.why = ""  # why it is to end; empty while it is not
        self.mistake = ""
        self._ledger: Ledger | None = None
        self._stops = 0

    # -- the loop

    def work(self) -> End:
        """Take trials until there are none; return why it ended."""
        in_a_row = 0
        try:
            self._stops = self._patiently(lambda: self._ledger_of().stops()[0])
            while not self._asked_to_end():
                claim = self._patiently(
                    lambda: self._ledger_of().claim(self.name, self.order.budget)
                )
                if claim is Idle.OVER:
                    return End.DONE
                if isinstance(claim, Idle):
                    self._sleep(_LOOK)
                    continue
                try:
                    failed = self._run(claim)
                except LostError as error:
                    self.say(str(error))
                    continue
                finally:
                    claim.file.release()
                if self.mistake:
                    return End.MISTAKE
                in_a_row = in_a_row + 1 if failed else 0
                if in_a_row >= self.order.failures:
                    self.say(f"{in_a_row} trials failed in a row: this worker ends")
                    return End.SICK
        except _StoppedError:
            pass
        except Unreachable as error:
            self.say(f"the storage was away for too long ({reason(error)})")
            return End.CUT_OFF
        return End.STOPPED

    def _ledger_of(self) -> Ledger:
        if self._ledger is None:
            order = self.order
            self._ledger = Ledger(order.url, order.study, order.pulse, order.root)
            self._ledger.attach()
        return self._ledger

    def _asked_to_end(self) -> bool:
        if not self.why:
            count, _ = self._patiently(lambda: self._ledger_of().stops())
            if count != self._stops:
                self.why = "`spanet sweep stop`"
        return bool(self.why)

    # -- one trial

    def _run(self, claim: Claim) -> bool:
        """Run a trial and store how it ended; return whether it failed."""
        ledger, order = self._ledger_of(), self.order
        kills = failures.kills_for_memory()
        self.say(f"trial {claim.number} {label(claim)}")
        process = self._start(claim)
        try:
            progress = self._watch(claim, process)
        except _StoppedError:
            self._end(process)
            record = self._read(claim).fill(claim.record, order.study.objectives)
            self._patiently(
                lambda: ledger.give_back(claim, record, f"stopped by {self.why}"), always=True
            )
            raise
        finally:
            self._end(process)
        record = progress.fill(claim.record, order.study.objectives)
        failure, why = progress.failure, progress.reason
        state, values = TrialState.FAIL, None
        if self.mistake:
            failure, why = "error", self.mistake
        elif progress.ended == "pruned":
            state = TrialState.PRUNED
        elif progress.ended == "end":
            found = [value(record, objective) for objective in order.study.objectives]
            values = [number for number in found if number is not None]
            if len(values) == len(found):
                state = TrialState.COMPLETE
            else:
                missing = order.study.objectives[found.index(None)].metric
                failure, why = "nan", f"{missing} was never a finite number"
                values = None
        elif failure is None:
            failure, why = failures.of_exit(
                process.returncode or 0,
                _last_line(claim.folder.log),
                out_of_memory=failures.kills_for_memory() > kills,
            )
        failed = state == TrialState.FAIL
        record = replace(record, failure=failure if failed else None, reason=why if failed else "")
        final = record
        self._patiently(lambda: ledger.finish(claim, final, state, values), always=True)
        self.say(f"trial {claim.number} {label(claim)}: {_outcome(state, values, final)}")
        return failed

    def _start(self, claim: Claim) -> subprocess.Popen[bytes]:
        order, where, record = self.order, claim.folder, claim.record
        own = overrides(order.study, claim.params)
        command = fit_command(
            order.study,
            own,
            record.seed,
            folder_root=str(where.run.parent),
            name=where.run.name,
        )
        checkpoint = where.checkpoint if claim.resume else None
        if checkpoint is None:
            where.clear()
        else:
            command.append(f"--ckpt_path={checkpoint}")
        where.prune.unlink(missing_ok=True)
        tags = {
            "study": order.study.name,
            "trial": str(claim.number),
            "seed": str(record.seed),
            "overrides": json.dumps(own),
            **({"arm": record.arm} if record.arm else {}),
            **({"mlflow.parentRunId": order.parent} if order.parent else {}),
        }
        spec = Spec(
            command=tuple(command),
            events=str(where.events),
            prune=str(where.prune),
            objectives=order.study.objectives,
            test=order.study.test,
            tags=tags,
            run_id=record.run_id if checkpoint is not None else "",
        )
        spec.save(where.spec)
        EventWriter(where.events).write("process")
        return self._launch(claim)

    def _launch(self, claim: Claim) -> subprocess.Popen[bytes]:
        where, descriptor = claim.folder, claim.file.descriptor
        environment = {**os.environ, **dict(self.order.environment), WATCHED: "1"}
        with where.log.open("ab") as log:
            return subprocess.Popen(
                [*self.order.runner, str(where.spec)],
                # Its other end closes when this process ends, even by SIGKILL.
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C is the worker's to act on
                pass_fds=() if descriptor is None else (descriptor,),
            )

    def _watch(self, claim: Claim, process: subprocess.Popen[bytes]) -> Progress:
        """Follow a trial until its process has ended; the storage may be away meanwhile."""
        ledger, order = self._ledger_of(), self.order
        reader, progress = EventReader(claim.folder.events), Progress()
        told: set[int] = set()
        noted: dict[str, Any] = {}
        beat = look = time.monotonic()
        while True:
            over = process.poll() is not None
            for event in reader.read():
                progress.add(event)
            self._check_objectives(progress)
            if self.mistake:
                return progress
            now = time.monotonic()
            try:
                if now >= beat:
                    ledger.beat(claim)
                    beat = now + order.pulse.interval
                if now >= look and not over:
                    count, at_once = ledger.stops()
                    look = now + _LOOK
                    if count != self._stops and at_once:
                        self.why = "`spanet sweep stop --now`"
                if progress.model != noted:
                    ledger.note(claim, progress.fill(claim.record, order.study.objectives))
                    noted = dict(progress.model)
                self._report(claim, progress, told, over=over)
            except Unreachable:
                ledger.reconnected()
                beat = look = now + 1.0
            if over:
                # Points that could not be stored while the storage was away.
                self._patiently(lambda: self._report(claim, progress, told, over=True), always=True)
                return progress
            if self.why:
                raise _StoppedError
            time.sleep(_TICK)

    def _report(self, claim: Claim, progress: Progress, told: set[int], *, over: bool) -> None:
        metric = self.order.study.objectives[0].metric
        for epoch, number in progress.curve(metric).items():
            if epoch in told:
                continue
            prune = self._ledger_of().report(claim, epoch, number)
            told.add(epoch)
            if prune and not over:
                claim.folder.prune.touch()

    def _check_objectives(self, progress: Progress) -> None:
        """Notice an objective that no run logs at its first validation, not at its end."""
        logged = {name for found in progress.metrics.values() for name in found}
        if not any(name.startswith("val/") for name in logged):
            return
        for objective in self.order.study.objectives:
            if objective.metric not in logged and objective.metric not in COSTS:
                names = ", ".join(sorted(logged))
                self.mistake = (
                    f"objective.metric: got {objective.metric!r}, which no run logs; it logs "
                    f"{names}{did_you_mean(objective.metric, logged)}"
                )

    def _read(self, claim: Claim) -> Progress:
        progress = Progress()
        for event in EventReader(claim.folder.events).read():
            progress.add(event)
        return progress

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """End a trial's process and all that it started."""
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdin is not None:
            with suppress(OSError):
                process.stdin.close()

    # -- patience

    def _patiently(self, action: Callable[[], T], *, always: bool = False) -> T:
        """Do something with the storage, again and again while it is away.

        Args:
            action: What to do; it may have been done in part before.
            always: Whether to go on although the worker is to end.
        """
        began, pause = time.monotonic(), 0.5
        while True:
            try:
                return action()
            except Unreachable as error:
                if time.monotonic() - began > _AWAY:
                    raise
                if pause == 0.5:
                    self.say(f"the storage is away, waiting for it ({reason(error)})")
                if self._ledger is not None:
                    self._ledger.reconnected()
                self._sleep(pause, always=always)
                pause = min(5.0, 2 * pause)

    def _sleep(self, seconds: float, *, always: bool = False) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self.why and not always:
                raise _StoppedError
            time.sleep(min(left, _TICK))


def serve(order: Order, alive: Connection, log: Path) -> None:
    """Be the process of a worker.

    Args:
        order: What to do.
        alive: Ends when the command does that started the worker.
        log: File for what it says.
    """
    os.setpgid(0, 0)  # Ctrl-C is the command's to act on
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    with log.open("a", encoding="utf-8") as out:

        def say(line: str) -> None:
            out.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
            out.flush()

        worker = Worker(order, say)

        def stop(number: int, _: FrameType | None) -> None:
            worker.why = worker.why or f"its command ({signal.Signals(number).name})"

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)

        def watch() -> None:
            with suppress(OSError, EOFError):
                alive.recv_bytes()
            worker.why = worker.why or "the end of its command"

        threading.Thread(target=watch, daemon=True).start()
        try:
            end = worker.work()
        except SpanetError as error:
            say(message(error))
            end = End.MISTAKE
        if worker.mistake:
            say(f"error: {worker.mistake}")
        say(f"ended: {end.name}")
    os._exit(int(end))  # no clean-up of what belongs to the process that this one is a copy of


def label(claim: Claim) -> str:
    """Return how a person calls a trial.

    Args:
        claim: The trial.
    """
    record = claim.record
    what = record.arm or ", ".join(f"{name}={chosen}" for name, chosen in claim.params.items())
    again = f", attempt {record.attempt}" if record.attempt > 1 else ""
    return f"({what}, seed {record.seed}{again})"


def _outcome(state: TrialState, values: list[float] | None, record: TrialRecord) -> str:
    if state == TrialState.COMPLETE and values is not None:
        return "complete, " + ", ".join(f"{number:.5g}" for number in values)
    if state == TrialState.PRUNED:
        return "pruned"
    return f"failed, {record.failure}: {record.reason}"


def _last_line(path: Path) -> str:
    with suppress(OSError):
        text = path.read_bytes()[-4096:].decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return lines[-1][:300] if lines else ""
    return ""
