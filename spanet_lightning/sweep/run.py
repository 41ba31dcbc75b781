"""Running a study on this machine: the workers, what they share out, and the tracker's parent run.

The command only watches. What is to be done, and by whom, is in the storage alone: any number of
commands on any number of machines may run the same study at the same time.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

from spanet_lightning import tracking
from spanet_lightning.errors import ConfigError, invalid
from spanet_lightning.sweep import folders, lock, space, status
from spanet_lightning.sweep.command import fit_command, resolve
from spanet_lightning.sweep.definition import Search, Study
from spanet_lightning.sweep.ledger import Budget, Ledger
from spanet_lightning.sweep.storage import (
    DEFAULT_URL,
    Pulse,
    Unreachable,
    refuse_tracker,
    safe_url,
)
from spanet_lightning.sweep.worker import RUNNER, End, Order, serve
from spanet_lightning.tracking.addresses import complete

_TICK = 0.2
_PATIENCE = 30.0  # seconds that workers get to end after a signal


@dataclass(frozen=True)
class Settings:
    """How a study is run on this machine.

    Attributes:
        url: The storage.
        workers: Trials at a time.
        trials: Ends the study earlier or later than its definition.
        hours: The same.
        failures: Failed trials in a row after which a worker ends.
        pulse: How workers show that they live.
        root: Folder of all studies.
        runner: Command of a trial's process.
        method: How workers are started, of multiprocessing's ways.
    """

    url: str = DEFAULT_URL
    workers: int = 1
    trials: int | None = None
    hours: float | None = None
    failures: int = 3
    pulse: Pulse = field(default_factory=Pulse)
    root: str = folders.ROOT
    runner: tuple[str, ...] = RUNNER
    method: str = "forkserver"  # copies of one process that has imported everything

    def check(self) -> None:
        """Check the values.

        Raises:
            ConfigError: If one is out of its range.
        """
        for key in ("workers", "trials", "failures"):
            number = getattr(self, key)
            if number is not None and number < 1:
                raise invalid(f"--{key}", number, "at least 1")
        if self.hours is not None and not self.hours > 0:
            raise invalid("--hours", self.hours, "more than 0")


@dataclass(frozen=True)
class Outcome:
    """What a command came to.

    Attributes:
        counts: Trials by state, as `status.Row` names them.
        ends: How each worker ended.
        interrupted: Number of the signal that ended the command; 0 is none.
        mistake: What every trial would fail of; empty is nothing.
    """

    counts: Mapping[str, int]
    ends: tuple[int, ...]
    interrupted: int = 0
    mistake: str = ""

    @property
    def unfinished(self) -> bool:
        """Whether there is still something to do: no worker found that all is done."""
        return End.DONE not in self.ends

    @property
    def sick(self) -> bool:
        """Whether a worker ended as too many of its trials had failed."""
        return End.SICK in self.ends


@dataclass(frozen=True)
class Parent:
    """The tracker's run of a study.

    Attributes:
        uri: The tracker; empty where runs are not tracked.
        run_id: The run.
    """

    uri: str = ""
    run_id: str = ""


def prepare(study: Study, settings: Settings) -> tuple[Ledger, Parent]:
    """Create the study, or find it again, with its parent run.

    Args:
        study: The definition, checked.
        settings: How it is run.

    Returns:
        The study, and the tracker's run of it.

    Raises:
        ConfigError: If the storage can't be used, or the name is taken by another definition.
    """
    settings.check()
    budget(study, settings)
    refuse_tracker(settings.url, None)
    config, _ = resolve(fit_command(study, {}, 0))
    tracker = _tracker(config)
    refuse_tracker(settings.url, None if tracker is None else tracker[0])
    ledger = Ledger(settings.url, study, settings.pulse, settings.root)
    ledger.create(config)
    if tracker is None:
        return ledger, Parent()
    uri, experiment = tracker
    return ledger, Parent(uri, _parent_run(ledger, uri, experiment, safe_url(settings.url)))


def run(
    study: Study,
    ledger: Ledger,
    settings: Settings,
    say: Callable[[str], None],
    parent: str = "",
    show: Callable[[], None] | None = None,
) -> Outcome:
    """Run a study until nothing is left to do, or a signal comes.

    Args:
        study: The definition.
        ledger: The study in its storage.
        settings: How to run it.
        say: Called with each line that a worker says.
        parent: The tracker's parent run.
        show: Called a few times a second.
    """
    folder = ledger.folder() / "workers"
    folder.mkdir(exist_ok=True)
    order = Order(
        url=settings.url,
        study=study,
        budget=budget(study, settings),
        parent=parent,
        failures=settings.failures,
        pulse=settings.pulse,
        root=settings.root,
        runner=settings.runner,
    )
    with _signals() as signals:
        workers = [
            _Started(replace(order, environment=environment), folder, settings.method, number)
            for number, environment in enumerate(shares(settings.workers), start=1)
        ]
        try:
            interrupted = _follow(workers, signals, say, show)
        finally:
            for worker in workers:
                worker.kill()
    mistakes = [worker.mistake for worker in workers if worker.mistake]
    ends = tuple(worker.process.exitcode or 0 for worker in workers)
    counted = Counter(row.state for row in status.rows(ledger.study, study))
    return Outcome(counted, ends, interrupted, next(iter(mistakes), ""))


def budget(study: Study, settings: Settings) -> Budget:
    """Return when a study is at its end: as it says itself, or the command.

    Args:
        study: The definition.
        settings: How it is run.

    Raises:
        ConfigError: If it has no end.
    """
    method = study.method
    search = method if isinstance(method, Search) else Search(space=())
    found = Budget(settings.trials or search.trials, settings.hours or search.hours)
    if found == Budget() and space.queue(study) is None:
        raise ConfigError("search.trials: is missing; give it or hours, or --trials or --hours")
    return found


def shares(workers: int) -> list[tuple[tuple[str, str], ...]]:
    """Return what of this machine each worker gets, as variables of its environment.

    Accelerators are dealt out in runs of neighbours, so that a trial on several has near ones;
    where there are fewer than workers, several share one. What the user set stays as it is.

    Args:
        workers: How many there are.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = () if "OMP_NUM_THREADS" in os.environ else (
        ("OMP_NUM_THREADS", str(max(1, (cores or 1) // workers))),
    )  # fmt: skip
    devices = _devices()
    found = []
    for i in range(workers):
        mine: Sequence[str]
        if len(devices) >= workers:
            mine = devices[i * len(devices) // workers : (i + 1) * len(devices) // workers]
        else:
            mine = [devices[i % len(devices)]] if devices else []
        visible = (("CUDA_VISIBLE_DEVICES", ",".join(mine)),) if mine else ()
        found.append((*threads, *visible))
    return found


def _devices() -> list[str]:
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [part.strip() for part in given.split(",") if part.strip()]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


class _Started:
    """A worker's process, seen from the command that started it."""

    def __init__(self, order: Order, folder: Path, method: str, number: int) -> None:
        self.number = number
        self.mistake = ""
        self.log = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{number}.log"
        self.log.touch()
        context: Any = multiprocessing.get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload(["spanet_lightning.sweep.worker"])
        reader: Connection
        reader, self._writer = context.Pipe(duplex=False)
        self.process: BaseProcess = context.Process(target=serve, args=(order, reader, self.log))
        self.process.start()
        reader.close()
        self._offset = 0

    def lines(self) -> Iterator[str]:
        """Return what the worker said since the last look."""
        with self.log.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            words = line[20:]  # without the time
            if words.startswith("error: "):
                self.mistake = words.removeprefix("error: ")
            else:
                yield words

    def stop(self) -> None:
        """Ask the worker to end."""
        if self.process.is_alive():
            self.process.terminate()

    def kill(self) -> None:
        """End the worker; its trial's process ends with it."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self._writer.close()


def _follow(
    workers: Sequence[_Started],
    signals: list[int],
    say: Callable[[str], None],
    show: Callable[[], None] | None,
) -> int:
    """Pass on what workers say until all have ended; return the signal that ended them."""
    until = 0.0
    stopped = False
    while True:
        alive = any(worker.process.is_alive() for worker in workers)
        for worker in workers:
            for line in worker.lines():
                say(f"worker {worker.number}: {line}" if len(workers) > 1 else line)
            if worker.mistake and not stopped:  # the others would fail of the same
                stopped = True
                for other in workers:
                    other.stop()
        if not alive:
            break
        if signals and (not stopped or (len(signals) > 1 and until > time.monotonic())):
            say("ending: the trials that run are put back into the queue")
            stopped, until = True, time.monotonic() + (_PATIENCE if len(signals) == 1 else 0)
            for worker in workers:
                worker.stop()
        if signals and time.monotonic() > until:
            break
        if show is not None:
            with suppress(*Unreachable):
                show()
        time.sleep(_TICK)
    return signals[0] if signals else 0


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of being ended by them."""
    caught: list[int] = []

    def catch(number: int, _: FrameType | None) -> None:
        caught.append(number)

    before = {one: signal.signal(one, catch) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _tracker(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return where a configuration records its runs, and in which experiment; None is nowhere."""
    logger = config.get("trainer.logger")
    # By the name that a configuration gives it, and by that of its module.
    kind = tracking.MLflowLogger
    known = {tracking.default_logger()["class_path"], f"{kind.__module__}.{kind.__name__}"}
    prefix = "trainer.logger."
    given = {k.removeprefix(prefix): v for k, v in config.items() if k.startswith(prefix)}
    found = logger if isinstance(logger, list) else [{"class_path": logger, "init_args": given}]
    for one in found:
        if isinstance(one, Mapping) and one.get("class_path") in known:
            values = one.get("init_args") or {}
            uri = str(values.get("tracking_uri") or tracking.DEFAULT_URI)
            return complete(uri), str(values.get("experiment_name") or tracking.DEFAULT_EXPERIMENT)
    return None


def _parent_run(ledger: Ledger, uri: str, experiment: str, storage: str) -> str:
    """Return the run of the study, which is made by whoever comes first; empty is none.

    A tracker that is only down is no reason not to run a study: its trials are then without a
    parent, but all have the tag `study`.
    """
    from spanet_lightning.tracking import client

    client.check_address(uri)
    if not client.installed():
        _say_away(uri, "MLflow is not installed")
        return ""
    study = ledger.study
    with lock.exclusive(ledger.storage.engine, ledger.definition.name):
        known = str(study.user_attrs.get("run_id", ""))
        head = {
            "uri": uri,
            "uid": uuid.uuid4().hex,
            "experiment": experiment,
            "name": ledger.definition.name,
            "run_id": known,
            "time": int(time.time() * 1000),
            "tags": {
                "study": ledger.definition.name,
                "question": ledger.definition.question,
                client.NOTE_TAG: client.study_note(
                    ledger.definition.name, ledger.definition.question, storage
                ),
                "storage": storage,
            },
        }
        try:
            opened = client.connect(uri)
            run_id = client.ensure_run(opened, head)
            if not known:
                opened.log_text(run_id, str(study.user_attrs["definition"]), "study.json")
                study.set_user_attr("run_id", run_id)
        except ConfigError:
            raise
        except Exception as error:
            text = str(client.classify(error, uri))
            if isinstance(client.classify(error, uri), client.UnavailableError):
                _say_away(uri, text)
                return ""
            raise ConfigError(
                "trainer.logger.tracking_uri: the run of the study is not to be had from "
                f"{tracking.without_secret(uri)!r} ({text}); is it another database than the study "
                "began with?"
            ) from None
    return run_id


def close_parent(parent: Parent, outcome: Outcome) -> None:
    """Tell the tracker that a command ended.

    Args:
        parent: Run of the study.
        outcome: What the command came to.
    """
    if parent.run_id:
        from mlflow.exceptions import MlflowException

        over = not outcome.unfinished and not outcome.interrupted
        try:
            client = tracking.connect(parent.uri)
            client.set_terminated(parent.run_id, "FINISHED" if over else "KILLED")
        except MlflowException as error:
            _say_away(parent.uri, " ".join(str(error).split())[:160])


def _say_away(uri: str, why: str) -> None:
    from spanet_lightning.tracking.sender import say

    say(
        f"the run of the study can't be written to {tracking.without_secret(uri)} "
        f"({tracking.redact(why, uri)}); its trials are recorded all the same"
    )
