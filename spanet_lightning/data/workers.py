"""What a process that loads data does first: it leaves the signals of a job to the training."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch.utils.data import DataLoader

_SENDERS_ARE_TOLD = hasattr(signal, "sigwaitinfo")


class SteadyLoader(DataLoader[Any]):
    """A loader whose workers outlive, from their first moment, the signals that end a run."""

    # Any: torch's iterator is a private class of its own.
    def __iter__(self) -> Any:
        """Return the iterator of a pass; its workers, where there are any, are started here."""
        own = self.worker_init_fn
        self.worker_init_fn = partial(_begin, own=own)
        try:
            with _held_back():
                return super().__iter__()
        finally:
            self.worker_init_fn = own  # as the loader was made, or Lightning has set it


def _begin(worker: int, own: Callable[[int], None] | None) -> None:
    outlive_signals()
    if own is not None:
        own(worker)


def outlive_signals() -> None:
    """Ignore Ctrl-C, and every SIGTERM that the training process has not sent.

    A terminal, SLURM and containers send their signals to all processes of a job. The training
    ends after a whole step, and needs its batches until then; by itself it ends its workers. torch
    ends a worker at a SIGTERM from anybody else, which the training then takes for a crash. Who
    has sent a signal only a thread that waits for it learns; where the system has no such call
    (macOS), torch's way stays.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    training = multiprocessing.parent_process()
    if training is None or training.pid is None or not _SENDERS_ARE_TOLD:
        return
    # A worker that was forked has been born with this mask; threads inherit it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with, args=(training.pid,), daemon=True).start()


@contextmanager
def _held_back() -> Iterator[None]:
    """Keep SIGTERM waiting: in this thread until the end, in the processes it forks for good."""
    if not _SENDERS_ARE_TOLD:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with(training: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != training:
        pass
    os._exit(0)  # as torch's handler does: a worker has nothing to put away
