"""The spectral filters of SPANet and SPANetV2 as pictures and numbers, and their context maps.

SPF (arXiv:2308.11568, Eq. 16-18): a mask a gate, fixed. SRF (arXiv:2503.23947): learned gains
sigmoid(θ), one a channel and frequency. Both are shown as the gain of each frequency of a stage's
features, the zero frequency in the centre.

The context map of a stage (SPANet Fig. 4): the modulators of all its blocks, which are what the
context branch returns before it multiplies the query, their magnitude averaged over channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from spanet_lightning.analysis import taps
from spanet_lightning.analysis.images import normalised
from spanet_lightning.analysis.models import Subject
from spanet_lightning.backbones import Backbone, spanet, spanetv2
from spanet_lightning.backbones.spanet import SpectralGates
from spanet_lightning.backbones.spanetv2 import SpectralRescaling
from spanet_lightning.errors import ConfigError


@dataclass(frozen=True)
class Filter:
    """The gains of one gate or head of one mixer.

    Attributes:
        model: Label of the model.
        stage: From 1.
        block: In its stage, from 1.
        head: From 1.
        name: What sets the head apart: "λ=0.7", or "3×3" of a kernel size.
        gain: (H, W) mean gain over channels, zero frequency at (⌊H/2⌋, ⌊W/2⌋).
        spread: (H, W) standard deviation over channels.
    """

    model: str
    stage: int
    block: int
    head: int
    name: str
    gain: Float[np.ndarray, "h w"]
    spread: Float[np.ndarray, "h w"]

    @property
    def radial(self) -> tuple[np.ndarray, np.ndarray]:
        """Radius of each ring as a share of the Nyquist frequency, and the mean gain on it."""
        return radial_mean(self.gain)

    @property
    def balance(self) -> tuple[float, float]:
        """Mean gain below and above half of the Nyquist frequency."""
        radius = _radius(*self.gain.shape)
        low = radius <= 0.5
        return float(self.gain[low].mean()), float(self.gain[~low].mean())


def _radius(height: int, width: int) -> Float[np.ndarray, "{height} {width}"]:
    """Return each frequency's distance from zero, 1 being Nyquist's along an axis."""
    v = (np.arange(height) - height // 2) / max(height / 2, 1)
    u = (np.arange(width) - width // 2) / max(width / 2, 1)
    return np.hypot(v[:, None], u[None, :])


def radial_mean(gain: Float[np.ndarray, "h w"]) -> tuple[np.ndarray, np.ndarray]:
    """Average a centred field over rings of one cycle per shorter side, up to Nyquist's."""
    radius = _radius(*gain.shape)
    half = min(gain.shape) / 2
    ring = np.rint(radius * half).astype(int)
    inside = ring <= half
    counts = np.bincount(ring[inside])
    sums = np.bincount(ring[inside], gain[inside])
    known = counts > 0
    return np.flatnonzero(known) / half, sums[known] / counts[known]


def full_gain(half: Float[Tensor, "c h f"], width: int) -> Float[Tensor, "c h {width}"]:
    """Return gains in the layout of a real FFT as those of the whole spectrum, centred.

    In the columns 0 and W/2 a real FFT stores both of a conjugate pair, and its inverse keeps
    their mean: so they are averaged.
    """
    height = half.shape[1]
    rows = (-torch.arange(height)) % height
    lone = [0, width // 2] if width % 2 == 0 else [0]
    half = half.clone()
    half[:, :, lone] = (half[:, :, lone] + half[:, rows][:, :, lone]) / 2
    columns = width - torch.arange(half.shape[2], width)
    full = torch.cat([half, half[:, rows][:, :, columns]], dim=2)
    return full.roll((height // 2, width // 2), (1, 2))


def filters(subject: Subject, size: int = 224) -> list[Filter]:
    """Return the filters of a model at the sizes that its features have for an image.

    Args:
        subject: A SPANet or SPANetV2.
        size: Side of the image in pixels.

    Raises:
        ConfigError: If the model is none, or has no spectral filter.
    """
    found: list[Filter] = []
    with torch.no_grad():
        for stage, block, mixer in _mixers(subject):
            side = _side(size, stage)
            found += _of_mixer(subject.label, stage, block, mixer, side)
    if not found:
        raise ConfigError(f"{subject.label}: has no spectral filter: spf or srf is off")
    return found


def _side(size: int, stage: int) -> int:
    """Return the side of a stage's features: the stem divides by 4, each other stage by 2."""
    side = (size + 2 * 2 - 7) // 4 + 1
    for _ in range(stage - 1):
        side = (side + 2 * 1 - 3) // 2 + 1
    return side


def _mixers(subject: Subject) -> Iterator[tuple[int, int, nn.Module]]:
    if not isinstance(subject.model, Backbone):
        raise ConfigError(
            f"{subject.label}: is a {type(subject.model).__name__}, which has no SRF gates, SPF "
            "masks or context; expected a SPANet or SPANetV2"
        )
    for stage, part in enumerate(subject.model.stages, 1):
        for i, block in enumerate(part.blocks, 1):  # type: ignore[arg-type]
            yield stage, i, block.mixer


def _of_mixer(label: str, stage: int, block: int, mixer: nn.Module, side: int) -> Iterator[Filter]:
    gates = getattr(mixer, "gates", None)
    if isinstance(gates, SpectralGates) and gates.radius is not None:
        for i, gate in enumerate(gates.gates):
            mask = gates.mask(i, side, side).double().numpy()
            name = f"λ={gate.low:.2g}"
            yield Filter(label, stage, block, i + 1, name, mask, np.zeros_like(mask))
    srf = getattr(mixer, "srf", None)
    if isinstance(srf, SpectralRescaling):
        for i, gain in enumerate(srf.head_gains(side, side)):
            whole = full_gain(gain.double(), side)
            local: Any = mixer.local
            kernel = local[i].kernel_size[0]
            mean, spread = whole.mean(0).numpy(), whole.std(0, correction=0).numpy()
            yield Filter(label, stage, block, i + 1, f"{kernel}×{kernel}", mean, spread)


@dataclass(frozen=True)
class ContextMaps:
    """The context maps of one image.

    Attributes:
        model: Label of the model.
        stages: From 1, those that have a context.
        maps: (H, W) of each.
    """

    model: str
    stages: tuple[int, ...]
    maps: tuple[Float[np.ndarray, "_ _"], ...]


def context_maps(subject: Subject, image: Float[Tensor, "1 3 h w"]) -> ContextMaps:
    """Return a stage's modulators, |·| averaged over channels and blocks.

    Args:
        subject: A SPANet or SPANetV2; stages of attention have no context.
        image: In [0, 1], at any size from 32 px.

    Raises:
        ConfigError: If the model is neither, or has attention alone.
    """
    sums: dict[int, list[Tensor]] = {}
    handles = []
    for stage, _, mixer in _mixers(subject):
        if isinstance(mixer, spanet.SPAM):
            handles.append(mixer.gates.register_forward_hook(_keep(sums, stage, None)))
        elif isinstance(mixer, spanetv2.SPAM):
            # The projection after the norm is fused with the activation: it is no call of a module.
            weight = mixer.reduce.weight
            handles.append(mixer.norm.register_forward_hook(_keep(sums, stage, weight)))
    try:
        taps.run(subject.model, normalised(image, subject))
    finally:
        for handle in handles:
            handle.remove()
    if not sums:
        raise ConfigError(f"{subject.label}: has no context: all of its mixers are attention")
    maps = tuple(torch.stack(parts).mean(0).double().numpy() for parts in sums.values())
    return ContextMaps(subject.label, tuple(sums), maps)


def _keep(
    sums: dict[int, list[Tensor]], stage: int, weight: Tensor | None
) -> Callable[[nn.Module, object, Tensor], None]:
    def hook(_: nn.Module, __: object, output: Tensor) -> None:
        context = output if weight is None else F.conv2d(F.gelu(output), weight)
        sums.setdefault(stage, []).append(context.detach()[0].abs().mean(0))

    return hook
