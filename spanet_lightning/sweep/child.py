"""The process of a trial, forked from a server that has imported everything, or a command.

It never touches the storage: it appends events to its folder and sends them to its supervisor,
hears "prune" from it, and ends after a checkpoint when the supervisor is gone. Nothing here imports
torch: what runs the trial is the module that the specification names.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import filelock

from spanet_lightning.sweep import failures
from spanet_lightning.sweep.folders import TrialFolder
from spanet_lightning.sweep.records import Progress, read_events
from spanet_lightning.sweep.study import Objective

GRACE = 60.0
"""Seconds that a trial has to save a checkpoint and end once its supervisor is gone."""
_SIGNALLED = (128 + signal.SIGTERM, 128 + signal.SIGINT)


@dataclass(frozen=True)
class Spec:
    """What a supervisor asks a trial's process for.

    Attributes:
        entry: Module whose `run(spec, link)` runs the trial.
        command: What follows `lightning`.
        run: Folder of the run.
        files: Folder of the engine's files.
        objectives: The study's, as plain values.
        test: Metric of the test split, where the best weights are to be tested.
        tags: Tags of the run in MLflow.
        run_id: Run of an earlier attempt, which a resumed trial continues.
        environment: Variables such as CUDA_VISIBLE_DEVICES.
        fresh: Whether to start from scratch though there is a checkpoint.
    """

    entry: str
    command: tuple[str, ...]
    run: str
    files: str
    objectives: tuple[dict[str, Any], ...]
    test: str | None
    tags: dict[str, str]
    run_id: str = ""
    environment: dict[str, str] | None = None
    fresh: bool = False

    @property
    def folder(self) -> TrialFolder:
        """The trial's folder."""
        return TrialFolder(Path(self.run), Path(self.files))

    @property
    def metrics(self) -> tuple[Objective, ...]:
        """The study's objectives."""
        return tuple(Objective(**each) for each in self.objectives)

    def save(self) -> Path:
        """Write it to the trial's folder; return the file."""
        path = Path(self.files) / "spec.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
        partial.replace(path)
        return path

    @classmethod
    def load(cls, path: Path) -> Spec:
        """Read it from a file."""
        plain = json.loads(path.read_text(encoding="utf-8"))
        lists = {key: tuple(plain[key]) for key in ("command", "objectives")}
        return cls(**{**plain, **lists})


class Link:
    """What a trial's process reports, and what it hears.

    Args:
        events: File of events.
        pipe: To the supervisor; None in the other processes of a DDP run.

    Attributes:
        prune: Set when the supervisor asks to end the trial early.
        checkpoint: What to resume from; None starts from scratch.
    """

    def __init__(self, events: Path, pipe: Connection | None) -> None:
        self.events = events
        self.pipe = pipe
        self.prune = threading.Event()
        self.checkpoint: Path | None = None

    def send(self, event: str, **values: Any) -> None:
        """Append an event to the file, whole or not at all, and send it."""
        found = {"event": event, "time": time.time(), **values}
        descriptor = os.open(self.events, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            # An earlier attempt may have been killed in the middle of a line.
            os.write(descriptor, f"\n{json.dumps(found)}\n".encode())
        finally:
            os.close(descriptor)
        self.forward(found)

    def forward(self, event: dict[str, Any]) -> None:
        """Send an event that is in the file."""
        if self.pipe is not None:
            with suppress(OSError):  # the supervisor is gone: `_listen` ends this process
                self.pipe.send(event)

    def listen(self) -> None:
        """Hear "prune"; once the supervisor is gone, end this process after a checkpoint."""
        if self.pipe is None:
            return
        with suppress(EOFError, OSError):
            while True:
                self.pipe.recv()
                self.prune.set()
        # Loader processes and the other ranks of a DDP run are in this process's group.
        os.killpg(0, signal.SIGTERM)
        time.sleep(GRACE)
        os.killpg(0, signal.SIGKILL)


def main(spec: Spec, pipe: Connection | None) -> None:
    """Run a trial in this process.

    Args:
        spec: What to run.
        pipe: To the supervisor.
    """
    folder = spec.folder
    if pipe is not None:
        os.setsid()  # Ctrl-C is the supervisor's to act on
    log = os.open(folder.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ |= spec.environment or {}
    link = Link(folder.events, pipe)
    threading.Thread(target=link.listen, daemon=True).start()
    code = 1
    try:
        if pipe is None:  # another rank: the first one has the lock and resumes
            link.checkpoint = None if spec.fresh else folder.checkpoint
            importlib.import_module(spec.entry).run(spec, link)
            code = 0
        else:
            # Held by an earlier attempt while it saves its checkpoint, or even ends.
            with filelock.FileLock(folder.files / "lock", timeout=2 * GRACE):
                code = _attempt(spec, link)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    if code:
        sys.exit(code)


def _attempt(spec: Spec, link: Link) -> int:
    folder, progress = spec.folder, Progress()
    link.checkpoint = None if spec.fresh else folder.checkpoint
    events = [] if spec.fresh else list(read_events(folder.events))
    for event in events:
        progress.add(event)
    if link.checkpoint is not None or progress.ended in ("end", "pruned"):
        for event in events:
            link.forward(event)
        if progress.ended in ("end", "pruned"):  # the supervisor died before it could store it
            return 0
    else:
        folder.clear()
    link.send("process")
    try:
        importlib.import_module(spec.entry).run(spec, link)
    except BaseException as error:
        if isinstance(error, SystemExit) and error.code in _SIGNALLED:
            link.send("stopped")
            return 0
        failure, reason = failures.of_error(error)
        with suppress(MemoryError, OSError):
            link.send("failed", failure=failure, reason=reason)
        traceback.print_exc()
        return 1
    return 0


def _command() -> None:
    """Be the command of a trial on several devices: `python -m ... SPEC.json DESCRIPTOR`."""
    first = int(os.environ.get("LOCAL_RANK", "0")) == 0
    pipe = Connection(int(sys.argv[2])) if first else None
    main(Spec.load(Path(sys.argv[1])), pipe)


if __name__ == "__main__":
    _command()
