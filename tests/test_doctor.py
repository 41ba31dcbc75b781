"""If one of these fails, `spanet doctor` calls well what is not, or can't say what is wrong."""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import namedtuple
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from spanet_lightning import app
from spanet_lightning.cli import doctor
from spanet_lightning.cli.doctor import Finding
from tests.helpers import DIGITS, files

GIB = 1 << 30
Usage = namedtuple("Usage", "total used free")


def is_fault(finding: Finding, *words: str) -> bool:
    text = " ".join(finding)
    return finding.status == "fault" and bool(finding.advice) and all(w in text for w in words)


def fail(error: Exception) -> Any:
    def raises(*_: Any, **__: Any) -> Any:
        raise error

    return raises


# -- packages


@pytest.mark.parametrize(
    ("name", "version", "says"),
    [
        ("lightning", "2.6.3", "2.6.3, supported is"),
        ("jsonargparse", "5.0", "pip install 'jsonargparse<5"),
        ("mlflow", None, "is not installed"),
    ],
)
def test_packages(name: str, version: str | None, says: str, monkeypatch: pytest.MonkeyPatch):
    (finding,) = doctor.packages()
    assert finding.status == "ok", finding
    assert int(finding.found.split()[0]) >= 10
    real = metadata.version

    def asked(package: str) -> str:
        if package == name and version is None:
            raise metadata.PackageNotFoundError
        return version if version and package == name else real(package)

    monkeypatch.setattr(metadata, "version", asked)
    monkeypatch.setattr(platform, "python_version", lambda: "3.8.1")
    python, package = doctor.packages()
    assert is_fault(python, "Python", "3.8.1", ">=3.11")
    assert is_fault(package, name, says, "pip install")


def test_a_torchvision_of_another_torch(monkeypatch: pytest.MonkeyPatch):
    assert doctor.pair().status == "ok"
    monkeypatch.setattr(metadata, "requires", lambda _: ["numpy", "torch (==2.1.0)"])
    finding = doctor.pair()
    assert is_fault(finding, "which asks for torch==2.1.0", "install them as a pair")
    major, minor = torch.__version__.split(".")[:2]
    assert f"torchvision 0.{int(minor) + 15} is that of torch {major}.{minor}" in finding.advice


def test_a_torchvision_that_can_not_be_imported(tmp_path: Path):
    """The doctor explains it; every other command points to the doctor."""
    says = "operator torchvision::nms does not exist"
    package = tmp_path / "site" / "torchvision"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"raise RuntimeError({says!r})")
    root = str(Path(__file__).parent.parent)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package.parent), root])}

    def ran(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", *args]
        return subprocess.run(command, capture_output=True, text=True, env=env, check=False)

    done = ran("spanet_lightning.app", "doctor", "--json")
    assert done.returncode == 1, done.stderr
    (finding,) = [Finding(**one) for one in json.loads(done.stdout) if one["status"] == "fault"]
    assert is_fault(finding, "torch and torchvision", says, "install them as a pair")
    done = ran("spanet_lightning", "fit", "--config=digits/spanetv2")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert says in done.stderr
    assert "spanet doctor" in done.stderr


# -- the machine


def test_a_device_of_cuda(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.version, "cuda", "12.9")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "H100")
    sizes = iter([(70 * GIB, 80 * GIB), (10 * GIB, 80 * GIB)])
    monkeypatch.setattr(
        torch.cuda,
        "mem_get_info",
        lambda i: next(sizes) if i < 2 else fail(RuntimeError("CUDA devices are busy"))(),
    )
    free, used, busy = doctor.cuda()
    assert free == Finding("ok", "CUDA device 0", "H100, 70.0 GiB of 80.0 GiB free, CUDA 12.9")
    assert used.status == "warning"
    assert "CUDA_VISIBLE_DEVICES" in used.advice
    assert is_fault(busy, "CUDA device 2", "busy", "nvidia-smi")


@pytest.mark.parametrize(
    ("build", "driver", "status", "says"),
    [
        (None, True, "warning", "a build without CUDA"),
        ("12.9", True, "warning", "update the driver"),
        ("12.9", False, "ok", "no device"),
    ],
)
def test_no_device_of_cuda(build, driver, status, says, tmp_path, monkeypatch):
    file = tmp_path / "version"
    if driver:
        file.touch()
    monkeypatch.setattr(doctor, "_DRIVER", file)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", build)
    (finding,) = doctor.cuda()
    assert finding.status == status
    assert says in " ".join(finding)


def test_processors_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(doctor, "memory", lambda: (2 * GIB, 64 * GIB))
    monkeypatch.setattr(doctor, "_SHARED", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(64 << 20, 0, 64 << 20))
    found = list(doctor.processor())
    assert [finding.status for finding in found] == ["warning"] * 3
    advice = ("OMP_NUM_THREADS=2", "batch_size", "--shm-size")
    assert all(words in one.advice for one, words in zip(found, advice, strict=True))


def test_the_disk(monkeypatch: pytest.MonkeyPatch):
    for gib, status in ((100.0, "ok"), (9.0, "warning"), (0.5, "fault")):
        free = int(gib * GIB)
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: Usage(free, 0, free))
        finding = doctor.disk(Path("runs"))
        assert finding.status == status
        assert bool(finding.advice) == (status != "ok")
    assert files() == set()
    Path("runs").touch()
    assert is_fault(doctor.disk(Path("runs")), "is a file", "default_root_dir")
    monkeypatch.setattr(tempfile, "TemporaryFile", fail(OSError(30, "Read-only file system")))
    assert is_fault(doctor.disk(Path("other")), "can't be written: Read-only file system")


# -- databases


def test_the_databases(monkeypatch: pytest.MonkeyPatch):
    assert doctor.tracker(None).status == doctor.studies("sqlite:///sweeps.db").status == "ok"
    assert files() == set()
    Path("broken.db").write_text("no database at all, but long enough to be looked at" * 9)
    assert is_fault(doctor.tracker("sqlite:///broken.db"), "broken.db", "tracking_uri")
    assert is_fault(doctor.tracker("nonsense://x"), "nonsense")
    assert is_fault(doctor.studies("sqlite:///broken.db"), "broken.db", "--storage")
    assert is_fault(doctor.studies("sqlite:///no/folder.db"), "there is no folder no")
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        away = doctor.tracker(f"http://ann:sesame@127.0.0.1:{taken.getsockname()[1]}")
    assert away.status == "warning"
    assert "spanet track sync" in away.advice
    assert "sesame" not in " ".join(away)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert is_fault(doctor.studies("sqlite:///mlflow.db"), "MLflow")
    monkeypatch.setattr("spanet_lightning.tracking.client.installed", lambda: False)
    assert "pip install mlflow" in doctor.tracker(None).advice


# -- one batch

RUN = ["--config", DIGITS, "--data.batch_size=8"]


def test_one_batch_and_its_checkpoint():
    step, checkpoint = doctor.dry_run(RUN)
    assert (step.status, checkpoint.status) == ("ok", "ok"), (step, checkpoint)
    assert "written and read back" in checkpoint.found
    assert files() == set()


@pytest.mark.filterwarnings("ignore:Encountered `nan` values")  # torchmetrics says so, too
def test_an_experiment_that_can_not_run(monkeypatch: pytest.MonkeyPatch):
    for arg, words in (
        ("--trainer.max_epoch=3", "did you mean 'trainer.max_epochs'?"),
        ("--data.train_per_class=-1", "train_per_class"),
    ):
        (finding,) = doctor.dry_run([*RUN, arg])
        assert is_fault(finding, "one batch", words, "correct the configuration")
    first, *_ = doctor.dry_run(
        [*RUN, "--model.optimizer.lr=1e30", "--model.schedule.warmup_epochs=0"]
    )
    assert is_fault(first, "one batch", "loss is nan", "optimizer.lr")
    step = "spanet_lightning.tasks.classification.ClassificationTask.training_step"
    monkeypatch.setattr(step, fail(RuntimeError("a bug")))
    (finding,) = doctor.dry_run(RUN)
    assert is_fault(finding, "RuntimeError: a bug", "lightning fit")


def test_a_checkpoint_that_is_not_what_was_written(monkeypatch: pytest.MonkeyPatch):
    save = Trainer.save_checkpoint

    def cut_short(trainer: Trainer, path: Path, weights_only: bool) -> None:
        save(trainer, path, weights_only=weights_only)
        os.truncate(path, path.stat().st_size // 2)  # a disk that loses what it was given

    monkeypatch.setattr("lightning.pytorch.Trainer.save_checkpoint", cut_short)
    assert is_fault(list(doctor.dry_run(RUN))[1], "checkpoint", "dry_run.ckpt")
    full = fail(OSError(28, "No space left on device"))
    monkeypatch.setattr("lightning.pytorch.Trainer.save_checkpoint", full)
    assert is_fault(list(doctor.dry_run(RUN))[1], "checkpoint", "No space left on device")


# -- the command


def test_the_exit_code_is_the_verdict(monkeypatch, capsys):
    def looks(*found: Finding) -> None:
        monkeypatch.setattr("spanet_lightning.cli.doctor._checks", lambda _: found)

    looks(Finding("ok", "a", "b"), Finding("warning", "c", "d [x]", "e"))
    app.main(["doctor"])
    out = capsys.readouterr().out
    assert "0 faults, 1 warnings." in out
    assert "d [x]" in out
    looks(Finding("fault", "a", "b", "c"))
    with pytest.raises(SystemExit) as exit_info:
        app.main(["doctor", "--json"])
    assert exit_info.value.code == 1
    (found,) = json.loads(capsys.readouterr().out)
    assert found == {"status": "fault", "what": "a", "found": "b", "advice": "c"}


def test_the_whole_command(capsys: pytest.CaptureFixture[str]):
    app.main(["doctor", "--json", "--storage=sqlite:///sweeps.db"])
    what = {one["what"].split()[0] for one in json.loads(capsys.readouterr().out)}
    assert {"packages", "torch", "processor", "disk", "tracker", "studies"} <= what
    assert files() == set()
