"""If one of these fails, a run whose process was lost hangs, or blames the network for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.helpers import CONFIGS
from tests.steps import environment, log_of, read, step_log

LEAVES_WITHIN = 30.0  # seconds
STARTS_WITHIN = 300.0  # imports of two processes, on a machine that does other things as well


def start(folder: Path, ranks: int, *more: str) -> subprocess.Popen[str]:
    """Start a training of many short steps that would go on for minutes."""
    args = [
        sys.executable,
        "-m",
        "spanet_lightning",
        "fit",
        f"--config={CONFIGS / 'digits' / 'spanet.yaml'}",
        "--trainer.max_epochs=1000",
        "--trainer.limit_train_batches=10",
        "--trainer.limit_val_batches=1",
        f"--trainer.devices={ranks}",
        "--trainer.strategy=ddp",
        "--trainer.enable_progress_bar=false",
        "--data.batch_size=2",
        *step_log(folder / "steps.jsonl"),
        *more,
    ]
    # A session of its own: whatever of it is left in the end can be found.
    return subprocess.Popen(
        args,
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def processes(folder: Path, ranks: int, main: subprocess.Popen[str]) -> list[int]:
    """Return the process id of each rank, once all have trained."""
    until = time.monotonic() + STARTS_WITHIN
    logs = [log_of(folder / "steps.jsonl", rank) for rank in range(ranks)]
    while not all(log.exists() and len(read(log)) >= 2 for log in logs):
        assert main.poll() is None, main.communicate()[1]
        assert time.monotonic() < until, "the processes did not begin to train"
        time.sleep(0.1)
    return [read(log)[0].process for log in logs]


def is_running(process: int) -> bool:
    """Whether a process is there and more than an entry that nobody has asked for."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill(folder: Path, rank: int, ranks: int = 2, *more: str) -> tuple[int, str, list[int], bool]:
    """Train, kill a rank, and return exit code, stderr, process ids, and whether all are gone."""
    main = start(folder, ranks, *more)
    ids: list[int] = []
    try:
        ids = processes(folder, ranks, main)
        assert ids[0] == main.pid
        os.kill(ids[rank], signal.SIGKILL)
        until = time.monotonic() + LEAVES_WITHIN
        while any(is_running(one) for one in ids) and time.monotonic() < until:
            time.sleep(0.1)
            main.poll()
        gone = not any(is_running(one) for one in ids)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(main.pid, signal.SIGKILL)  # whatever is left of its session
        errors = main.communicate(timeout=30)[1]
    return main.returncode, errors, ids, gone


def test_a_killed_rank_ends_all_and_is_named(tmp_path: Path) -> None:
    code, errors, ids, gone = kill(tmp_path, 1, 2, "--trainer.logger=false")
    assert gone
    # Lightning kills the others five seconds later at most, whatever they are doing.
    assert code in (2, -signal.SIGKILL)
    expected = f"error: process {ids[1]} (rank 1) was killed by SIGKILL; all processes end"
    assert errors.count(expected) == 1, errors
    assert "gloo" not in errors.replace("distributed_backend=gloo", ""), errors


@pytest.mark.slow
def test_a_killed_first_rank_ends_the_others_which_name_it(tmp_path: Path) -> None:
    code, errors, ids, gone = kill(tmp_path, rank=0)
    assert gone
    assert code == -signal.SIGKILL
    expected = f"error: process {ids[0]} (rank 0) is gone; all processes end"
    assert errors.count(expected) == 1, errors
