"""Log amplitude and variance of feature maps, layer by layer (SPANet Fig. 2, SPANetV2 Fig. 3).

Of each feature map (B, C, H, W): A = |FFT2| (not normalised), ℓ = ln(A + 1e-6), zero frequency at
(⌊H/2⌋, ⌊W/2⌋), averaged over images and channels. Along the main diagonal from the centre outwards,
Δ(f_i) = ℓ(f_i) - ℓ(f_0), drawn at i evenly spaced from 0 to 1, "×π", as published. The variance is
that over the pixels of a channel, averaged over images and channels (Park and Kim,
arXiv:2202.06709, Fig. 9).

Images stream: one sum of H×W values is stored per layer, whatever the number of images.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from spanet_lightning.analysis import layers
from spanet_lightning.analysis.figures import Curve, Figure, Panel, in_rows
from spanet_lightning.analysis.images import normalise
from spanet_lightning.analysis.layers import Layer
from spanet_lightning.analysis.models import LoadedModel
from spanet_lightning.errors import ConfigError, DataError

EPSILON = 1e-6
"""Added to amplitudes before the logarithm."""


@dataclass(frozen=True)
class LayerSpectrum:
    """The mean log amplitude of one layer's feature maps.

    Attributes:
        index: Of the layer, from 0, down-sampling layers included.
        layer: Which.
        stage: From 1: rank of its resolution among those of the model's layers.
        channels: Number of channels.
        log_amplitude: (H, W) mean over images and channels of ln(A + 1e-6), centred.
        variance: Over pixels, mean over images and channels.
    """

    index: int
    layer: Layer
    stage: int
    channels: int
    log_amplitude: Float[np.ndarray, "h w"]
    variance: float

    @property
    def relative(self) -> Float[np.ndarray, " n"]:
        """Δ(f_i) along the main diagonal, from 0."""
        return relative_diagonal(self.log_amplitude)

    @property
    def radial(self) -> Float[np.ndarray, " r"]:
        """The mean over rings of one cycle per side, relative to the zero frequency."""
        return relative_radial(self.log_amplitude)

    @property
    def size(self) -> str:
        """Height and width, such as "56×56"."""
        return "×".join(map(str, self.log_amplitude.shape))


@dataclass(frozen=True)
class ModelSpectrum:
    """The layers of one model.

    Attributes:
        label: Of the model.
        images: Over how many images.
        layers: In the order of their definition, down-sampling layers included.
    """

    label: str
    images: int
    layers: tuple[LayerSpectrum, ...]

    def drawn(self) -> list[LayerSpectrum]:
        """Return all but the down-sampling layers, which are not drawn, as published."""
        return [one for one in self.layers if one.layer.kind != "down"]

    def depth(self, one: LayerSpectrum) -> float:
        """Return a layer's normalised depth: its index, down-sampling layers included."""
        return one.index / len(self.layers)


def log_amplitude(features: Float[Tensor, "b c h w"]) -> Float64[Tensor, "h w"]:
    """Return the sum over images of the mean over channels of ln(|FFT2| + 1e-6), centred.

    The features are real, so half of the spectrum is computed, and mirrored.
    """
    height, width = features.shape[-2:]
    # On the CPU: some accelerators have no double precision.
    wide = features.detach().cpu().double()
    half = torch.fft.rfft2(wide).abs().add_(EPSILON).log_().mean(1).sum(0)
    rows = (-torch.arange(height)) % height
    columns = width - torch.arange(width // 2 + 1, width)
    full = torch.cat([half, half[rows][:, columns]], dim=1)
    centred: Float64[Tensor, "h w"] = full.roll((height // 2, width // 2), (0, 1))
    return centred


def relative_diagonal(log_amplitude: Float[np.ndarray, "h w"]) -> Float[np.ndarray, " n"]:
    """Return ℓ(f_i) - ℓ(f_0) along the main diagonal, from the centre to the end."""
    height, width = log_amplitude.shape
    i = np.arange(min(height - height // 2, width - width // 2))
    values = log_amplitude[height // 2 + i, width // 2 + i]
    relative: Float[np.ndarray, " n"] = values - values[0]
    return relative


def relative_radial(log_amplitude: Float[np.ndarray, "h w"]) -> Float[np.ndarray, " r"]:
    """Return the mean of ℓ over rings of radius 0, 1, … cycles per side, less the value at 0."""
    height, width = log_amplitude.shape
    u, v = np.arange(height) - height // 2, np.arange(width) - width // 2
    # In cycles per side of the shorter side, as far as that side reaches.
    short = min(height, width)
    radius = np.hypot(u[:, None] * short / height, v[None, :] * short / width)
    ring = np.rint(radius).astype(int)
    number = short // 2 + 1 if short > 1 else 1
    inside = ring < number
    sums = np.bincount(ring[inside], log_amplitude[inside], minlength=number)
    counts = np.bincount(ring[inside], minlength=number)
    means = sums[counts > 0] / counts[counts > 0]
    relative: Float[np.ndarray, " r"] = means - means[0]
    return relative


def spectra(
    model: LoadedModel,
    batches: Iterable[Float[Tensor, "b 3 h w"]],
    *,
    mixers: bool = False,
    patterns: Sequence[str] = (),
) -> ModelSpectrum:
    """Measure the feature maps of a model's blocks, token mixers or named layers.

    Args:
        model: Any model.
        batches: Images in [0, 1], all of one size.
        mixers: The outputs of token mixers (SPANet Fig. 1) instead of blocks.
        patterns: Layers by name or pattern, instead of blocks. Of a pattern with wildcards, layers
            without feature maps are left out.

    Raises:
        ConfigError: If the model has no such layer, or a layer's features form no grid.
        DataError: If there is no image, or features are not finite.
    """
    net = model.model
    places = (
        layers.find_layers(net, patterns) if patterns else layers.find_blocks(net, mixers=mixers)
    )
    sums: dict[int, tuple[Tensor, float, int, int]] = {}
    skipped: dict[int, ConfigError] = {}
    number = 0
    image = (0, 0)

    def receive(index: int, output: Tensor) -> None:
        try:
            grid = layers.as_grid(net, output, image)
        except ConfigError as error:
            if places[index].kind != "layer":
                raise
            skipped[index] = error
            return
        amplitude = log_amplitude(grid)
        variance = float(_variance(grid))
        if index in sums:
            earlier = sums[index]
            if earlier[0].shape != amplitude.shape:
                skipped[index] = ConfigError(f"{places[index].name}: runs at several resolutions")
                return
            amplitude, variance = earlier[0] + amplitude, earlier[1] + variance
        seen = len(output) + (sums[index][2] if index in sums else 0)
        sums[index] = amplitude, variance, seen, grid.shape[1]

    with layers.hooked(net, places, receive):
        for images in batches:
            image = (images.shape[-2], images.shape[-1])
            layers.run_features(net, normalise(images, model))
            number += len(images)
    if number == 0:
        raise DataError("--images: got none")
    for index, error in skipped.items():
        sums.pop(index, None)
        if places[index].name in patterns:
            raise ConfigError(f"{model.label}: --layer {places[index].name}: {error}")
    if all(places[i].kind == "down" for i in sums):
        raise ConfigError(
            f"{model.label}: its {'layers' if patterns else 'blocks'} return no features on a "
            "single grid; this analysis does not apply"
        )
    sizes = sorted({sums[i][0].numel() for i in sums}, reverse=True)
    found = [
        LayerSpectrum(
            i,
            layer,
            sizes.index(sums[i][0].numel()) + 1,
            sums[i][3],
            (sums[i][0] / sums[i][2]).numpy(),
            sums[i][1] / sums[i][2],
        )
        for i, layer in enumerate(places)
        if i in sums
    ]
    for one in found:
        if not np.isfinite(one.log_amplitude).all():
            raise DataError(f"{model.label}: non-finite features in {one.layer.name}")
    return ModelSpectrum(model.label, number, tuple(found))


def _variance(features: Float[Tensor, "b c h w"]) -> Tensor:
    """Return the sum over images of the mean over channels of the variance over pixels."""
    flat = features.detach().float().flatten(2)
    return flat.var(2, correction=0).mean(1).sum().cpu()


def difference(first: ModelSpectrum, second: ModelSpectrum) -> ModelSpectrum:
    """Return the second's log amplitudes less the first's, layer by layer.

    Raises:
        ConfigError: If they don't have the same layers at the same resolutions.
    """
    keys = [[(one.layer.name, one.size) for one in model.layers] for model in (first, second)]
    if keys[0] != keys[1]:
        odd = sorted(set(keys[0]) ^ set(keys[1]))
        raise ConfigError(
            f"--difference: {first.label} and {second.label} differ in their layers, such as "
            f"{odd[0][0]} ({odd[0][1]})"
        )
    parts = tuple(
        replace(
            b,
            log_amplitude=b.log_amplitude - a.log_amplitude,
            variance=b.variance - a.variance,
        )
        for a, b in zip(first.layers, second.layers, strict=True)
    )
    return ModelSpectrum(f"{second.label} − {first.label}", second.images, parts)


def kernel_response(conv: nn.Module, size: int = 32) -> Float[np.ndarray, "{size} {size}"]:
    """Return the gain of a convolution's kernels: root mean square over channels of |DFT|, centred.

    With e the Fourier waves at the k² positions of a kernel and G the mean over channels of w wᵀ,
    the mean of |eᵀw|² is eᴴGe: no kernel is padded, so that memory does not grow with channels.

    Args:
        conv: A `Conv2d`; its bias, stride and padding don't matter, its dilation does.
        size: Frequencies per side.

    Raises:
        ConfigError: If the module is no convolution.
    """
    if not isinstance(conv, nn.Conv2d):
        raise ConfigError(f"--weights: {type(conv).__name__} is not a Conv2d")
    weights = conv.weight.detach().double().cpu().flatten(2).flatten(0, 1).numpy()
    y, x = (np.arange(k) * d for k, d in zip(conv.kernel_size, conv.dilation, strict=True))
    frequencies = np.arange(size) - size // 2
    waves = [np.exp(-2j * np.pi * np.outer(frequencies, at) / size) for at in (y, x)]
    e = np.kron(*waves)  # (size², k²)
    power = ((e.conj() @ (weights.T @ weights / len(weights))) * e).sum(1).real
    gain: Float[np.ndarray, "{size} {size}"] = np.sqrt(np.maximum(power, 0)).reshape(size, size)
    return gain


def weight_responses(
    model: LoadedModel, patterns: Sequence[str] = (), size: int = 32
) -> list[tuple[str, Float[np.ndarray, "h w"]]]:
    """Return name and gain of a model's convolutions.

    Args:
        model: Any model.
        patterns: Which; default: all with kernels of more than one pixel.
        size: Frequencies per side.

    Raises:
        ConfigError: If none of the layers is a convolution.
    """
    net = model.model
    named = dict(net.named_modules())
    names = [x.name for x in layers.find_layers(net, patterns)] if patterns else list(named)
    found = [
        (name, kernel_response(conv, size))
        for name in names
        if isinstance(conv := named[name], nn.Conv2d) and (patterns or max(conv.kernel_size) > 1)
    ]
    if not found:
        raise ConfigError(f"{model.label}: --weights: none of these layers is a convolution")
    return found


# Figures

_NAMED = 8  # layers of a model that have a legend
_FREQUENCY_TICKS = ((0, "0.0π"), (0.25, ""), (0.5, "0.5π"), (0.75, ""), (1, "1.0π"))


def spectrum_figure(models: Sequence[ModelSpectrum], title: str, *, radial: bool = False) -> Figure:
    """Return the relative log amplitudes: a panel per model, a curve per layer.

    Args:
        models: What was measured.
        title: Of the figure.
        radial: Draw the mean over rings instead of the diagonal.
    """
    # A few layers chosen by name have a legend; blocks are coloured by depth.
    named = all(len(m.drawn()) <= _NAMED and m.layers[0].layer.kind == "layer" for m in models)
    panels: list[Panel] = []
    rows: list[dict[str, Any]] = []
    for model in models:
        curves = []
        for i, one in enumerate(model.drawn()):
            y = one.radial if radial else one.relative
            x = np.linspace(0, 1, len(y))
            if named:
                curves.append(Curve(x, y, one.layer.name, series=i))
            else:
                curves.append(Curve(x, y, depth=model.depth(one), group=one.size))
            rows += [
                {**_row(model, one), "frequency": a, "delta": b} for a, b in zip(x, y, strict=True)
            ]
        panels.append(
            Panel(
                model.label,
                tuple(curves),
                xlabel="radius" if radial else "frequency (diagonal)",
                ylabel="" if len(panels) % 3 else "Δ log amplitude",
                xticks=_FREQUENCY_TICKS,
            )
        )
    return Figure(title, in_rows(panels), legend="layer" if named else "", table=rows)


def maps_figure(models: Sequence[ModelSpectrum], title: str) -> Figure:
    """Return log amplitudes in two dimensions: the last layer of each resolution.

    Of a model of one resolution four layers are shown, evenly spread.
    """
    rows = []
    for model in models:
        panels = []
        for one in _last_of_each_size(model):
            height, width = one.log_amplitude.shape
            # The lone frequency -n/2 of an even side is drawn once, at the top and left.
            values = one.log_amplitude - one.log_amplitude[height // 2, width // 2]
            panels.append(Panel(f"{one.layer.name}, {one.size}", image=values))
        panels[0] = replace(panels[0], ylabel=model.label)
        rows.append(tuple(panels))
    label = "log amplitude relative to frequency 0"
    return Figure(title, tuple(rows), colorbar=label, limits=(-5, 0))


def _last_of_each_size(model: ModelSpectrum) -> list[LayerSpectrum]:
    drawn = model.drawn()
    last = {one.size: one for one in drawn}
    if len(last) > 1 or len(drawn) < 4:
        return list(last.values())
    return [drawn[round((i + 1) * len(drawn) / 4) - 1] for i in range(4)]


def variance_figure(models: Sequence[ModelSpectrum], title: str) -> Figure:
    """Return the variance of feature maps by depth, a curve per model."""
    curves, rows = [], []
    for i, model in enumerate(models):
        drawn = model.drawn()
        x = np.array([model.depth(one) for one in drawn])
        y = np.array([one.variance for one in drawn])
        curves.append(Curve(x, y, label=model.label, series=i))
        rows += [{**_row(model, one), "variance": one.variance} for one in drawn]
    panel = Panel(curves=tuple(curves), xlabel="normalised depth", ylabel="variance over pixels")
    return Figure(title, ((panel,),), legend="-", table=rows)


def epochs_figure(found: Sequence[tuple[int, ModelSpectrum]], title: str) -> Figure:
    """Return the log amplitude at the highest frequency over epochs, a curve per resolution.

    Args:
        found: Epoch and spectrum of each checkpoint, in ascending order.
        title: Of the figure.
    """
    rows: list[dict[str, Any]] = [
        {"epoch": epoch, **_row(model, one), "delta": one.relative[-1]}
        for epoch, model in found
        for one in model.drawn()
        if len(one.relative) > 1  # a map of one pixel has no frequency but 0
    ]
    epochs = [epoch for epoch, _ in found]
    curves = []
    for i, size in enumerate(dict.fromkeys(row["size"] for row in rows)):
        values = [
            [row["delta"] for row in rows if (row["epoch"], row["size"]) == (epoch, size)]
            for epoch in epochs
        ]
        curves.append(
            Curve(
                np.array(epochs),
                np.array([np.mean(part) for part in values]),
                label=size,
                series=i,
                low=np.array([min(part) for part in values]),
                high=np.array([max(part) for part in values]),
            )
        )
    panel = Panel(curves=tuple(curves), xlabel="epoch", ylabel="Δ log amplitude at 1.0π")
    return Figure(title, ((panel,),), legend="feature maps", table=rows)


def weights_figure(
    found: Sequence[tuple[str, Sequence[tuple[str, np.ndarray]]]], title: str
) -> Figure:
    """Return the gain of convolutions over frequency: a panel per model, a curve per layer.

    Args:
        found: Label of each model, and name and gain of each of its convolutions.
        title: Of the figure.
    """
    named = all(len(responses) <= _NAMED for _, responses in found)
    panels: list[Panel] = []
    rows: list[dict[str, Any]] = []
    for label, responses in found:
        curves = []
        for i, (name, gain) in enumerate(responses):
            height, width = gain.shape
            diagonal = gain[np.arange(height // 2, height), np.arange(width // 2, width)]
            y = 20 * np.log10(np.maximum(diagonal / max(gain.max(), 1e-12), 1e-4))
            x = np.linspace(0, 1, len(y))
            if named:
                curves.append(Curve(x, y, name, series=i))
            else:
                curves.append(Curve(x, y, depth=i / (len(responses) - 1)))
            rows += [
                {"model": label, "layer": name, "frequency": a, "gain": g, "decibels": d}
                for a, g, d in zip(x, diagonal, y, strict=True)
            ]
        first = not len(panels) % 3
        panels.append(
            Panel(
                label,
                tuple(curves),
                xlabel="frequency (diagonal)",
                ylabel="gain, dB of its maximum" if first else "",
                xticks=_FREQUENCY_TICKS,
            )
        )
    return Figure(title, in_rows(panels), legend="layer" if named else "", table=rows)


def _row(model: ModelSpectrum, one: LayerSpectrum) -> dict[str, Any]:
    return {
        "model": model.label,
        "index": one.index,
        "layer": one.layer.name,
        "stage": one.stage,
        "number": one.layer.number,
        "size": one.size,
        "depth": model.depth(one),
    }
