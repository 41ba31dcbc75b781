"""Frequency response of the token mixers of a model, trained or not.

All mixers are probed alike: with modes u of the graph of the 3×3 window on their own grid of
tokens (`graphs`), each of norm 1.

- Attention: its matrices A at real images, one per head ("attention").
- A depthwise convolution (ConvNeXt): its kernels ("depthwise").
- Any other mixer is linearised at real images ("jacobian"): the Jacobian J of the mixer times
  u ⊗ v, with random signs v over channels, ‖v‖ = 1, by forward-mode differentiation.

Of the output, the energy that stays on u is ‖(uᵀ ⊗ I) J (u ⊗ v)‖², the total ‖J (u ⊗ v)‖². Both are
averaged over channels or heads, which is also what random v estimate.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from spanet_lightning.analysis import layers
from spanet_lightning.analysis.figures import Curve, Figure, Panel, in_rows
from spanet_lightning.analysis.graphs import window_spectrum
from spanet_lightning.analysis.images import normalise
from spanet_lightning.analysis.layers import Layer
from spanet_lightning.analysis.models import LoadedModel
from spanet_lightning.analysis.response import Response
from spanet_lightning.backbones.spanetv2 import HEAD_DIM, Attention
from spanet_lightning.errors import invalid

Method = Literal["attention", "depthwise", "jacobian"]
Energies = tuple[Float[Tensor, "b m"], Float[Tensor, "b m"]]
"""Energy that stays on each mode, and the total that comes out, for each image."""

LARGEST_GRID = 64  # tokens per side: the matrix of modes has side⁴ values
_CHUNK_VALUES = 2_000_000  # values of tangents that pass a mixer at once


@dataclass(frozen=True)
class Modes:
    """Some modes of a grid.

    Attributes:
        frequencies: (M,) in ascending order.
        fields: (M, H, W), each of norm 1.
    """

    frequencies: Float[np.ndarray, " m"]
    fields: Float[Tensor, "m h w"]

    @property
    def flat(self) -> Float[Tensor, "m n"]:
        """The modes over tokens in row-major order."""
        return self.fields.flatten(1)


@dataclass(frozen=True)
class MixerResponse:
    """The response of one mixer of a model.

    Attributes:
        model: Its label.
        layer: The mixer.
        method: How it was measured.
        grid: Rows and columns of its tokens.
        response: One draw per image.
        leakage: Share of the energy that leaves the mode it came in, over modes and images.
    """

    model: str
    layer: Layer
    method: Method
    grid: tuple[int, int]
    response: Response
    leakage: float


def select_modes(height: int, width: int, number: int) -> Modes:
    """Return `number` modes of the graph of the 3×3 window, evenly spread, the first included.

    Raises:
        ConfigError: If the grid is too large, or the number below 2.
    """
    if max(height, width) > LARGEST_GRID:
        raise invalid("--size", f"{height}×{width} tokens", f"at most {LARGEST_GRID} per side")
    if number < 2:
        raise invalid("--modes", number, "an integer of at least 2")
    spectrum = window_spectrum(height, width, 3)
    total = height * width
    chosen = np.unique(np.linspace(0, total - 1, min(number, total)).round().astype(int))
    fields = spectrum.modes[:, chosen].T.reshape(len(chosen), height, width)
    return Modes(spectrum.eigenvalues[chosen], torch.from_numpy(fields.copy()).float())


def mixer_responses(
    model: LoadedModel,
    images: Float[Tensor, "b 3 h w"],
    modes: int = 48,
    seed: int = 0,
    *,
    linearise: bool = False,
) -> list[MixerResponse]:
    """Measure the response of every token mixer of a model at some images.

    Args:
        model: The model.
        images: In [0, 1]; two are enough to see a spread.
        modes: How many of each grid's.
        seed: Of the random signs.
        linearise: Linearise attention and depthwise convolutions as well; then the weights of
            attention move with its input.

    Raises:
        ConfigError: If the model has no mixers, or too many tokens.
    """
    found: list[MixerResponse] = []
    size = (images.shape[-2], images.shape[-1])
    probe = _Probe(model, size, modes, seed, linearise, found)
    with ExitStack() as stack:
        for layer in layers.find_blocks(model.model, mixers=True):
            if layer.kind == "mixer":
                stack.enter_context(probe.attached(layer))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))  # the one with a forward derivative
        layers.run_features(model.model, normalise(images, model))
    return sorted(found, key=lambda one: one.layer.number)


@dataclass(frozen=True)
class _Probe:
    """Measures mixers while the model runs, so that no input has to be stored."""

    model: LoadedModel
    image: tuple[int, int]
    modes: int
    seed: int
    linearise: bool
    found: list[MixerResponse]

    @contextmanager
    def attached(self, layer: Layer) -> Iterator[None]:
        """Measure one mixer when its input, or its attention weights, come by."""
        named = dict(self.model.model.named_modules())
        mixer: Any = named[layer.name]
        block: Any = named[layer.name.rpartition(".")[0]]
        windows = hasattr(block, "_attn")
        attention: Any = getattr(block, "attn", None) if windows else mixer
        with ExitStack() as stack:
            if not self.linearise and hasattr(attention, "attn_drop"):
                stack.enter_context(_unfused(attention))
                handle = attention.attn_drop.register_forward_pre_hook(
                    lambda _, args: self._weights(layer, args[0], block if windows else None)
                )
            elif windows:
                handle = block.norm1.register_forward_hook(
                    lambda _, __, out: self._input(layer, mixer, block._attn, out)
                )
            else:
                # `forward`, not the module: the derivative does not call this hook again.
                handle = mixer.register_forward_pre_hook(
                    lambda _, args: self._input(layer, mixer, mixer.forward, args[0])
                )
            stack.callback(handle.remove)
            yield

    def _weights(self, layer: Layer, weights: Tensor, block: Any) -> None:
        """Measure attention weights: (B, heads, N, N), or (B·windows, heads, n, n) of a block."""
        if block is not None:
            height, width = block.input_resolution
            modes = select_modes(height, width, self.modes)
            energies = window_energies(weights, modes, block)
        else:
            number = weights.shape[-1]
            tokens = weights.new_zeros(1, number, 1)
            height, width = layers.as_grid(self.model.model, tokens, self.image).shape[-2:]
            prefix = number - height * width  # class tokens
            modes = select_modes(height, width, self.modes)
            energies = matrix_energies(weights[..., prefix:, prefix:], modes)
        self._add(layer, "attention", modes, energies)

    def _input(
        self, layer: Layer, mixer: Any, function: Callable[[Tensor], Tensor], x: Tensor
    ) -> None:
        """Measure a mixer at its input."""
        grid = layers.as_grid(self.model.model, x, self.image)
        modes = select_modes(grid.shape[-2], grid.shape[-1], self.modes)
        depthwise = isinstance(mixer, nn.Conv2d) and mixer.groups == mixer.in_channels > 1
        method: Method = "jacobian"
        if not self.linearise and isinstance(mixer, Attention) and mixer.local is None:
            method, energies = "attention", matrix_energies(_attention_weights(mixer, x), modes)
        elif not self.linearise and depthwise:
            method, energies = "depthwise", convolution_energies(mixer, modes, len(x))
        else:
            net = self.model.model
            energies = jacobian_energies(function, x, modes, self.seed, net, self.image)
        self._add(layer, method, modes, energies)

    def _add(self, layer: Layer, method: Method, modes: Modes, energies: Energies) -> None:
        kept, total = (part.double().numpy() for part in energies)
        # Modes of one frequency stand for one eigenspace.
        first = np.flatnonzero(np.diff(modes.frequencies, prepend=-np.inf) > 1e-9)
        counts = np.diff(np.append(first, len(modes.frequencies)))
        values = np.sqrt(np.add.reduceat(kept, first, axis=1) / counts)
        response = Response(layer.name, modes.frequencies[first], counts.astype(float), values)
        leakage = float(1 - kept.sum() / total.sum()) if total.sum() > 0 else 0.0
        height, width = modes.fields.shape[-2:]
        one = MixerResponse(self.model.label, layer, method, (height, width), response, leakage)
        self.found.append(one)


@contextmanager
def _unfused(attention: Any) -> Iterator[None]:
    """Make timm's attention compute its weights explicitly."""
    before = attention.fused_attn
    attention.fused_attn = False
    try:
        yield
    finally:
        attention.fused_attn = before


def _attention_weights(mixer: Attention, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k n n"]:
    """Return softmax(QKᵀ/√32) of our attention."""
    with torch.no_grad():
        qkv = mixer.qkv(x).flatten(2).transpose(1, 2)
        tokens = qkv.reshape(len(x), -1, 3, mixer.heads, HEAD_DIM)
        q, k, _ = tokens.permute(2, 0, 3, 1, 4).unbind()
        weights: Float[Tensor, "b k n n"] = (q @ k.transpose(-2, -1) * HEAD_DIM**-0.5).softmax(-1)
        return weights


def _energies(modes: Modes, out: Float[Tensor, "b k m n"]) -> Energies:
    """Return the energies of outputs in channels k, averaged over channels."""
    kept = (out * modes.flat).sum(-1).square().mean(1)
    return kept, out.square().sum(-1).mean(1)


def matrix_energies(weights: Float[Tensor, "b k n n"], modes: Modes) -> Energies:
    """Measure matrices, such as the attention of each head, at each image."""
    return _energies(modes, (weights.detach() @ modes.flat.t()).transpose(-2, -1))


def window_energies(weights: Float[Tensor, "w k n n"], modes: Modes, block: Any) -> Energies:
    """Apply attention within windows, which may be shifted, to modes of the whole grid."""
    height, width = modes.fields.shape[-2:]
    (high, wide), shift = block.window_size, tuple(block.shift_size)
    if height % high or width % wide:
        raise invalid(
            "--size", f"{height}×{width} tokens", f"multiples of the window, {high}×{wide}"
        )
    rolled = modes.fields.roll((-shift[0], -shift[1]), (1, 2))
    parts = rolled.reshape(-1, height // high, high, width // wide, wide)
    parts = parts.permute(1, 3, 2, 4, 0).reshape(-1, high * wide, len(rolled))  # window, n, mode
    split = weights.detach().reshape(-1, len(parts), *weights.shape[1:])
    mixed = (split @ parts[:, None]).permute(0, 2, 4, 1, 3)  # b, k, mode, window, n
    mixed = mixed.reshape(*mixed.shape[:3], height // high, width // wide, high, wide)
    whole = mixed.permute(0, 1, 2, 3, 5, 4, 6).reshape(*mixed.shape[:3], height, width)
    return _energies(modes, whole.roll(shift, (3, 4)).flatten(3))


def convolution_energies(conv: Any, modes: Modes, images: int) -> Energies:
    """Measure a depthwise convolution, which is the same at every image."""
    stacked = modes.fields[:, None].expand(-1, conv.in_channels, -1, -1)
    with torch.no_grad():
        out = F.conv2d(stacked, conv.weight, None, conv.stride, conv.padding, 1, conv.groups)
    kept, total = _energies(modes, out.flatten(2).transpose(0, 1)[None])
    return kept.expand(images, -1), total.expand(images, -1)


def jacobian_energies(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    modes: Modes,
    seed: int,
    model: nn.Module,
    image: tuple[int, int],
) -> Energies:
    """Push modes, times random signs over channels, through the derivative at each image.

    Args:
        function: The mixer.
        x: Its input at the images, in its own layout.
        modes: What is pushed.
        seed: Of the signs.
        model: To which the mixer belongs.
        image: Height and width of the images, in pixels.
    """
    rng = torch.Generator().manual_seed(seed)
    grid = layers.as_grid(model, x, image)
    channels, number = grid.shape[1], len(modes.fields)
    signs = (torch.randint(0, 2, (number, channels), generator=rng) * 2 - 1) / channels**0.5
    tangents = signs[:, :, None, None] * modes.fields[:, None]
    chunk = max(1, _CHUNK_VALUES // tangents[0].numel())
    kept, total = [], []
    for one in x:
        rows: list[tuple[Tensor, Tensor]] = []
        parts = zip(torch.split(tangents, chunk), torch.split(modes.fields, chunk), strict=True)
        for part, mode in parts:
            point = one.expand(len(part), *one.shape).contiguous()
            with torch.no_grad(), warnings.catch_warnings():
                # Forward rules that torch itself still writes in TorchScript.
                warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
                tangent = _in_layout(part, x, grid)
                derived: Any = torch.func.jvp(function, (point,), (tangent,))
            moved = layers.as_grid(model, derived[1], image)
            stays = (moved * mode[:, None]).sum((2, 3)).square().sum(1)
            rows.append((stays, moved.square().sum((1, 2, 3))))
        kept.append(torch.cat([row[0] for row in rows]))
        total.append(torch.cat([row[1] for row in rows]))
    return torch.stack(kept), torch.stack(total)


def _in_layout(part: Float[Tensor, "m c h w"], x: Tensor, grid: Tensor) -> Tensor:
    """Return tangents (M, C, H, W) in the layout of a mixer's input."""
    if x.ndim == 4:
        return part if x.shape == grid.shape else part.permute(0, 2, 3, 1).contiguous()
    tokens = part.flatten(2).transpose(1, 2)
    return F.pad(tokens, (0, 0, x.shape[1] - tokens.shape[1], 0))


def mixers_figure(found: Sequence[MixerResponse], title: str) -> Figure:
    """Return the responses of models' mixers: a panel per model, a curve per mixer."""
    panels: list[Panel] = []
    rows: list[dict[str, Any]] = []
    for model in dict.fromkeys(one.model for one in found):
        own = [one for one in found if one.model == model]
        curves = []
        for order, one in enumerate(own):
            mean = one.response.mean
            decibels = 20 * np.log10(np.maximum(mean / (mean[0] or 1), 1e-3))
            depth = 0.1 + 0.85 * order / max(len(own) - 1, 1)
            size = f"{one.grid[0]}×{one.grid[1]}"
            curves.append(Curve(one.response.frequencies, decibels, depth=depth, group=size))
            rows.append(
                {
                    "model": model,
                    "mixer": one.layer.name,
                    "number": one.layer.number,
                    "method": one.method,
                    "grid": size,
                    "response_at_0": mean[0],
                    "cut_off_half_power": float(np.median(one.response.cut_offs())),
                    "high_over_low": float(np.median(one.response.high_over_low())),
                    "leakage": one.leakage,
                }
            )
        panels.append(
            Panel(
                model,
                tuple(curves),
                xlabel="frequency (eigenvalue λ of the 3×3 grid)",
                ylabel="" if len(panels) % 3 else "response relative to frequency 0, dB",
                hlines=((-3.0, 7),),
            )
        )
    return Figure(title, in_rows(panels), table=rows)
