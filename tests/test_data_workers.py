"""A process that loads data leaves the signals of a job to the training, and draws as before."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.seed import pl_worker_init_function
from torch.utils.data import DataLoader, Dataset

from spanet_lightning.data import workers
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


def test_function_of_the_loader_is_called_as_well():
    # Lightning sets one, by which workers of several devices draw apart.
    loader = exact_loader(Draws(), batch_size=1, num_workers=2)
    assert loader.worker_init_fn is None  # else Lightning sets none
    loader.worker_init_fn = of_lightning = partial(pl_worker_init_function, rank=1)
    torch.manual_seed(1)
    ours = [float(one) for both in loader for one in both]
    assert loader.worker_init_fn is of_lightning
    theirs = DataLoader(Draws(), batch_size=1, num_workers=2, worker_init_fn=of_lightning)
    torch.manual_seed(1)
    assert ours == [float(one) for both in theirs for one in both]
    assert len(set(ours)) == 8


@TELLS_THE_SENDER
def test_signal_while_workers_start_waits_for_them(monkeypatch):
    # Between a worker's birth and its first own line torch's handler would end it.
    seen, told = [], multiprocessing.get_context("fork").Event()

    def late():
        assert told.wait(60)
        outlive_signals()

    monkeypatch.setattr(workers, "outlive_signals", late)
    loader = exact_loader(Draws(), batch_size=1, num_workers=1)
    loader.multiprocessing_context = "fork"  # which takes the late one along
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
    try:
        batches = iter(loader)
        beside(signal.SIGTERM, batches._workers[0].pid)
        told.set()
        assert len(list(batches)) == 4
        beside(signal.SIGTERM, os.getpid())  # to the training again, now that they are born
        assert seen == [1]
    finally:
        signal.signal(signal.SIGTERM, before)
