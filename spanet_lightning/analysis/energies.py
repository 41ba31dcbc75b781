"""What becomes of the modes of a grid in a mixer: the energy that stays on each, and all of it.

A mode u has norm 1. Of what a mixer makes of it, uᵀCu is what stays; ‖Cu‖ is all that comes out.
Both are squared and averaged over the channels, or the heads, of the mixer.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from spanet_lightning.analysis import taps
from spanet_lightning.analysis.graphs import window_spectrum
from spanet_lightning.errors import invalid

LARGEST_GRID = 64  # tokens a side whose modes are made: their matrix has side⁴ values
_CHUNK_VALUES = 2_000_000  # values of tangents that go through a mixer at once


@dataclass(frozen=True)
class Modes:
    """Some modes of a grid.

    Attributes:
        frequencies: (M,) ascending.
        fields: (M, H, W), each of norm 1.
    """

    frequencies: Float[np.ndarray, " m"]
    fields: Float[Tensor, "m h w"]


def modes_of(height: int, width: int, number: int) -> Modes:
    """Return `number` modes of the 3×3 window's graph, spread evenly over all, the first included.

    Raises:
        ConfigError: If the grid is too large, or the number below 2.
    """
    if max(height, width) > LARGEST_GRID:
        raise invalid("--size", f"{height}×{width} tokens", f"a size of at most {LARGEST_GRID}")
    if number < 2:
        raise invalid("--modes", number, "an integer of at least 2")
    spectrum = window_spectrum(height, width, 3)
    total = height * width
    chosen = np.unique(np.linspace(0, total - 1, min(number, total)).round().astype(int))
    fields = spectrum.modes[:, chosen].T.reshape(len(chosen), height, width)
    return Modes(spectrum.eigenvalues[chosen], torch.from_numpy(fields.copy()).float())


Measured = tuple[Float[Tensor, "b m"], Float[Tensor, "b m"]]
"""Energy that stays on each mode, and all that comes out, for each image."""


def _energies(u: Float[Tensor, "m n"], out: Float[Tensor, "b k m n"]) -> Measured:
    """Return energies of modes in channels k, averaged over channels."""
    kept = (out * u).sum(-1).square().mean(1)
    return kept, out.square().sum(-1).mean(1)


def attended(weights: Float[Tensor, "b k n n"], at: Modes) -> Measured:
    """Measure matrices, such as the attention of each head, at each image."""
    u = at.fields.flatten(1)
    return _energies(u, (weights.detach() @ u.t()).transpose(-2, -1))


def windowed(weights: Float[Tensor, "w k n n"], at: Modes, block: Any) -> Measured:
    """Apply attention within windows, which may be shifted, to modes of the whole grid."""
    height, width = at.fields.shape[-2:]
    (high, wide), shift = block.window_size, tuple(block.shift_size)
    if height % high or width % wide:
        raise invalid(
            "--size", f"{height}×{width} tokens", f"multiples of the window, {high}×{wide}"
        )
    rolled = at.fields.roll((-shift[0], -shift[1]), (1, 2))
    parts = rolled.reshape(-1, height // high, high, width // wide, wide)
    parts = parts.permute(1, 3, 2, 4, 0).reshape(-1, high * wide, len(rolled))  # window, n, mode
    mixed = (
        weights.detach().reshape(-1, len(parts), *weights.shape[1:]) @ parts[:, None]
    )  # b, window, k, n, mode
    mixed = mixed.permute(0, 2, 4, 1, 3)
    mixed = mixed.reshape(*mixed.shape[:3], height // high, width // wide, high, wide)
    whole = mixed.permute(0, 1, 2, 3, 5, 4, 6).reshape(*mixed.shape[:3], height, width)
    whole = whole.roll(shift, (3, 4))
    return _energies(at.fields.flatten(1), whole.flatten(3))


def convolved(mixer: nn.Module, at: Modes, images: int) -> Measured:
    """Measure a depthwise convolution, which does the same at every image."""
    conv: Any = mixer
    stacked = at.fields[:, None].expand(-1, conv.in_channels, -1, -1)
    with torch.no_grad():
        out = F.conv2d(stacked, conv.weight, None, conv.stride, conv.padding, 1, conv.groups)
    kept, gone = _energies(at.fields.flatten(1), out.flatten(2).transpose(0, 1)[None])
    return kept.expand(images, -1), gone.expand(images, -1)


def jacobian(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    at: Modes,
    seed: int,
    model: nn.Module,
    image: tuple[int, int],
) -> Measured:
    """Push modes, times random signs over channels, through the derivative at each image.

    Args:
        function: The mixer.
        x: Its input at the images, in its own layout.
        at: The modes.
        seed: Of the signs.
        model: That the mixer is of.
        image: Height and width of the images, in pixels.
    """
    rng = torch.Generator().manual_seed(seed)
    grid = taps.as_grid(model, x, image)
    channels = grid.shape[1]
    number = len(at.fields)
    signs = (torch.randint(0, 2, (number, channels), generator=rng) * 2 - 1) / channels**0.5
    tangents = signs[:, :, None, None] * at.fields[:, None]
    kept, out = [], []
    for one in x:
        rows: list[Sequence[Tensor]] = []
        chunk = max(1, _CHUNK_VALUES // tangents[0].numel())
        for part, field in zip(
            torch.split(tangents, chunk), torch.split(at.fields, chunk), strict=True
        ):
            point = one.expand(len(part), *one.shape).contiguous()
            with torch.no_grad(), warnings.catch_warnings():
                # Forward rules that torch itself still writes in TorchScript.
                warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
                derived: Any = torch.func.jvp(function, (point,), (_like(part, x, grid),))
            moved = taps.as_grid(model, derived[1], image)
            stays = (moved * field[:, None]).sum((2, 3)).square().sum(1)
            rows.append((stays, moved.square().sum((1, 2, 3))))
        kept.append(torch.cat([row[0] for row in rows]))
        out.append(torch.cat([row[1] for row in rows]))
    return torch.stack(kept), torch.stack(out)


def _like(part: Float[Tensor, "m c h w"], x: Tensor, grid: Tensor) -> Tensor:
    """Return tangents (M, C, H, W) in the layout of a mixer's input."""
    if x.ndim == 4:
        return part if x.shape == grid.shape else part.permute(0, 2, 3, 1).contiguous()
    tokens = part.flatten(2).transpose(1, 2)
    return F.pad(tokens, (0, 0, x.shape[1] - tokens.shape[1], 0))
