"""If one of these fails, an exported file is not the model, or needs what runtimes do not have."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from spanet_lightning import SPANet, SPANetV2, export, load_official
from spanet_lightning.export.fixed import fixed

# What changes the graph: each ablation knob at another value than the default.
V1 = {
    "default": {},
    "hadamard": {"aggregation": "hadamard"},
    "no circle": {"ring": None},
    "low alone": {"balance": [1.0, 0.5]},
    "wide": {"radius": [3.5, 20, 0, 1]},
    "no spf": {"spf": False},
    "layer scale": {"branch_scale": "layer"},
}
V2 = {
    "default": {},
    "hybrid": {"mixers": ["spam", "spam", "mixed", "attention"]},
    "scaled sigmoid": {"srf_gate": "scaled_sigmoid"},
    "concatenated": {"head_layout": "concatenated"},
    "no srf": {"srf": False},
    "two heads": {"kernel_sizes": 5, "num_heads": 2},
    "layer scale": {"branch_scale": "layer"},
}
TINY = [("SPANet", name) for name in V1] + [("SPANetV2", name) for name in V2]
# Several knobs in one graph: an export takes seconds.
GRAPHS = {
    "test_spanet": (SPANet, {}),
    "test_spanet, other knobs": (
        SPANet,
        {"aggregation": "hadamard", "branch_scale": "layer", "ring": None},
    ),
    "test_spanetv2": (SPANetV2, {}),
    "test_spanetv2, other knobs": (
        SPANetV2,
        {
            "mixers": ["spam", "mixed", "attention", "spam"],
            "srf_gate": "scaled_sigmoid",
            "head_layout": "concatenated",
            "branch_scale": "layer",
        },
    ),
}
SIZE = (72, 50)  # neither square nor a multiple of 32, nor the size that spectra are stored at


def trained(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return a model whose weights are not those of the first step, where little is filtered."""
    generator = torch.Generator().manual_seed(seed)

    def fill(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.empty_like(tensor).uniform_(low, high, generator=generator))

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "logits" in name:
                fill(parameter, -3, 3)
            elif name.endswith("alpha"):
                fill(parameter, 0.5, 2)
            elif "scale" in name:  # of branches, and of StarReLU
                fill(parameter, 0.3, 1.2)
            elif "act.bias" in name or name.endswith(".bias"):
                fill(parameter, -0.3, 0.3)
    return model.eval()


def build(cls: type, arguments: Mapping[str, object] = MappingProxyType({})) -> nn.Module:
    torch.manual_seed(0)
    return trained(cls("test", num_classes=10, img_size=64, **arguments))


def knobs(family: str, name: str) -> tuple[type, Mapping[str, object]]:
    return (SPANet, V1[name]) if family == "SPANet" else (SPANetV2, V2[name])


@pytest.mark.parametrize(("cls", "name"), TINY, ids=str)
def test_the_form_for_one_size_is_the_same_function(cls, name):
    model = build(*knobs(cls, name))
    before = copy.deepcopy(model.state_dict())
    for size in ((64, 64), SIZE):
        images = torch.randn(2, 3, *size)
        with torch.no_grad():
            expected, found = model(images), fixed(model, size)(images)
        # Half of it would be the difference of a filter that is left out.
        assert expected.std() > 0.05
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_what_is_compared_depends_on_the_filters():
    """A form that leaves a filter out must not pass the tests above."""
    images = torch.randn(2, 3, *SIZE)
    for cls, key in ((SPANet, "spf"), (SPANetV2, "srf")):
        model, without = build(cls), cls("test", num_classes=10, img_size=64, **{key: False})
        state = {k: v for k, v in model.state_dict().items() if k in without.state_dict()}
        without.load_state_dict(state)
        with torch.no_grad():
            assert (model(images) - without.eval()(images)).abs().max() > 1e-3


def check_graph(path: Path | str) -> None:
    """Check that a file needs no operator of signal processing, and no custom one."""
    proto = onnx.load(str(path), load_external_data=False)
    kinds = Counter(node.op_type for node in proto.graph.node)
    assert not set(kinds) & {"DFT", "STFT", "FFT", "Rfft", "Irfft", "ComplexMul"}, kinds
    assert {node.domain for node in proto.graph.node} == {""}
    assert not proto.functions
    # What follows from parameters alone is a constant: no bases are built, nothing is resized.
    assert not set(kinds) & {"Cos", "Sin", "Range", "Resize", "Sigmoid", "If", "Loop"}, kinds
    assert {opset.domain: opset.version for opset in proto.opset_import} == {"": 20}


@pytest.mark.parametrize("name", GRAPHS)
def test_onnx_agrees_with_pytorch_for_any_batch(name):
    model = build(*GRAPHS[name])
    written = export.to_onnx(model, "model.onnx", SIZE, metadata={"model": "test"})
    assert written.difference < 1e-4
    assert written.batches == (1, 3)
    check_graph("model.onnx")
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map == {"model": "test"}
    for batch in (1, 2, 5):
        images = torch.randn(batch, 3, *SIZE)
        (found,) = session.run(["logits"], {"images": images.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(found, model(images).numpy(), rtol=0, atol=1e-4)
    assert [path.name for path in Path().iterdir()] == ["model.onnx"]


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "name"), TINY, ids=str)
def test_onnx_agrees_with_pytorch_for_every_knob(cls, name):
    model = build(*knobs(cls, name))
    export.to_onnx(model, "model.onnx", SIZE)
    check_graph("model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("size", [(224, 224), (160, 192)], ids=["224", "160x192"])
@pytest.mark.parametrize("name", ["spanet_s", "spanetv2_s18_pure", "spanetv2_s18_hybrid"])
def test_published_models_agree_as_onnx_and_as_mlflow_loads_them(name, size, record_property):
    from spanet_lightning.tracking import pyfunc

    source = export.read(name)
    trained(source.model)
    written = pyfunc.save(source, "model", size)
    import mlflow.pyfunc  # not before: it warns of itself

    for figure in ("difference", "largest", "nodes"):  # those of docs/export.md: --junitxml
        record_property(figure, getattr(written, figure))
    record_property("megabytes", Path("model/model.onnx").stat().st_size / 1e6)
    assert written.difference < 1e-4
    check_graph("model/model.onnx")
    images = torch.randn(2, 3, *size)
    found = mlflow.pyfunc.load_model("model").predict(images.numpy())["logits"]
    with torch.no_grad():
        np.testing.assert_allclose(found, source.model(images).numpy(), rtol=0, atol=1e-4)


def test_file_that_does_not_agree_is_not_left_behind(monkeypatch):
    # The graph of another model: what a faulty translation would be.
    other = build(SPANet, {"spf": False})
    wrong = fixed(other, (64, 64))
    monkeypatch.setattr("spanet_lightning.export.onnx_file.fixed", lambda *_: wrong)
    Path("model.onnx").write_text("of before")
    with pytest.raises(export.ExportError, match=r"differ from PyTorch's by [\d.]+e-\d+ .*1e-04"):
        export.to_onnx(build(SPANet), "model.onnx", (64, 64))
    assert [path.name for path in Path().iterdir()] == ["model.onnx"]
    assert Path("model.onnx").read_text() == "of before"


def test_export_that_breaks_off_leaves_the_file_of_before(monkeypatch):
    def broken(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("spanet_lightning.export.onnx_file.compare", broken)
    monkeypatch.setattr(
        "spanet_lightning.export.onnx_file._translate", lambda *_: onnx.ModelProto(ir_version=10)
    )
    Path("model.onnx").write_text("of before")
    with pytest.raises(KeyboardInterrupt):
        export.to_onnx(build(SPANet), "model.onnx", (64, 64))
    assert [path.name for path in Path().iterdir()] == ["model.onnx"]
    assert Path("model.onnx").read_text() == "of before"


def test_outputs_that_are_not_finite_do_not_agree(monkeypatch):
    class Session:
        def run(self, *_):
            return [np.full((1, 10), np.nan, dtype=np.float32)]

    monkeypatch.setattr("spanet_lightning.export.onnx_file._session", lambda _: Session())
    monkeypatch.setattr("onnx.checker.check_model", lambda *_, **__: None)
    difference, _ = export.compare(build(SPANet), "model.onnx", [(1, 3, 64, 64)])
    assert difference == float("inf")


@pytest.mark.parametrize("name", ["test_spanet", "test_spanetv2"])
def test_safetensors_build_the_model_again(name):
    import timm

    source = export.read(name, num_classes=7, seed=3)
    trained(source.model)
    export.to_safetensors(source, "model.safetensors")
    images = torch.randn(2, 3, 64, 64)
    again = export.read("model.safetensors")
    assert again.arguments == source.arguments
    assert again.weights == "random, seed 3"
    assert again.images == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    official = type(source.model)("test", num_classes=7)
    report = load_official(official, "model.safetensors")
    assert not report.missing
    by_timm = timm.create_model(name, num_classes=7, checkpoint_path="model.safetensors")
    with torch.no_grad():
        expected = source.model(images)
        for model in (again.model, official.eval(), by_timm.eval()):
            assert torch.equal(model(images), expected)
