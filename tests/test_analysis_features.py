"""If one of these fails, a figure shows another model, layer, image or frequency than it says."""

from __future__ import annotations

import math
import weakref
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import spanet_lightning  # noqa: F401  (registers our models with timm)
from spanet_lightning.analysis import filters, images, layers, spectrum
from spanet_lightning.analysis.images import normalise
from spanet_lightning.analysis.models import LoadedModel, checkpoints_by_epoch, load_model
from spanet_lightning.analysis.spectrum import spectra
from spanet_lightning.backbones import SPANetV2
from spanet_lightning.errors import CheckpointError, ConfigError, DataError
from tests.reference import analysis as literal


def _images(number: int, size: int = 64) -> torch.Tensor:
    return torch.rand(number, 3, size, size, generator=torch.Generator().manual_seed(0))


# Spectra


def test_s18_has_22_maps_and_a_numpy_computation_agrees():
    one = load_model("spanetv2_s18_pure", size=64)
    found = spectra(one, [_images(2)])
    downs = [m.index for m in found.layers if m.layer.kind == "down"]
    assert downs == [0, 4, 8, 18]  # of the S18 depths, as published
    net, features = one.model, []
    with torch.no_grad():
        x = net.stem(normalise(_images(2), one))
        for stage in net.stages:
            x = stage.downsample(x)  # the first stage's is an identity: the stem's output
            features.append(x.numpy())
            for block in stage.blocks:
                x = block(x)
                features.append(x.numpy())
    assert [m.index for m in found.layers] == list(range(len(features))) == list(range(22))
    for m, expected in zip(found.layers, features, strict=True):
        reference = literal.relative_log_amplitude(expected)
        np.testing.assert_allclose(m.relative, reference, rtol=0, atol=1e-5)
        variance = expected.astype(float).var((2, 3)).mean()
        assert m.variance == pytest.approx(variance, rel=1e-4)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 7), (6, 9), (5, 8), (1, 1)])
def test_half_a_spectrum_mirrored_is_the_whole(height, width):
    x = torch.randn(2, 3, height, width)
    expected = np.log(np.abs(np.fft.fft2(x.numpy().astype(float))) + 1e-6).mean(1).sum(0)
    expected = np.roll(expected, (height // 2, width // 2), (0, 1))
    np.testing.assert_allclose(spectrum.log_amplitude(x).numpy(), expected, atol=1e-10)


def test_batches_do_not_matter_and_features_are_not_stored():
    one = load_model("test_spanetv2", size=64)
    alive: list[weakref.ref[torch.Tensor]] = []

    def remember(_: object, __: object, output: torch.Tensor) -> None:
        assert all(ref() is None for ref in alive), "features of an earlier batch are still alive"
        alive.append(weakref.ref(output))

    handle = one.model.stages[0].blocks[0].mlp.register_forward_hook(remember)
    single = spectra(one, _images(3).split(1))
    handle.remove()
    together = spectra(one, [_images(3)])
    assert len(alive) == single.images == together.images == 3
    for a, b in zip(single.layers, together.layers, strict=True):
        np.testing.assert_allclose(a.log_amplitude, b.log_amplitude, atol=1e-5)
        assert a.variance == pytest.approx(b.variance, rel=1e-4)


def test_rings_average_what_is_equally_far():
    v, u = np.mgrid[-4:4, -4:4]
    field = np.rint(np.hypot(v, u)) * 2.0 + 7
    np.testing.assert_allclose(spectrum.relative_radial(field), [0, 2, 4, 6, 8], atol=1e-12)


@pytest.mark.parametrize(
    ("name", "size", "blocks", "downs", "stages"),
    [
        ("test_spanet", 64, 5, 4, 4),
        ("test_convnext", 64, 9, 4, 4),
        ("test_vit", 160, 6, 1, 1),
        ("resnet10t", 64, 4, 0, 4),
    ],
)
def test_small_models_of_every_layout(name, size, blocks, downs, stages):
    one = load_model(name, size=size)
    found = spectra(one, [_images(1, size)])
    assert len(found.drawn()) == blocks
    assert len(found.layers) - blocks == downs
    assert {m.stage for m in found.layers} == set(range(1, stages + 1))
    if name != "resnet10t":
        assert len(spectra(one, [_images(1, size)], mixers=True).drawn()) == blocks


@pytest.mark.parametrize(
    ("name", "pattern", "names", "size"),
    [
        ("resnet10t", "layer3.0.conv2", ["layer3.0.conv2"], "4×4"),
        (
            "test_spanetv2",
            "stages.2.*.mixer",
            [f"stages.2.blocks.{i}.mixer" for i in (0, 1)],
            "4×4",
        ),
        ("test_convnext", "stages.0.blocks.0.norm", ["stages.0.blocks.0.norm"], "16×16"),  # NHWC
        ("test_vit", "blocks.*.mlp.fc1", [f"blocks.{i}.mlp.fc1" for i in range(6)], "10×10"),
    ],
)
def test_any_layer_by_name_or_pattern(name, pattern, names, size):
    side = 160 if name == "test_vit" else 64
    found = spectra(load_model(name, size=side), [_images(1, side)], patterns=[pattern])
    assert [m.layer.name for m in found.drawn()] == names
    assert {m.size for m in found.drawn()} == {size}


def test_a_swin_patch_embedding_is_not_taken_for_channels_last():
    """Swin states NHWC, which its convolution is not."""
    net = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=64, window_size=4, depths=(1, 1)
    )
    found = spectra(LoadedModel("swin", net.eval()), [_images(1)], patterns=["patch_embed.proj"])
    assert (found.layers[0].size, found.layers[0].channels) == ("16×16", 96)


def test_a_layer_that_does_not_exist_or_has_no_grid_is_one_line():
    one = load_model("test_spanetv2", size=64)
    with pytest.raises(
        ConfigError, match=r"matches none of .*did you mean 'stages.0.blocks.0.mixer'"
    ):
        spectra(one, [_images(1)], patterns=["stages.0.blocks.0.mixxer"])
    with pytest.raises(ConfigError, match=r"--layer head: .*form no grid"):
        spectra(LoadedModel("x", _Linear()), [_images(1)], patterns=["head", "features"])
    found = spectra(LoadedModel("x", _Linear()), [_images(1)], patterns=["*"])
    assert [m.layer.name for m in found.layers] == ["features"]


class _Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.features(x).mean((2, 3)))
        return y


def test_the_response_of_a_kernel_is_its_dft():
    conv = nn.Conv2d(2, 3, 3, dilation=2, bias=False)
    gain = spectrum.kernel_response(conv, 8)
    power = np.zeros((8, 8))
    for kernel in conv.weight.detach().double().numpy().reshape(-1, 3, 3):
        spread = np.zeros((5, 5))
        spread[::2, ::2] = kernel
        power += np.abs(literal.dft(spread, 8, 8)) ** 2
    np.testing.assert_allclose(gain, np.fft.fftshift(np.sqrt(power / 6)), atol=1e-10)
    nn.init.dirac_(conv.weight)  # the identity passes all frequencies alike
    np.testing.assert_allclose(spectrum.kernel_response(conv, 8), (2 / 6) ** 0.5, atol=1e-12)
    one = load_model("test_spanetv2", size=64)
    names = [name for name, _ in spectrum.weight_responses(one, ["stages.0.*.local.*"])]
    assert len(names) == 4
    with pytest.raises(ConfigError, match="none of these layers is a convolution"):
        spectrum.weight_responses(one, ["stages.0.blocks.0.norm1"])


def test_the_difference_of_two_models_is_that_of_their_curves():
    one, two = (load_model("test_spanetv2", size=64, seed=seed) for seed in (0, 1))
    a, b = (spectra(model, [_images(1)]) for model in (one, two))
    found = spectrum.difference(a, b)
    for x, y, z in zip(a.layers, b.layers, found.layers, strict=True):
        np.testing.assert_allclose(z.relative, y.relative - x.relative, atol=1e-12)
    with pytest.raises(ConfigError, match=r"--difference: .* differ in their layers"):
        spectrum.difference(a, spectra(load_model("test_convnext", size=64), [_images(1)]))


@pytest.mark.slow
@pytest.mark.parametrize("mixers", [False, True])
@pytest.mark.parametrize("name", ["convnext_tiny", "caformer_s18", "swin_tiny", "vit_small"])
def test_models_of_the_papers(name, mixers):
    found = spectra(load_model(name), [_images(1, 224)], mixers=mixers)
    assert len(found.drawn()) == {"swin_tiny": 12, "vit_small": 12}.get(name, 18)
    sides = [m.log_amplitude.shape[0] for m in found.drawn()]
    assert set(sides) == ({14} if name == "vit_small" else {56, 28, 14, 7})


def test_tokens_become_the_grid_they_came_from():
    net = timm.create_model("test_vit", num_classes=0)
    grid = torch.arange(2 * 3 * 10 * 10, dtype=torch.float32).view(2, 3, 10, 10)
    tokens = grid.flatten(2).transpose(1, 2)
    torch.testing.assert_close(layers.as_grid(net, tokens, (160, 160)), grid)
    more = torch.cat([torch.zeros(2, net.num_prefix_tokens, 3), tokens], 1)
    torch.testing.assert_close(layers.as_grid(net, more, (160, 160)), grid)
    wide = torch.arange(2 * 3 * 5 * 20.0).view(2, 3, 5, 20)
    seen = layers.as_grid(net, wide.flatten(2).transpose(1, 2), (80, 320))
    torch.testing.assert_close(seen, wide)


def test_models_without_what_is_measured_are_one_line():
    with pytest.raises(ConfigError, match=r"has no blocks .*--layer PATTERN"):
        spectra(LoadedModel("plain", nn.Conv2d(3, 4, 3)), [_images(1)])
    with pytest.raises(ConfigError, match="has no token mixers"):
        spectra(load_model("resnet10t"), [_images(1)], mixers=True)
    with pytest.raises(ConfigError, match="return no features on a single grid"):
        spectra(load_model("crossvit_tiny_240", size=240), [_images(1, 240)])
    with pytest.raises(DataError, match="got none"):
        spectra(load_model("test_spanetv2"), [])


# Filters and context maps


def test_filters_of_both_generations():
    v1 = filters.filters(load_model("test_spanet"), 224)
    assert [one.name for one in v1[:3]] == ["λ=0.7", "λ=0.8", "λ=0.9"]
    assert [one.gain.shape[0] for one in v1[::3]] == [56, 28, 14, 14, 7]
    assert (v1[0].gain[28, 28], v1[0].gain[0, 0]) == pytest.approx((0.7, 0.3))
    low, high = v1[0].balance
    assert low > high
    v2 = filters.filters(load_model("test_spanetv2"), 224)
    assert [one.name for one in v2[:4]] == ["3×3", "5×5", "7×7", "9×9"]
    np.testing.assert_allclose([one.gain.mean() for one in v2], 0.5, atol=0.01)
    # Another size resizes the gains, as the network does.
    assert filters.filters(load_model("test_spanetv2"), 100)[0].gain.shape == (25, 25)
    v, u = np.mgrid[-4:4, -4:4]
    radius, mean = filters.radial_mean(np.rint(np.hypot(v, u)) + 1)
    np.testing.assert_allclose([radius, mean], [[0, 0.25, 0.5, 0.75, 1], [1, 2, 3, 4, 5]])


def test_context_maps_are_the_mean_magnitude_of_the_projections_output():
    net = SPANetV2("test", img_size=64).eval()
    outputs: list[list[torch.Tensor]] = [[] for _ in net.stages]
    for stage, own in zip(net.stages, outputs, strict=True):
        for block in stage.blocks:
            block.mixer.reduce.register_forward_hook(lambda _, __, out, own=own: own.append(out[0]))
    found = filters.context_maps(LoadedModel("x", net), torch.rand(1, 3, 64, 96))
    assert list(found) == [1, 2, 3, 4]
    for own, field in zip(outputs, found.values(), strict=True):
        expected = torch.cat(own).abs().mean(0)  # concatenated on C, absolute, mean over C
        np.testing.assert_allclose(field, expected.detach().numpy(), rtol=1e-4, atol=1e-6)
    assert found[1].shape == (16, 24)


def test_stages_of_attention_have_no_context_and_other_models_are_rejected():
    hybrid = SPANetV2("test", mixers=["spam", "spam", "mixed", "attention"], img_size=64).eval()
    assert list(filters.context_maps(LoadedModel("x", hybrid), _images(1))) == [1, 2]
    with pytest.raises(ConfigError, match="is a VisionTransformer, which has no SRF gates"):
        filters.filters(load_model("test_vit"))
    with pytest.raises(ConfigError, match="has no spectral filter"):
        filters.filters(LoadedModel("x", SPANetV2("test", srf=False).eval()))


# Models and images


def write_checkpoint(path: Path, in_chans: int = 3, epoch: int = 0) -> SPANetV2:
    """Write what a run saves of a small model."""
    torch.manual_seed(3)
    arguments = {"variant": "test", "num_classes": 5, "img_size": 32, "in_chans": in_chans}
    net = SPANetV2(**arguments).eval()
    state = {f"backbone.{key}": value for key, value in net.state_dict().items()}
    described = {"class_path": "spanet_lightning.SPANetV2", "init_args": arguments}
    content = {"state_dict": state, "hyper_parameters": {"backbone": described}, "epoch": epoch}
    torch.save(content, path)
    return net


def test_a_checkpoint_brings_its_model_and_its_run_the_normalisation(tmp_path):
    net = write_checkpoint(tmp_path / "best.ckpt")
    found = load_model(str(tmp_path / "best.ckpt"))
    assert found.trained
    assert found.mean == (0.485, 0.456, 0.406)
    with torch.no_grad():
        torch.testing.assert_close(found.model(_images(1)), net(_images(1)))
    stated = "data: {init_args: {mean: [0.1, 0.2, 0.3], std: [1, 2, 3]}}"
    (tmp_path / "config.yaml").write_text(stated)
    found = load_model(str(tmp_path / "best.ckpt"))
    assert (found.mean, found.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    (tmp_path / "config.yaml").write_text("data: [")
    assert load_model(str(tmp_path / "best.ckpt")).std == (0.229, 0.224, 0.225)
    with pytest.raises(CheckpointError, match=r"do not fit the model: .*best.ckpt alone"):
        load_model(f"test_spanetv2@{tmp_path / 'best.ckpt'}")  # 1,000 classes, not 5
    write_checkpoint(tmp_path / "grey.ckpt", in_chans=1)
    with pytest.raises(CheckpointError, match=r"grey.ckpt: takes images of 1 channels"):
        load_model(str(tmp_path / "grey.ckpt"))


def test_checkpoints_are_ordered_by_epoch(tmp_path):
    for name, epoch in (("a", 9), ("b", 1), ("c", 9)):
        write_checkpoint(tmp_path / f"{name}.ckpt", epoch=epoch)
    found = checkpoints_by_epoch(tmp_path)
    assert [(epoch, file.stem) for epoch, file in found.items()] == [(2, "b"), (10, "a")]
    (tmp_path / "b.ckpt").unlink()
    with pytest.raises(CheckpointError, match=r"checkpoints of 1 epochs .*save_top_k: -1"):
        checkpoints_by_epoch(tmp_path)


def test_weights_after_an_at_sign(tmp_path):
    plain = load_model("test_spanetv2")
    torch.save(plain.model.state_dict(), tmp_path / "plain.pth")
    again = load_model(f"test_spanetv2@{tmp_path / 'plain.pth'}", seed=1)
    for one, other in zip(plain.model.parameters(), again.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_model_from_a_function_runs_only_where_code_is_allowed(tmp_path, monkeypatch):
    text = "import torch\ndef build():\n    return torch.nn.Conv2d(3, 8, 3, padding=1)\n"
    for name in ("mine_to_analyse", "other"):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    for place in ("mine_to_analyse", "other.py"):
        found = load_model(f"python:{place}:build", allow_code=True)
        assert isinstance(found.model, nn.Conv2d)
    with pytest.raises(ConfigError, match="accepted on the command line alone"):
        load_model("python:mine_to_analyse:build")
    for name, message in (
        ("python:mine_to_analyse", "expected 'python|python:MODULE:FUNCTION"),
        ("python:mine_to_analyse:built", "no attribute 'built'"),
        ("python:none_such:build", "No module named 'none_such'"),
        ("python:other.py:torch", "expected a function"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_model(name, allow_code=True)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("spanet_ss", ConfigError, "did you mean 'spanet_s'"),
        ("vit_smal", ConfigError, "did you mean 'vit_small'"),
        ("spanet_s@", ConfigError, "NAME@FILE"),
        ("none.ckpt", CheckpointError, "no such checkpoint"),
    ],
)
def test_a_wrong_name_is_one_line(name, error, message):
    with pytest.raises(error, match=message):
        load_model(name)


def test_a_model_of_one_size_refuses_another():
    found = load_model("vit_small")
    assert found.image_size(224) == 224
    assert load_model("test_spanet").image_size(96) == 96
    with pytest.raises(ConfigError, match="--size"):
        found.image_size(96)


def test_images_are_listed_and_resized(tmp_path):
    for i in range(5):
        Image.new("RGB", (60, 40), (40 * i, 0, 0)).save(tmp_path / f"{i}.png")
    assert [path.name for path in images.list_images([tmp_path], limit=2)] == ["0.png", "2.png"]
    assert len(images.list_images(["sample"])) == 2
    batches = list(images.batches(images.list_images([tmp_path]), 32, 2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert float(batches[0][1, 0].mean()) == pytest.approx(40 / 255)
    wide = Image.new("RGB", (60, 40))
    assert images.resize(wide, 64, "aspect").size == (96, 64)
    assert images.resize(wide, 64, "crop", 0.9).size == (64, 64)
    with pytest.raises(DataError, match="does not exist"):
        images.list_images(["none"])
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bad.png: not a readable image"):
        images.open_image(tmp_path / "bad.png")
    (tmp_path / "classes" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match="found no images in"):
        images.list_labelled(tmp_path / "classes")
    assert math.isclose(float(images.read_image(wide, 32).sum()), 0)
