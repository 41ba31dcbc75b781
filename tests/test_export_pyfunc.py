"""If one of these fails, what MLflow serves or stores of a run is not what was trained."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from spanet_lightning import app, cli, export, tracking
from spanet_lightning.errors import ConfigError
from spanet_lightning.export.onnx_file import Written
from spanet_lightning.tracking import models, pyfunc
from tests.helpers import SHORT, files, refused
from tests.test_export import trained

SIZE = (32, 48)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return a source and the folder of its MLflow model."""
    source = export.read("test_spanet", num_classes=5)
    trained(source.model)
    folder = tmp_path_factory.mktemp("saved") / "model"
    written = pyfunc.save(source, folder, SIZE)
    assert written.path == folder
    assert written.difference < 1e-4
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    return source, folder


def test_loads_without_our_code_without_lightning_and_without_torch(saved):
    source, folder = saved
    images = torch.randn(3, 3, *SIZE)
    np.save("images.npy", images.numpy())
    code = (
        "import sys, numpy as np, mlflow.pyfunc; "
        f"loaded = mlflow.pyfunc.load_model({str(folder)!r}); "
        "found = loaded.predict(np.load('images.npy')); "
        "np.save('logits.npy', found['logits']); "
        "names = ('spanet_lightning', 'lightning', 'torch', 'timm'); "
        "sys.exit(any(name in sys.modules for name in names))"
    )
    env = {"PATH": os.environ["PATH"], "HOME": str(Path.cwd()), "MLFLOW_DISABLE_TELEMETRY": "true"}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)
    with torch.no_grad():
        expected = source.model(images).numpy()
    np.testing.assert_allclose(np.load("logits.npy"), expected, rtol=0, atol=1e-4)


def test_folder_holds_signature_example_and_no_pickle(saved):
    import mlflow.pyfunc

    source, folder = saved
    names = {path.name for path in folder.rglob("*")}
    assert not {name for name in names if name.endswith((".pkl", ".pickle", ".py", ".pt"))}
    loaded = mlflow.pyfunc.load_model(str(folder))
    (images,) = loaded.metadata.signature.inputs.inputs
    (logits,) = loaded.metadata.signature.outputs.inputs
    assert images.shape == (-1, 3, *SIZE)
    assert (logits.name, logits.shape) == ("logits", (-1, 5))
    assert loaded.metadata.metadata["model"] == "test_spanet"
    example = loaded.input_example
    assert example.dtype == np.float32
    assert np.array_equal(example, pyfunc.example((1, 3, *SIZE)))
    with torch.no_grad():
        expected = source.model(torch.from_numpy(example))
    np.testing.assert_allclose(loaded.predict(example)["logits"], expected.numpy(), atol=1e-4)
    requirements = (folder / "requirements.txt").read_text()
    assert "spanet" not in requirements
    assert "onnxruntime==" in requirements


def test_model_that_mlflow_loads_otherwise_is_not_left_behind(saved, monkeypatch):
    monkeypatch.setattr(pyfunc, "_difference", lambda *_: 1e-3)
    monkeypatch.setattr(
        pyfunc, "to_onnx", lambda _, path, *a, **k: Written(path, 0.0, 1.0, (1,), 1)
    )
    monkeypatch.setattr(pyfunc, "_write", lambda _, __, folder, *a: folder.mkdir())
    with pytest.raises(export.ExportError, match="as MLflow loads it"):
        pyfunc.save(saved[0], "model", SIZE)
    assert files() == set()
    monkeypatch.setattr(pyfunc, "_difference", lambda *_: 0.0)
    pyfunc.save(saved[0], "model", SIZE)
    Path("model/of-before").touch()
    pyfunc.save(saved[0], "model", SIZE)
    assert files() == {"model"}


def test_stored_and_registered_versions_stay_what_they_were(saved, monkeypatch):
    import mlflow

    client = tracking.connect(tracking.DEFAULT_URI)
    run_id = client.create_run(client.create_experiment("mine")).info.run_id
    _, folder = saved
    uri = tracking.DEFAULT_URI
    assert pyfunc.store(folder, run_id, uri) == f"runs:/{run_id}/model"
    assert pyfunc.store(folder, run_id, uri, "digits") == "models:/digits/1"
    assert pyfunc.store(folder, run_id, uri, "digits") == "models:/digits/2"
    version = client.get_model_version("digits", "2")
    assert version.run_id == run_id
    assert version.source.endswith("/model-3")
    before = mlflow.get_tracking_uri()
    try:
        mlflow.set_tracking_uri(uri)
        loaded = mlflow.pyfunc.load_model("models:/digits/1")
    finally:
        mlflow.set_tracking_uri(before)
    assert loaded.predict(pyfunc.example((2, 3, *SIZE)))["logits"].shape == (2, 5)
    with pytest.raises(ConfigError, match=r"--run: got 'nobody', where the model can't be stored"):
        pyfunc.store(folder, "nobody", uri)
    with pytest.raises(ConfigError, match=r"can't be stored: .*a/b"):
        pyfunc.store(folder, run_id, uri, "a/b")


def artifacts(run_id, folder):
    client = tracking.connect(tracking.DEFAULT_URI)
    return {entry.path for entry in client.list_artifacts(run_id, folder)}


def test_best_checkpoint_becomes_an_artifact():
    experiment = cli.run(["fit", *SHORT, "--tracking.checkpoints=best"])
    run_id = experiment.trainer.logger.run_id
    assert artifacts(run_id, models.CHECKPOINTS) == {"checkpoints/best.ckpt"}
    client = tracking.connect(tracking.DEFAULT_URI)
    stored = Path(client.download_artifacts(run_id, "checkpoints/best.ckpt", "."))
    assert stored.read_bytes() == Path("runs/digits-spanetv2/best.ckpt").read_bytes()


def test_run_that_breaks_off_leaves_its_last_checkpoint(monkeypatch):
    def broken(self):
        if self.current_epoch == 1:
            raise RuntimeError("a bug")

    monkeypatch.setattr("spanet_lightning.ClassificationTask.on_train_epoch_end", broken)
    two = ("--trainer.max_epochs=2", "--tracking.checkpoints=last")
    with pytest.raises(RuntimeError, match="a bug"):
        cli.run(["fit", *SHORT, *two])
    client = tracking.connect(tracking.DEFAULT_URI)
    (run,) = client.search_runs([client.get_experiment_by_name("spanet").experiment_id])
    assert run.info.status == "FAILED"
    assert artifacts(run.info.run_id, models.CHECKPOINTS) == {"checkpoints/last.ckpt"}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("--tracking.checkpoints=all", "tracking.checkpoints"),
        ("--tracking.register=a/b", "a name without '/' and ':'"),
    ],
)
def test_policy_that_is_none_is_one_line(args, words, capsys):
    assert words in refused(["fit", *SHORT, args], capsys)


def test_model_of_a_run_is_registered_at_its_end(saved, monkeypatch, capsys):
    asked = []

    def save(source, folder, size, **_):
        asked.append((source.name, size))
        Path(folder).mkdir()
        (Path(folder) / "MLmodel").write_bytes((saved[1] / "MLmodel").read_bytes())

    monkeypatch.setattr(pyfunc, "save", save)
    experiment = cli.run(["fit", *SHORT, "--tracking.register=digits"])
    run_id = experiment.trainer.logger.run_id
    assert asked == [("test_spanetv2", (32, 32))]
    assert "the model is registered as models:/digits/1" in capsys.readouterr().err
    version = tracking.connect(tracking.DEFAULT_URI).get_model_version("digits", "1")
    assert version.run_id == run_id
    assert artifacts(run_id, "model") == {"model/MLmodel"}


@pytest.mark.parametrize("how", ["hangs", "breaks"])
def test_registry_that_fails_costs_a_line_and_not_the_run(how, monkeypatch, capsys):
    def store(*_):
        time.sleep(60)

    def save(*_, **__):
        if how == "breaks":
            raise RuntimeError("a bug of the exporter's")

    monkeypatch.setattr(pyfunc, "save", save)
    monkeypatch.setattr(pyfunc, "store", store)
    monkeypatch.setattr(models, "_SECONDS", 0.2)
    experiment = cli.run(["fit", *SHORT, "--tracking.register=digits"])
    run_id = experiment.trainer.logger.run_id
    said = capsys.readouterr().err
    reason = "no answer within 0.2 s" if how == "hangs" else "a bug of the exporter's"
    assert f"the model was not registered ({reason}). Later: spanet export " in said
    assert "best.ckpt --format pyfunc --output runs/digits-spanetv2/model" in said
    assert f"--run {run_id} --register digits" in said
    run = tracking.connect(tracking.DEFAULT_URI).get_run(run_id)
    assert run.info.status == "FINISHED"


def test_what_cannot_be_registered_is_refused_before_training(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    text = refused(["fit", *SHORT, "--tracking.register=digits"], capsys)
    assert "tracking.register: an ONNX file needs the package onnxruntime" in text


@pytest.mark.slow
def test_registered_model_of_a_run_predicts_what_its_checkpoint_does(capsys):
    import mlflow

    experiment = cli.run(["fit", *SHORT, "--tracking.register=digits"])
    images = torch.randn(4, 3, 32, 32)
    source = export.read("runs/digits-spanetv2/best.ckpt")
    with torch.no_grad():
        expected = source.model(images).numpy()
    run_id = experiment.trainer.logger.run_id
    app.main(
        [
            *("export", "runs/digits-spanetv2/best.ckpt", "--format", "pyfunc"),
            *("--output", "model", "--run", run_id, "--register", "digits"),
        ]
    )
    assert "models:/digits/2" in capsys.readouterr().out
    before = mlflow.get_tracking_uri()
    try:
        mlflow.set_tracking_uri(tracking.DEFAULT_URI)
        for number in (1, 2):
            loaded = mlflow.pyfunc.load_model(f"models:/digits/{number}")
            found = loaded.predict(images.numpy())["logits"]
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    finally:
        mlflow.set_tracking_uri(before)
