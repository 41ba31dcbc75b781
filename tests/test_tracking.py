"""If one of these fails, MLflow does not hold what a run was, or holds one that never was."""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.utilities.exceptions import SIGTERMException

from spanet_lightning import ClassificationTask, cli, tracking
from spanet_lightning.callbacks.signals import Interrupted
from spanet_lightning.errors import ConfigError
from tests.helpers import SHORT, files, refused


def runs():
    """Return the client of the default store and its runs, oldest first."""
    client = tracking.connect(tracking.DEFAULT_URI)
    experiment = client.get_experiment_by_name(tracking.DEFAULT_EXPERIMENT)
    return client, client.search_runs([experiment.experiment_id], order_by=["start_time ASC"])


def test_run_is_recorded_with_parameters_metrics_and_configuration(capsys, caplog):
    experiment = cli.run(["fit", *SHORT, "--trainer.max_epochs=2", "--model.backbone.srf=false"])
    client, (run,) = runs()
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "digits-spanetv2"
    assert run.data.tags["folder"] == "runs/digits-spanetv2"
    params = run.data.params
    assert params["model.backbone"] == "spanet_lightning.SPANetV2"
    assert params["model.backbone.srf"] == "False"
    assert params["seed_everything"] == "0"
    assert params["cost.parameters"] == str(experiment.cost.parameters)
    assert int(params["cost.macs"]) > 0
    assert not any(name.startswith("trainer.logger.") for name in params)
    for name in ("val/top1", "val/loss", "train/loss"):
        history = client.get_metric_history(run.info.run_id, name)
        assert len({point.step for point in history}) == 2, name
    assert run.data.metrics["val/top1"] == float(experiment.trainer.callback_metrics["val/top1"])
    downloaded = client.download_artifacts(run.info.run_id, "config.yaml")
    saved = Path("runs/digits-spanetv2/config.yaml").read_text()
    assert Path(downloaded).read_text() == saved
    assert yaml.safe_load(saved)["trainer"]["max_epochs"] == 2
    # Creating a database is none of a user's business.
    output = "".join(capsys.readouterr()) + caplog.text
    assert "alembic" not in output
    assert "INFO mlflow" not in output
    assert "spanet ui" in output


def test_test_after_training_lands_in_the_same_run_and_alone_in_its_own():
    experiment = cli.run(["fit", *SHORT])
    experiment.trainer.test(experiment.model, experiment.datamodule, verbose=False)
    _, (run,) = runs()
    assert "test/top1" in run.data.metrics
    assert run.info.status == "FINISHED"
    cli.run(["test", *SHORT, "--ckpt_path=runs/digits-spanetv2/last.ckpt"])
    _, (_, tested) = runs()
    assert tested.info.run_name == "digits-spanetv2 test"
    assert tested.data.metrics["test/top1"] == run.data.metrics["test/top1"]
    assert tested.data.params["model.backbone.variant"] == "test"


def test_broken_run_is_marked_failed(monkeypatch):
    def broken(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr("spanet_lightning.ClassificationTask.on_validation_epoch_end", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.run(["fit", *SHORT, "--trainer.num_sanity_val_steps=0"])
    _, (run,) = runs()
    assert run.info.status == "FAILED"

    assert run.data.tags["failure"] == "RuntimeError: a bug"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SIGTERMException()])
def test_run_that_is_interrupted_was_killed(error, monkeypatch):
    monkeypatch.setenv("SPANET_TRACKING_WAIT", "100")  # for a database to be created

    def interrupted(*_):
        raise error

    monkeypatch.setattr("spanet_lightning.ClassificationTask.on_validation_epoch_end", interrupted)
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit):
            cli.run(["fit", *SHORT, "--trainer.num_sanity_val_steps=0"])
    finally:
        signal.signal(signal.SIGINT, handler)
    _, (run,) = runs()
    assert run.info.status == "KILLED"
    assert run.data.tags["failure"] == type(error).__name__


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_that_saved_and_ended_on_a_signal_was_killed(number, monkeypatch):
    monkeypatch.setenv("SPANET_TRACKING_WAIT", "100")  # for a database to be created
    step = ClassificationTask.training_step

    def told(task, *args):
        os.kill(os.getpid(), number)
        return step(task, *args)

    monkeypatch.setattr(ClassificationTask, "training_step", told)
    with pytest.raises(Interrupted):
        cli.run(["fit", *SHORT, "--trainer.num_sanity_val_steps=0"])
    _, (run,) = runs()
    assert run.info.status == "KILLED"
    assert signal.Signals(number).name in run.data.tags["failure"]


def test_resumed_run_goes_on_in_the_same_run():
    cli.run(["fit", *SHORT])
    checkpoint = "runs/digits-spanetv2/last.ckpt"
    cli.run(["fit", *SHORT, "--trainer.max_epochs=3", f"--ckpt_path={checkpoint}"])
    client, (run,) = runs()
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "val/top1")
    assert len({point.step for point in history}) == len(history) == 3
    # What it began with, and what was changed.
    assert run.data.params["trainer.max_epochs"] == "1"
    assert run.data.params["trainer.max_epochs resumed"] == "3"
    names = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert names >= {"config.yaml", "config.resumed.yaml"}
    names = {item.path for item in client.list_artifacts(run.info.run_id, "provenance")}
    assert names >= {"provenance/run.json", "provenance/run.resumed.json"}
    assert "ckpt_path" not in run.data.tags["command"]


def test_loggers_of_lightning_are_one_line_away():
    for name in ("CSVLogger", "TensorBoardLogger"):
        if name == "TensorBoardLogger" and importlib.util.find_spec("tensorboard") is None:
            continue
        kind = f"lightning.pytorch.loggers.{name}"
        cli.run(["fit", *SHORT, f"--trainer.logger={kind}", f"--trainer.logger.save_dir={name}"])
        assert any(path.is_file() for path in Path(name).rglob("*")), name
    assert not Path("mlflow.db").exists()


@pytest.mark.parametrize("name", ["../out", "/out", "a/../../out", ""])
def test_name_of_a_run_stays_below_its_root(name, capsys):
    assert "name: got" in refused(["fit", *SHORT, f"--name={name}"], capsys)


def test_nothing_is_written_before_something_is_logged():
    logger = tracking.MLflowLogger()
    assert (logger.name, logger.version, logger.save_dir) == ("spanet", "", None)
    logger.finalize("success")
    assert files() == set()
    logger.log_metrics({"a/b": 1.0, "odd [name]": torch.tensor(2.0)}, step=3)
    assert logger.run_id == logger.version != ""
    run = logger.client.get_run(logger.run_id)
    assert run.data.metrics == {"a/b": 1.0, "odd _x5b_name_x5d_": 2.0}


def test_run_can_be_continued():
    first = tracking.MLflowLogger()
    first.log_hyperparams({"x": 1})
    second = tracking.MLflowLogger(run_id=first.run_id)
    second.log_metrics({"y": 2.0})
    assert first.flush()
    assert second.flush()
    _, (run,) = runs()
    assert (run.data.params, run.data.metrics) == ({"x": "1"}, {"y": 2.0})


def test_experiment_that_was_deleted_or_a_store_that_is_none_is_the_users_error(capsys):
    logger = tracking.MLflowLogger()
    logger.log_metrics({"x": 1.0})
    logger.client.delete_experiment(runs()[1][0].info.experiment_id)
    another = tracking.MLflowLogger()
    another.log_metrics({"x": 1.0})
    another.finalize("success")
    assert "experiment_name: got 'spanet', which was deleted" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"tracking_uri: got 'magic:///x', expected"):
        tracking.MLflowLogger(tracking_uri="magic:///x").log_metrics({"x": 1.0})


def test_environment_decides_where_runs_land(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    cli.run(["fit", *SHORT, "--trainer.logger.experiment_name=mine"])
    assert Path("other.db").is_file()
    assert not Path("mlflow.db").exists()
    assert tracking.connect("sqlite:///other.db").get_experiment_by_name("mine")


def test_dashboard_of_a_server_is_its_address_without_the_password():
    def command(uri):
        return tracking.dashboard([tracking.MLflowLogger(tracking_uri=uri)])

    assert command("sqlite:///a.db") == "spanet ui --tracking-uri sqlite:///a.db"
    assert command("sqlite:///mlflow.db") == "spanet ui"
    assert command("https://me:secret@mlflow.example:5000") == "https://mlflow.example:5000"
    assert tracking.dashboard([]) is None


def test_default_logger_may_be_asked_for_by_true():
    cli.run(["fit", *SHORT, "--trainer.logger=true", "--trainer.fast_dev_run=true"])
    experiment = cli.run(["fit", *SHORT, "--trainer.logger=true"])
    assert isinstance(experiment.trainer.logger, tracking.MLflowLogger)
