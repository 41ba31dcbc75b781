"""The spectral filters of SPANet and SPANetV2, and their context maps.

Every spectral filter states its `gain(height, width)`: SPF's fixed masks (arXiv:2308.11568,
Eq. 16-18), SRF's learned gains (arXiv:2503.23947). Both are shown as the gain of each frequency of
a stage's features, zero frequency in the centre.

The context map of a stage (SPANet Fig. 4): the modulators of its blocks, which are the output of
the context branch before it multiplies the query, their magnitude averaged over channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from spanet_lightning.analysis import layers
from spanet_lightning.analysis.figures import Curve, Figure, Panel
from spanet_lightning.analysis.images import normalise
from spanet_lightning.analysis.models import LoadedModel
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
        name: What distinguishes the head: "λ=0.7", or "3×3" of a kernel size.
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
        low = _radius(*self.gain.shape) <= 0.5
        return float(self.gain[low].mean()), float(self.gain[~low].mean())


def _radius(height: int, width: int) -> Float[np.ndarray, "{height} {width}"]:
    """Return each frequency's distance from zero, 1 being the Nyquist frequency along an axis."""
    v = (np.arange(height) - height // 2) / max(height / 2, 1)
    u = (np.arange(width) - width // 2) / max(width / 2, 1)
    return np.hypot(v[:, None], u[None, :])


def radial_mean(gain: Float[np.ndarray, "h w"]) -> tuple[np.ndarray, np.ndarray]:
    """Average a centred field over rings of one cycle per shorter side, up to Nyquist's."""
    half = min(gain.shape) / 2
    ring = np.rint(_radius(*gain.shape) * half).astype(int)
    inside = ring <= half
    counts = np.bincount(ring[inside])
    sums = np.bincount(ring[inside], gain[inside])
    known = counts > 0
    return np.flatnonzero(known) / half, sums[known] / counts[known]


def filters(model: LoadedModel, size: int = 224) -> list[Filter]:
    """Return the filters of a model at the resolutions of its stages for an image.

    Args:
        model: A SPANet or SPANetV2.
        size: Side of the image in pixels.

    Raises:
        ConfigError: If the model is neither, or has no spectral filter.
    """
    sizes = stage_sizes(size, size)
    with torch.no_grad():
        found = [
            one
            for stage, block, mixer in _mixers(model)
            for one in _filters_of(model.label, stage, block, mixer, sizes[stage - 1])
        ]
    if not found:
        raise ConfigError(f"{model.label}: has no spectral filter: spf or srf is off")
    return found


def _mixers(model: LoadedModel) -> Iterator[tuple[int, int, nn.Module]]:
    if not isinstance(model.model, Backbone):
        raise ConfigError(
            f"{model.label}: is a {type(model.model).__name__}, which has no SRF gates, SPF "
            "masks or context; expected a SPANet or SPANetV2"
        )
    for stage, part in enumerate(model.model.stages, 1):
        for i, block in enumerate(part.blocks, 1):  # type: ignore[arg-type]
            yield stage, i, block.mixer


def _filters_of(
    label: str, stage: int, block: int, mixer: nn.Module, size: tuple[int, int]
) -> Iterator[Filter]:
    """Return the filters of a mixer: one per gate of V1, one per head of V2."""
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


def context_maps(
    model: LoadedModel, image: Float[Tensor, "1 3 h w"]
) -> dict[int, Float[np.ndarray, "_ _"]]:
    """Return |modulators| of each stage, averaged over channels and blocks, by stage from 1.

    Args:
        model: A SPANet or SPANetV2; stages of attention have no context.
        image: In [0, 1], at any size from 32 px.

    Raises:
        ConfigError: If the model is neither, or all its mixers are attention.
    """
    parts: dict[int, list[Tensor]] = {}

    def collect(stage: int) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_: nn.Module, __: object, context: Tensor) -> None:
            parts.setdefault(stage, []).append(context.detach()[0].abs().mean(0))

        return hook

    handles = []
    for stage, _, mixer in _mixers(model):
        if isinstance(mixer, spanet.SPAM):
            handles.append(mixer.gates.register_forward_hook(collect(stage)))
        elif isinstance(mixer, spanetv2.SPAM):
            handles.append(mixer.reduce.register_forward_hook(collect(stage)))
    try:
        layers.run_features(model.model, normalise(image, model))
    finally:
        for handle in handles:
            handle.remove()
    if not parts:
        raise ConfigError(f"{model.label}: has no context: all of its mixers are attention")
    return {stage: torch.stack(found).mean(0).double().numpy() for stage, found in parts.items()}


def last_blocks(found: Sequence[Filter]) -> list[Filter]:
    """Return the filters of the last block of each stage."""
    last = {one.stage: one.block for one in found}
    return [one for one in found if one.block == last[one.stage]]


def balance_row(one: Filter) -> dict[str, Any]:
    """Return the balance of low and high frequencies of a filter as a row."""
    height, width = one.gain.shape
    low, high = one.balance
    return {
        "model": one.model,
        "stage": one.stage,
        "block": one.block,
        "head": one.head,
        "filter": one.name,
        "grid": f"{height}×{width}",
        "gain_at_0": float(one.gain[height // 2, width // 2]),
        "gain_low": low,
        "gain_high": high,
        "low_share": low / (low + high),
        "channel_spread": float(one.spread.mean()),
    }


def gates_figure(found: Sequence[Filter], title: str) -> Figure:
    """Return the gains in two dimensions: a row per stage, the heads of its last block."""
    shown = last_blocks(found)
    rows = []
    for stage in dict.fromkeys(one.stage for one in shown):
        own = [one for one in shown if one.stage == stage]
        rows.append(
            tuple(
                Panel(
                    f"head {one.head}, {one.name}",
                    image=one.gain,
                    ylabel="" if i else f"stage {stage}, block {one.block}",
                )
                for i, one in enumerate(own)
            )
        )
    low, high = (float(pick([pick(one.gain) for one in shown])) for pick in (np.min, np.max))
    table = [balance_row(one) for one in found]
    label = "gain (mean over channels)"
    return Figure(title, tuple(rows), colorbar=label, limits=(low, high), table=table)


def profiles_figure(found: Sequence[Filter], title: str) -> Figure:
    """Return the gain by radius: a panel per stage, a curve per head, blocks as a band."""
    panels: list[Panel] = []
    for stage in dict.fromkeys(one.stage for one in found):
        curves = []
        heads = dict.fromkeys((one.head, one.name) for one in found if one.stage == stage)
        for i, (head, name) in enumerate(heads):
            own = [one.radial for one in found if (one.stage, one.head) == (stage, head)]
            gains = np.stack([gain for _, gain in own])
            band = {"low": gains.min(0), "high": gains.max(0)}
            curves.append(Curve(own[0][0], gains.mean(0), name, i, **band))
        panels.append(
            Panel(
                f"stage {stage}",
                tuple(curves),
                xlabel="radius",
                ylabel="" if panels else "gain (band: over blocks)",
                xticks=((0, "0"), (0.5, "0.5π"), (1, "π")),
            )
        )
    return Figure(title, (tuple(panels),), legend="head", panel_size=(2.6, 2.4))


def context_figure(
    images: Sequence[Float[Tensor, "3 h w"]],
    found: Sequence[dict[int, Float[np.ndarray, "_ _"]]],
    title: str,
) -> Figure:
    """Return images beside their context maps, a panel per stage, each on its own scale."""
    rows = []
    for image, maps in zip(images, found, strict=True):
        shown = [Panel("image", image=image.permute(1, 2, 0).numpy())]
        for stage, values in maps.items():
            size = "×".join(map(str, values.shape))
            shown.append(Panel(f"stage {stage}, {size}", image=values))
        rows.append(tuple(shown))
    # Interpolated as in the official notebook.
    return Figure(title, tuple(rows), smooth=True)
