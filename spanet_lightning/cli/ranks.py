"""When a process of several is lost, the others end, and one line says which it was.

Lightning looks every five seconds and says no more than a number. Meanwhile the first process finds
a connection broken and blames that; on GPUs the others may wait for the lost one for half an hour.
Processes that torchrun or SLURM started are theirs to watch.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from lightning.pytorch.strategies.launchers import subprocess_script

_EVERY = 0.5  # seconds between two looks
_GRACE = 10.0  # seconds that the first process is given to tell the tracker
# What a process returns that was told to end, or whose user got something wrong: it has said so
# itself, and the others are ending by themselves, perhaps with a checkpoint to finish.
_EXPLAINED = {2: 20.0, 130: 60.0, 138: 60.0, 143: 60.0}
_MOMENT = 2.0  # seconds in which the end of a process shows
_STARTED_BY = "SPANET_FIRST_PROCESS"


class LostProcessError(RuntimeError):
    """Another process of the run has failed, which this one depends on."""


class Watch(threading.Thread):
    """Looks after the processes that the first one has started.

    Args:
        started: The processes, by local rank from 1 on.
    """

    def __init__(self, started: Sequence[subprocess.Popen[Any]]) -> None:
        super().__init__(name="rank-watch", daemon=True)  # ends with the first process
        self.started = started

    def run(self) -> None:
        """Wait until one has failed, say so, and end all."""
        while (lost := self.lost()) is None:
            if all(process.poll() == 0 for process in self.started):
                return
            time.sleep(_EVERY)
        code, line = lost
        if code not in _EXPLAINED:
            _say(line)
            self.kill()
        time.sleep(_EXPLAINED.get(code, _GRACE))
        self.kill()
        os._exit(code if code in _EXPLAINED else 1)

    def lost(self) -> tuple[int, str] | None:
        """Return the exit code of a process that has failed and how it did; killed ones first."""
        codes = [(one.poll() or 0, rank) for rank, one in enumerate(self.started, start=1)]
        code, rank = min(codes, key=lambda item: (item[0] == 0, item[0]))
        if code == 0:
            return None
        pid = self.started[rank - 1].pid
        return code, f"process {pid} (rank {rank}) {_ended(code)}; all processes end"

    def kill(self) -> None:
        """End the processes that are left: one that waits for another does not hear SIGTERM."""
        for process in self.started:
            if process.poll() is None:
                with suppress(OSError):
                    process.kill()


class Follow(threading.Thread):
    """Ends this process once the one that started it is gone.

    Args:
        parent: Process id of the one that started it.
        rank: Local rank of this one.
    """

    def __init__(self, parent: int, rank: str) -> None:
        super().__init__(name="rank-watch", daemon=True)
        self.parent = parent
        self.rank = rank
        self.over = threading.Event()

    def run(self) -> None:
        """Wait until the run is over here, or the parent gone."""
        while not self.over.wait(_EVERY):
            lost = self.lost()
            if lost is not None:
                _say(lost[1])
                os._exit(1)

    def lost(self) -> tuple[int, str] | None:
        """Return how the parent ended, once it has."""
        if os.getppid() == self.parent:
            return None
        line = f"process {self.parent} (rank 0) is gone, which started rank {self.rank}"
        return 1, f"{line}; all processes end"


_guard: Watch | Follow | None = None


@contextmanager
def watched() -> Iterator[None]:
    """Watch over the processes that Lightning starts for this one, or over the one that started it.

    Without several processes it does nothing.

    Raises:
        SystemExit: Where the run fails because another process did, which has been said.
    """
    global _guard
    if hasattr(subprocess_script, "_launch_process_observer"):
        # In place of Lightning's own, which would end a process that is writing a checkpoint.
        subprocess_script._launch_process_observer = _start
    rank, parent = os.environ.get("LOCAL_RANK", "0"), os.getppid()
    if rank == "0":
        os.environ[_STARTED_BY] = str(os.getpid())
    elif os.environ.get(_STARTED_BY) == str(parent):
        _guard = Follow(parent, rank)
        _guard.start()
    try:
        yield
    except Exception as error:
        if isinstance(cause(error), LostProcessError):
            sys.exit(1)
        raise
    finally:
        if isinstance(_guard, Follow):
            _guard.over.set()
        _guard = None


def cause(error: BaseException) -> BaseException:
    """Return what is to blame for an error: another process, or the error itself.

    A broken connection shows a moment before the end of the process at its other end.
    """
    if _guard is None:
        return error
    until = time.monotonic() + _MOMENT
    while (lost := _guard.lost()) is None and time.monotonic() < until:
        time.sleep(_MOMENT / 20)
    if lost is None or lost[0] in _EXPLAINED:
        return error
    if isinstance(_guard, Follow):
        _say(lost[1])
        os._exit(1)
    return LostProcessError(lost[1])


def _start(started: Sequence[subprocess.Popen[Any]]) -> None:
    global _guard
    _guard = Watch(started)
    _guard.start()


def _ended(code: int) -> str:
    if code > 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _say(line: str) -> None:
    sys.stderr.write(f"error: {line}\n")
    sys.stderr.flush()
