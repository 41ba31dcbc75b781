"""If one of these fails, runs are not found, compared or repeated as `spanet runs` says."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from spanet_lightning import app
from spanet_lightning.cli import repeat as repeating
from spanet_lightning.errors import ConfigError
from spanet_lightning.tracking.browse import Store, differences
from tests.helpers import refused
from tests.tracked import Recorded, recorded  # noqa: F401 - a fixture


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs of two arms, that nothing was trained for; MLflow takes seconds for a database."""
    path = tmp_path_factory.mktemp("made") / "runs.db"
    uri = f"sqlite:///{path}"
    client = MlflowClient(uri)
    experiment = client.create_experiment("spanet")
    for arm, seed, top1 in (("control", 0, 0.8), ("control", 1, 0.9), ("no_srf", 0, 0.7)):
        tags = {"study": "srf", "arm": arm, "seed": str(seed), "task": "classification"}
        run = client.create_run(experiment, tags=tags, run_name=f"{arm}-{seed}")
        client.log_param(run.info.run_id, "model.backbone.srf", str(arm == "control"))
        client.log_param(run.info.run_id, "data.batch_size", "64")
        client.log_metric(run.info.run_id, "val/top1", top1, step=10)
        client.set_terminated(run.info.run_id)
    return path


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Store:
    """Such a database of the test's own."""
    shutil.copy(made, tmp_path / "runs.db")
    return Store(f"sqlite:///{tmp_path}/runs.db")


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if re.search(r"(control|no_srf)-\d", line)]


def test_runs_are_listed_sorted_and_filtered(store: Store, capsys: pytest.CaptureFixture[str]):
    where = ["--tracking-uri", store.uri]
    app.main(["runs", *where, "--sort", "val/top1"])
    text = capsys.readouterr().out
    assert [line.split()[0] for line in lines(text)] == ["control-1", "control-0", "no_srf-0"]
    for word in ("arm", "seed", "val/top1", "0.9", "FINISHED"):
        assert word in text
    for word in ("task", "study"):  # one of each, which needs no column
        assert word not in text
    app.main(["runs", *where, "--sort", "val/top1", "--ascending", "--limit", "1"])
    assert [line.split()[0] for line in lines(capsys.readouterr().out)] == ["no_srf-0"]
    condition = "tags.arm = 'control' and metrics.`val/top1` > 0.85"
    app.main(["runs", *where, "--filter", condition, "--columns", "data.batch_size"])
    text = capsys.readouterr().out
    assert [line.split()[0] for line in lines(text)] == ["control-1"]
    assert " 64 " in text
    app.main(["runs", *where, "--filter", "tags.arm = 'x'"])
    assert "No runs." in capsys.readouterr().out
    app.main(["runs", *where, "--json", "--sort", "name", "--ascending"])
    rows = json.loads(capsys.readouterr().out)
    assert [row["metrics"]["val/top1"] for row in rows] == [0.8, 0.9, 0.7]
    assert rows[0]["tags"]["arm"] == "control"


def test_differences_of_two_runs_are_shown(store: Store, capsys: pytest.CaptureFixture[str]):
    app.main(["runs", "diff", "control-1", "no_srf-0", "--tracking-uri", store.uri])
    text = capsys.readouterr().out
    row = re.search(r"model\.backbone\.srf +(\w+) +(\w+)", text)
    assert row is not None
    assert row.groups() == ("True", "False")
    assert "data.batch_size" not in text  # the same in both
    assert re.search(r"val/top1 +0\.9 +0\.7 +-0\.2", text)
    assert re.search(r"arm +control +no_srf", text)
    ids = {run.name: run.id for run in store.search()}
    app.main(
        ["runs", "diff", ids["control-1"][:9], "no_srf-0", "--json", "--tracking-uri", store.uri]
    )
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"]["val/top1"] == [0.9, 0.7]
    assert found["a"] == ids["control-1"]


def test_what_is_wrong_is_said_in_one_line(store: Store, capsys: pytest.CaptureFixture[str]):
    where = ["--tracking-uri", store.uri]

    def error(*args: str) -> str:
        return refused(["runs", *args], capsys, app.main)

    assert "did you mean 'control-" in error("show", "control-", *where)
    assert "did you mean 'val/top1'?" in error(*where, "--sort", "val/top")
    assert "did you mean 'arm'?" in error(*where, "--columns", "arms")
    assert "--filter: got 'arm = x'" in error(*where, "--filter", "arm = x")
    assert "expected one of 'spanet'" in error(*where, "--experiment", "spannet").replace(
        "'Default', ", ""
    )
    assert "--limit: got 0" in error(*where, "--limit", "0")
    assert "holds no config.yaml" in error("repeat", "no_srf-0", *where)
    # Looking for runs where there are none makes no database.
    assert "found no file at" in error("--tracking-uri", "sqlite:///nowhere.db")
    client = store.client
    experiment = client.get_experiment_by_name("spanet").experiment_id
    client.create_run(experiment, run_name="control-0")
    assert "which is that of 2 runs" in error("show", "control-0", *where)


def test_a_run_is_shown_whole(recorded: Recorded, capsys: pytest.CaptureFixture[str]):  # noqa: F811
    app.main(["runs", "show", recorded.run.id[:10], "--tracking-uri", recorded.uri])
    text = capsys.readouterr().out
    for words in ("spanetv2_test", "val/top1", "model.backbone.variant", "torch", "threads"):
        assert words in text
    app.main(["runs", "show", recorded.run.id, "--json", "--tracking-uri", recorded.uri])
    assert json.loads(capsys.readouterr().out)["account"]["data"]["name"] == "digits"


def test_the_same_comes_out_bit_for_bit_and_what_does_not_is_named(
    recorded: Recorded,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    shutil.copy(recorded.folder / "mlflow.db", tmp_path / "copy.db")  # others read the original
    store = Store(f"sqlite:///{tmp_path}/copy.db")
    app.main(["runs", "repeat", "digits-spanetv2", "--tracking-uri", store.uri])
    text = capsys.readouterr().out
    found = re.search(r"Bit for bit the same: (\d+) points of (\d+) metrics", text)
    assert found is not None, text
    assert int(found[2]) >= 10
    assert "data: the same" in text
    again = store.find("digits-spanetv2-repeat")
    assert again.tags["repeats"] == recorded.run.id
    # Tested as well, as the run was, and in the same run.
    assert again.metrics["test/top1"] == recorded.run.metrics["test/top1"]

    store.client.log_metric(again.id, "val/loss", 0.5, step=5)
    first = store.find(recorded.run.id)
    (wrong,) = repeating.compare(store, first, store.find(again.id)).different
    assert (wrong.name, wrong.now) == ("val/loss", 0.5)
    assert wrong.then == first.metrics["val/loss"]


def test_a_repetition_leaves_the_run_its_folder_and_its_model_alone(recorded: Recorded):  # noqa: F811
    logger = {"class_path": "spanet_lightning.tracking.MLflowLogger",
              "init_args": {"run_id": recorded.run.id, "tags": {"arm": "a"}}}  # fmt: skip
    config = {
        "name": "mine",
        "resume": "auto",
        "trainer": {"logger": logger, "default_root_dir": "elsewhere"},
        "tracking": {"register": "my-model", "checkpoints": "best"},
    }
    repeating.redirect(config, recorded.run, "sqlite:///a.db")
    assert (config["name"], config["resume"]) == ("mine-repeat", "never")
    assert config["trainer"]["default_root_dir"] == "runs"
    assert config["tracking"] == {"register": None, "checkpoints": "best"}
    assert logger["init_args"] == {
        "tracking_uri": "sqlite:///a.db",
        "run_id": None,
        "run_name": None,
        "experiment_name": "spanet",
        "tags": {"repeats": recorded.run.id},
    }
    with pytest.raises(ConfigError, match=r"trainer\.logger is not MLflow's"):
        repeating.redirect({"trainer": {"logger": False}}, recorded.run, "sqlite:///a.db")


def test_a_repetition_that_differs_exits_with_1(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def repeat(store, run, say):
        return repeating.compare(store, run, store.find("control-1"))

    monkeypatch.setattr(repeating, "repeat", repeat)
    with pytest.raises(SystemExit) as exit_info:
        app.main(["runs", "repeat", "control-0", "--tracking-uri", store.uri])
    assert exit_info.value.code == 1
    text = capsys.readouterr().out
    assert re.search(r"val/top1 +0\.8 +0\.9 +\+0\.1 +1 of 1", text)
    assert "1 of 1 metrics differ" in text


def test_what_changed_since_a_run_is_said(monkeypatch: pytest.MonkeyPatch):
    versions = {"torch": "2.0", "timm": "1.0"}
    monkeypatch.setattr(repeating, "versions", lambda: {**versions, "timm": "1.1"})
    state = {"id": "b" * 40, "dirty": False}
    monkeypatch.setattr(repeating.machine, "commit", lambda: state)
    account = {"commit": "a" * 40, "dirty": True, "versions": versions, "hardware": {}}
    told = repeating.changed(account)
    assert f"code: {'b' * 12}, it was {'a' * 12}" in told
    assert any("the run's checkout differs" in line for line in told)
    assert "timm: 1.1, it was 1.0" in told
    assert not any("torch" in line for line in told)
    same = {"commit": "b" * 40, "dirty": False, "versions": {**versions, "timm": "1.1"}}
    assert repeating.changed(same) == ["code, packages and hardware: the same"]


def test_a_key_that_one_has_alone_is_a_difference():
    assert differences({"a": 1, "b": 2}, {"b": 2, "c": None, "d": 0}) == {
        "a": (1, None),
        "d": (None, 0),
    }
