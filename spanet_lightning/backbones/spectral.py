r"""The spectral operators of both papers, exactly, with and without an FFT.

Shape letters: B batch, C channels, H×W pixels of the stage, F = W // 2 + 1 bins of a real FFT,
K, L numbers of real basis functions along H and W. Frequencies are in cycles per image side.

**Spectral pooling filter (SPF; arXiv:2308.11568).** The centred spectrum is multiplied by
λ inside the circle of radius r, 1 - λ outside, and, in the official code, 1/3 on the circle itself.

**Spectral re-scaling filter (SRF; arXiv:2503.23947).** The half spectrum of a real FFT is
multiplied by sigmoid(θ) with one learned logit per channel and bin.

**Why neither needs an FFT.** Both masks are real, so both filters are real linear maps, and can be
written in a real orthonormal basis of sines and cosines that is separable in H and W (`RealBasis`).
With s = cos, sin of frequency u along H and t = cos, sin of frequency v along W, the products s·t
of one pair (u, v) span the same four-dimensional space as the complex waves (±u, ±v).

- A mask that depends on |u| and |v| alone is constant on that space, hence *diagonal* in the basis.
  The SPF's does, at every size, even or odd: on an even side the lone frequency -n/2 is its own
  mirror image. Its mask is 1 - λ but for the few bins within the radius, so that

      SPF(x) = (1 - λ)·x + A_H (D ⊙ (A_Hᵀ x A_W)) A_Wᵀ,      D = mask - (1 - λ),

  with A of only 2·⌊r⌋ + 1 columns: two thin matrix products instead of two Fourier transforms.
- A mask g(u, v) with g(u, v) ≠ g(-u, v), such as the SRF's, splits into an even part
  (g(u, v) + g(-u, v))/2, diagonal again, and an odd part (g(u, v) - g(-u, v))/2, which swaps cosine
  with sine along *both* axes (`split_gain`). In the columns v = 0 and v = W/2, where a real FFT
  stores both halves of a conjugate pair, only the even part survives the inverse transform.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

SpectralImpl = Literal["auto", "fft", "rfft", "real"]
"""How a spectral operator is computed; the function is the same.

"real": products with real bases. "rfft": one real FFT over all channels. "auto": the faster of the
two. "fft": the whole network as the official code computes it, with the filters of
`spectral_literal`, to measure the others against.
"""

P = ParamSpec("P")
T = TypeVar("T")

# Where "auto" changes from the real basis to the FFT. The basis costs 2·(H + W) multiplications per
# value for the SRF, the FFT about 5·log2(H·W) and several passes over memory.
_SRF_REAL_MAX_SIDE = 32
_SPF_REAL_MAX_COLUMNS = 17


def _constant(build: Callable[P, T]) -> Callable[P, T]:
    """Cache what `build` returns, except where the tensors would not be ordinary ones.

    While torch traces (compile, export) the operations of `build` must appear in the graph. A
    tensor made in inference mode can't be saved for a later backward pass, so it is made outside
    of it.
    """
    cached = functools.lru_cache(maxsize=256)(build)

    @functools.wraps(build)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
            return build(*args, **kwargs)
        with torch.inference_mode(False):
            return cached(*args, **kwargs)  # type: ignore[arg-type]

    return wrapper


class RealBasis(NamedTuple):
    """Real Fourier functions on n points: the columns of `matrix` are orthonormal.

    Attributes:
        matrix: (n, K); 1/√n, then √(2/n)·cos for 1..m, √(2/n)·sin for 1..m, and, where frequency
            n/2 is included, (-1)^i/√n.
        frequencies: The K frequencies, in cycles per side.
    """

    matrix: Float[Tensor, "n k"]
    frequencies: tuple[int, ...]


@_constant
def real_basis(n: int, max_frequency: int, dtype: torch.dtype, device: torch.device) -> RealBasis:
    """Build the real Fourier basis of n points up to `max_frequency` (at most n // 2).

    With `max_frequency = n // 2` it is complete: K = n, and the matrix is orthogonal.
    """
    top = min(max_frequency, n // 2)
    pairs = min(top, (n - 1) // 2)  # frequencies that have both a cosine and a sine
    i = torch.arange(n, dtype=torch.float64, device=device)
    u = torch.arange(1, pairs + 1, dtype=torch.float64, device=device)
    # The product is reduced modulo n first: the phase is exact, whatever the frequency.
    phase = torch.outer(i, u).remainder(n) * (2 * math.pi / n)
    columns = [i.new_full((n, 1), n**-0.5), phase.cos() * (2 / n) ** 0.5]
    columns.append(phase.sin() * (2 / n) ** 0.5)
    frequencies = [0, *range(1, pairs + 1), *range(1, pairs + 1)]
    if top > pairs:
        columns.append(((1 - 2 * i.remainder(2)) * n**-0.5).unsqueeze(1))
        frequencies.append(top)
    return RealBasis(torch.cat(columns, dim=1).to(dtype), tuple(frequencies))


def signed_frequencies(n: int) -> list[int]:
    """Return the frequency of each bin of an FFT of length n: 0, 1, …, then the negative ones."""
    return [k - n if k >= (n + 1) // 2 else k for k in range(n)]


class Gate(NamedTuple):
    """The SPF's weights for some channels, rounded to float32 as in the official code.

    Attributes:
        low: λ_b, inside the circle.
        circle: At distance exactly r.
        high: 1 - λ_b, outside. The official code computes it in float32, so it is not 0.3 for 0.7.
        channels: Number of channels that the gate filters.
    """

    low: float
    circle: float
    high: float
    channels: int

    def at(self, squared_distance: int, radius: float) -> float:
        """Return the weight at a squared distance from the zero frequency."""
        if squared_distance == radius**2:
            return self.circle
        return self.low if squared_distance < radius**2 else self.high


def gates(balance: Sequence[float], ring: float | None, channels: int) -> tuple[Gate, ...]:
    """Split channels into gates, one for each λ_b, of the sizes that `torch.chunk` gives.

    Args:
        balance: λ_b of each gate.
        ring: The weight on the circle itself: 1/3 in the official code; `None` counts the circle as
            outside, as the paper's equation does.
        channels: Number of channels C.
    """
    low = torch.tensor(list(balance), dtype=torch.float32, device="cpu")
    high = 1 - low
    circle = high if ring is None else torch.full_like(low, ring)
    values = zip(low.tolist(), circle.tolist(), high.tolist(), strict=True)
    sizes = gate_sizes(channels, len(balance))
    return tuple(Gate(*weights, size) for weights, size in zip(values, sizes, strict=True))


def gate_sizes(channels: int, number: int) -> list[int]:
    """Sizes of `torch.chunk(x, number, dim=1)`, which differ where `number` does not divide."""
    size = math.ceil(channels / number)
    return [min(size, channels - start) for start in range(0, channels, size)]


@_constant
def circular_mask(
    height: int,
    width: int,
    radius: float,
    gate: Gate,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Float[Tensor, "h w"]:
    """Build the SPF's mask in FFT layout, zero frequency at [0, 0] (arXiv:2308.11568).

    Args:
        height: Rows of the spectrum.
        width: Columns of the full (not half) spectrum.
        radius: Radius r of the circle, in cycles per side.
        gate: The weights inside, on and outside the circle.
        dtype: Type of the mask.
        device: Device of the mask.
    """
    v_all = signed_frequencies(width)
    rows = [[gate.at(u * u + v * v, radius) for v in v_all] for u in signed_frequencies(height)]
    return torch.tensor(rows, dtype=dtype, device=device)


class LowBand(NamedTuple):
    """The SPF as `high`·x plus a correction of few frequencies: see the module's docstring.

    Attributes:
        rows: (H, K) basis along the height.
        columns: (W, L) basis along the width.
        deviation: (K, L, C) D = mask - (1 - λ) for each channel.
        high: (C,) 1 - λ for each channel.
    """

    rows: Float[Tensor, "h k"]
    columns: Float[Tensor, "w l"]
    deviation: Float[Tensor, "k l c"]
    high: Float[Tensor, " c"]


@_constant
def low_band(
    height: int,
    width: int,
    radius: float,
    gates: tuple[Gate, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> LowBand:
    """Build the SPF of channels that fall into `gates`, in their order."""
    top = math.floor(radius)
    rows = real_basis(height, top, dtype, device)
    columns = real_basis(width, top, dtype, device)
    deviation, high = [], []
    for gate in gates:
        inside = [
            [gate.at(u * u + v * v, radius) - gate.high for v in columns.frequencies]
            for u in rows.frequencies
        ]
        one = torch.tensor(inside, dtype=dtype, device=device)
        deviation.append(one.unsqueeze(-1).expand(-1, -1, gate.channels))
        high.append(torch.full((gate.channels,), gate.high, dtype=dtype, device=device))
    return LowBand(rows.matrix, columns.matrix, torch.cat(deviation, -1), torch.cat(high))


def spf_uses_fft(impl: SpectralImpl, height: int, width: int, radius: float) -> bool:
    """Tell whether the SPF of this size and radius goes through an FFT under `impl`."""
    if impl == "auto":
        return min(2 * math.floor(radius) + 1, max(height, width)) > _SPF_REAL_MAX_COLUMNS
    return impl != "real"


def spf_rfft(
    x: Float[Tensor, "b c h w"],
    radius: float,
    gates: tuple[Gate, ...],
) -> Float[Tensor, "b c h w"]:
    """Filter by the real FFT: `irfft2(rfft2(x)·mask)`, in float32 at least."""
    height, width = x.shape[-2:]
    wide = at_least_float32(x)
    masks = [
        circular_mask(height, width, radius, gate, wide.dtype, x.device)[
            :, : width // 2 + 1
        ].expand(gate.channels, -1, -1)
        for gate in gates
    ]
    with no_autocast(x.device):
        spectrum = torch.fft.rfft2(wide, norm="ortho") * torch.cat(masks)
        filtered: Tensor = torch.fft.irfft2(spectrum, s=(height, width), norm="ortho")
    return filtered.to(x.dtype)


def spf_conv1x1(
    x: Float[Tensor, "b c h w"],
    weight: Float[Tensor, "d c 1 1"],
    bias: Float[Tensor, " d"],
    radius: float,
    gates: tuple[Gate, ...],
    impl: SpectralImpl = "auto",
) -> Float[Tensor, "b d h w"]:
    """Filter, then mix channels: `conv1x1(SPF(x))`, without building SPF(x).

    The 1×1 convolution acts on channels and the basis on pixels, so they commute:
    W·SPF(x) = (W·diag(1 - λ))·x + A_H (W·(D ⊙ (A_Hᵀ x A_W))) A_Wᵀ. The first term is one 1×1
    convolution, the second works on K·L values a channel.

    Args:
        x: Features; `channels_last` memory is the fast layout.
        weight: The 1×1 convolution's weight.
        bias: Its bias.
        radius: Radius of the SPF, in cycles per side.
        gates: The weights of the channels of `x`, in their order.
        impl: See `SpectralImpl`; "fft" is here the same as "rfft", the literal one being
            `spectral_literal.spf_context`.
    """
    batch, channels, height, width = x.shape
    if spf_uses_fft(impl, height, width, radius):
        return F.conv2d(spf_rfft(x, radius, gates), weight, bias)
    band = low_band(height, width, radius, gates, at_least_float32(weight).dtype, x.device)
    out = F.conv2d(x, (weight * band.high.view(1, -1, 1, 1)).to(weight.dtype), bias)

    # Pixels first: with channels last, (B, H, W·C) is a view, and both large products are plain.
    x_BHWC = x.permute(0, 2, 3, 1)
    rows = _split(band.rows, out.dtype)
    low = torch.matmul(
        torch.cat(rows, 1).t(), x_BHWC.reshape(batch, height, width * channels).to(out.dtype)
    )
    # What is left is small: K·W values a channel. It is cheap to keep the products in float32.
    with no_autocast(x.device):
        low = low.to(band.rows.dtype).view(batch, len(rows), -1, width, channels).sum(1)
        low = torch.matmul(band.columns.t(), low) * band.deviation
        low = torch.matmul(low, weight.view(weight.shape[0], channels).t().to(low.dtype))
        low = torch.matmul(band.columns, low)
    low_parts = _split(low.view(batch, band.rows.shape[1], -1), out.dtype)
    # (r1 + r2)·(l1 + l2) without the negligible r2·l2, as one product that is added on the way:
    # half precision then rounds no more often than on the FFT's path.
    left = torch.cat([*rows, rows[0]] if len(rows) > 1 else rows, dim=1)
    right = torch.cat([low_parts[0], *low_parts] if len(rows) > 1 else low_parts, dim=1)
    out_BHWD = out.permute(0, 2, 3, 1).reshape(batch, height, -1)
    out_BHWD = out_BHWD.baddbmm_(left.expand(batch, -1, -1), right)
    return out_BHWD.view(batch, height, width, -1).permute(0, 3, 1, 2)


def _split(a: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Return `a` as a sum of one (no rounding) or two tensors of type `dtype`: value and rest."""
    if a.dtype == dtype:
        return [a]
    value = a.to(dtype)
    return [value, (a - value).to(dtype)]


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


def srf_uses_fft(impl: SpectralImpl, height: int, width: int) -> bool:
    """Tell whether the SRF at this size goes through the FFT under `impl`."""
    if impl == "auto":
        # A graph without FFT operators runs where the runtime has none.
        return not torch.compiler.is_exporting() and max(height, width) > _SRF_REAL_MAX_SIDE
    return impl != "real"


class RealGain(NamedTuple):
    """A gain on the complete real basis: see `split_gain`.

    Attributes:
        even: (H, W, C) factor of each coefficient.
        odd: (H, W, C) factor of its partner, cosine and sine exchanged along both axes.
    """

    even: Float[Tensor, "h w c"]
    odd: Float[Tensor, "h w c"]


def srf_gain(
    gain: Float[Tensor, "c h f"], width: int, impl: SpectralImpl = "auto"
) -> Float[Tensor, "c h f"] | RealGain:
    """Bring gains into the form that `srf` applies: as they are for an FFT, split for the basis.

    Args:
        gain: Real gains in the layout of a real FFT: H rows unshifted, F = W // 2 + 1 columns.
        width: Columns W of the features, in pixels.
        impl: See `SpectralImpl`.
    """
    if srf_uses_fft(impl, gain.shape[1], width):
        return gain
    return split_gain(gain, width)


def srf(
    x: Float[Tensor, "b c h w"], gain: Float[Tensor, "c h f"] | RealGain
) -> Float[Tensor, "b c h w"]:
    """Re-scale the spectrum of every channel by `gain` (arXiv:2503.23947, SRF).

    Args:
        x: Features; the transform runs in float32 at least.
        gain: What `srf_gain` returns; its form decides between FFT and basis.

    Returns:
        `irfft2(rfft2(x)·gain)`, of the shape and dtype of `x`.
    """
    wide = at_least_float32(x)
    with no_autocast(x.device):
        if isinstance(gain, RealGain):
            even, odd = gain
            filtered = _srf_real(wide, even.to(wide.dtype), odd.to(wide.dtype))
        else:
            spectrum = torch.fft.rfft2(wide, norm="ortho") * gain.to(wide.dtype)
            filtered = torch.fft.irfft2(spectrum, s=x.shape[-2:], norm="ortho")
    return filtered.to(x.dtype)


def _srf_real(
    x: Float[Tensor, "b c h w"], even: Float[Tensor, "h w c"], odd: Float[Tensor, "h w c"]
) -> Float[Tensor, "b c h w"]:
    batch, channels, height, width = x.shape
    rows = real_basis(height, height // 2, x.dtype, x.device).matrix
    columns = real_basis(width, width // 2, x.dtype, x.device).matrix
    x_BHWC = x.permute(0, 2, 3, 1).reshape(batch, height, width * channels)
    c = torch.matmul(rows.t(), x_BHWC).view(batch, height, width, channels)
    c = torch.matmul(columns.t(), c)
    c = torch.addcmul(c * even, _swap(_swap(c, 1), 2), odd)
    c = torch.matmul(columns, c).view(batch, height, width * channels)
    c = torch.matmul(rows, c).view(batch, height, width, channels)
    return c.permute(0, 3, 1, 2)


def _swap(c: Tensor, dim: int) -> Tensor:
    """Exchange cosines and sines of a complete real basis along `dim`."""
    n = c.shape[dim]
    pairs = (n - 1) // 2
    lone, cosines, sines, top = torch.split(c, [1, pairs, pairs, n - 1 - 2 * pairs], dim)
    return torch.cat([lone, sines, cosines, top], dim)


def split_gain(gain: Float[Tensor, "c h f"], width: int) -> RealGain:
    """Turn half-spectrum gains into their even and odd parts on the complete real basis.

    With (c, s) for cosine and sine, first along H, and g± = gain(±u, v), the filter acts on the
    four coefficients of a pair (u, v) as

        cc' = e·cc - o·ss,   ss' = e·ss - o·cc,   sc' = e·sc + o·cs,   cs' = e·cs + o·sc,

    e = (g+ + g-)/2 and o = (g+ - g-)/2, which follows from writing the waves cos(u ± v), sin(u ± v)
    as products. The second result holds -o for cc and ss, +o for sc and cs, and 0 where the basis
    has no sine partner.
    """
    height = gain.shape[1]
    h_pairs, w_pairs = (height - 1) // 2, (width - 1) // 2
    mirrored = torch.cat([gain[:, :1], gain[:, 1:].flip(1)], dim=1)  # gain(-u, v)
    even, odd = (gain + mirrored) / 2, (gain - mirrored) / 2

    def rows(part: Tensor, cos: int, sin: int, lone: int) -> Tensor:
        """Arrange FFT rows as [1, cos 1..m, sin 1..m, (n/2)], each block scaled by its factor."""
        u = part[:, 1 : h_pairs + 1]
        blocks = [part[:, :1] * lone, u * cos, u * sin]
        if height % 2 == 0:
            blocks.append(part[:, height // 2 : height // 2 + 1] * lone)
        return torch.cat(blocks, dim=1)

    def columns(cos: Tensor, sin: Tensor, lone: int) -> Tensor:
        """Arrange half-spectrum columns in the same way; `sin` holds the sine block's values."""
        blocks = [cos[..., :1] * lone, cos[..., 1 : w_pairs + 1], sin[..., 1 : w_pairs + 1]]
        if width % 2 == 0:
            blocks.append(cos[..., width // 2 :] * lone)
        return torch.cat(blocks, dim=-1)

    even_rows = rows(even, 1, 1, 1)
    even_CHW = columns(even_rows, even_rows, 1)
    odd_CHW = columns(rows(odd, -1, 1, 0), rows(odd, 1, -1, 0), 0)
    # Both as features lie in memory, so that products with them read along.
    return RealGain(even_CHW.permute(1, 2, 0).contiguous(), odd_CHW.permute(1, 2, 0).contiguous())


def no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Leave autocast where it is on. Where it is off nothing is entered, so nothing is exported."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def at_least_float32(x: Tensor) -> Tensor:
    """Widen half precision, in which an FFT is neither exact nor available for all sizes."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
