"""Processes that load data: how many, their seeds, and what they do with the signals of a job."""

from __future__ import annotations

import os
import signal
from functools import partial
from typing import Any

from lightning.fabric.utilities.seed import pl_worker_init_function

from spanet_lightning.data.samplers import processes


def worker_options(wanted: int) -> dict[str, Any]:
    """Return a loader's options: at most one process for each core that this one may run on.

    Args:
        wanted: Processes that load; 0 loads in the training process.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    init = partial(init_worker, rank=processes()[1])
    return {"num_workers": min(wanted, cores or 1), "worker_init_fn": init}


def init_worker(worker: int, rank: int = 0) -> None:
    """Seed a worker as Lightning does, and let it outlive the signals that end a run.

    A terminal, SLURM and containers send their signals to all processes of a job. The training ends
    after a whole step, and needs its batches until then; afterwards its workers end by themselves.
    Of a worker that hangs, torch and Python end what is left by one SIGTERM each.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _ignore_once)
    if int(os.environ.get("PL_SEED_WORKERS", "0")):  # seed_everything(workers=True)
        pl_worker_init_function(worker, rank=rank)


def _ignore_once(_number: int, _frame: Any) -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
