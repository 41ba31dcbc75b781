r"""The spectral filters of both papers: SPF (arXiv:2308.11568) and SRF (arXiv:2503.23947).

A `SpectralFilter` multiplies the spectrum of every channel by a real gain and states that gain:
`gain(height, width)`. Exports, costs, figures and analyses ask for it, so that a new filter is one
subclass with one method.

Shape letters: B batch, C channels, H×W pixels of the stage, F = W // 2 + 1 bins of a real FFT, K, L
numbers of basis functions along H and W. Frequencies are in cycles per image side.

**Why the SPF needs no FFT.** Its mask is 1 - λ but for the few frequencies within the radius r. It
depends on |u| and |v| alone, so it is diagonal in a real basis of cosines and sines, separable in H
and W (the waves (±u, ±v) span the same space as the four products of cos and sin). Hence

    SPF(x) = (1 - λ)·x + A_H (D ⊙ (A_Hᵀ x A_W)) A_Wᵀ,      D = mask - (1 - λ),

with A of only 2·⌊r⌋ + 1 orthonormal columns: thin matrix products instead of two transforms.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

_MAX_BASIS = 17  # columns from which an FFT is faster than products with the basis


class SpectralFilter(nn.Module):
    """Base of the filters: `irfft2(rfft2(x) · gain)`, all channels at once, in float32 at least."""

    def gain(self, height: int, width: int) -> Float[Tensor, "c {height} {width}//2+1"]:
        """Return what the spectrum is multiplied by, in the layout of a real FFT, DC at [0, 0].

        Args:
            height: Rows H of the features, in pixels.
            width: Columns W of the features, in pixels.
        """
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return `x` filtered, same shape and dtype."""
        size = x.shape[-2:]
        with no_autocast(x.device):
            wide = at_least_float32(x)
            spectrum = torch.fft.rfft2(wide, norm="ortho") * self.gain(*size).to(wide)
            filtered: Tensor = torch.fft.irfft2(spectrum, s=size, norm="ortho")
        return filtered.to(x.dtype)


class SpectralPooling(SpectralFilter):
    """SPF: λ_b inside a circle, 1 - λ_b outside, for the channels of gate b (Eq. 16-18).

    Args:
        channels: Number of channels C, split over the gates as by `torch.chunk`.
        radius: Radius r of the circle, in cycles per side.
        balance: λ_b of each gate.
        ring: Weight exactly on the circle: 1/3 in the official code; `None` counts the circle as
            outside, as the paper's equation does.
    """

    def __init__(
        self, channels: int, radius: float, balance: Sequence[float], ring: float | None
    ) -> None:
        super().__init__()
        self.channels = channels
        self.radius = radius
        self.balance = tuple(balance)
        self.ring = ring

    def gain(self, height: int, width: int) -> Float[Tensor, "c {height} {width}//2+1"]:
        """Return the mask of each channel's gate."""
        u = torch.fft.fftfreq(height, 1 / height, dtype=torch.float64).round()
        v = torch.fft.rfftfreq(width, 1 / width, dtype=torch.float64).round()
        return self._mask(u, v)[0]

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return `x` filtered, same shape and dtype: see the module's docstring."""
        batch, channels, height, width = x.shape
        top = math.floor(self.radius)
        if min(2 * top + 1, max(height, width)) > _MAX_BASIS:
            return super().forward(x)
        with no_autocast(x.device):
            wide = at_least_float32(x).permute(0, 2, 3, 1)
            rows, u = real_basis(height, top, wide)
            columns, v = real_basis(width, top, wide)
            mask, high = self._mask(u, v)
            deviation = (mask - high).permute(1, 2, 0).to(wide.dtype)
            # With channels last in memory, (B, H, W·C) is a view, and the products are plain.
            low = torch.matmul(rows.t(), wide.reshape(batch, height, width * channels))
            low = torch.matmul(columns.t(), low.view(batch, -1, width, channels)) * deviation
            low = torch.matmul(columns, low).view(batch, -1, width * channels)
            rest = (wide * high.flatten().to(wide.dtype)).reshape(batch, height, width * channels)
            filtered = torch.baddbmm(rest, rows.expand(batch, -1, -1), low)
        return filtered.view(batch, height, width, channels).permute(0, 3, 1, 2).to(x.dtype)

    def _mask(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return each channel's weight at frequencies (u, v), and that outside the circle."""
        # Computed in float32 as in the official code, where 1 - 0.7 is not 0.3.
        like = u.float()
        sizes = chunk_sizes(self.channels, len(self.balance))
        parts = [like.new_full((n,), b) for n, b in zip(sizes, self.balance, strict=True)]
        low = torch.cat(parts).view(-1, 1, 1)
        high = 1 - low
        circle = high if self.ring is None else torch.full_like(low, self.ring)
        squared = u.square()[:, None] + v.square()
        mask = torch.where(squared < self.radius**2, low, high)
        mask = torch.where(squared == self.radius**2, circle, mask)
        return mask.to(u.dtype), high.to(u.dtype)

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"radius={self.radius}, balance={self.balance}, ring={self.ring}"


class SpectralRescaling(SpectralFilter):
    """SRF: the gain is the sigmoid of a learned logit for each channel and frequency.

    Args:
        channels: Number of channels C.
        heads: Number of heads; each has its own tensor of logits, as in the official interleaved
            code, so that an optimizer with a trust ratio per tensor (LAMB) treats them alike.
        size: Height and width, in pixels of this stage, at which logits are stored. Features of
            another size resize them on the way (`resize_logits`).
    """

    def __init__(self, channels: int, heads: int, size: tuple[int, int]) -> None:
        super().__init__()
        shape = (channels // heads, size[0], size[1] // 2 + 1)
        self.logits = nn.ParameterList(torch.randn(shape) * 0.02 for _ in range(heads))

    def gain(self, height: int, width: int) -> Float[Tensor, "c {height} {width}//2+1"]:
        """Return the gains of all channels, head after head."""
        return torch.sigmoid(resize_logits(torch.cat(list(self.logits)), height, width // 2 + 1))


class ScaledSpectralRescaling(SpectralRescaling):
    """SRF with the gain sigmoid(α·θ), α a learned scalar: the official README's "scaled sigmoid".

    Args:
        channels: As in `SpectralRescaling`.
        heads: As there.
        size: As there.
    """

    def __init__(self, channels: int, heads: int, size: tuple[int, int]) -> None:
        super().__init__(channels, heads, size)
        self.alpha = nn.Parameter(torch.ones(1))

    def gain(self, height: int, width: int) -> Float[Tensor, "c {height} {width}//2+1"]:
        """Return the gains of all channels, head after head."""
        logits = resize_logits(torch.cat(list(self.logits)), height, width // 2 + 1)
        return torch.sigmoid(self.alpha * logits)


SrfGate = Literal["sigmoid", "scaled_sigmoid"]
SRF_GATES: dict[str, type[SpectralFilter]] = dict(
    zip(get_args(SrfGate), (SpectralRescaling, ScaledSpectralRescaling), strict=True)
)
"""`srf_gate` → filter, called with (channels, heads, (height, width) of the stage)."""


def chunk_sizes(channels: int, number: int) -> list[int]:
    """Return the sizes of `torch.chunk(x, number, dim=1)`: the last ones may be smaller."""
    size = math.ceil(channels / number)
    return [min(size, channels - start) for start in range(0, channels, size)]


def real_basis(
    n: int, max_frequency: int, like: Tensor
) -> tuple[Float[Tensor, "n k"], Float[Tensor, " k"]]:
    """Return orthonormal real Fourier functions on n points, and their frequencies.

    Args:
        n: Number of points.
        max_frequency: Highest frequency; n // 2 or more gives the complete basis, K = n.
        like: Whose dtype and device the basis has; it is computed in float64.

    Returns:
        Columns 1/√n, √(2/n)·cos for 1..m, √(2/n)·sin for 1..m, and (-1)^i/√n where frequency n/2 is
        included; and the frequency of each column, in cycles per side, in float64.
    """
    top = min(max_frequency, n // 2)
    pairs = min(top, (n - 1) // 2)  # frequencies that have both a cosine and a sine
    i = torch.arange(n, dtype=torch.float64, device=like.device)[:, None]
    u = torch.arange(top + 1, dtype=torch.float64, device=like.device)
    # The product is reduced modulo n first: the phase is exact, whatever the frequency.
    phase = (i * u).remainder(n) * (2 * math.pi / n)
    wave = phase.cos()
    parts = [wave[:, : pairs + 1], phase[:, 1 : pairs + 1].sin(), wave[:, pairs + 1 :]]
    frequencies = torch.cat([u[: pairs + 1], u[1 : pairs + 1], u[pairs + 1 :]])
    alone = (frequencies == 0) | (2 * frequencies == n)
    norm = ((2 - alone.to(u.dtype)) / n).sqrt()
    return (torch.cat(parts, 1) * norm).to(like.dtype), frequencies


def resize_logits(
    logits: Float[Tensor, "c s t"], height: int, bins: int
) -> Float[Tensor, "c {height} {bins}"]:
    """Resize SRF logits bicubically (align_corners) to H × F bins, as the official code does.

    The interpolation runs in the layout of the real FFT, unshifted, so that it blends the highest
    positive with the most negative row frequency: the official behaviour, on which released weights
    depend.
    """
    if logits.shape[-2:] == (height, bins):
        return logits
    resized: Tensor = F.interpolate(
        logits.unsqueeze(0), size=(height, bins), mode="bicubic", align_corners=True
    )
    return resized.squeeze(0)


def full_gain(half: Float[Tensor, "c h f"], width: int) -> Float[Tensor, "c h {width}"]:
    """Return a gain in the layout of a real FFT as that of the whole spectrum, DC in the centre.

    In the columns 0 and W/2 a real FFT stores both frequencies of a conjugate pair, and its inverse
    keeps their mean: so they are averaged.

    Args:
        half: A gain, as `SpectralFilter.gain` returns it.
        width: Columns W of the features, in pixels.
    """
    height = half.shape[1]
    mirrored_rows = (-torch.arange(height, device=half.device)) % height
    alone = [0, width // 2] if width % 2 == 0 else [0]
    half = half.clone()
    half[:, :, alone] = (half[:, :, alone] + half[:, mirrored_rows][:, :, alone]) / 2
    columns = width - torch.arange(half.shape[2], width, device=half.device)
    full = torch.cat([half, half[:, mirrored_rows][:, :, columns]], dim=2)
    return full.roll((height // 2, width // 2), (1, 2))


def no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Leave autocast where it is on. Where it is off nothing is entered, so nothing is exported."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def at_least_float32(x: Tensor) -> Tensor:
    """Widen half precision, in which an FFT is neither exact nor available for all sizes."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
