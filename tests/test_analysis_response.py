"""If one of these fails, a graph frequency response is not what it is defined to be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from spanet_lightning.analysis import random_mixers
from spanet_lightning.analysis.graphs import laplacian, window_adjacency, window_spectrum
from spanet_lightning.analysis.mixing import convolution, draw_attention, draw_kernel
from spanet_lightning.analysis.response import (
    HALF_POWER,
    Response,
    cut_off,
    full_response,
    high_over_low,
    response,
)
from spanet_lightning.errors import ConfigError
from tests.reference import analysis as literal

EXACT = {"rtol": 0, "atol": 1e-8}
GRAPHS = [
    (5, 4, 3, "zero", True),
    (5, 4, 3, "zero", False),
    (5, 6, 3, "torus", True),
    (5, 6, 3, "torus", False),
    (4, 4, 7, "zero", True),
    (6, 6, 5, "torus", False),
    (4, 3, None, "zero", True),
    (4, 3, None, "torus", False),
]


@pytest.mark.parametrize(("height", "width", "window", "boundary", "loops"), GRAPHS)
def test_the_modes_are_those_of_the_literal_laplacian(height, width, window, boundary, loops):
    matrix = literal.laplacian(literal.adjacency(height, width, window, boundary, loops))
    built = window_adjacency(height, width, window, boundary, self_loops=loops)
    np.testing.assert_allclose(laplacian(built), matrix, **EXACT)
    found = window_spectrum(height, width, window, boundary, self_loops=loops)
    np.testing.assert_allclose(found.modes.T @ found.modes, np.eye(height * width), **EXACT)
    again = found.modes @ np.diag(found.eigenvalues) @ found.modes.T
    np.testing.assert_allclose(again, matrix, **EXACT)
    assert found.multiplicities.sum() == height * width
    assert (np.diff(found.frequencies) > 1e-10).all()


@pytest.mark.parametrize(("height", "width", "window", "boundary", "loops"), GRAPHS)
@pytest.mark.parametrize("measure", ["diagonal", "gain"])
def test_identity_is_flat(height, width, window, boundary, loops, measure):
    spectrum = window_spectrum(height, width, window, boundary, self_loops=loops)
    np.testing.assert_allclose(response(np.eye(height * width), spectrum, measure), 1, **EXACT)


@pytest.mark.parametrize("loops", [True, False])
def test_the_average_over_the_complete_graph_keeps_the_zero_frequency_alone(loops):
    spectrum = window_spectrum(4, 4, None, self_loops=loops)
    mean = np.full((16, 16), 1 / 16)
    np.testing.assert_allclose(response(mean, spectrum), [1, 0], **EXACT)
    np.testing.assert_allclose(response(mean, spectrum, "gain"), [1, 0], **EXACT)
    np.testing.assert_allclose(spectrum.frequencies, [0, 1 if loops else 16 / 15], **EXACT)


@pytest.mark.parametrize(("height", "width", "size", "window"), [(6, 6, 3, 3), (5, 7, 5, 3)])
def test_a_convolution_on_a_torus_is_its_dft(height, width, size, window):
    kernel = np.random.default_rng(0).standard_normal((size, size))
    spectrum = window_spectrum(height, width, window, "torus")
    matrix = convolution(kernel, height, width, "torus")
    expected = literal.dft(kernel, height, width).ravel()
    # The waves are modes of every window graph on a torus: their frequency says where they belong.
    box = literal.dft(np.ones((window, window)) / window**2, height, width).real.ravel()
    space = np.abs(1 - box[:, None] - spectrum.frequencies[None, :]).argmin(1)
    counts = np.bincount(space)
    np.testing.assert_array_equal(counts, spectrum.multiplicities)
    mean = np.bincount(space, expected.real) / counts
    np.testing.assert_allclose(response(matrix, spectrum), mean, **EXACT)
    power = np.bincount(space, np.abs(expected) ** 2) / counts
    np.testing.assert_allclose(response(matrix, spectrum, "gain"), np.sqrt(power), **EXACT)


def test_the_response_does_not_depend_on_the_basis_of_an_eigenspace():
    spectrum = window_spectrum(6, 6, 3, "torus")
    kernel = np.random.default_rng(1).standard_normal((3, 3))
    matrix = convolution(kernel, 6, 6, "torus")
    modes = spectrum.modes.copy()
    for start, count in zip(spectrum.first, spectrum.multiplicities, strict=True):
        turn = np.linalg.qr(np.random.default_rng(start).standard_normal((count, count)))[0]
        modes[:, start : start + count] = modes[:, start : start + count] @ turn
    turned = type(spectrum)(spectrum.eigenvalues, modes, spectrum.first)
    for measure in ("diagonal", "gain"):
        one, other = response(matrix, spectrum, measure), response(matrix, turned, measure)
        np.testing.assert_allclose(one, other, **EXACT)
    single = response(matrix, spectrum, average=False) - response(matrix, turned, average=False)
    assert np.abs(single).max() > 1e-3  # which is why it is averaged


@pytest.mark.parametrize("boundary", ["zero", "torus"])
def test_a_convolutions_matrix_is_torchs_convolution(boundary):
    rng = np.random.default_rng(2)
    kernel, x = rng.standard_normal((5, 3)), rng.standard_normal((1, 1, 6, 7))
    mode = "circular" if boundary == "torus" else "constant"
    padded = F.pad(torch.from_numpy(x), (1, 1, 2, 2), mode=mode)
    expected = F.conv2d(padded, torch.from_numpy(kernel)[None, None]).numpy().ravel()
    np.testing.assert_allclose(convolution(kernel, 6, 7, boundary) @ x.ravel(), expected, **EXACT)


def test_rows_are_normalised_as_named():
    kernel = draw_kernel(np.random.default_rng(3), 3)
    stochastic = convolution(kernel, 5, 5, rows="stochastic")
    np.testing.assert_allclose(stochastic.sum(1), 1, **EXACT)
    whole = convolution(kernel, 5, 5, rows="kernel").sum(1)
    assert whole[12] == pytest.approx(1)  # the middle
    assert whole[0] < 0.9  # a corner loses what lies beyond
    np.testing.assert_allclose(draw_attention(np.random.default_rng(0), 9).sum(1), 1, **EXACT)


def test_the_diagonal_of_the_full_response_is_the_response():
    spectrum = window_spectrum(4, 5, 3)
    matrix = np.random.default_rng(4).standard_normal((20, 20))
    whole = full_response(matrix, spectrum)
    np.testing.assert_allclose(np.diag(whole), response(matrix, spectrum, average=False), **EXACT)
    # U is orthonormal, so no energy is lost: a column's is the gain's square.
    gain = response(matrix, spectrum, "gain", average=False)
    np.testing.assert_allclose((whole**2).sum(0), gain**2, **EXACT)


def test_cut_off_by_each_rule():
    x, y = np.array([0, 0.25, 0.5, 1.0, 1.5]), np.array([1, 0.9, -0.5, 0.8, 0.1])
    assert cut_off(x, y) == 0.5
    assert cut_off(x, y, rule="last") == 1.5
    share = (0.9 - HALF_POWER) / (0.9 - 0.5)
    assert cut_off(x, y, rule="interpolated") == pytest.approx(0.25 + 0.25 * share, abs=1e-12)
    assert cut_off(x, np.ones(5)) == float("inf")
    assert cut_off(x, np.ones(5), rule="last") == float("inf")
    late = np.array([0.1, 1, 1, 0.2, 0.1])
    assert cut_off(x, late, reference="largest") == 1.0
    assert cut_off(x, late) == float("inf")


def test_a_flat_response_has_as_much_energy_above_as_below():
    spectrum = window_spectrum(6, 6, 3)
    parts = (spectrum.frequencies, spectrum.multiplicities.astype(float))
    assert high_over_low(*parts, np.ones(len(parts[0]))) == pytest.approx(1, abs=1e-12)
    half = spectrum.frequencies[-1] / 2
    assert high_over_low(*parts, (spectrum.frequencies > half) * 1.0) == float("inf")


def test_the_claim_of_the_figure_holds_under_the_defaults():
    """SPANetV2 Fig. 1: the cut-off grows with the kernel, towards attention's."""
    found = random_mixers.draw_responses(draws=50)
    one = random_mixers.claim("", {}, found)
    assert one.towards_attention, one.cut_offs
    assert one.cut_offs[-1] == pytest.approx(1, abs=1e-8)
    assert list(one.cut_offs) == sorted(one.cut_offs)
    assert len(found) == 5
    assert len(found[0].draws) == 50


def test_what_the_claim_depends_on_is_told():
    """Between eigenvalues, 1 - λ is cut off at 1 - √½ by any kernel: the claim is about gaps."""
    kernels, some = (3, 7), {"x": {"rule": "interpolated", "boundary": "torus"}}
    (one,) = random_mixers.claims(some, kernels, 16, 8)
    assert not one.towards_attention
    np.testing.assert_allclose(one.cut_offs, 1 - HALF_POWER, atol=0.04)
    (grid,) = random_mixers.claims({"x": {"graph": "grid"}}, kernels, 16, 8)
    assert not grid.increasing
    assert grid.cut_offs[0] > grid.cut_offs[1]  # on one grid a larger kernel passes less


def test_the_same_seed_draws_the_same_and_kernels_do_not_share_draws():
    one, two = (random_mixers.draw_responses((3,), 6, 3, seed=5)[0] for _ in range(2))
    np.testing.assert_array_equal(one.draws, two.draws)
    assert not np.allclose(one.draws[0], one.draws[1])
    assert isinstance(one, Response)


@pytest.mark.parametrize("label", random_mixers.ALTERNATIVES)
def test_every_alternative_is_one_that_can_be_drawn(label):
    some = {label: {**random_mixers.ALTERNATIVES[label]}}
    if some[label].get("channels", 1) > 2:
        some[label]["channels"] = 2
    (one,) = random_mixers.claims(some, (3, 5), 6, 2)
    assert len(one.cut_offs) == 3


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: window_spectrum(4, 4, 2), "window: got 2, expected an odd number"),
        (lambda: window_spectrum(4, 4, 3, "mirror"), "boundary: got 'mirror'"),
        (lambda: random_mixers.draw_responses((4,)), "kernels: got 4, expected odd sizes"),
        (lambda: random_mixers.draw_responses((5, 3)), "ascending"),
        (lambda: random_mixers.draw_responses(side=99), "side: got 99"),
        (lambda: random_mixers.Choices(weights="normal"), "rows: got 'stochastic'"),
        (lambda: random_mixers.Choices(rule="frist"), "did you mean 'first'"),
        (lambda: window_spectrum(60, 60, 3, self_loops=False), "self_loops"),
    ],
)
def test_bad_choices_are_told(call, told):
    with pytest.raises(ConfigError, match=told):
        call()
