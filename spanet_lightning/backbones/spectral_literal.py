"""Both filters as the official code computes them, for comparison: `spectral_impl: fft`.

Full complex spectra with shifts for the SPF, one real FFT a head in a loop for the SRF. The same
functions as in `spectral`, slower; benchmarks measure the others against them. What is around the
filters is as literal: `Literal…` in `layers` and `spanetv2`, and the memory layout of `Backbone`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from spanet_lightning.backbones.spectral import Gate, at_least_float32, circular_mask, no_autocast


def spf_context(
    q: Float[Tensor, "b c h w"],
    weight: Float[Tensor, "d c 1 1"],
    biases: Float[Tensor, "g d"],
    radius: float,
    gates: tuple[Gate, ...],
    *,
    product: bool = False,
) -> Float[Tensor, "b d h w"]:
    """Filter each gate's chunk and add up their 1×1 convolutions (arXiv:2308.11568, Eq. 17, 19).

    The shifts run over all dimensions, batch and channels included, as in the official code; the
    shift back undoes them.

    Args:
        q: Local features.
        weight: The gates' 1×1 convolutions side by side.
        biases: One bias a gate.
        radius: Radius of the SPF, in cycles per side.
        gates: The weights of the channels of `q`, in their order.
        product: Multiply what the gates return instead (Table 5).
    """
    height, width = q.shape[-2:]
    sizes = [gate.channels for gate in gates]
    filtered = []
    for chunk, gate in zip(torch.split(q.clone(), sizes, 1), gates, strict=True):
        wide = at_least_float32(chunk)
        mask = circular_mask(height, width, radius, gate, wide.dtype, q.device)
        with no_autocast(q.device):
            spectrum = torch.fft.fftshift(torch.fft.fft2(wide, norm="ortho"))
            spectrum = spectrum * torch.fft.fftshift(mask)
            wide = torch.fft.ifft2(torch.fft.ifftshift(spectrum), norm="ortho").real
        filtered.append(wide.to(chunk.dtype))
    columns = torch.split(weight, sizes, 1)
    contexts = map(F.conv2d, filtered, columns, biases)
    return functools.reduce(torch.mul if product else torch.add, contexts)


def srf_interleaved(
    heads: Sequence[Float[Tensor, "b g h w"]], gains: Sequence[Float[Tensor, "g h f"]]
) -> Float[Tensor, "b c h w"]:
    """Filter head after head, writing each to every n-th channel of n heads (arXiv:2503.23947)."""
    batch, size, height, width = heads[0].shape
    out = heads[0].new_zeros(batch, size, len(heads), height, width)
    for i, (head, gain) in enumerate(zip(heads, gains, strict=True)):
        wide = at_least_float32(head)
        with no_autocast(head.device):
            spectrum = torch.fft.rfft2(wide, norm="ortho") * gain
            filtered = torch.fft.irfft2(spectrum, s=(height, width), norm="ortho")
        out[:, :, i] = filtered.to(head.dtype)
    return out.view(batch, size * len(heads), height, width)
