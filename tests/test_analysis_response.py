"""If one of these fails, a frequency response on a graph is not what it is defined to be."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from spanet_lightning.analysis import mixers, models
from spanet_lightning.analysis.graphs import laplacian, window_adjacency, window_spectrum
from spanet_lightning.analysis.response import (
    HALF_POWER,
    READINGS,
    Reading,
    convolution_matrix,
    cut_off,
    diagonal_response,
    draw_attention,
    draw_responses,
    full_response,
    high_over_low,
    test_claim,
)
from spanet_lightning.backbones import SPANetV2
from spanet_lightning.errors import ConfigError
from tests.reference import analysis as literal

EXACT = {"rtol": 0, "atol": 1e-8}
GRAPHS = [
    (5, 4, 3, "zero"),
    (5, 4, 3, "zero_no_loops"),
    (5, 6, 3, "torus"),
    (6, 6, 5, "torus_no_loops"),
    (4, 4, 7, "zero"),
    (4, 3, None, "zero"),
    (4, 3, None, "torus_no_loops"),
]


@pytest.mark.parametrize(("height", "width", "window", "connectivity"), GRAPHS)
def test_modes_are_those_of_the_literal_laplacian(height, width, window, connectivity):
    boundary, _, no_loops = connectivity.partition("_")
    matrix = literal.laplacian(literal.adjacency(height, width, window, boundary, not no_loops))
    built = window_adjacency(height, width, window, connectivity)
    np.testing.assert_allclose(laplacian(built), matrix, **EXACT)
    found = window_spectrum(height, width, window, connectivity)
    np.testing.assert_allclose(found.modes.T @ found.modes, np.eye(height * width), **EXACT)
    again = found.modes @ np.diag(found.eigenvalues) @ found.modes.T
    np.testing.assert_allclose(again, matrix, **EXACT)
    assert found.multiplicities.sum() == height * width
    assert (np.diff(found.frequencies) > 1e-10).all()
    np.testing.assert_allclose(diagonal_response(np.eye(height * width), found), 1, **EXACT)


def test_averaging_all_tokens_passes_frequency_zero_alone():
    spectrum = window_spectrum(4, 4, None)
    np.testing.assert_allclose(
        diagonal_response(np.full((16, 16), 1 / 16), spectrum), [1, 0], **EXACT
    )
    np.testing.assert_allclose(spectrum.frequencies, [0, 1], **EXACT)


@pytest.mark.parametrize(("height", "width", "size"), [(6, 6, 3), (5, 7, 5)])
def test_a_convolution_on_a_torus_is_its_dft(height, width, size):
    kernel = np.random.default_rng(0).standard_normal((size, size))
    spectrum = window_spectrum(height, width, 3, "torus")
    expected = literal.dft(kernel, height, width).ravel()
    # The waves are modes of every window graph on a torus: their frequency tells the eigenspace.
    box = literal.dft(np.ones((3, 3)) / 9, height, width).real.ravel()
    space = np.abs(1 - box[:, None] - spectrum.frequencies[None, :]).argmin(1)
    mean = np.bincount(space, expected.real) / np.bincount(space)
    matrix = convolution_matrix(kernel, height, width, "torus")
    np.testing.assert_allclose(diagonal_response(matrix, spectrum), mean, **EXACT)


def test_the_response_does_not_depend_on_the_basis_of_an_eigenspace():
    spectrum = window_spectrum(6, 6, 3, "torus")
    matrix = np.random.default_rng(1).standard_normal((36, 36))
    modes = spectrum.modes.copy()
    for start, count in zip(spectrum.first, spectrum.multiplicities, strict=True):
        turn = np.linalg.qr(np.random.default_rng(start).standard_normal((count, count)))[0]
        modes[:, start : start + count] = modes[:, start : start + count] @ turn
    turned = type(spectrum)(spectrum.eigenvalues, modes, spectrum.first)
    one, other = diagonal_response(matrix, spectrum), diagonal_response(matrix, turned)
    np.testing.assert_allclose(one, other, **EXACT)
    diagonal = np.diag(full_response(matrix, spectrum))
    np.testing.assert_allclose(spectrum.average(diagonal), one, **EXACT)
    assert np.abs(diagonal - np.diag(full_response(matrix, turned))).max() > 1e-3


@pytest.mark.parametrize("connectivity", ["zero", "torus"])
def test_the_matrix_of_a_convolution_is_torchs_convolution(connectivity):
    rng = np.random.default_rng(2)
    kernel, x = rng.standard_normal((5, 3)), rng.standard_normal((1, 1, 6, 7))
    mode = "circular" if connectivity == "torus" else "constant"
    padded = F.pad(torch.from_numpy(x), (1, 1, 2, 2), mode=mode)
    expected = F.conv2d(padded, torch.from_numpy(kernel)[None, None]).numpy().ravel()
    matrix = convolution_matrix(kernel, 6, 7, connectivity)
    np.testing.assert_allclose(matrix @ x.ravel(), expected, **EXACT)


def test_operators_are_normalised_as_named():
    kernel = np.random.default_rng(3).random((3, 3))
    rows = convolution_matrix(kernel, 5, 5, operator="average").sum(1)
    np.testing.assert_allclose(rows, 1, **EXACT)
    rows = convolution_matrix(kernel, 5, 5, operator="kernel").sum(1)
    assert rows[12] == pytest.approx(1)  # the middle
    assert rows[0] < 0.9  # a corner loses what is beyond
    np.testing.assert_allclose(draw_attention(np.random.default_rng(0), 9).sum(1), 1, **EXACT)


def test_cut_off_and_energies():
    x, y = np.array([0, 0.25, 0.5, 1.0]), np.array([1, 0.9, -0.5, 0.8])
    assert cut_off(x, y) == 0.5
    share = (0.9 - HALF_POWER) / (0.9 - 0.5)
    assert cut_off(x, y, interpolate=True) == pytest.approx(0.25 + 0.25 * share, abs=1e-12)
    assert cut_off(x, np.ones(4)) == float("inf")
    spectrum = window_spectrum(6, 6, 3)
    parts = (spectrum.frequencies, spectrum.multiplicities.astype(float))
    assert high_over_low(*parts, np.ones(len(parts[0]))) == pytest.approx(1, abs=1e-12)
    assert high_over_low(*parts, (parts[0] > parts[0][-1] / 2) * 1.0) == float("inf")


def test_the_claim_of_the_figure_by_reading():
    """SPANetV2 Fig. 1, with the figures that docs/analysis.md states."""
    row = test_claim("default", draw_responses(draws=50))
    cuts = [row[key] for key in ("3×3", "7×7", "11×11", "15×15", "attention")]
    np.testing.assert_allclose(cuts, [0.307, 0.333, 0.431, 0.448, 1.0], atol=5e-4)
    # Between eigenvalues, 1 - λ crosses half power at 1 - √½ for any kernel: gaps grow, no more.
    assert (row["holds"], row["holds interpolated"]) == ("yes", "no")
    grid = test_claim(
        "grid", draw_responses((3, 7), 16, 8, READINGS["frequencies of the 3×3 grid"])
    )
    assert grid["holds"] == "no"
    assert grid["3×3"] > grid["7×7"]  # on one grid a larger kernel passes less


@pytest.mark.parametrize("reading", READINGS.values(), ids=READINGS)
def test_every_reading_can_be_drawn_and_repeats(reading):
    one, two = (draw_responses((3, 5), 6, 2, reading, seed=5) for _ in range(2))
    assert len(one) == 3
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.draws, b.draws)
        assert not np.allclose(a.draws[0], a.draws[1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: window_spectrum(4, 4, 2), "window: got 2, expected an odd number"),
        (lambda: draw_responses((4,)), "kernels: got 4, expected odd sizes"),
        (lambda: draw_responses((5, 3)), "ascending"),
        (lambda: draw_responses(side=99), "side: got 99"),
        (lambda: Reading(connectivity="tours"), "did you mean 'torus'"),
        (lambda: window_spectrum(60, 60, 3, "zero_no_loops"), "self-loops"),
    ],
)
def test_invalid_readings_are_rejected(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


# The mixers of models


class _Mixer(nn.Module):
    """Nonlinear, mixes tokens and channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.tanh(self.conv(x)) * x
        return y


def test_products_with_the_jacobian_are_those_of_the_whole_jacobian():
    torch.manual_seed(0)
    mixer, x = _Mixer(), torch.randn(2, 3, 4, 4)
    modes = mixers.select_modes(4, 4, 16)
    kept, total = mixers.jacobian_energies(mixer, x, modes, 0, mixer, (4, 4))
    generator = torch.Generator().manual_seed(0)
    signs = (torch.randint(0, 2, (16, 3), generator=generator) * 2 - 1) / 3**0.5
    for b in range(2):
        whole = torch.autograd.functional.jacobian(lambda y: mixer(y[None])[0], x[b])
        moved = torch.einsum("chwdij,md,mij->mchw", whole, signs, modes.fields)
        torch.testing.assert_close(total[b], moved.square().sum((1, 2, 3)), rtol=1e-4, atol=1e-6)
        stays = torch.einsum("mchw,mhw->mc", moved, modes.fields).square().sum(1)
        torch.testing.assert_close(kept[b], stays, rtol=1e-3, atol=1e-6)


def test_modes_are_spread_over_all_frequencies():
    modes = mixers.select_modes(8, 6, 12)
    assert modes.frequencies[0] == pytest.approx(0, abs=1e-12)
    assert (np.diff(modes.frequencies) >= 0).all()
    torch.testing.assert_close(modes.flat @ modes.flat.t(), torch.eye(12), rtol=0, atol=1e-5)


def test_linearised_depthwise_convolutions_are_the_convolutions():
    model, images = models.load_model("test_convnext"), torch.rand(1, 3, 64, 64)
    exact = mixers.mixer_responses(model, images, 10)
    linearised = mixers.mixer_responses(model, images, 10, linearise=True)
    assert {one.method for one in exact} == {"depthwise"}
    assert {one.method for one in linearised} == {"jacobian"}
    for one, other in zip(exact, linearised, strict=True):
        np.testing.assert_allclose(one.response.draws, other.response.draws, rtol=1e-3, atol=1e-6)
        assert one.leakage == pytest.approx(other.leakage, abs=1e-3)


def test_shifted_windows_are_put_back_where_they_belong():
    """Attention that averages over its window, against a matrix built token by token."""
    options = {"img_size": 32, "window_size": 4, "embed_dim": 12, "depths": (2, 2, 2, 2)}
    block = timm.create_model("swin_tiny_patch4_window7_224", **options).layers[0].blocks[1]
    assert tuple(block.shift_size) == (2, 2)
    side, n = 8, 4
    modes = mixers.select_modes(side, side, 64)
    weights = torch.full((4, 1, n * n, n * n), 1 / (n * n))
    kept, total = mixers.window_energies(weights, modes, block)
    window = [((y - 2) % side // n, (x - 2) % side // n) for y in range(side) for x in range(side)]
    matrix = torch.tensor([[float(a == b) / n**2 for b in window] for a in window])
    mixed = modes.flat @ matrix.t()
    torch.testing.assert_close(total[0], mixed.square().sum(1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(kept[0], (mixed * modes.flat).sum(1).square(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "methods"),
    [
        ("test_spanet", ["jacobian"] * 5),
        ("hybrid", ["jacobian"] * 4 + ["attention"]),
        ("test_vit", ["attention"] * 6),
    ],
)
def test_mixers_of_every_kind_are_measured(name, methods):
    size = 160 if name == "test_vit" else 64
    if name == "hybrid":
        kinds = ["spam", "spam", "mixed", "attention"]
        model = models.LoadedModel(name, SPANetV2("test", mixers=kinds, img_size=64).eval())
    else:
        model = models.load_model(name, size=size)
    found = mixers.mixer_responses(model, torch.rand(2, 3, size, size), 4)
    assert [one.method for one in found] == methods
    for one in found:
        assert one.response.draws.shape[0] == 2
        assert np.isfinite(one.response.draws).all()
        assert -1e-6 <= one.leakage <= 1
    if name == "test_vit":  # rows of probabilities keep what all tokens share
        assert found[0].response.mean[0] > 0.8
