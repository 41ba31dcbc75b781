"""A process that loads data leaves the signals of a job to the training, and fits the machine."""

from __future__ import annotations

import os
import signal
import time
import warnings
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from spanet_lightning.data.loaders import exact_loader


class Pids(Dataset[int]):
    """Each sample is the process that reads it; the last one takes an hour."""

    def __init__(self, size: int, stuck: bool = False) -> None:
        self.size = size
        self.stuck = stuck

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        if self.stuck and index == self.size - 1:
            time.sleep(3600)
        return os.getpid()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_outlives_the_signal_of_a_job(number: int) -> None:
    batches = iter(exact_loader(Pids(40), batch_size=1, num_workers=1))
    os.kill(int(next(batches)), number)  # prefetches two batches: most are read afterwards
    assert len(list(batches)) == 39


def test_a_worker_that_hangs_is_ended_with_the_training() -> None:
    batches: Any = iter(exact_loader(Pids(2, stuck=True), batch_size=1, num_workers=1))
    next(batches)
    (worker,) = batches._workers
    worker.terminate()  # torch does, and then Python itself
    worker.join(0.3)
    assert worker.is_alive()
    worker.terminate()
    worker.join(20)
    assert worker.exitcode == 0


def test_there_are_no_more_workers_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert exact_loader(Pids(2), batch_size=1, num_workers=64).num_workers == 2
    assert exact_loader(Pids(2), batch_size=1, num_workers=0).num_workers == 0


class Random(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.rand(())


def test_workers_are_seeded_apart_as_lightning_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_SEED_WORKERS", "1")
    values = []
    for _ in range(2):
        torch.manual_seed(1)
        loader = exact_loader(Random(), batch_size=1, num_workers=2)
        values.append([float(value) for value in loader])
    assert values[0] == values[1]
    assert len(set(values[0])) == 4
