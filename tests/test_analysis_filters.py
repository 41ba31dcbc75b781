"""If one of these fails, a filter, a context map or a mixer's response is shown as it is not."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from torch import nn

import spanet_lightning  # noqa: F401  (registers our models with timm)
from spanet_lightning.analysis import energies, filters, mixers, models
from spanet_lightning.analysis.filters import radial_mean
from spanet_lightning.backbones import SPANetV2
from spanet_lightning.errors import ConfigError


def test_filters_of_both_generations():
    v1 = filters.filters(models.subject("test_spanet"), 224)
    assert [one.name for one in v1[:3]] == ["λ=0.7", "λ=0.8", "λ=0.9"]
    assert [one.gain.shape for one in v1[::3]] == [(56, 56), (28, 28), (14, 14), (14, 14), (7, 7)]
    assert v1[0].gain[28, 28] == pytest.approx(0.7)
    assert v1[0].gain[0, 0] == pytest.approx(0.3)
    low, high = v1[0].balance
    assert low > high
    v2 = filters.filters(models.subject("test_spanetv2"), 224)
    assert [one.name for one in v2[:4]] == ["3×3", "5×5", "7×7", "9×9"]
    np.testing.assert_allclose([one.gain.mean() for one in v2], 0.5, atol=0.01)
    # Another size resizes the gains, as the network does.
    assert filters.filters(models.subject("test_spanetv2"), 100)[0].gain.shape == (25, 25)


def test_a_ring_has_the_mean_of_its_bins():
    v, u = np.mgrid[-4:4, -4:4]
    radius, mean = radial_mean(np.rint(np.hypot(v, u)) + 1)
    np.testing.assert_allclose(radius, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(mean, [1, 2, 3, 4, 5])


def test_context_maps_are_the_mean_magnitude_of_what_the_projection_returns():
    model = SPANetV2("test", img_size=64).eval()
    outputs: list[list[torch.Tensor]] = [[] for _ in model.stages]
    for stage, own in zip(model.stages, outputs, strict=True):
        for block in stage.blocks:
            block.mixer.reduce.register_forward_hook(lambda _, __, out, own=own: own.append(out[0]))
    subject = models.Subject("x", model, (0.485,) * 3, (0.229,) * 3, None, 1, False)
    found = filters.context_maps(subject, torch.rand(1, 3, 64, 96))
    assert found.stages == (1, 2, 3, 4)
    for own, field in zip(outputs, found.maps, strict=True):
        expected = torch.cat(own).abs().mean(0)  # concatenated on C, absolute, mean over C
        np.testing.assert_allclose(field, expected.detach().numpy(), rtol=1e-4, atol=1e-6)
    assert found.maps[0].shape == (16, 24)


def test_a_stage_of_attention_has_no_context_and_other_models_are_told():
    hybrid = SPANetV2("test", mixers=["spam", "spam", "mixed", "attention"], img_size=64).eval()
    subject = models.Subject("x", hybrid, (0.5,) * 3, (0.5,) * 3, None, 1, False)
    assert filters.context_maps(subject, torch.rand(1, 3, 64, 64)).stages == (1, 2)
    with pytest.raises(ConfigError, match="is a VisionTransformer, which has no SRF gates"):
        filters.filters(models.subject("test_vit"))
    off = SPANetV2("test", srf=False).eval()
    with pytest.raises(ConfigError, match="has no spectral filter"):
        filters.filters(models.Subject("x", off, (0,) * 3, (1,) * 3, None, 1, False))


# The mixers of models


class _Mixer(nn.Module):
    """Not linear, and mixes tokens and channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.tanh(self.conv(x)) * x
        return y


def test_products_with_the_jacobian_are_those_of_the_whole_jacobian():
    torch.manual_seed(0)
    mixer, x = _Mixer(), torch.randn(2, 3, 4, 4)
    at = energies.modes_of(4, 4, 16)
    kept, out = energies.jacobian(mixer, x, at, 0, mixer, (4, 4))
    generator = torch.Generator().manual_seed(0)
    signs = (torch.randint(0, 2, (16, 3), generator=generator) * 2 - 1) / 3**0.5
    for b in range(2):
        whole = torch.autograd.functional.jacobian(lambda y: mixer(y[None])[0], x[b])
        for m in range(16):
            moved = torch.einsum("chwdij,d,ij->chw", whole, signs[m], at.fields[m])
            assert out[b, m] == pytest.approx(float(moved.square().sum()), rel=1e-4)
            stays = torch.einsum("chw,hw->c", moved, at.fields[m]).square().sum()
            assert kept[b, m] == pytest.approx(float(stays), rel=1e-3, abs=1e-6)


def test_modes_are_spread_over_all_frequencies():
    at = energies.modes_of(8, 6, 12)
    assert at.fields.shape == (12, 8, 6)
    assert at.frequencies[0] == pytest.approx(0, abs=1e-12)
    assert (np.diff(at.frequencies) >= 0).all()
    flat = at.fields.flatten(1)
    torch.testing.assert_close(flat @ flat.t(), torch.eye(12), rtol=0, atol=1e-5)


def test_linearised_depthwise_convolutions_are_the_convolutions():
    subject = models.subject("test_convnext")
    images = torch.rand(1, 3, 64, 64)
    exact = mixers.mixer_responses(subject, images, 10)
    linearised = mixers.mixer_responses(subject, images, 10, how="jacobian")
    assert {one.how for one in exact} == {"depthwise"}
    assert {one.how for one in linearised} == {"jacobian"}
    for one, other in zip(exact, linearised, strict=True):
        np.testing.assert_allclose(one.response.draws, other.response.draws, rtol=1e-3, atol=1e-6)
        assert one.leakage == pytest.approx(other.leakage, abs=1e-3)


def test_shifted_windows_are_put_back_where_they_belong():
    """Attention that averages over its window, against a matrix built token by token."""
    net = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        window_size=4,
        embed_dim=12,
        depths=(2, 2, 2, 2),
    )
    block = net.layers[0].blocks[1]
    assert tuple(block.shift_size) == (2, 2)
    side, n = 8, 4
    at = energies.modes_of(side, side, 64)
    weights = torch.full((4, 1, n * n, n * n), 1 / (n * n))
    kept, out = energies.windowed(weights, at, block)
    window = [((y - 2) % side // n, (x - 2) % side // n) for y in range(side) for x in range(side)]
    matrix = torch.tensor([[float(a == b) / n**2 for b in window] for a in window])
    u = at.fields.flatten(1)
    mixed = u @ matrix.t()
    torch.testing.assert_close(out[0], mixed.square().sum(1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(kept[0], (mixed * u).sum(1).square(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["test_spanet", "test_spanetv2", "test_vit"])
def test_mixers_of_every_kind_are_measured(name):
    size = 160 if name == "test_vit" else 64
    found = mixers.mixer_responses(models.subject(name, size=size), torch.rand(2, 3, size, size), 6)
    assert len(found) == (6 if name == "test_vit" else 5)
    assert {one.how for one in found} == {"attention" if name == "test_vit" else "jacobian"}
    for one in found:
        assert one.response.draws.shape[0] == 2
        assert np.isfinite(one.response.draws).all()
        assert -1e-6 <= one.leakage <= 1
    if name == "test_vit":  # rows of probabilities keep what all tokens share
        assert found[0].response.mean[0] > 0.8


def test_our_attention_is_measured_by_its_weights():
    hybrid = SPANetV2("test", mixers=["spam", "spam", "mixed", "attention"], img_size=64).eval()
    subject = models.Subject("x", hybrid, (0.5,) * 3, (0.5,) * 3, None, 1, False)
    found = mixers.mixer_responses(subject, torch.rand(1, 3, 64, 64), 4)
    assert [one.how for one in found] == ["jacobian"] * 4 + ["attention"]
