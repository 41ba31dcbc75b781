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
from tests.helpers import DIGITS, files, refused

GIB = 1 << 30
Usage = namedtuple("Usage", "total used free")


def is_fault(finding: Finding, *words: str) -> bool:
    text = " ".join(finding)
    return finding.status == "fault" and bool(finding.advice) and all(w in text for w in words)


# -- packages


def test_packages_within_their_range() -> None:
    (finding,) = doctor.packages()
    assert finding.status == "ok", finding
    assert int(finding.found.split()[0]) >= 10
    assert doctor.pair().status == "ok"


def test_the_range_is_that_of_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any) -> Any:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "requires", absent)
    found, python = doctor.needed()  # of the checkout
    assert {"torch", "lightning", "timm", "mlflow"} <= {one.name for one in found}
    assert python.startswith(">=3")


@pytest.mark.parametrize(
    ("name", "version", "says"),
    [
        ("lightning", "2.6.3", "2.6.3, supported is"),
        ("timm", "0.9.1", "0.9.1, supported is"),
        ("jsonargparse", "5.0", "pip install 'jsonargparse<5"),
        ("mlflow", None, "is not installed"),
    ],
)
def test_a_package_out_of_its_range(
    name: str, version: str | None, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = metadata.version

    def asked(package: str) -> str:
        if package != name:
            return real(package)
        if version is None:
            raise metadata.PackageNotFoundError
        return version

    monkeypatch.setattr(metadata, "version", asked)
    (finding,) = doctor.packages()
    assert is_fault(finding, name, says, "pip install")


def test_python_out_of_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "python_version", lambda: "3.8.1")
    first, *_ = doctor.packages()
    assert is_fault(first, "Python", "3.8.1", ">=3.11")


def test_a_torchvision_of_another_torch_by_its_own_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "requires", lambda _: ["numpy", "torch (==2.1.0)"])
    finding = doctor.pair()
    assert is_fault(finding, "which asks for torch==2.1.0", "install them as a pair")
    major, minor = torch.__version__.split(".")[:2]
    assert f"torchvision 0.{int(minor) + 15} is that of torch {major}.{minor}" in finding.advice


# What a torchvision of another build says as it is imported.
NMS = "operator torchvision::nms does not exist"


@pytest.fixture
def broken(tmp_path: Path) -> dict[str, str]:
    """The environment of a process whose torchvision does not fit its torch."""
    package = tmp_path / "site" / "torchvision"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"raise RuntimeError({NMS!r})")
    root = str(Path(__file__).parent.parent)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(package.parent), root])}


def ran(module: str, args: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *args], capture_output=True, text=True, env=env, check=False
    )


def test_the_doctor_explains_a_torchvision_that_does_not_fit(broken: dict[str, str]) -> None:
    done = ran("spanet_lightning.app", ["doctor", "--json"], broken)
    assert done.returncode == 1, done.stderr
    (finding,) = [Finding(**one) for one in json.loads(done.stdout) if one["status"] == "fault"]
    assert is_fault(finding, "torch and torchvision", NMS, "install them as a pair")


@pytest.mark.parametrize(
    ("module", "args"),
    [
        ("spanet_lightning.app", ["models"]),
        ("spanet_lightning", ["fit", "--config=digits/spanetv2"]),
    ],
)
def test_all_else_points_to_the_doctor(
    module: str, args: list[str], broken: dict[str, str]
) -> None:
    done = ran(module, args, broken)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert NMS in done.stderr
    assert "spanet doctor" in done.stderr


# -- the machine


def test_a_device_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.9")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "H100")

    def room(index: int) -> tuple[int, int]:
        if index == 2:
            raise RuntimeError("CUDA error: all CUDA-capable devices are busy")
        return (70 - 60 * index) * GIB, 80 * GIB

    monkeypatch.setattr(torch.cuda, "mem_get_info", room)
    free, used, busy = doctor.cuda()
    assert free == Finding("ok", "CUDA device 0", "H100, 70.0 of 80.0 GiB free, CUDA 12.9")
    assert used.status == "warning"
    assert "CUDA_VISIBLE_DEVICES" in used.advice
    assert is_fault(busy, "CUDA device 2", "busy", "nvidia-smi")


@pytest.mark.parametrize(
    ("build", "driver", "status", "says"),
    [
        (None, True, "warning", "a build without CUDA"),
        ("12.9", True, "warning", "update the driver"),
        ("12.9", False, "ok", "no device"),
        (None, False, "ok", "no device"),
    ],
)
def test_no_device_of_cuda(
    build: str | None,
    driver: bool,
    status: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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


def test_processors_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_SHARED", tmp_path / "none")
    assert {finding.what for finding in doctor.processor()} >= {"processor"}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(doctor, "memory", lambda: (2 * GIB, 64 * GIB))
    monkeypatch.setattr(doctor, "_SHARED", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(64 << 20, 0, 64 << 20))
    found = list(doctor.processor())
    assert [finding.status for finding in found] == ["warning"] * 3
    for finding, words in zip(
        found, ("OMP_NUM_THREADS=2", "batch_size", "--shm-size"), strict=True
    ):
        assert words in finding.advice


@pytest.mark.parametrize(("gib", "status"), [(100.0, "ok"), (9.0, "warning"), (0.5, "fault")])
def test_room_on_the_disk(gib: float, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    free = int(gib * GIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(free, 0, free))
    finding = doctor.disk(Path("runs"))
    assert finding.status == status
    assert bool(finding.advice) == (status != "ok")
    assert not Path("runs").exists()


def test_a_folder_that_can_not_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("runs").touch()
    assert is_fault(doctor.disk(Path("runs")), "is a file", "default_root_dir")

    def refuse(**_: Any) -> Any:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert is_fault(doctor.disk(Path("other")), "can't be written: Read-only file system")


# -- stores


def test_the_store_of_runs() -> None:
    finding = doctor.tracker(None)
    assert finding.status == "ok"
    assert not Path("mlflow.db").exists()
    Path("broken.db").write_text("no database at all, but long enough to be looked at" * 9)
    assert is_fault(doctor.tracker("sqlite:///broken.db"), "broken.db", "tracking_uri")
    assert is_fault(doctor.tracker("nonsense://x"), "nonsense")
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        away = doctor.tracker(f"http://ann:sesame@127.0.0.1:{taken.getsockname()[1]}")
    assert away.status == "warning"
    assert "spanet track sync" in away.advice
    assert "sesame" not in " ".join(away)


def test_without_mlflow_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spanet_lightning.tracking.client.installed", lambda: False)
    finding = doctor.tracker(None)
    assert finding.status == "warning"
    assert "pip install mlflow" in finding.advice


def test_the_store_of_studies(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.studies("sqlite:///sweeps.db").status == "ok"
    assert not Path("sweeps.db").exists()
    Path("broken.db").write_text("no database at all, but long enough to be looked at" * 9)
    assert is_fault(doctor.studies("sqlite:///broken.db"), "broken.db", "--storage")
    assert is_fault(doctor.studies("sqlite:///no/folder.db"), "there is no folder no")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert is_fault(doctor.studies("sqlite:///mlflow.db"), "MLflow")


# -- one batch


def test_one_batch_and_its_checkpoint() -> None:
    step, checkpoint = doctor.dry_run(["--config", DIGITS, "--data.batch_size=8"])
    assert (step.status, checkpoint.status) == ("ok", "ok"), (step, checkpoint)
    assert "written and read back" in checkpoint.found
    assert files() == set()


def test_an_experiment_that_can_not_run() -> None:
    for args, words in (
        (["--config", DIGITS, "--trainer.max_epoch=3"], "did you mean 'trainer.max_epochs'?"),
        (["--config", DIGITS, "--data.train_per_class=-1"], "train_per_class"),
    ):
        (finding,) = doctor.dry_run(args)
        assert is_fault(finding, "one batch", words, "correct the configuration")


@pytest.mark.filterwarnings("ignore:Encountered `nan` values")  # torchmetrics says so, too
def test_a_loss_that_is_no_number() -> None:
    args = ["--config", DIGITS, "--model.optimizer.lr=1e30", "--model.schedule.warmup_epochs=0"]
    first, *_ = doctor.dry_run(args)
    assert is_fault(first, "one batch", "loss is nan", "optimizer.lr")


def test_a_bug_is_a_fault_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*_: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(
        "spanet_lightning.tasks.classification.ClassificationTask.training_step", step
    )
    (finding,) = doctor.dry_run(["--config", DIGITS])
    assert is_fault(finding, "RuntimeError: a bug", "lightning fit")


def test_a_checkpoint_that_can_not_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lightning.pytorch.Trainer.save_checkpoint", full)
    _, finding = doctor.dry_run(["--config", DIGITS])
    assert is_fault(finding, "checkpoint", "No space left on device")


def test_a_checkpoint_that_is_not_what_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    save = Trainer.save_checkpoint

    def cut_short(trainer: Trainer, path: Path, weights_only: bool) -> None:
        save(trainer, path, weights_only=weights_only)
        os.truncate(path, path.stat().st_size // 2)  # a disk that loses what it was given

    monkeypatch.setattr("lightning.pytorch.Trainer.save_checkpoint", cut_short)
    _, finding = doctor.dry_run(["--config", DIGITS])
    assert is_fault(finding, "checkpoint", "dry_run.ckpt")


# -- the command


def looks(monkeypatch: pytest.MonkeyPatch, *found: Finding) -> None:
    monkeypatch.setattr("spanet_lightning.cli.doctor._checks", lambda _: found)


def test_the_exit_code_is_the_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looks(monkeypatch, Finding("ok", "a", "b"), Finding("warning", "c", "d [x]", "e"))
    app.main(["doctor"])
    out = capsys.readouterr().out
    assert "0 faults, 1 warnings." in out
    assert "d [x]" in out
    looks(monkeypatch, Finding("fault", "a", "b", "c"))
    with pytest.raises(SystemExit) as exit_info:
        app.main(["doctor", "--json"])
    assert exit_info.value.code == 1
    (found,) = json.loads(capsys.readouterr().out)
    assert found == {"status": "fault", "what": "a", "found": "b", "advice": "c"}


def test_the_whole_command(capsys: pytest.CaptureFixture[str]) -> None:
    app.main(["doctor", "--json", "--storage=sqlite:///sweeps.db"])
    what = [one["what"].split()[0] for one in json.loads(capsys.readouterr().out)]
    for name in ("packages", "torch", "processor", "disk", "tracker", "studies"):
        assert name in what
    assert files() == set()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--config=nowhere.yaml"], "--config: got 'nowhere.yaml', which does not exist"),
        (["--data.root=x"], "--data.root=x: is given without --config"),
    ],
)
def test_a_doctor_that_is_asked_wrongly(
    args: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refused(["doctor", *args], capsys, app.main)
