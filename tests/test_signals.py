"""A signal ends a run after a whole step, with a checkpoint from which it goes on."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from spanet_lightning import ClassificationTask, cli
from spanet_lightning.callbacks import signals
from spanet_lightning.callbacks.signals import Interrupted
from spanet_lightning.errors import ConfigError
from tests import steps
from tests.helpers import UNTRACKED, images

RUN = Path("runs/digits-spanetv2")
LONG = (*UNTRACKED, "--trainer.max_epochs=3", "--trainer.limit_train_batches=4",
        "--trainer.num_sanity_val_steps=0", "--data.batch_size=16")  # fmt: skip


def at(monkeypatch: pytest.MonkeyPatch, hook: str, step: int, act: Callable[[], None]) -> list[int]:
    """Have a run do something within a hook of the task once it has taken so many steps."""
    inner, seen = getattr(ClassificationTask, hook), []

    def spied(task, *args):
        seen.append(task.global_step)
        if task.global_step == step and seen.count(step) == 1:
            act()
        return inner(task, *args)

    monkeypatch.setattr(ClassificationTask, hook, spied)
    return seen


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def last() -> dict:
    return torch.load(RUN / "last.ckpt", weights_only=True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_run_ends_after_the_step_and_goes_on_with_the_next(number, code, monkeypatch, caplog):
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    seen = at(monkeypatch, "training_step", 5, send(number))
    with pytest.raises(Interrupted) as ended:
        cli.main(["fit", *LONG])
    assert ended.value.code == code
    assert {one: signal.getsignal(one) for one in before} == before
    # The sixth step was done whole, and is in the checkpoint; stock Lightning saves nothing.
    assert seen == [0, 1, 2, 3, 4, 5]
    assert last()["global_step"] == 6
    (said,) = [text for text in caplog.messages if "; resume: " in text]
    assert said.startswith(f"{signal.Signals(number).name}: saved {RUN}/last.ckpt; resume: ")
    words = shlex.split(said.partition("; resume: ")[2])
    experiment = cli.run(words[words.index("fit") :])
    assert seen == list(range(12))
    assert experiment.trainer.global_step == 12
    assert [path.name for path in Path("runs").iterdir()] == [RUN.name]


def test_signal_amid_a_validation_ends_it_and_it_is_done_again(monkeypatch):
    at(monkeypatch, "validation_step", 4, send(signal.SIGTERM))
    with pytest.raises(Interrupted) as ended:
        cli.run(["fit", *LONG, "--trainer.limit_val_batches=3"])
    assert ended.value.code == 143
    assert last()["global_step"] == 4
    assert not (RUN / "best.ckpt").exists()  # nothing was judged yet
    judged = at(monkeypatch, "validation_step", -1, lambda: None)
    seen = at(monkeypatch, "training_step", -1, lambda: None)
    cli.run(["fit", *LONG, "--trainer.limit_val_batches=3", "--resume=must"])
    assert seen == list(range(4, 12))
    assert judged == [4, 4, 4, 8, 8, 8, 12, 12, 12]


def test_signal_waits_for_the_step_of_the_optimizer(monkeypatch):
    # Gradients of half a step would be lost.
    seen = at(monkeypatch, "training_step", 0, send(signal.SIGTERM))
    with pytest.raises(Interrupted):
        cli.run(["fit", *LONG, "--trainer.accumulate_grad_batches=2"])
    assert seen == [0, 0]
    assert last()["global_step"] == 1


def test_signal_before_the_first_step_leaves_nothing(monkeypatch, caplog):
    from spanet_lightning import DigitsDataModule

    monkeypatch.setattr(DigitsDataModule, "prepare_data", lambda _: send(signal.SIGTERM)())
    with pytest.raises(Interrupted) as ended:
        cli.run(["fit", *LONG])
    assert ended.value.code == 143
    assert list(Path().iterdir()) == []
    assert "no checkpoint to go on from" in caplog.text


def test_second_interrupt_leaves_at_once(monkeypatch):
    class Gone(BaseException):
        pass

    def leave(code):
        raise Gone(code)

    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(os, "_exit", leave)
    at(monkeypatch, "training_step", 5, twice)
    with pytest.raises(Gone) as gone:
        cli.run(["fit", *LONG])
    assert gone.value.args == (130,)
    assert last()["global_step"] == 4  # that of the epoch before, whole
    assert not list(RUN.glob(".*.partial"))


def test_end_of_a_job_of_slurm(monkeypatch, tmp_path, caplog):
    for name, value in {
        "SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1",
        "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    tools = tmp_path / "bin"
    tools.mkdir()
    scontrol = tools / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    at(monkeypatch, "training_step", 1, send(signal.SIGUSR1))
    with pytest.raises(Interrupted) as ended:
        cli.run(["fit", *LONG, "--resume=auto"])
    assert ended.value.code == 138
    assert last()["global_step"] == 2
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    # Lightning's own way would leave a file that the next run of any name goes on from.
    assert not list(Path("runs").glob("hpc_ckpt*"))
    (tmp_path / "asked").unlink()
    at(monkeypatch, "training_step", 1, send(signal.SIGUSR1))
    with pytest.raises(Interrupted):
        cli.run(["fit", *LONG, "--name=b"])  # the job would begin anew each time
    assert not (tmp_path / "asked").exists()
    assert "that needs --resume=auto" in caplog.text
    # One that another program has left.
    Path("runs/hpc_ckpt_3.ckpt").write_bytes((RUN / "last.ckpt").read_bytes())
    with pytest.raises(ConfigError, match=r"default_root_dir: got 'runs', .* hpc_ckpt_3\.ckpt"):
        cli.run(["fit", *LONG, "--name=c"])
    assert not Path("runs/c").exists()


def test_copy_of_the_process_outlives_the_terminals_signals_and_ends_when_told():
    # A worker gets them too, and its batch is still needed. A pool tells its processes once.
    listener = signals.Interruption()
    with listener.listening():
        child = os.fork()
        if not child:
            for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
                os.kill(os.getpid(), number)
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 143


# -- the process as a user sees it


def start(*args: str, config: tuple[str, ...] = LONG[:2]) -> subprocess.Popen[str]:
    # What is changed comes after the class that has it.
    own = [*config, *args, *LONG[2:-1], "--trainer.max_epochs=500", "--trainer.accelerator=cpu"]
    return subprocess.Popen(
        [sys.executable, "-m", "spanet_lightning", "fit", *own],
        env=steps.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(process: subprocess.Popen[str], file: Path, lines: int) -> None:
    until = time.monotonic() + 120
    while not file.is_file() or file.read_text().count("\n") < lines:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < until
        time.sleep(0.02)


def test_group_of_processes_that_gets_the_signal():
    """As a terminal or SLURM send it: to the loaders' workers as well."""
    process = start(*steps.step_log("steps.jsonl"))
    wait_for(process, Path("steps.jsonl"), 6)
    os.killpg(process.pid, signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert last()["global_step"] == steps.read("steps.jsonl")[-1].global_step
    assert re.search(r"SIGTERM: saved runs/.*/last.ckpt; resume: .* --resume=must", said)
    assert "Traceback" not in said


def start_with_workers(*more: str) -> subprocess.Popen[str]:
    images(Path("photos"), per_class=40)
    process = start(
        "--data=ImageClassificationDataModule", "--data.root=photos", "--data.image_size=32",
        "--data.num_workers=2", "--data.batch_size=16", "--model=ClassificationTask",
        "--model.backbone=SPANetV2", "--model.backbone.variant=test",
        "--model.backbone.img_size=32", "--name=digits-spanetv2", *steps.step_log("s.jsonl"), *more,
        config=(),
    )  # fmt: skip
    wait_for(process, Path("s.jsonl"), 7)
    return process


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "devices"), [(signal.SIGINT, 130, 1), (signal.SIGTERM, 143, 2)]
)
def test_workers_outlive_the_signal(number, code, devices):
    several = (f"--trainer.devices={devices}", "--trainer.strategy=ddp") if devices > 1 else ()
    process = start_with_workers(*several)
    os.killpg(process.pid, number)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == code, said
    assert "Traceback" not in said
    assert last()["global_step"] == steps.read("s.jsonl")[-1].global_step


@pytest.mark.slow
def test_killed_worker_is_named_with_the_likely_cause():
    process = start_with_workers()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.is_file():
        pytest.skip("this system does not tell the children of a process")
    worker = children.read_text().split()[0]
    os.kill(int(worker), signal.SIGKILL)
    said, _ = process.communicate(timeout=120)
    (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert process.returncode == 2
    assert f"(pid {worker}) was ended by signal Killed" in error
    assert "ran out of memory" in error
    assert "Lower data.num_workers=2" in error
    assert "Traceback" not in said


@pytest.mark.slow
def test_all_processes_end_after_the_same_step():
    process = start(
        *steps.step_log("s.jsonl"), "--trainer.devices=2", "--trainer.strategy=ddp",
        "--trainer.use_distributed_sampler=false",
    )  # fmt: skip
    wait_for(process, Path("s.jsonl.1"), 6)
    other = steps.read("s.jsonl.1")[-1].process
    assert other != process.pid
    os.kill(other, signal.SIGTERM)  # one process alone, and not the first
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 143, said
    ended = [steps.read(steps.log_of("s.jsonl", rank))[-1].global_step for rank in (0, 1)]
    assert ended[0] == ended[1] == last()["global_step"]
    assert "Traceback" not in said
