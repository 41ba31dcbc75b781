"""One line for a run that ends because another of its processes did.

Lightning ends all processes that it has started once one has failed (torchrun and SLURM do so
themselves), but it checks every five seconds; until then the others raise errors of a broken
connection, which do not name the cause. This names the process.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from lightning.pytorch import Trainer

from spanet_lightning.errors import SpanetError

_MOMENT = 2.0  # seconds within which the end of the process at the other end shows
_parent = os.getppid()


class LostProcessError(SpanetError, RuntimeError):
    """Another process of the run has ended, which this one depends on."""

    shown = True  # on stderr, as soon as it is known


def cause(error: BaseException, trainer: Trainer) -> BaseException:
    """Return what caused an error: the loss of another process, or the error itself.

    Args:
        error: What ended the run here.
        trainer: Of the run.
    """
    if trainer.world_size == 1 or isinstance(error, SpanetError | SystemExit):
        return error
    until = time.monotonic() + _MOMENT
    while not (line := _lost(trainer)) and time.monotonic() < until:
        time.sleep(_MOMENT / 20)
    if not line:
        return error
    # At once: Lightning may kill this process before it has finished its records.
    sys.stderr.write(f"error: {line}\n")
    sys.stderr.flush()
    return LostProcessError(line)


def _lost(trainer: Trainer) -> str:
    launcher: Any = trainer.strategy.launcher
    processes = getattr(launcher, "procs", [])  # those that Lightning has started from here
    codes = [(process.poll() or 0, rank) for rank, process in enumerate(processes, start=1)]
    code, rank = min(codes, default=(0, 0), key=lambda item: (item[0] == 0, item[0]))
    if code:
        return f"process {processes[rank - 1].pid} (rank {rank}) {_ended(code)}; all processes end"
    if not processes and trainer.local_rank > 0 and os.getppid() != _parent:
        return f"process {_parent} (rank 0) is gone; all processes end"
    return ""


def _ended(code: int) -> str:
    if code > 0:
        return f"ended with exit code {code} (see its own error)"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
