"""Checkpoints under fire: killed while they are written, disks that are full or read-only.

Each test uses processes of its own. A kill is at a random moment, whose seed is printed; the
environment variable `CHAOS_SEED` repeats it.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from spanet_lightning import checkpoints, cli
from tests import steps
from tests.helpers import UNTRACKED

RUN = Path("runs/digits-spanetv2")
# Writes one checkpoint after the other, and tells before and after each.
WRITER = """
import sys, torch
from spanet_lightning import checkpoints
for number in range(10_000):
    state = {"number": number, "weights": torch.full((400_000,), float(number))}
    print("begin", number, flush=True)
    checkpoints.save(state, sys.argv[1])
    print("end", number, flush=True)
"""


def a_seed() -> int:
    """Return the seed of a kill, and print it: a random one, or that of the environment."""
    seed = int(os.environ.get("CHAOS_SEED") or random.randrange(2**32))
    print(f"CHAOS_SEED={seed}")  # noqa: T201
    return seed


def killed_writer(target: Path, seed: int, **environment: str) -> int:
    """Kill a process amid its writing; return the last checkpoint that it said was there."""
    rng = random.Random(seed)
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(target)],
        stdout=subprocess.PIPE,
        text=True,
        env=steps.environment(**environment),
    )
    stop = rng.randrange(1, 6)
    with process:
        for line in process.stdout:
            if line == f"begin {stop}\n":
                break
        time.sleep(rng.random() * 0.02)  # a write takes about that long
        process.kill()
        ended = [line for line in process.stdout if line.startswith("end ")]
    return int(ended[-1].split()[1]) if ended else stop - 1


def check(target: Path, told: int) -> None:
    """The file is whole, and none older than what was told to be there."""
    state = checkpoints.SafeCheckpointIO().load_checkpoint(target)
    assert state["number"] >= told
    assert bool((state["weights"] == state["number"]).all())


def test_killed_while_writing():
    target = Path("run/last.ckpt")
    told = killed_writer(target, a_seed())
    check(target, told)
    checkpoints.remove_partial_files(target.parent)
    assert [path.name for path in target.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.slow
@pytest.mark.parametrize("kill", range(8))
def test_killed_while_writing_again_and_again(kill):
    test_killed_while_writing()


# -- file systems of their own: only root can mount them


@contextmanager
def mounted(folder: Path, *arguments: str) -> Iterator[Path]:
    """Mount something, or skip the test where that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    done = subprocess.run(["mount", *arguments, str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no mounting here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def small(folder: Path, size: str) -> object:
    return mounted(folder, "-t", "tmpfs", "-o", f"size={size}", "tmpfs")


def fit(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "spanet_lightning", "fit", *UNTRACKED, *args],
        env=steps.environment(**environment),
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_temporary_folder_on_another_file_system(tmp_path):
    with small(tmp_path / "elsewhere", "64m") as elsewhere:
        told = killed_writer(Path("run/last.ckpt"), a_seed(), TMPDIR=str(elsewhere))
        check(Path("run/last.ckpt"), told)
        # Nothing goes there at all, be it full or not.
        assert list(elsewhere.iterdir()) == []


def filled(folder: Path, left: int) -> Path:
    """Fill a file system up to so many bytes."""
    filler = folder / "filler"
    with filler.open("wb") as file:
        free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
        file.write(b"\1" * (free - left))
    return filler


def stopped(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Run a training that must not take a step; return its error."""
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["fit", *UNTRACKED, *args])
    said = capsys.readouterr()
    error = said.err.splitlines()[-1]
    assert exit_info.value.code == 2
    assert error.startswith("error: ")
    assert "step 1/2" not in said.out
    return error


def test_disk_without_room_is_found_before_the_first_step(tmp_path, capsys):
    with small(tmp_path / "disk", "64m") as disk:
        filled(disk, 6_000_000)
        error = stopped(capsys, f"--trainer.default_root_dir={disk}")
        assert f"{disk}/digits-spanetv2 has " in error
        assert " bytes free; 3 files of about 4," in error


def test_disk_that_fills_up_keeps_the_old_checkpoint(tmp_path):
    with small(tmp_path / "disk", "64m") as disk:
        run = disk / "digits-spanetv2"
        args = ["--trainer.max_epochs=60", "--trainer.limit_train_batches=2",
                f"--trainer.default_root_dir={disk}"]  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-m", "spanet_lightning", "fit", *UNTRACKED, *args],
            env=steps.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        until = time.monotonic() + 120
        while not (run / "last.ckpt").is_file():
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(signal.SIGSTOP)
        for partial in run.glob(".*.partial"):
            assert partial.is_file()  # it may have been amid the next one
        filled(disk, 1_000_000)
        process.send_signal(signal.SIGCONT)
        _, said = process.communicate(timeout=120)
        (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
        assert process.returncode == 2, said
        assert "Traceback" not in said
        assert f"{run}/" in error
        assert "can't be written after " in error
        assert "the disk is full" in error
        assert not list(run.glob(".*.partial"))
        for path in run.glob("*.ckpt"):
            assert checkpoints.read_info(path).resumable


def test_read_only_folder_is_found_before_the_first_step(tmp_path, capsys):
    with mounted(tmp_path / "locked", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs") as locked:
        error = stopped(capsys, f"--trainer.default_root_dir={locked}")
        assert f"{locked}/digits-spanetv2: can't be written: it is read-only" in error
        # The same where the checkpoints alone go there.
        error = stopped(capsys, f"--checkpoint.dirpath={locked}/x")
        assert f"{locked}/x can't be written: it is read-only" in error


# -- whole runs


def kill_and_resume(seed: int, times: int) -> None:
    rng = random.Random(seed)
    args = ["--trainer.max_epochs=6", "--trainer.limit_train_batches=3",
            "--checkpoint.every_n_train_steps=1", "--checkpoint.monitor=null", "--resume=auto",
            *steps.step_log("broken.jsonl")]  # fmt: skip
    for _ in range(times):
        before = len(steps.read("broken.jsonl")) if Path("broken.jsonl").exists() else 0
        process = subprocess.Popen(
            [sys.executable, "-m", "spanet_lightning", "fit", *UNTRACKED, *args],
            env=steps.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wanted = before + rng.randrange(1, 4)
        until = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < until:
            if Path("broken.jsonl").exists() and len(steps.read("broken.jsonl")) >= wanted:
                break
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)  # two files are written after each step
        process.kill()
        process.wait()
        for path in RUN.glob("*.ckpt"):
            assert checkpoints.read_info(path).resumable
    done = fit(*args)
    assert done.returncode == 0, done.stderr
    assert not list(RUN.glob(".*.partial"))
    assert [path.name for path in Path("runs").iterdir()] == [RUN.name]
    done = fit(*args[:-2], "--resume=never", "--name=unbroken", *steps.step_log("unbroken.jsonl"))
    assert done.returncode == 0, done.stderr
    assert steps.differences(steps.read("unbroken.jsonl"), steps.read("broken.jsonl")) == []


@pytest.mark.slow
def test_run_that_is_killed_at_its_checkpoints_is_the_unbroken_one():
    kill_and_resume(a_seed(), times=4)
