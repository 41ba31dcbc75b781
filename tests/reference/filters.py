"""The papers' spectral filters, written down literally: full complex spectra, masks, loops.

Slow on purpose, and independent of the package: nothing here is imported from it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def spf_mask(height: int, width: int, radius: float, balance: float, ring: float | None) -> Tensor:
    """Mask centred at (H//2, W//2): λ inside, 1 - λ outside, `ring` on the circle."""
    low = torch.tensor(balance, dtype=torch.float32)
    mask = torch.empty(height, width)
    for i in range(height):
        for j in range(width):
            squared = (i - height // 2) ** 2 + (j - width // 2) ** 2
            if squared < radius**2:
                mask[i, j] = low
            elif squared == radius**2 and ring is not None:
                mask[i, j] = ring
            else:
                mask[i, j] = 1 - low
    return mask


def spf(x: Tensor, radius: float, balance: float, ring: float | None = 1 / 3) -> Tensor:
    """SPF of x (B, C, H, W): complex FFT, shift, mask, shift back, inverse, real part."""
    mask = spf_mask(x.shape[2], x.shape[3], radius, balance, ring).to(x.dtype)
    spectrum = torch.fft.fftshift(torch.fft.fft2(x, norm="ortho"), dim=(2, 3)) * mask
    return torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(2, 3)), norm="ortho").real


def srf(x: Tensor, logits: Tensor, alpha: float = 1.0) -> Tensor:
    """SRF of x (B, C, H, W) by logits (C, H, W//2+1), one channel at a time."""
    out = torch.empty_like(x)
    for channel in range(x.shape[1]):
        spectrum = torch.fft.rfft2(x[:, channel], norm="ortho")
        spectrum = spectrum * torch.sigmoid(alpha * logits[channel])
        out[:, channel] = torch.fft.irfft2(spectrum, s=x.shape[2:], norm="ortho")
    return out
