"""The frequency response of the token mixers of a model, trained or not.

Every mixer is asked the same: a mode u of the grid's graph goes in, what comes out? The graph is
the 3×3 window's on the mixer's own grid of tokens, for all mixers alike, so that they compare.

- Attention: its matrices A at real images, one a head, as they are ("attention").
- A depthwise convolution alone (ConvNeXt): its kernels, exactly ("depthwise").
- Anything else is linearised at real images: the Jacobian J of the whole mixer, times u ⊗ v with
  random signs v over channels, by forward-mode differentiation ("jacobian"). What stays on u is
  ‖(uᵀ ⊗ I) J (u ⊗ v)‖, what comes out at all ‖J (u ⊗ v)‖, with ‖v‖ = 1.

Over channels (and heads) the root mean square is taken, which is also what random v estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from spanet_lightning.analysis import energies, taps
from spanet_lightning.analysis.energies import Measured, Modes
from spanet_lightning.analysis.images import normalised
from spanet_lightning.analysis.models import Subject
from spanet_lightning.analysis.response import Response
from spanet_lightning.analysis.taps import Tap
from spanet_lightning.backbones.spanetv2 import HEAD_DIM, Attention

How = Literal["attention", "depthwise", "jacobian"]


@dataclass(frozen=True)
class MixerResponse:
    """The response of one mixer of a model.

    Attributes:
        model: Its label.
        tap: Where the mixer is.
        how: How it was measured.
        grid: Rows and columns of its tokens.
        response: One draw an image.
        leakage: Share of the energy that leaves the mode it came in, over modes and images.
    """

    model: str
    tap: Tap
    how: How
    grid: tuple[int, int]
    response: Response
    leakage: float


def mixer_responses(
    subject: Subject,
    images: Float[Tensor, "b 3 h w"],
    modes: int = 48,
    seed: int = 0,
    how: Literal["auto", "jacobian"] = "auto",
) -> list[MixerResponse]:
    """Measure the response of every token mixer of a model at some images.

    Args:
        subject: The model.
        images: In [0, 1]; two are enough to see a spread.
        modes: How many of each grid's.
        seed: Of the random signs.
        how: "jacobian" linearises attention as well: then its weights move with its input.

    Raises:
        ConfigError: If the model has no mixers, or too many tokens.
    """
    model = subject.model
    found: list[MixerResponse] = []
    size = (images.shape[-2], images.shape[-1])
    places = taps.find_taps(model, mixers=True)
    named = dict(model.named_modules())

    with ExitStack() as stack:
        for tap in places:
            if tap.kind != "mixer":
                continue
            block = named[tap.name.rpartition(".")[0]]

            def keep(
                grid: tuple[int, int], how: How, at: Modes, energy: Measured, tap: Tap
            ) -> None:
                found.append(_response(subject.label, tap, how, grid, at, energy))

            meter = _Meter(model, tap, named[tap.name], block, size, modes, seed, how, keep)
            stack.enter_context(meter.attached())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))  # the one with a forward derivative
        taps.run(model, normalised(images, subject))
    return sorted(found, key=lambda one: one.tap.block)


def _response(
    label: str, tap: Tap, how: How, grid: tuple[int, int], at: Modes, energy: Measured
) -> MixerResponse:
    kept, out = (part.double().numpy() for part in energy)
    # Modes of one frequency stand for one eigenspace.
    first = np.flatnonzero(np.diff(at.frequencies, prepend=-np.inf) > 1e-9)
    counts = np.diff(np.append(first, len(at.frequencies)))
    values = np.sqrt(np.add.reduceat(kept, first, axis=1) / counts)
    response = Response(tap.name, at.frequencies[first], counts.astype(float), values)
    leakage = float(1 - kept.sum() / out.sum()) if out.sum() > 0 else 0.0
    return MixerResponse(label, tap, how, grid, response, leakage)


class _Meter:
    """Measures one mixer in the moment its input comes by, so that nothing is kept of others."""

    def __init__(
        self,
        model: nn.Module,
        tap: Tap,
        mixer: nn.Module,
        block: nn.Module,
        image: tuple[int, int],
        modes: int,
        seed: int,
        how: str,
        keep: Callable[[tuple[int, int], How, Modes, Measured, Tap], None],
    ) -> None:
        self.model, self.tap = model, tap
        self.mixer: Any = mixer
        self.block: Any = block
        self.image, self.modes, self.seed, self.keep = image, modes, seed, keep
        self.windows = hasattr(block, "_attn")
        attention = getattr(block, "attn", None) if self.windows else mixer
        self.attention: Any = attention if hasattr(attention, "attn_drop") else None
        self.exact = how != "jacobian"

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Measure while a model runs."""
        with ExitStack() as stack:
            if self.exact and self.attention is not None:
                stack.enter_context(_unfused(self.attention))
                drop = self.attention.attn_drop
                handle = drop.register_forward_pre_hook(lambda _, args: self._weights(args[0]))
            elif self.windows:
                norm = self.block.norm1
                handle = norm.register_forward_hook(lambda _, __, out: self._input(out))
            else:
                handle = self.mixer.register_forward_pre_hook(lambda _, args: self._input(args[0]))
            stack.callback(handle.remove)
            yield

    def _at(self, height: int, width: int) -> Modes:
        return energies.modes_of(height, width, self.modes)

    def _weights(self, weights: Tensor) -> None:
        """Measure attention weights: (B, heads, N, N), or (B·windows, heads, n, n)."""
        if self.windows:
            height, width = self.block.input_resolution
            at = self._at(height, width)
            energy = energies.windowed(weights, at, self.block)
        else:
            number = weights.shape[-1]
            prefix = number - _patches(self.model, number, self.image)
            height, width = taps.as_grid(
                self.model, weights.new_zeros(1, number, 1), self.image
            ).shape[-2:]
            at = self._at(height, width)
            energy = energies.attended(weights[..., prefix:, prefix:], at)
        self.keep((height, width), "attention", at, energy, self.tap)

    def _input(self, x: Tensor) -> None:
        """Measure a mixer at its input."""
        grid = taps.as_grid(self.model, x, self.image)
        height, width = grid.shape[-2:]
        at = self._at(height, width)
        how: How = "jacobian"
        if self.exact and isinstance(self.mixer, Attention) and self.mixer.local is None:
            how, energy = "attention", energies.attended(_own_weights(self.mixer, x), at)
        elif self.exact and _is_depthwise(self.mixer):
            how, energy = "depthwise", energies.convolved(self.mixer, at, len(x))
        else:
            function = self.block._attn if self.windows else self.mixer.forward  # without our hook
            energy = energies.jacobian(function, x, at, self.seed, self.model, self.image)
        self.keep((height, width), how, at, energy, self.tap)


def _patches(model: nn.Module, tokens: int, image: tuple[int, int]) -> int:
    height, width = taps.as_grid(model, torch.zeros(1, tokens, 1), image).shape[-2:]
    return height * width


@contextmanager
def _unfused(attention: nn.Module) -> Iterator[None]:
    """Make timm's attention compute its weights where they can be seen."""
    timms: Any = attention
    before = timms.fused_attn
    timms.fused_attn = False
    try:
        yield
    finally:
        timms.fused_attn = before


def _own_weights(mixer: Attention, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k n n"]:
    """Return softmax(QKᵀ/√32) of our attention."""
    with torch.no_grad():
        qkv = mixer.qkv(x).flatten(2).transpose(1, 2)
        tokens = qkv.reshape(len(x), -1, 3, mixer.heads, HEAD_DIM)
        q, k, _ = tokens.permute(2, 0, 3, 1, 4).unbind()
        weights: Float[Tensor, "b k n n"] = (q @ k.transpose(-2, -1) * HEAD_DIM**-0.5).softmax(-1)
        return weights


def _is_depthwise(mixer: nn.Module) -> bool:
    return isinstance(mixer, nn.Conv2d) and mixer.groups == mixer.in_channels > 1
