"""A process that loads data leaves the signals of a job to the training, and draws as before."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.seed import pl_worker_init_function
from torch.utils.data import Dataset

from spanet_lightning.data import loaders
from spanet_lightning.data.loaders import exact_loader
from spanet_lightning.data.workers import outlive_signals

TELLS_THE_SENDER = pytest.mark.skipif(
    not hasattr(signal, "sigwaitinfo"), reason="this system does not tell who sent a signal"
)


class Stuck(Dataset):
    """Tells its process, and answers the second question only after an hour."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        if index:
            time.sleep(3600)
        return os.getpid()


class Draws(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.rand(()).double(), np.random.rand()  # noqa: NPY002 (as older transforms do)


def beside(number, pid):
    """Send a signal as SLURM or a shell does: from a process that is nobody's parent here."""
    subprocess.run(
        [sys.executable, "-c", f"import os; os.kill({pid}, {int(number)})"], check=True, timeout=60
    )


@TELLS_THE_SENDER
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_worker_outlives_the_signal_of_a_job_and_ends_with_the_training(number):
    batches = iter(exact_loader(Stuck(), batch_size=1, num_workers=1))
    pid = int(next(batches))
    worker = batches._workers[0]
    for _ in range(2):  # a job that is told twice still saves first
        beside(number, pid)
    ends_with_its_parent(worker)


@TELLS_THE_SENDER
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_however_a_worker_is_started(method):
    # Python 3.14 has other processes fork by default; the training is then not the parent.
    context = multiprocessing.get_context(method)
    ready = context.Event()
    process = context.Process(target=asleep, args=(ready,), daemon=True)
    process.start()
    assert ready.wait(60)
    beside(signal.SIGTERM, process.pid)
    beside(signal.SIGINT, process.pid)
    ends_with_its_parent(process)


def ends_with_its_parent(process):
    try:
        time.sleep(0.3)
        assert process.is_alive()
        process.terminate()  # as torch does with a worker that hangs
        process.join(20)
        assert process.exitcode == 0
    finally:
        process.kill()


def asleep(ready):
    outlive_signals()
    ready.set()
    time.sleep(3600)


@pytest.mark.parametrize("seeded", ["1", "0"])
def test_workers_draw_as_lightning_has_it(seeded, monkeypatch):
    # A function of our own takes the place of the one that Lightning would set.
    monkeypatch.setenv("PL_SEED_WORKERS", seeded)
    ours = exact_loader(Draws(), batch_size=1, num_workers=2)
    theirs = exact_loader(Draws(), batch_size=1, num_workers=2)
    theirs.worker_init_fn = pl_worker_init_function if seeded == "1" else None
    drawn = []
    for loader in (ours, theirs):
        torch.manual_seed(1)
        drawn.append([[float(one) for one in both] for both in loader])
    assert drawn[0] == drawn[1]
    assert len({one for both in drawn[0] for one in both}) == 8


def test_workers_of_two_ranks_draw_apart(monkeypatch):
    # A data set that shuffles by itself would read the same on every device.
    monkeypatch.setenv("PL_SEED_WORKERS", "1")
    drawn = []
    for rank in (0, 1):
        monkeypatch.setattr(loaders, "processes", lambda rank=rank: (1, rank))
        torch.manual_seed(1)
        both = exact_loader(Draws(), batch_size=1, num_workers=2)
        drawn.append({float(one) for pair in both for one in pair})
    assert not drawn[0] & drawn[1]


@TELLS_THE_SENDER
def test_signal_while_workers_start_waits_for_them():
    # Between a worker's birth and its first own line torch's handler would end it.
    loader = exact_loader(Stuck(), batch_size=1, num_workers=1)
    seen = []
    loader.worker_init_fn = late = Late(loader.worker_init_fn)
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
    try:
        batches = iter(loader)
        assert not late.told.is_set()  # the worker is still in its beginning
        beside(signal.SIGTERM, batches._workers[0].pid)
        late.told.set()
        assert int(next(batches)) == batches._workers[0].pid
        beside(signal.SIGTERM, os.getpid())  # to the training again, now that they are born
        assert seen == [1]
    finally:
        signal.signal(signal.SIGTERM, before)
        batches._workers[0].kill()


class Late:
    """Begins a worker only when it is told to."""

    def __init__(self, begin):
        self.begin, self.told = begin, multiprocessing.get_context("fork").Event()

    def __call__(self, worker):
        assert self.told.wait(60)
        self.begin(worker)
