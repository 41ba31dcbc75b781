"""A model for one image size, for export: its spectral filters as products with constant matrices.

Runtimes know no Fourier operators, or slow ones, and need not resize logits for each image. A
filter is a real linear map, so it can be written in a real orthonormal basis of cosines and sines,
separable in H and W (`backbones.spectral.real_basis`). With s = cos, sin of frequency u along H and
t = cos, sin of frequency v along W, the products s·t of one pair (u, v) span the same space as the
complex waves (±u, ±v). A gain g splits there into

- an even part e = (g(u, v) + g(-u, v))/2, which is diagonal, and
- an odd part o = (g(u, v) - g(-u, v))/2, which exchanges cosine and sine along *both* axes:
  cc' = e·cc - o·ss, ss' = e·ss - o·cc, sc' = e·sc + o·cs, cs' = e·cs + o·sc.

In the columns v = 0 and v = W/2, where a real FFT stores both halves of a conjugate pair, only the
even part survives the inverse transform. With b the even part at the highest frequency,

    y = b·x + A_H ((e - b) ⊙ z + o ⊙ z') A_Wᵀ,   z = A_Hᵀ x A_W,   z' = z, cosine and sine exchanged

where A needs no column on which both factors vanish: of an SPF, all but the few within its radius.
"""

from __future__ import annotations

import copy
import functools

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spanet_lightning.backbones.spectral import SpectralFilter, real_basis


class FixedFilter(nn.Module):
    """A `SpectralFilter` at one size, on (B, C, H, W), without an FFT.

    Args:
        gain: What the filter's `gain` returns.
        width: Columns of the stage, in pixels.
    """

    def __init__(self, gain: Float[Tensor, "c h f"], width: int) -> None:
        super().__init__()
        height = gain.shape[1]
        rows, u = real_basis(height, height // 2, gain)
        columns, v = real_basis(width, width // 2, gain)
        even, odd = _split_gain(gain, u, v)
        base = even[:, -1:, -1:]
        deviates = ((even != base) | (odd != 0)).any(0)
        deviates[0, 0] = True  # no empty matrices where the gain is constant
        if deviates.float().mean() > 0.5:  # nothing to leave out
            base, deviates = torch.zeros_like(base), torch.ones_like(deviates)
        kept_rows, kept_columns = (deviates.any(dim).nonzero()[:, 0] for dim in (1, 0))
        self.has_base, self.has_odd = bool(base.any()), bool(odd.any())
        self.base = _constant(base)
        self.rows = _constant(rows[:, kept_rows])
        self.columns = _constant(columns[:, kept_columns])
        self.even = _constant((even - base)[:, kept_rows][:, :, kept_columns])
        self.odd = _constant(odd[:, kept_rows][:, :, kept_columns])
        self.row_partner = _constant(_partners(u[kept_rows]))
        self.column_partner = _constant(_partners(v[kept_columns]))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return `x` filtered, same shape."""
        z = self.rows.t() @ (x @ self.columns)
        y = z * self.even
        if self.has_odd:
            partners = z.index_select(2, self.row_partner).index_select(3, self.column_partner)
            y = y + partners * self.odd
        y = self.rows @ (y @ self.columns.t())
        return y + x * self.base if self.has_base else y


def fixed(model: nn.Module, size: tuple[int, int], in_chans: int = 3) -> nn.Module:
    """Return a copy of a model that computes the same at one image size, without an FFT.

    Args:
        model: A backbone, or whatever calls one on images; it is left as it is.
        size: Height and width of the images, in pixels.
        in_chans: Channels of the images.

    Returns:
        The copy, in evaluation mode; its parameters are shared with no other module.

    Raises:
        ConfigError: If the size is too small.
    """
    model = copy.deepcopy(model).eval()
    filters = {n: m for n, m in model.named_modules() if isinstance(m, SpectralFilter)}
    shapes: dict[str, torch.Size] = {}

    def record(name: str, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        shapes[name] = args[0].shape[-2:]

    hooks = [
        module.register_forward_pre_hook(functools.partial(record, name))
        for name, module in filters.items()
    ]
    with torch.no_grad():
        model(torch.zeros(1, in_chans, *size))
        for hook in hooks:
            hook.remove()
        for name, shape in shapes.items():
            height, width = shape
            gain = filters[name].gain(height, width).float()
            model.set_submodule(name, FixedFilter(gain, width))
    return model.requires_grad_(False)


def _split_gain(gain: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return the even and the odd part of a gain, (C, H, W), on complete real bases.

    Args:
        gain: In the layout of a real FFT.
        u: Frequencies of the basis along H.
        v: Frequencies of the basis along W.
    """
    height = gain.shape[1]
    rows, columns = u.long(), v.long()
    positive = gain[:, rows][:, :, columns]
    negative = gain[:, (-rows) % height][:, :, columns]
    # -1 where both are cosines or both sines, 1 where they differ, 0 where one has no partner.
    sign = torch.outer(_parity(u), _parity(v)).to(gain.dtype)
    return (positive + negative) / 2, (negative - positive) / 2 * sign


def _parity(frequencies: Tensor) -> Tensor:
    """Return 1 for each cosine that has a sine partner, -1 for each sine, 0 for the others."""
    partners = _partners(frequencies)
    return (partners - torch.arange(len(partners))).sign()


def _partners(frequencies: Tensor) -> Tensor:
    """Return the index of the other function of each one's frequency, its own where it is alone."""
    same = frequencies[:, None] == frequencies
    others = same & ~torch.eye(len(same), dtype=torch.bool)
    return torch.where(others.any(1, keepdim=True), others, same).int().argmax(1)


def _constant(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().contiguous(), requires_grad=False)
