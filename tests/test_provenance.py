"""If one of these fails, nobody can tell from MLflow what a run was."""

from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from mlflow import MlflowClient

from spanet_lightning import cli, machine
from spanet_lightning.data import (
    CocoDataModule,
    DigitScenesDataModule,
    DigitsDataModule,
    ImageClassificationDataModule,
    SegmentationFoldersDataModule,
)
from spanet_lightning.data.manifest import digest_files, identify
from spanet_lightning.tracking import provenance
from spanet_lightning.tracking.telemetry import Telemetry
from tests import dense_sets
from tests.helpers import UNTRACKED, images
from tests.tracked import Recorded, recorded  # noqa: F401 - a fixture


def test_a_run_can_be_told_by_its_tags(recorded: Recorded):  # noqa: F811
    tags = recorded.run.own_tags()
    assert tags["task"] == "classification"
    assert tags["backbone"] == "spanetv2_test"
    assert (tags["dataset"], tags["seed"]) == ("digits", "0")
    assert tags["command"].split()[-1].startswith("--trainer.logger.tracking_uri=sqlite:///")
    state = machine.commit()
    if state is not None:
        assert (tags["commit"], tags["dirty"]) == (state["id"], str(state["dirty"]).lower())


def test_a_run_holds_what_repeats_it(recorded: Recorded):  # noqa: F811
    config = yaml.safe_load(recorded.store.text(recorded.run, "config.yaml"))
    assert config["trainer"]["max_epochs"] == 2
    account = recorded.store.account(recorded.run)
    assert account["versions"]["torch"] == torch.__version__
    assert account["versions"]["lightning"]
    assert account["hardware"]["threads"] == 1
    assert account["seed"] == 0
    assert account["cost"]["parameters"] == 383_348
    assert account["data"]["images"] == {"train": 1259, "val": 179, "test": 359}
    packages = recorded.store.text(recorded.run, provenance.PACKAGES).splitlines()
    assert f"mlflow=={account_version('mlflow')}" in packages
    changed = recorded.store.text(recorded.run, provenance.DIFF)
    assert (changed is not None) == account["dirty"]


def account_version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def test_the_data_are_an_input_of_the_run(recorded: Recorded):  # noqa: F811
    run = MlflowClient(recorded.uri).get_run(recorded.run.id)
    (found,) = run.inputs.dataset_inputs
    assert found.dataset.name == "digits"
    assert found.dataset.digest == DigitsDataModule().identity().digest
    assert json.loads(found.dataset.profile)["classes"] == 10


def test_costs_and_gradients_are_metrics_with_their_units(recorded: Recorded):  # noqa: F811
    metrics = recorded.run.metrics
    for name in ("time/epoch_s", "time/images_per_s", "memory/peak_rss_mb", "optim/grad_norm"):
        assert math.isfinite(metrics[name]), name
        assert metrics[name] > 0, name
    # A process with torch in it, in MB rather than kB or GB.
    assert 100 < metrics["memory/peak_rss_mb"] < 50_000
    assert any(name.startswith("lr-") for name in metrics)
    assert "system/cpu_percent" in metrics
    # Every second of six steps, at the step that Lightning logs at.
    steps = [step for step, _ in recorded.store.history(recorded.run, "optim/grad_norm")]
    assert steps == [1, 3, 5]


def test_the_best_value_is_a_tag_and_no_chart_of_a_few_dots(recorded: Recorded):  # noqa: F811
    losses = recorded.store.history(recorded.run, "val/loss")
    values = [value for _, value in losses]
    assert recorded.run.tags["best.val/loss"] == f"{min(values):.6g}"
    assert recorded.run.tags["best.epoch"] == str(values.index(min(values)) + 1)
    assert not any("best" in name for name in recorded.run.metrics)


def test_the_norm_is_that_of_all_gradients(monkeypatch: pytest.MonkeyPatch):
    told, own = [], []

    class Spy(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            grads = [p.grad.double() for p in pl_module.parameters() if p.grad is not None]
            own.append(math.sqrt(sum(float(g.square().sum()) for g in grads)))

    class Meter(Telemetry):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            super().on_before_optimizer_step(trainer, pl_module, optimizer)

    monkeypatch.setattr(
        "spanet_lightning.tracking.telemetry._log",
        lambda trainer, metrics, step: told.append(metrics.get("optim/grad_norm")),
    )

    class Experiment(cli.Experiment):
        def instantiate_trainer(self, **kwargs):
            trainer = super().instantiate_trainer(**kwargs)
            trainer.callbacks += [Meter(self.throughput), Spy()]
            return trainer

    Experiment(["fit", *UNTRACKED, "--trainer.gradient_clip_val=0.01"])
    assert [norm for norm in told if norm is not None] == pytest.approx(own, rel=1e-5)
    assert min(own) > 0.01  # before clipping


def folder(root: Path, sizes: dict[str, bytes]) -> list[Path]:
    for name, content in sizes.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return [root / name for name in sizes]


def test_a_digest_is_of_the_data_not_of_where_and_when(tmp_path: Path):
    content = {f"{i % 3}/{i}.png": bytes([i]) * 50 for i in range(20)}
    here, there = folder(tmp_path / "a", content), folder(tmp_path / "b", content)
    os.utime(there[0], (1, 1))
    digest = digest_files(tmp_path / "a", here)
    assert digest == digest_files(tmp_path / "b", list(reversed(there)))
    assert digest == digest_files(Path(os.path.relpath(tmp_path / "a")), map(str, here))
    assert len(digest) <= 36  # what MLflow takes


@pytest.mark.parametrize("change", ["name", "size", "content", "fewer", "whole"])
def test_a_digest_changes_with_the_data(tmp_path: Path, change: str):
    content = {f"{i}.png": bytes([i]) * 50 for i in range(20)}
    whole = folder(tmp_path, {"annotations.json": b"{}" * 600_000})
    before = digest_files(tmp_path, folder(tmp_path, content), whole)
    if change == "name":
        content["new.png"] = content.pop("3.png")
    elif change == "size":
        content["3.png"] += b"x"
    elif change == "content":
        content["3.png"] = b"y" * 50
    elif change == "fewer":
        del content["3.png"]
    else:  # beyond the first MiB, which is all that is read of an image
        folder(tmp_path, {"annotations.json": b"{}" * 599_999 + b"[]"})
    assert digest_files(tmp_path, folder(tmp_path, content), whole) != before


def test_every_data_module_tells_its_data(tmp_path: Path):
    coco, masks = dense_sets.coco(tmp_path / "shop"), dense_sets.masks(tmp_path / "streets")
    pets = images(tmp_path / "pets")
    modules = {
        "digits": DigitsDataModule(),
        "digit-scenes": DigitScenesDataModule(),
        "pets": ImageClassificationDataModule(str(pets)),
        "shop": CocoDataModule(
            str(coco),
            train_images="train",
            train_annotations="annotations/instances_train.json",
            val_images="val",
            val_annotations="annotations/instances_val.json",
        ),
        "streets": SegmentationFoldersDataModule(str(masks)),
    }
    found = {}
    for name, module in modules.items():
        module.setup("fit")
        found[name] = identify(module)
        assert found[name].name == name
        assert found[name].classes == module.num_classes
        assert min(found[name].images.values()) > 0
    assert len({one.digest for one in found.values()}) == len(modules)
    assert found["pets"].images == {"train": 8, "val": 8}
    assert DigitsDataModule(split_seed=1).identity().digest != found["digits"].digest
    assert DigitScenesDataModule(split_seed=1).identity().digest != found["digit-scenes"].digest
    next(pets.glob("train/*/*.png")).unlink()
    again = ImageClassificationDataModule(str(pets))
    again.setup("fit")
    assert again.identity().digest != found["pets"].digest


def test_data_of_somebody_elses_are_told_as_far_as_known():
    class Module:
        num_classes = 3
        root = "there"

    found = identify(Module())
    assert (found.name, found.source, found.classes) == ("Module", "there", 3)
    assert "not the files" in found.covers


def test_the_diff_is_of_tracked_files_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def git(*args: str) -> None:
        name = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", str(tmp_path), *name, *args], check=True, capture_output=True)

    git("init", "-q")
    (tmp_path / "code.py").write_text("old = 1\n")
    git("add", ".")
    git("commit", "-qm", "x")
    (tmp_path / "code.py").write_text("uri = 'https://me:hunter2@host/'\n")
    (tmp_path / "private.txt").write_text("not tracked")
    monkeypatch.setattr(machine, "checkout", lambda: tmp_path)
    found = provenance.gather(["x"], torch.device("cpu"), None, None, {}, seed=None)
    assert found.dirty
    assert "-old = 1" in found.diff
    assert "not tracked" not in found.diff
    assert "hunter2" not in found.diff + json.dumps(found.account())
    (tmp_path / "code.py").write_text("x\n" * provenance.LONGEST_DIFF)
    text = provenance.changes()
    assert len(text) < provenance.LONGEST_DIFF + 100
    assert text.endswith("[cut off here]\n")


def test_an_installation_without_a_checkout_has_no_commit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "checkout", lambda: None)
    found = provenance.gather(["x"], torch.device("cpu"), None, None, {}, seed=3)
    assert (found.commit, found.dirty, found.diff) == ("", False, "")
    assert "commit" not in found.tags()
    assert found.tags()["seed"] == "3"
