"""If one of these fails, a spectral operator no longer computes the paper's equation."""

from __future__ import annotations

import math

import pytest
import torch

from spanet_lightning.backbones import spectral, spectral_literal
from tests.reference import filters

SIZES = [(1, 1), (2, 2), (7, 7), (8, 8), (14, 14), (9, 6), (6, 9), (5, 16), (3, 1)]
BALANCE = (0.7, 0.8, 0.9)


def literal_spf_conv(x, weight, bias, radius, ring):
    chunks = x.chunk(len(BALANCE), 1)
    filtered = [filters.spf(c, radius, lam, ring) for c, lam in zip(chunks, BALANCE, strict=True)]
    mixed = torch.einsum("dc,bchw->bdhw", weight[:, :, 0, 0], torch.cat(filtered, 1))
    return mixed + bias[:, None, None]


def spf_case(size, dtype=torch.float64, channels=8, out=5):
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)  # noqa: E731
    x = draw(2, channels, *size).requires_grad_()
    return x, draw(out, channels, 1, 1).requires_grad_(), draw(out).requires_grad_()


@pytest.mark.parametrize("impl", ["real", "rfft", "auto"])
@pytest.mark.parametrize("ring", [1 / 3, None])
@pytest.mark.parametrize("size", SIZES)
def test_spf_equals_the_equation_and_its_gradients(size, ring, impl):
    for radius in sorted({0, 1, 1.5, 2, 3, 5, max(size) // 2, max(size)}):
        x, weight, bias = spf_case(size)
        gates = spectral.gates(BALANCE, ring, 8)
        fast = spectral.spf_conv1x1(x, weight, bias, radius, gates, impl)
        slow = literal_spf_conv(x, weight, bias, radius, ring)
        assert torch.allclose(fast, slow, atol=1e-10, rtol=0)
        cotangent = torch.linspace(-1, 1, slow.numel(), dtype=slow.dtype).view_as(slow)
        for a, b in zip(
            torch.autograd.grad(fast, (x, weight, bias), cotangent),
            torch.autograd.grad(slow, (x, weight, bias), cotangent),
            strict=True,
        ):
            assert torch.allclose(a, b, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("size", [(56, 56), (28, 28), (14, 14), (7, 7), (25, 38)])
def test_spf_in_float32_is_exact_to_1e_5(size):
    x, weight, bias = spf_case(size, torch.float32, channels=24, out=24)
    slow = literal_spf_conv(x.double(), weight.double(), bias.double(), 2, 1 / 3)
    gates = spectral.gates(BALANCE, 1 / 3, 24)
    fast = spectral.spf_conv1x1(x, weight, bias, 2, gates)
    assert (fast - slow).norm() <= 1e-5 * slow.norm()


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (6, 5)])
def test_spf_multiplies_the_wave_of_each_bin_by_its_mask_value(size):
    height, width = size
    mask = filters.spf_mask(height, width, 2, 0.7, 1 / 3).double()
    mask = torch.fft.ifftshift(mask)
    h = torch.arange(height, dtype=torch.float64)[:, None]
    w = torch.arange(width, dtype=torch.float64)[None]
    for u in range(height):
        for v in range(width):
            wave = torch.cos(2 * math.pi * (u * h / height + v * w / width) + 0.3)
            gates = spectral.gates((0.7,), 1 / 3, 1)
            one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
            zero = torch.zeros(1, dtype=torch.float64)
            got = spectral.spf_conv1x1(wave[None, None], one, zero, 2, gates, "real")[0, 0]
            assert torch.allclose(got, mask[u, v] * wave, atol=1e-10), (u, v)


def test_circular_mask_is_the_official_one_shifted():
    gate = spectral.gates((0.7,), 1 / 3, 1)[0]
    for size in SIZES:
        ours = torch.fft.fftshift(spectral.circular_mask(*size, 2, gate))
        assert torch.equal(ours, filters.spf_mask(*size, 2, 0.7, 1 / 3))


def test_default_radii_keep_the_few_columns_that_make_spf_cheap():
    """At r = 1 and 2 the correction has 1 + 4 and 9 + 4 frequencies; all others are 1 - λ."""
    gate = spectral.gates((0.7,), 1 / 3, 1)[0]
    for radius, bins in ((1, 5), (2, 13)):
        mask = spectral.circular_mask(14, 14, radius, gate)
        assert (mask != gate.high).sum() == bins
        assert not spectral.spf_uses_fft("auto", 56, 56, radius)
    assert spectral.spf_uses_fft("auto", 56, 56, 28)


@pytest.mark.parametrize("impl", ["real", "rfft", "auto"])
@pytest.mark.parametrize("size", SIZES)
def test_srf_equals_the_equation_and_its_gradients(size, impl):
    g = torch.Generator().manual_seed(0)
    shape = (2, 3, *size)
    x = torch.randn(shape, generator=g, dtype=torch.float64).requires_grad_()
    logits = torch.randn(3, size[0], size[1] // 2 + 1, generator=g, dtype=torch.float64)
    logits.requires_grad_()
    fast = spectral.srf(x, spectral.srf_gain(torch.sigmoid(logits), x.shape[-1], impl))
    slow = filters.srf(x, logits)
    assert torch.allclose(fast, slow, atol=1e-10, rtol=0)
    cotangent = torch.linspace(-1, 1, slow.numel(), dtype=slow.dtype).view_as(slow)
    for a, b in zip(
        torch.autograd.grad(fast, (x, logits), cotangent),
        torch.autograd.grad(slow, (x, logits), cotangent),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("size", [(56, 56), (14, 14), (7, 7), (25, 38)])
def test_srf_in_float32_is_exact_to_1e_5(size):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, *size, generator=g)
    logits = torch.randn(8, size[0], size[1] // 2 + 1, generator=g)
    slow = filters.srf(x.double(), logits.double())
    for impl in ("real", "rfft"):
        fast = spectral.srf(x, spectral.srf_gain(torch.sigmoid(logits), x.shape[-1], impl))
        assert (fast - slow).norm() <= 1e-5 * slow.norm()


def test_constant_gain_scales_and_all_pass_is_identity():
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    half = torch.full((3, 6, 3), 0.5, dtype=torch.float64)
    for impl in ("real", "rfft"):
        gain = spectral.srf_gain(half, x.shape[-1], impl)
        assert torch.allclose(spectral.srf(x, gain), x / 2, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 8, 9])
def test_real_basis_is_orthonormal_and_complete(n):
    for top in range(n // 2 + 1):
        basis = spectral.real_basis(n, top, torch.float64, torch.device("cpu"))
        k = basis.matrix.shape[1]
        assert torch.allclose(basis.matrix.T @ basis.matrix, torch.eye(k, dtype=torch.float64))
        assert max(basis.frequencies) == top
    assert k == n


@pytest.mark.parametrize(("kind", "margin"), [("noise", 1.1), ("smooth", 1.0)])
def test_bfloat16_autocast_is_no_worse_than_through_the_fft(kind, margin):
    """Smooth features, as images give, are better; white noise is the same within its spread."""
    x, weight, bias = spf_case((28, 28), torch.float32, channels=48, out=48)
    if kind == "smooth":
        x = 10 * torch.nn.functional.avg_pool2d(x, 15, 1, 7)
    half = x.detach().bfloat16()
    truth = literal_spf_conv(half.double(), weight.double(), bias.double(), 2, 1 / 3)
    gates = spectral.gates(BALANCE, 1 / 3, 48)
    error = {}
    with torch.autocast("cpu", torch.bfloat16):
        for impl in ("real", "rfft"):
            got = spectral.spf_conv1x1(half, weight, bias, 2, gates, impl)
            assert got.dtype == torch.bfloat16
            error[impl] = (got.double() - truth).norm() / truth.norm()
        biases = (bias / len(gates)).expand(len(gates), -1)
        got = spectral_literal.spf_context(half, weight, biases, 2, gates)
        error["literal"] = (got.double() - truth).norm() / truth.norm()
    assert error["real"] <= margin * error["rfft"]
    assert error["real"] <= error["literal"], error  # the official code rounds once a gate


def test_bases_made_in_inference_mode_serve_training_later():
    size = (2, 3, 11, 13)  # a size that no other test uses: nothing is cached yet
    gates = spectral.gates((0.7,), None, 3)
    weight, bias = torch.randn(3, 3, 1, 1, requires_grad=True), torch.zeros(3)
    with torch.inference_mode():
        spectral.spf_conv1x1(torch.randn(size), weight, bias, 1, gates)
    x = torch.randn(size, requires_grad=True)
    spectral.spf_conv1x1(x, weight, bias, 1, gates).sum().backward()
    assert x.grad is not None


def test_gate_sizes_are_those_of_torch_chunk():
    for channels in range(3, 70):
        chunks = torch.zeros(channels).chunk(3)
        assert spectral.gate_sizes(channels, 3) == [len(c) for c in chunks]
