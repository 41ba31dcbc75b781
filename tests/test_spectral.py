"""If one of these fails, a spectral filter no longer computes the paper's equation."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from spanet_lightning.backbones.spectral import (
    SRF_GATES,
    SpectralFilter,
    SpectralPooling,
    SpectralRescaling,
    chunk_sizes,
    full_gain,
    real_basis,
)
from tests.reference import filters

SIZES = [(1, 1), (2, 2), (7, 7), (8, 8), (9, 6), (5, 16), (3, 1), (20, 25)]
BALANCE = (0.7, 0.8, 0.9)


def noise(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def spf_reference(x, radius, ring):
    parts = [filters.spf(c, radius, b, ring) for c, b in zip(x.chunk(3, 1), BALANCE, strict=True)]
    return torch.cat(parts, 1)


def assert_same_function(ours, reference, x, *parameters):
    """Outputs and all gradients agree."""
    x.requires_grad_()
    a, b = ours(x), reference(x)
    torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)
    cotangent = torch.linspace(-1, 1, b.numel(), dtype=b.dtype).view_as(b)
    inputs = (x, *parameters)
    gradients = (torch.autograd.grad(y, inputs, cotangent) for y in (a, b))
    for i, j in zip(*gradients, strict=True):
        torch.testing.assert_close(i, j, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("ring", [1 / 3, None])
@pytest.mark.parametrize("size", SIZES)
def test_spf_is_the_equation_at_every_size_and_radius(size, ring):
    for radius in sorted({0, 1, 1.5, 2, 5, 9, max(size) // 2, max(size)}):
        spf = SpectralPooling(8, radius, BALANCE, ring)
        assert_same_function(spf, lambda x, r=radius: spf_reference(x, r, ring), noise(2, 8, *size))


@pytest.mark.parametrize("gate", SRF_GATES)
@pytest.mark.parametrize("size", SIZES)
def test_srf_is_the_equation(size, gate):
    srf = SRF_GATES[gate](4, 2, size).double()
    for p in srf.parameters():
        p.data += noise(*p.shape)
    alpha = srf.alpha if gate == "scaled_sigmoid" else 1.0
    x = noise(2, 4, *size)
    assert_same_function(
        srf, lambda x: filters.srf(x, torch.cat(list(srf.logits)), alpha), x, *srf.parameters()
    )


def test_srf_resizes_its_logits_as_the_official_code():
    srf = SpectralRescaling(4, 2, (8, 8)).double()
    logits = F.interpolate(
        torch.cat(list(srf.logits))[None], (6, 6), mode="bicubic", align_corners=True
    )
    assert torch.equal(srf.gain(6, 10), logits[0].sigmoid())
    assert torch.equal(srf.gain(8, 8), torch.cat(list(srf.logits)).sigmoid())


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (6, 5)])
@pytest.mark.parametrize(
    "build",
    [
        lambda size: SpectralPooling(3, 2, BALANCE, 1 / 3),
        lambda size: SpectralRescaling(3, 3, size),
    ],
    ids=["spf", "srf"],
)
def test_the_stated_gain_is_what_each_wave_is_multiplied_by(size, build):
    """A wave of frequency (u, v), of any phase, comes out times `full_gain` at (u, v)."""
    height, width = size
    module = build(size).double()
    gain = torch.fft.ifftshift(full_gain(module.gain(height, width).double(), width), dim=(1, 2))
    rows = torch.arange(height, dtype=torch.float64)[:, None]
    columns = torch.arange(width, dtype=torch.float64)
    for u in range(height):
        for v in range(width):
            mirror = gain[:, -u % height, -v % width]
            torch.testing.assert_close(gain[:, u, v], mirror)  # so that real stays real
            wave = (2 * math.pi * (u * rows / height + v * columns / width) + 0.3).cos()
            x = wave.expand(1, 3, -1, -1)
            expected = gain[:, u, v].view(1, 3, 1, 1) * x
            with torch.no_grad():
                torch.testing.assert_close(module(x), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("n", [1, 2, 3, 8, 9])
def test_real_basis_is_orthonormal_and_complete(n):
    for top in range(n // 2 + 1):
        basis, frequencies = real_basis(n, top, torch.zeros((), dtype=torch.float64))
        k = basis.shape[1]
        torch.testing.assert_close(basis.T @ basis, torch.eye(k, dtype=torch.float64))
        assert max(frequencies) == top
    assert k == n


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(56, 56), (7, 7), (25, 38)])
def test_filters_work_in_float32_whatever_autocast_says(size, dtype):
    x = noise(2, 24, *size).to(dtype)
    srf = SpectralRescaling(24, 4, size)
    tolerance = 1e-5 if dtype == torch.float32 else 4e-3  # one rounding of the result
    for module in (
        SpectralPooling(24, 2, BALANCE, 1 / 3),
        SpectralPooling(24, 20, BALANCE, None),
        srf,
    ):
        exact = SpectralFilter.forward(module.double(), x.double())
        module.float()
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            y = module(x)
        assert y.dtype == dtype
        assert (y.double() - exact).norm() <= tolerance * exact.norm()


def test_chunk_sizes_are_those_of_torch_chunk():
    for channels in range(3, 70):
        assert chunk_sizes(channels, 3) == [len(c) for c in torch.zeros(channels).chunk(3)]
