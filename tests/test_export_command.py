"""If one of these fails, `spanet export` takes, refuses or leaves behind what it should not."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open

from spanet_lightning import SPANetV2, TimmBackbone, app, cli, export
from tests.helpers import CONFIGS, UNTRACKED, files, refused
from tests.test_export import check_graph

ONNX = ("test_spanet", "--format", "onnx", "--output", "x.onnx")
PYFUNC = ("test_spanet", "--format", "pyfunc", "--output")
SAFE = ("--format", "safetensors", "--output", "model.safetensors")


def checkpoint(path="best.ckpt", **changes):
    """Write what Lightning saved of a classifier of the first version; return its backbone."""
    torch.manual_seed(1)
    arguments = {"variant": "test", "img_size": 64, "kernel_sizes": [3, 5], "spectral_impl": "fft"}
    accepted = {k: v for k, v in arguments.items() if k != "spectral_impl"}
    backbone = SPANetV2(**accepted, num_classes=6).eval()
    content = {
        "pytorch-lightning_version": "2.6.6",
        "state_dict": {f"backbone.{k}": v for k, v in backbone.state_dict().items()},
        "hyper_parameters": {
            "_class_path": "spanet_lightning.ClassificationTask",
            "backbone": {"class_path": "spanet_lightning.SPANetV2", "init_args": arguments},
        },
    }
    torch.save({**content, **changes}, path)
    return backbone


def error(capsys, *args):
    return refused(["export", *args], capsys, app.main)


def test_checkpoint_of_a_run_is_exported_at_the_size_of_its_images(capsys):
    config = str(CONFIGS / "digits" / "spanet.yaml")
    cli.run(["fit", "--config", config, *UNTRACKED[2:]])
    best = "runs/digits-spanet/best.ckpt"
    app.main(["export", best, *SAFE])
    app.main(["export", best, "--format", "onnx", "--output", "model.onnx", "--batch", "2"])
    text = capsys.readouterr().out
    for words in (
        "test_spanet, ",
        "best.ckpt",
        "images (2, 3, 32, 32) float32",
        "logits (2, 10) float32",
        "from PyTorch's outputs",
        "model.onnx (",
    ):
        assert words in text
    check_graph("model.onnx")
    source = export.read("model.safetensors")
    assert source.size == (32, 32)
    saved = torch.load(best, weights_only=True)["state_dict"]
    for name, tensor in source.model.state_dict().items():
        assert torch.equal(tensor, saved[f"backbone.{name}"])
    with safe_open("model.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["model"] == "test_spanet"
    assert json.loads(metadata["arguments"])["num_classes"] == 10
    # Neither where the machine keeps its files nor who it belongs to.
    assert str(Path.cwd()) not in json.dumps(metadata)


def test_checkpoint_of_the_first_version_is_exported(capsys):
    trained = checkpoint()
    app.main(["export", "best.ckpt", *SAFE])
    source = export.read("model.safetensors")
    assert "spectral_impl" not in source.arguments
    assert source.arguments["kernel_sizes"] == [3, 5]
    assert source.model.num_classes == 6
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(source.model(images), trained(images))


def test_models_of_timms_are_exported_from_a_run_and_by_name(capsys):
    torch.manual_seed(0)
    trained = TimmBackbone("test_convnext", num_classes=4).eval()
    described = {"class_path": "spanet_lightning.TimmBackbone", "init_args": {"name": trained.name}}
    checkpoint(
        state_dict={f"backbone.{k}": v for k, v in trained.state_dict().items()},
        hyper_parameters={
            "_class_path": "spanet_lightning.ClassificationTask",
            "backbone": described,
        },
    )
    app.main(["export", "best.ckpt", *SAFE])
    app.main(["export", "model.safetensors", "--format", "onnx", "--output", "model.onnx"])
    assert "logits (batch, 4) float32" in capsys.readouterr().out
    images = torch.randn(1, 3, *export.read("model.safetensors").size)
    with torch.no_grad():
        assert torch.equal(export.read("best.ckpt").model(images), trained(images))
    assert export.read("resnet10t", num_classes=5).model.num_classes == 5


def test_task_built_by_hand_is_described_by_the_configuration_beside_it(capsys):
    checkpoint(hyper_parameters={"label_smoothing": 0.1})
    assert "does not tell how its backbone was built" in error(capsys, "best.ckpt", *SAFE)
    backbone = {
        "class_path": "spanet_lightning.SPANetV2",
        "init_args": {"variant": "test", "img_size": 64, "kernel_sizes": [3, 5]},
    }
    task = {"class_path": "spanet_lightning.ClassificationTask"}
    model = {**task, "init_args": {"backbone": backbone}}
    data = {"class_path": "X", "init_args": {"image_size": [48, 64], "mean": [0.5] * 3}}
    Path("config.yaml").write_text(yaml.safe_dump({"model": model, "data": data}))
    source = export.read("best.ckpt")
    assert source.size == (48, 64)
    assert source.metadata()["mean"] == "[0.5, 0.5, 0.5]"
    Path("config.yaml").write_text("- no mapping")
    assert "config.yaml: is not the configuration of a run" in error(capsys, "best.ckpt", *SAFE)


@pytest.mark.parametrize(
    ("hyper_parameters", "words"),
    [
        (
            {"_class_path": "spanet_lightning.DetectionTask"},
            "holds a DetectionTask; only classifiers",
        ),
        (
            {"backbone": {"class_path": "somebody.SPANetV2", "init_args": {}}},
            "its backbone is 'somebody.SPANetV2'; only SPANet, SPANetV2",
        ),
        (
            {"backbone": {"class_path": "spanet_lightning.SPANetV2", "init_args": {"new": 1}}},
            "SPANetV2 has no argument 'new' in this version",
        ),
        (
            {"backbone": {"class_path": "spanet_lightning.SPANet", "init_args": {}}},
            "holds SPANetV2 weights (test_spanetv2), the model is SPANet",
        ),
    ],
)
def test_checkpoint_of_another_kind_is_refused_in_a_line(hyper_parameters, words, capsys):
    made_by = {
        "_class_path": "spanet_lightning.ClassificationTask",
        "backbone": {"class_path": "spanet_lightning.SPANetV2", "init_args": {"variant": "test"}},
    }
    checkpoint(hyper_parameters=made_by | hyper_parameters)
    assert words in error(capsys, "best.ckpt", *SAFE)


def test_checkpoint_that_could_run_code_is_refused(capsys):
    class Planted:
        def __reduce__(self):
            return Path.touch, (Path("ran"),)

    with Path("best.ckpt").open("wb") as file:
        pickle.dump({"state_dict": Planted()}, file)
    assert "refused" in error(capsys, "best.ckpt", *SAFE)
    torch.save({"state_dict": Planted()}, "zip.ckpt")
    assert "could run code" in error(capsys, "zip.ckpt", *SAFE)
    torch.save({"state_dict": {"x": torch.ones(1)}}, "official.pth")
    assert "give a model's name and --weights official.pth" in error(capsys, "official.pth", *SAFE)
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("spanetv2_s18", *SAFE), "SOURCE: got 'spanetv2_s18'"),
        (("runs/best.ckpt", *SAFE), "SOURCE: got 'runs/best.ckpt', which does not exist"),
        (("test_spanet", "--output", "x"), "--format"),
        (("test_spanet", "--format", "tflite", "--output", "x"), "choose from"),
        (("test_spanet", "--format", "onnx"), "--output: is missing"),
        (("test_spanet", "--format", "onnx", "--output", "x.pt"), "a name that ends in .onnx"),
        (("test_spanet", "--format", "onnx", "--output", "no/x.onnx"), "there is no folder no"),
        (("test_spanet", "--format", "onnx", "--output", "old.onnx"), "--overwrite replaces it"),
        ((*PYFUNC, "full", "--overwrite"), "an MLflow model"),
        ((*ONNX, "--size", "16"), "'16', exp"),
        ((*ONNX, "--size", "a"), "HEIGHTxWIDTH"),
        ((*ONNX, "--opset", "9"), "at least 18"),
        ((*ONNX, "--batch", "0"), "at least 1"),
        (("test_spanet", *SAFE, "--num-classes", "0"), "--num-classes: got 0"),
        (("test_spanet", *SAFE, "--weights", "none.pth"), "no such checkpoint file"),
        (("test_spanet", *SAFE, "--run", "abc"), "--format pyfunc with it"),
        ((*PYFUNC, "m", "--register", "x"), "--run RUN_ID with it"),
    ],
)
def test_mistake_is_one_line_and_leaves_nothing(args, words, capsys):
    Path("old.onnx").touch()
    Path("full").mkdir()
    Path("full/thesis.tex").touch()
    assert words in error(capsys, *args)


def test_names_are_suggested_and_a_file_says_its_own_classes(capsys):
    assert "did you mean 'spanetv2_s18_pure'?" in error(capsys, "spanetv2_s18_puer", *SAFE)
    checkpoint()
    text = error(capsys, "best.ckpt", *SAFE, "--num-classes", "3")
    assert "--num-classes: got 3, expected a model's name before it" in text
    assert files() == {"best.ckpt"}


def test_weights_fill_a_named_model_or_are_refused(capsys):
    app.main(["export", "test_spanet", "--num-classes", "4", *SAFE])
    named = ("test_spanet", "--weights", "model.safetensors")
    app.main(
        ["export", *named, "--num-classes", "4", "--format=safetensors", "--output=b.safetensors"]
    )
    with safe_open("b.safetensors", "pt") as file:
        assert file.metadata()["weights"] == "model.safetensors"
    # A classifier of other classes would stay random, unseen.
    text = error(capsys, *named, "--format", "safetensors", "--output", "c.safetensors")
    assert "add --num-classes 4" in text


def test_package_that_is_missing_is_named_before_anything_is_built(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    text = error(capsys, "test_spanet", "--format", "onnx", "--output", "x.onnx")
    assert "onnxscript, which is not installed: pip install 'spanet-lightning[export]'" in text


def test_weights_are_exported_without_onnx_and_lightning():
    code = (
        "import sys; sys.modules['onnx'] = None; from spanet_lightning import app; "
        f"app.main(['export', 'test_spanet', *{SAFE!r}]); "
        "sys.exit(any(n in sys.modules for n in ('lightning', 'mlflow', 'onnxruntime')))"
    )
    root = str(Path(__file__).parent.parent)
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": root, "PATH": ""})
    assert Path("model.safetensors").is_file()
