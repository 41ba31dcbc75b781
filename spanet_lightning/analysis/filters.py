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

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from spanet_lightning.analysis import taps
from spanet_lightning.analysis.images import normalised
from spanet_lightning.analysis.models import Subject
from spanet_lightning.backbones import Backbone, spanet, spanetv2
from spanet_lightning.backbones.metaformer import stage_sizes
from spanet_lightning.backbones.spectral import SpectralFilter, SpectralPooling, full_gain
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


def filters(subject: Subject, size: int = 224) -> list[Filter]:
    """Return the filters of a model at the sizes that its features have for an image.

    Args:
        subject: A SPANet or SPANetV2.
        size: Side of the image in pixels.

    Raises:
        ConfigError: If the model is none, or has no spectral filter.
    """
    found: list[Filter] = []
    sizes = stage_sizes(size, size)
    with torch.no_grad():
        for stage, block, mixer in _mixers(subject):
            found += _of_mixer(subject.label, stage, block, mixer, sizes[stage - 1])
    if not found:
        raise ConfigError(f"{subject.label}: has no spectral filter: spf or srf is off")
    return found


def _mixers(subject: Subject) -> Iterator[tuple[int, int, nn.Module]]:
    if not isinstance(subject.model, Backbone):
        raise ConfigError(
            f"{subject.label}: is a {type(subject.model).__name__}, which has no SRF gates, SPF "
            "masks or context; expected a SPANet or SPANetV2"
        )
    for stage, part in enumerate(subject.model.stages, 1):
        for i, block in enumerate(part.blocks, 1):  # type: ignore[arg-type]
            yield stage, i, block.mixer


def _of_mixer(
    label: str, stage: int, block: int, mixer: nn.Module, size: tuple[int, int]
) -> Iterator[Filter]:
    """Return the filters of a mixer: one for each gate of V1, one for each head of V2."""
    for module in mixer.modules():
        if not isinstance(module, SpectralFilter):
            continue
        gains = full_gain(module.gain(*size).double(), size[1])
        if isinstance(module, SpectralPooling):
            names = [f"λ={balance:.2g}" for balance in module.balance]
        else:
            kernels = [conv.kernel_size for conv in getattr(mixer, "local", [])]
            names = [f"{height}×{width}" for height, width in kernels] or [type(module).__name__]
        for i, (name, gain) in enumerate(zip(names, gains.chunk(len(names)), strict=True), 1):
            mean, spread = gain.mean(0).numpy(), gain.std(0, correction=0).numpy()
            yield Filter(label, stage, block, i, name, mean, spread)


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
            handles.append(mixer.gates.register_forward_hook(_keep(sums, stage)))
        elif isinstance(mixer, spanetv2.SPAM):
            handles.append(mixer.reduce.register_forward_hook(_keep(sums, stage)))
    try:
        taps.run(subject.model, normalised(image, subject))
    finally:
        for handle in handles:
            handle.remove()
    if not sums:
        raise ConfigError(f"{subject.label}: has no context: all of its mixers are attention")
    maps = tuple(torch.stack(parts).mean(0).double().numpy() for parts in sums.values())
    return ContextMaps(subject.label, tuple(sums), maps)


def _keep(sums: dict[int, list[Tensor]], stage: int) -> Callable[[nn.Module, object, Tensor], None]:
    def hook(_: nn.Module, __: object, context: Tensor) -> None:
        sums.setdefault(stage, []).append(context.detach()[0].abs().mean(0))

    return hook
