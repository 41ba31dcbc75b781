"""If one of these fails, our SPANet is not the official SPANet, or its weights are read wrongly."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spanet_lightning import SPANet, SPANetV2, load_official
from spanet_lightning.backbones.official import convert
from spanet_lightning.backbones.spanet import VARIANTS as V1
from spanet_lightning.backbones.spanetv2 import VARIANTS as V2
from spanet_lightning.backbones.spectral import full_gain
from spanet_lightning.errors import CheckpointError
from tests.parity import rule, schema
from tests.parity.make import sample

PARITY = Path(__file__).parent / "parity"
HYBRID = ("spam", "spam", "mixed", "attention")
PURE = ("spam",) * 4
TINY_V1 = {"v1_k7": (24, 36, 48, 60), "v1_uneven": (16, 32, 40, 64)}
TINY_V2 = {
    "v2_pure_64x64": (PURE, False),
    "v2_hybrid_64x64": (HYBRID, False),
    "v2ver4_pure_64x64": (PURE, True),
}
DEPTHS = (1, 1, 2, 1)
SIZES = (16, 8, 4, 2)


def tiny(name, **changes):
    """A tiny model and the official state dict it was recorded with."""
    common = {"depths": DEPTHS, "num_classes": 10, "img_size": 64} | changes
    if name in TINY_V1:
        dims = TINY_V1[name]
        return SPANet(dims=dims, **common), rule.weights(schema.v1(DEPTHS, dims, 10, SIZES))
    mixers, concatenated = TINY_V2[name]
    dims = (16, 32, 64, 96)
    layout = "concatenated" if concatenated else "interleaved"
    model = SPANetV2(dims=dims, **({"mixers": mixers, "head_layout": layout} | common))
    state = schema.v2(DEPTHS, dims, 10, SIZES, mixers, concatenated=concatenated)
    return model, rule.weights(state)


def assert_near(ours, recorded, std, tolerance):
    assert (ours - recorded).abs().max() <= tolerance * std


@pytest.mark.parametrize("name", [*TINY_V1, *TINY_V2])
def test_tiny_models_compute_the_official_outputs_stages_and_gradients(name):
    model, state = tiny(name)
    load_official(model, state)
    model.eval()
    recorded = load_file(PARITY / f"{name}.safetensors")
    x = rule.images(64, 64).requires_grad_()
    logits = model(x)
    assert_near(logits, recorded["logits"], recorded["logits"].std(), 1e-4)
    (logits**2).sum().backward()
    assert_near(sample(x.grad), recorded["grad_input"], recorded["grad_input_std"], 1e-4)
    for i, stage in enumerate(model.forward_intermediates(x, intermediates_only=True)):
        assert_near(sample(stage), recorded[f"stage{i}"], recorded[f"stage{i}_std"], 1e-4)


@pytest.mark.parametrize(
    ("name", "model", "state"),
    [
        ("spanet_small", lambda: SPANet("s"), lambda: full_schema("s")),
        ("spanetv2_s18_pure", lambda: SPANetV2("s18_pure"), lambda: full_schema("s18_pure")),
    ],
    ids=["spanet_s", "spanetv2_s18_pure"],
)
def test_full_models_compute_the_official_logits_at_224(name, model, state):
    net = model()
    load_official(net, rule.weights(state()))
    net.eval()
    recorded = load_file(PARITY / f"{name}_224.safetensors")
    with torch.no_grad():
        last, stages = net.forward_intermediates(rule.images(224, 224))
        logits = net.forward_head(last)
    assert_near(logits, recorded["logits"], recorded["logits"].std(), 1e-3)
    for i, stage in enumerate(stages):
        assert_near(sample(stage), recorded[f"stage{i}"], recorded[f"stage{i}_std"], 1e-3)


def full_schema(variant, **changes):
    sizes = (56, 28, 14, 7)
    if variant in V1:
        row = V1[variant]
        return schema.v1(row.depths, row.dims, 1000, sizes)
    row = V2[variant]
    return schema.v2(row.depths, row.dims, 1000, sizes, row.mixers, **changes)


@pytest.mark.parametrize("variant", [v for v in [*V1, *V2] if v != "test"])
def test_every_tensor_of_every_variant_finds_its_place(variant):
    shapes = {k: shape for k, shape in full_schema(variant).items() if ".sps" not in k}
    with torch.device("meta"):  # that values are in their places is tested above
        model = (SPANet if variant in V1 else SPANetV2)(variant)
        report = load_official(model, {k: torch.empty(shape) for k, shape in shapes.items()})
    assert set(report.used) == set(shapes)
    assert not report.ignored
    assert not report.missing


def official_v1_state(model, state):
    """Add the frozen masks that ImageNet checkpoints of the first generation carry."""
    masks = {}
    for stage, size in enumerate(SIZES):
        for block in range(DEPTHS[stage]):
            mixer = model.stages[stage].blocks[block].mixer
            masks_here = torch.split(full_gain(mixer.spf.gain(size, size), size), mixer.gates.sizes)
            for gate, mask in enumerate(masks_here):
                key = f"network.{2 * stage}.{block}.token_mixer.sps.{gate}.filter"
                masks[key] = mask[:1].float()
    return state | masks


def test_masks_are_named_and_compared():
    model, state = tiny("v1_k7")
    report = load_official(model, official_v1_state(model, state))
    assert len(report.ignored) == 3 * sum(DEPTHS)
    assert all("mask" in reason for reason in report.ignored.values())
    other, _ = tiny("v1_k7", radius=(1, 1, 1, 1))
    with pytest.raises(
        CheckpointError, match=r"network\.0\.0\.token_mixer\.sps\.0\.filter.*backbone.radius"
    ):
        load_official(other, official_v1_state(model, state))


@pytest.mark.parametrize("wrap", ["state_dict", "model", None])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_wrappers_and_prefixes_are_taken_off(tmp_path, wrap, prefix):
    model, state = tiny("v1_k7")
    content = {prefix + k: v for k, v in state.items()}
    torch.save({wrap: content, "epoch": 3} if wrap else content, tmp_path / "official.pth")
    report = load_official(model, tmp_path / "official.pth")
    assert len(report.used) == len(state)


def test_dense_checkpoints_give_their_backbone_and_name_the_rest():
    """Layout of mmdetection (V1: no masks, no classifier, a norm for each level) and mmseg (V2)."""
    model, state = tiny("v1_k7")
    dense = {k: v for k, v in state.items() if not k.startswith(("norm.", "head."))}
    for i, dim in enumerate(TINY_V1["v1_k7"]):
        dense |= {f"norm{2 * i}.{n}": torch.ones(dim) for n in ("weight", "bias")}
    dense = {f"backbone.{k}": v for k, v in dense.items()}
    dense["neck.lateral_convs.0.conv.weight"] = torch.zeros(1)
    before = model.head.weight.clone()
    report = load_official(model, {"state_dict": dense, "meta": {"epoch": 12}})
    assert report.ignored["neck.lateral_convs.0.conv.weight"].startswith("neck")
    assert "norm of a dense" in report.ignored["backbone.norm0.weight"]
    assert set(report.missing) == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert torch.equal(model.head.weight, before)
    assert set(report.used) | set(report.ignored) == set(dense)

    model, state = tiny("v2_hybrid_64x64")
    dense = {f"backbone.{k}": v for k, v in state.items()}
    dense |= {f"backbone.norm{i}.weight": torch.ones(1) for i in range(4)}
    dense["decode_head.conv_seg.weight"] = torch.zeros(1)
    report = load_official(model, {"state_dict": dense})
    assert set(report.used) | set(report.ignored) == set(dense)
    assert len(report.ignored) == 5


def test_another_number_of_classes_keeps_the_fresh_last_layer():
    model, state = tiny("v2_pure_64x64", num_classes=7)
    report = load_official(model, state)
    assert set(report.ignored) == {"head.fc2.weight", "head.fc2.bias"}
    assert set(report.missing) == {"head.fc2.weight", "head.fc2.bias"}
    model, state = tiny("v1_k7", num_classes=0)
    assert set(load_official(model, state).ignored) == {"head.weight", "head.bias"}


def test_weights_of_64_px_loaded_at_96_px_compute_the_same_function():
    small, state = tiny("v2_pure_64x64")
    large, _ = tiny("v2_pure_64x64", img_size=96)
    for model in (small, large):
        load_official(model, state)
        model.eval()
    x = rule.images(96, 96)
    with torch.no_grad():
        assert torch.allclose(small(x), large(x), atol=1e-5)


def test_scaled_sigmoid_takes_alpha_from_the_checkpoint():
    model, state = tiny("v2ver4_pure_64x64", srf_gate="scaled_sigmoid")
    report = load_official(model, state)
    assert not report.ignored
    key = "stages.0.0.token_mixer.scale.alpha"
    assert torch.equal(model.stages[0].blocks[0].mixer.srf.alpha, state[key])


@pytest.mark.parametrize("name", [*TINY_V1, *TINY_V2])
def test_convert_writes_safetensors_that_load_again(tmp_path, name):
    model, state = tiny(name)
    load_official(model, state)
    torch.save({"state_dict": state}, tmp_path / "official.pth")
    convert(tmp_path / "official.pth", tmp_path / "ours.safetensors")
    again, _ = tiny(name)
    load_official(again, tmp_path / "ours.safetensors")
    for (key, a), b in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def refused(model, checkpoint, *words):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load_official(model, checkpoint)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_refusals_name_file_cause_and_expectation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, state = tiny("v1_k7")
    v2, v2_state = tiny("v2_pure_64x64")
    _, concatenated = tiny("v2ver4_pure_64x64")

    hostile = tmp_path / "hostile.pth"
    torch.save({"state_dict": state, "x": Payload()}, hostile)
    refused(model, hostile, "hostile.pth", "refused")
    hostile.write_bytes(pickle.dumps(Payload()))
    refused(model, hostile, "hostile.pth")
    assert not (tmp_path / "executed").exists()

    (tmp_path / "empty.pth").touch()
    refused(model, tmp_path / "empty.pth", "empty.pth")
    torch.save(state, tmp_path / "cut.pth")
    data = (tmp_path / "cut.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(data[: len(data) // 2])
    refused(model, tmp_path / "cut.pth", "cut.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    refused(model, tmp_path / "cut.safetensors", "cut.safetensors")
    refused(model, tmp_path / "absent.pth", "absent.pth", "no such")

    refused(model, v2_state, "SPANetV2", "SPANet")
    refused(v2, concatenated, "head_layout", "concatenated", "interleaved")
    refused(SPANet("s"), state, "depths", "(4, 4, 12, 4)", "(1, 1, 2, 1)")
    refused(model, {"conv1.weight": torch.zeros(1)}, "conv1.weight", "expected a SPANet")
    refused(model, {"epoch": 3}, "no tensors")
    refused(model, state | {"network.0.0.token_mixer.odd": torch.zeros(1)}, "token_mixer.odd")
    lacking = {k: v for k, v in state.items() if "network.2.0.mlp.fc1.weight" not in k}
    refused(model, lacking, "stages.1.blocks.0.mlp.fc1.weight")
    other_kernel, _ = tiny("v1_k7", kernel_size=5)
    refused(other_kernel, state, "(24, 1, 1, 7)", "(24, 1, 1, 5)")

    with pytest.raises(CheckpointError):
        convert(hostile, tmp_path / "out.safetensors")
    assert not list(tmp_path.glob("out*"))
