"""Relative log-amplitude of feature maps by block (SPANet Fig. 2, SPANetV2 Fig. 3), as published.

Of each map (B, C, H, W): A = |FFT2| (not normalised), ℓ = ln(A + 1e-6), zero frequency moved to
(⌊H/2⌋, ⌊W/2⌋), mean of the logarithms over images and channels. Along the main diagonal from the
centre to the end, Δ(f_i) = ℓ(f_i) - ℓ(f_0), drawn at i evenly spaced from 0 to 1, "×π".

Images stream: what is kept of a map is one sum of H×W values, whatever the number of images.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from spanet_lightning.analysis import taps
from spanet_lightning.analysis.images import normalised
from spanet_lightning.analysis.models import Subject
from spanet_lightning.analysis.taps import Tap
from spanet_lightning.errors import ConfigError, DataError

EPSILON = 1e-6
"""Added to amplitudes before the logarithm."""


@dataclass(frozen=True)
class MapSpectrum:
    """The mean log-amplitude of one map.

    Attributes:
        index: Of the map, from 0, down-sampling layers included.
        tap: Where it is.
        channels: Number of channels.
        log_amplitude: (H, W) mean over images and channels of ln(A + 1e-6), centred.
    """

    index: int
    tap: Tap
    channels: int
    log_amplitude: Float[np.ndarray, "h w"]

    @property
    def relative(self) -> Float[np.ndarray, " n"]:
        """Δ(f_i) along the main diagonal, from 0."""
        return relative_diagonal(self.log_amplitude)

    @property
    def radial(self) -> Float[np.ndarray, " r"]:
        """The mean over rings of one cycle per side, from the zero frequency's value."""
        return relative_radial(self.log_amplitude)


@dataclass(frozen=True)
class ModelSpectrum:
    """The maps of one model.

    Attributes:
        label: Of the model.
        images: Over how many images.
        maps: In the order they are computed.
    """

    label: str
    images: int
    maps: tuple[MapSpectrum, ...]

    def drawn(self) -> list[MapSpectrum]:
        """Return the maps of blocks: all but the down-sampling layers' outputs."""
        return [one for one in self.maps if one.tap.kind != "down"]


def log_amplitude(features: Float[Tensor, "b c h w"]) -> Float64[Tensor, "h w"]:
    """Return the sum over images of the mean over channels of ln(|FFT2| + 1e-6), centred.

    The features are real, so half of the spectrum is computed, and mirrored.
    """
    height, width = features.shape[-2:]
    # On the CPU: some accelerators have no double precision.
    half = (
        torch.fft.rfft2(features.detach().cpu().double()).abs().add_(EPSILON).log_().mean(1).sum(0)
    )
    rows = (-torch.arange(height)) % height
    columns = width - torch.arange(width // 2 + 1, width)
    full = torch.cat([half, half[rows][:, columns]], dim=1)
    centred: Float64[Tensor, "h w"] = full.roll((height // 2, width // 2), (0, 1))
    return centred


def relative_diagonal(log_amplitude: Float[np.ndarray, "h w"]) -> Float[np.ndarray, " n"]:
    """Return ℓ(f_i) - ℓ(f_0) along the main diagonal, from the centre to the end."""
    height, width = log_amplitude.shape
    number = min(height - height // 2, width - width // 2)
    i = np.arange(number)
    values = log_amplitude[height // 2 + i, width // 2 + i]
    relative: Float[np.ndarray, " n"] = values - values[0]
    return relative


def relative_radial(log_amplitude: Float[np.ndarray, "h w"]) -> Float[np.ndarray, " r"]:
    """Return the mean of ℓ over rings of radius 0, 1, … cycles per side, less the value at 0."""
    height, width = log_amplitude.shape
    u, v = np.arange(height) - height // 2, np.arange(width) - width // 2
    # In units of a cycle per side of the shorter side, as far as that side reaches.
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
    subject: Subject, batches: Iterable[Float[Tensor, "b 3 h w"]], *, mixers: bool = False
) -> ModelSpectrum:
    """Measure the spectra of a model's feature maps.

    Args:
        subject: The model.
        batches: Images in [0, 1], all of one size.
        mixers: The outputs of token mixers (SPANet Fig. 1) instead of blocks.

    Raises:
        ConfigError: If the model has no blocks, or features that are no grid.
        DataError: If there is no image, or features are not finite.
    """
    places = taps.find_taps(subject.model, mixers)
    sums: dict[int, Tensor] = {}
    channels: dict[int, int] = {}
    number = 0
    image = (0, 0)

    def receive(index: int, output: Tensor) -> None:
        grid = taps.as_grid(subject.model, output, image)
        total = log_amplitude(grid)
        channels[index] = grid.shape[1]
        sums[index] = total if index not in sums else sums[index] + total

    with taps.tapped(subject.model, places, receive):
        for images in batches:
            image = (images.shape[-2], images.shape[-1])
            taps.run(subject.model, normalised(images, subject))
            number += len(images)
    if number == 0:
        raise DataError("images: got none")
    if not any(places[i].kind != "down" for i in sums):
        raise ConfigError(
            f"{subject.label}: its blocks return no features on one grid; this analysis does not "
            "apply"
        )
    found = [
        MapSpectrum(i, tap, channels[i], (sums[i] / number).numpy())
        for i, tap in enumerate(places)
        if i in sums
    ]
    for one in found:
        if not np.isfinite(one.log_amplitude).all():
            raise DataError(f"{subject.label}: features of {one.tap.name} are not finite")
    return ModelSpectrum(subject.label, number, tuple(found))
