"""A backbone for one image size, for export: whatever follows from parameters alone is a constant.

Runtimes know no Fourier operators, or slow ones, and need not resize logits or build bases for each
image. So the spectral operators are written in the real bases of `backbones.spectral`, as products
with constant matrices in (B, C, H, W), the layout of ONNX:

    SPF(x) = (1 - λ)·x + A_H (D ⊙ (A_Hᵀ x A_W)) A_Wᵀ
    SRF(x) = A_H (E ⊙ z + O ⊙ z') A_Wᵀ,   z = A_Hᵀ x A_W,   z' = z, cosine and sine exchanged

The functions are those of the trained modules; the tests compare them.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from spanet_lightning.backbones import Backbone, spectral
from spanet_lightning.backbones.layers import StarReluMlp
from spanet_lightning.backbones.spanet import SpectralGates
from spanet_lightning.backbones.spanetv2 import SpectralRescaling
from spanet_lightning.errors import invalid


class FixedGates(nn.Module):
    """`SpectralGates` at one size (arXiv:2308.11568, Eq. 17 and 19).

    Args:
        gates: The trained module, with a spectral filter.
        height: Rows of the stage, in pixels.
        width: Columns of the stage, in pixels.
    """

    def __init__(self, gates: SpectralGates, height: int, width: int) -> None:
        super().__init__()
        if gates.radius is None:
            raise ValueError("gates without a filter are convolutions already")
        kind = (gates.weight.dtype, gates.weight.device)
        band = spectral.low_band(height, width, gates.radius, gates.gates, *kind)
        self.rows = _constant(band.rows)
        self.columns = _constant(band.columns)
        self.deviation = _constant(band.deviation.permute(2, 0, 1))
        self.high = _constant(band.high.view(-1, 1, 1))
        # The sum of what all gates return is one convolution; their product is one each.
        whole = gates.aggregation == "add"
        self.sizes = [gates.weight.shape[1]] if whole else [g.channels for g in gates.gates]
        self.weights = nn.ParameterList(map(_constant, torch.split(gates.weight, self.sizes, 1)))
        self.biases = nn.ParameterList(
            map(_constant, [gates.bias.sum(0)] if whole else list(gates.bias))
        )

    def forward(self, q: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the context of a query `q`, same shape."""
        low_BCKL = self.rows.t() @ (q @ self.columns) * self.deviation
        filtered = q * self.high + self.rows @ (low_BCKL @ self.columns.t())
        chunks = torch.split(filtered, self.sizes, 1) if len(self.sizes) > 1 else [filtered]
        return functools.reduce(torch.mul, map(F.conv2d, chunks, self.weights, self.biases))


class FixedRescaling(nn.Module):
    """`SpectralRescaling` at one size.

    Args:
        srf: The trained module.
        height: Rows of the stage, in pixels.
        width: Columns of the stage, in pixels.
    """

    def __init__(self, srf: SpectralRescaling, height: int, width: int) -> None:
        super().__init__()
        even, odd = spectral.split_gain(srf.gain(height, width), width)
        self.even = _constant(even.permute(2, 0, 1))
        self.odd = _constant(odd.permute(2, 0, 1))
        dtype, device = even.dtype, even.device
        self.rows = _constant(spectral.real_basis(height, height // 2, dtype, device).matrix)
        self.columns = _constant(spectral.real_basis(width, width // 2, dtype, device).matrix)
        self.row_partner = _constant(_partners(height))
        self.column_partner = _constant(_partners(width))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return `x` with re-scaled spectra, same shape."""
        z = self.rows.t() @ (x @ self.columns)
        swapped = z.index_select(2, self.row_partner).index_select(3, self.column_partner)
        return self.rows @ ((z * self.even + swapped * self.odd) @ self.columns.t())


class FixedMlp(nn.Module):
    """`StarReluMlp` with the activation's scalars in the second convolution.

    Args:
        mlp: The trained module.
    """

    def __init__(self, mlp: StarReluMlp) -> None:
        super().__init__()
        self.fc1 = mlp.fc1
        self.weight = _constant(mlp.fc2.weight * mlp.act.scale)
        self.bias = _constant(mlp.fc2.weight.sum((1, 2, 3)) * mlp.act.bias)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the MLP of each pixel, same shape."""
        hidden = F.relu(self.fc1(x))
        return F.conv2d(hidden * hidden, self.weight, self.bias)


def fixed(model: nn.Module, size: tuple[int, int], in_chans: int = 3) -> nn.Module:
    """Return a copy of a model that computes the same at one image size, without an FFT.

    Args:
        model: A backbone, or whatever calls one on images; it is left as it is.
        size: Height and width of the images, in pixels.
        in_chans: Channels of the images.

    Returns:
        The copy, in evaluation mode; its parameters are shared with no other module.

    Raises:
        ConfigError: If the model was built with `spectral_impl: fft`, or the size is too small.
    """
    for backbone in model.modules():
        if isinstance(backbone, Backbone) and not backbone.channels_last:
            raise invalid("spectral_impl", "fft", "'auto' (the same weights fit)")
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        shapes = _shapes(model, torch.zeros(1, in_chans, *size))
        for name, module in list(model.named_modules()):
            build = _FORMS.get(type(module))
            if build is not None:
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, build(module, *shapes[name]))
    return model.requires_grad_(False)


def _shapes(model: nn.Module, images: Tensor) -> dict[str, tuple[int, int]]:
    """Return height and width of the features that each module to be replaced sees."""
    shapes: dict[str, tuple[int, int]] = {}

    def note(name: str, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        height, width = args[0].shape[-2:]
        shapes[name] = (height, width)

    handles = [
        module.register_forward_pre_hook(functools.partial(note, name))
        for name, module in model.named_modules()
        if type(module) in _FORMS
    ]
    model(images)
    for handle in handles:
        handle.remove()
    return shapes


def _fixed_gates(gates: SpectralGates, height: int, width: int) -> nn.Module:
    return gates if gates.radius is None else FixedGates(gates, height, width)


_FORMS: dict[type[nn.Module], Callable[[Any, int, int], nn.Module]] = {
    SpectralGates: _fixed_gates,
    SpectralRescaling: FixedRescaling,
    StarReluMlp: lambda mlp, *_: FixedMlp(mlp),
}


def _constant(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().contiguous(), requires_grad=False)


def _partners(n: int) -> Tensor:
    """Return, for each function of a complete real basis of n points, the index of its partner."""
    pairs = (n - 1) // 2
    cosines, sines = range(1, pairs + 1), range(pairs + 1, 2 * pairs + 1)
    return torch.tensor([0, *sines, *cosines, *range(2 * pairs + 1, n)])
