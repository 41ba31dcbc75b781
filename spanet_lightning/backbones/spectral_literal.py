"""Both filters as the official code computes them, for comparison: `spectral_impl: fft`.

Full complex spectra with shifts for the SPF, one real FFT a head in a loop for the SRF. The same
functions as in `spectral`, slower; benchmarks measure the others against them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from spanet_lightning.backbones.spectral import Gate, at_least_float32, circular_mask, no_autocast


def spf_conv1x1(
    x: Float[Tensor, "b c h w"],
    weight: Float[Tensor, "d c 1 1"],
    bias: Float[Tensor, " d"],
    radius: float,
    gates: tuple[Gate, ...],
) -> Float[Tensor, "b d h w"]:
    """Filter each gate's chunk and add up their 1×1 convolutions (arXiv:2308.11568).

    The shifts run over all dimensions, batch and channels included, as in the official code; the
    shift back undoes them.
    """
    sizes = [gate.channels for gate in gates]
    out = bias.view(-1, 1, 1)
    chunks = zip(torch.split(x, sizes, 1), torch.split(weight, sizes, 1), gates, strict=True)
    for chunk, columns, gate in chunks:
        wide = at_least_float32(chunk)
        mask = circular_mask(x.shape[2], x.shape[3], radius, gate, wide.dtype, x.device)
        with no_autocast(x.device):
            spectrum = torch.fft.fftshift(torch.fft.fft2(wide, norm="ortho"))
            spectrum = spectrum * torch.fft.fftshift(mask)
            filtered = torch.fft.ifft2(torch.fft.ifftshift(spectrum), norm="ortho").real
        out = out + F.conv2d(filtered.to(x.dtype), columns)
    return out


def srf_interleaved(
    heads: Sequence[Float[Tensor, "b g h w"]], gain: Float[Tensor, "c h f"]
) -> Float[Tensor, "b c h w"]:
    """Filter head after head, writing each to every n-th channel of n heads (arXiv:2503.23947)."""
    batch, size, height, width = heads[0].shape
    out = heads[0].new_zeros(batch, size, len(heads), height, width)
    for i, (head, gains) in enumerate(zip(heads, torch.split(gain, size), strict=True)):
        wide = at_least_float32(head)
        with no_autocast(head.device):
            spectrum = torch.fft.rfft2(wide, norm="ortho") * gains
            filtered = torch.fft.irfft2(spectrum, s=(height, width), norm="ortho")
        out[:, :, i] = filtered.to(head.dtype)
    return out.view(batch, size * len(heads), height, width)
