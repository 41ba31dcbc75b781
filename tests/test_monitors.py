"""Monitored metrics: refused where nobody logs them, and best in their own direction."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import EarlyStopping

from spanet_lightning import ClassificationTask, DigitsDataModule, Trainer, cli
from spanet_lightning.errors import ConfigError
from spanet_lightning.tasks.metrics import direction
from tests.helpers import UNTRACKED, refused

STOP = ("--trainer.callbacks+=EarlyStopping",)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--checkpoint.monitor=val/to1"], ["checkpoint.monitor: got 'val/to1'", "'val/top1'?"]),
        (["--checkpoint.monitor=test/top1"], ["checkpoint.monitor: got 'test/top1'"]),
        ([*STOP, "--trainer.callbacks.monitor=val/iou"], ["EarlyStopping.monitor: got 'val/iou'"]),
        (
            [*STOP, "--trainer.callbacks.monitor=val/loss", "--trainer.limit_val_batches=0"],
            ["EarlyStopping.monitor: got 'val/loss'", "trainer.limit_val_batches=0"],
        ),
    ],
)
def test_monitor_that_is_never_logged_is_refused_before_the_first_step(args, words, monkeypatch):
    def never(*_):
        raise AssertionError("a step was taken")

    monkeypatch.setattr(ClassificationTask, "training_step", never)
    with pytest.raises(ConfigError) as error:
        cli.run(["fit", *UNTRACKED, *args])
    assert all(word in str(error.value) for word in words), str(error.value)
    assert not Path("runs").exists()


def test_refusal_is_one_line(capsys):
    stderr = refused(["fit", *UNTRACKED, "--trainer.enable_model_summary=false",
                      "--checkpoint.monitor=val/lass"], capsys)  # fmt: skip
    assert "did you mean 'val/loss'?" in stderr


def test_monitor_of_python_code_is_checked_too():
    task = ClassificationTask("test_spanetv2", num_classes=10)
    trainer = Trainer(
        callbacks=[EarlyStopping(monitor="val/tpo1", mode="max")],
        enable_progress_bar=False,
        max_epochs=1,
    )
    with pytest.raises(ConfigError, match=r"got 'val/tpo1'.*did you mean 'val/top1'"):
        trainer.fit(task, datamodule=DigitsDataModule())


def test_mode_follows_the_metric(caplog):
    names = ("val/top1", "val/miou", "val/box_ap50", "val/ece", "train/loss_cls", "val/rmse")
    assert [direction(name) for name in names] == ["max", "max", "max", "min", "min", "min"]
    for monitor, mode in (("val/loss", "min"), ("val/ece", "min"), ("val/top1", "max")):
        args = [*STOP, f"--trainer.callbacks.monitor={monitor}", f"--checkpoint.monitor={monitor}"]
        trainer = cli.run(["fit", *UNTRACKED, *args, "--trainer.fast_dev_run=true"]).trainer
        (stopping,) = [one for one in trainer.callbacks if isinstance(one, EarlyStopping)]
        assert stopping.mode == mode
    trainer = cli.run(["fit", *UNTRACKED, "--checkpoint.monitor=val/ece"]).trainer
    assert trainer.checkpoint_callback.mode == "min"
    cli.run(["fit", *UNTRACKED, "--checkpoint.monitor=val/ece", "--checkpoint.mode=max"])
    assert "val/ece is best at its smallest value, but mode is 'max'" in caplog.text


def test_run_ends_with_its_monitored_metric_and_accuracy_in_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    cli.run(["fit", *UNTRACKED, "--name=a-run-with-a-long-name-" + 60 * "x"])
    lines = capsys.readouterr().out.splitlines()
    table = lines[[line.strip() for line in lines].index("Training ended") :]
    assert max(map(len, table)) <= 80
    assert re.search(r"best val/loss +│ \d\.\d{4} \(epoch 1\)", "\n".join(table))
    assert re.search(r"val/top1 in that epoch +│ 0\.\d{4} ", "\n".join(table))


def test_run_without_validation_saves_its_last_checkpoint(recwarn):
    cli.run(["fit", *UNTRACKED, "--trainer.limit_val_batches=0"])
    assert [path.name for path in Path("runs/digits-spanetv2").glob("*.ckpt")] == ["last.ckpt"]
    assert not [w for w in recwarn if "monitor" in str(w.message)]
