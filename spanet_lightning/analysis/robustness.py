"""Accuracy on images with only low, or only high, frequencies left, or with noise in a band.

After Park and Kim (ICLR 2022, arXiv:2202.06709). Frequencies are in cycles per image side; a
circle of radius r keeps, or cuts, each channel's spectrum. High-pass filtering leaves the mean as
it is, so that what is measured is the loss of low frequencies, not of brightness. Noise is white,
filtered to a ring and scaled to one standard deviation, whatever the ring. Nothing is clipped to
[0, 1].
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from spanet_lightning.analysis.images import normalised
from spanet_lightning.analysis.models import Subject
from spanet_lightning.errors import DataError, invalid, invalid_choice

Corruption = Literal["low", "high", "noise"]


@dataclass(frozen=True)
class Robustness:
    """Accuracy of one model under one kind of corruption.

    Attributes:
        model: Its label.
        corruption: "low" (low-pass), "high" (high-pass) or "noise".
        radii: Radius of the circle, or middle of the noise's band, in cycles per side.
        accuracy: Top-1 accuracy at each.
        clean: Top-1 accuracy without corruption.
        images: Number of images.
        agreement: Whether "right" means: as the model itself decides without corruption, since the
            images have no labels.
    """

    model: str
    corruption: str
    radii: tuple[float, ...]
    accuracy: tuple[float, ...]
    clean: float
    images: int
    agreement: bool


def radius_of(height: int, width: int) -> Float[Tensor, "h f"]:
    """Return the distance from zero of each bin of a real FFT, in cycles per (shorter) side."""
    u = torch.fft.fftfreq(height, 1 / height).double()
    v = torch.fft.rfftfreq(width, 1 / width).double()
    return torch.hypot(u[:, None] * min(height, width) / height, v * min(height, width) / width)


def passed(images: Float[Tensor, "b c h w"], radius: float, kind: str) -> Float[Tensor, "b c h w"]:
    """Return images with frequencies up to a radius ("low"), or beyond it and the mean ("high")."""
    height, width = images.shape[-2:]
    distance = radius_of(height, width)
    mask = distance <= radius if kind == "low" else (distance > radius) | (distance == 0)
    spectrum = torch.fft.rfft2(images.double()) * mask
    result: Float[Tensor, "b c h w"] = torch.fft.irfft2(spectrum, s=(height, width)).to(images)
    return result


def band_noise(
    shape: Sequence[int], middle: float, width: float, std: float, rng: torch.Generator
) -> Float[Tensor, "b c h w"]:
    """Return noise within a ring of frequencies, of one standard deviation for each image.

    Args:
        shape: (B, C, H, W).
        middle: Middle of the ring in cycles per side.
        width: Its width.
        std: Standard deviation over an image's pixels and channels.
        rng: Source of the numbers.

    Raises:
        ConfigError: If no frequency is in the ring.
    """
    white = torch.randn(tuple(shape), generator=rng, dtype=torch.float64)
    distance = radius_of(shape[-2], shape[-1])
    mask = ((distance - middle).abs() <= width / 2) & (distance > 0)
    if not mask.any():
        raise invalid("--radii", middle, f"a frequency that {shape[-2]}×{shape[-1]} pixels have")
    noise = torch.fft.irfft2(torch.fft.rfft2(white) * mask, s=tuple(shape[-2:]))
    scale = noise.square().mean((1, 2, 3), keepdim=True).sqrt()
    scaled: Tensor = (noise * (std / scale)).float()
    return scaled


Batch = tuple[Float[Tensor, "b 3 h w"], Int64[Tensor, " b"] | None]


@torch.no_grad()
def robustness(
    subject: Subject,
    batches: Iterable[Batch],
    corruptions: Sequence[str] = ("low", "high", "noise"),
    radii: Sequence[float] = (2, 4, 8, 16, 32, 64),
    noise: float = 0.1,
    seed: int = 0,
) -> list[Robustness]:
    """Measure a model's accuracy under each corruption at each radius.

    Args:
        subject: A classifier.
        batches: Images in [0, 1] and their classes; `None` where they have no labels, then the
            model's own clean decision is what is right.
        corruptions: Which.
        radii: In cycles per image side.
        noise: Standard deviation of the noise, in values of [0, 1].
        seed: Of the noise: all models get the same.

    Raises:
        ConfigError: If a value is out of range, or the model has fewer classes than the labels.
        DataError: If there is no image.
    """
    for kind in corruptions:
        if kind not in get_args(Corruption):
            raise invalid_choice("--corruptions", kind, get_args(Corruption))
    if not radii or list(radii) != sorted(set(radii)) or radii[0] <= 0:
        raise invalid("--radii", list(radii), "positive numbers in ascending order")
    if noise <= 0:
        raise invalid("--noise", noise, "a positive standard deviation")
    right = {kind: np.zeros(len(radii)) for kind in corruptions}
    rng = torch.Generator().manual_seed(seed)
    clean = number = 0
    unlabelled = False

    def decided(images: Tensor) -> Tensor:
        return subject.logits(normalised(images, subject)).argmax(1)

    for images, labels in batches:
        own = decided(images)
        unlabelled = labels is None
        wanted = own if labels is None else labels
        clean += int((own == wanted).sum())
        number += len(images)
        for kind in corruptions:
            for i, radius in enumerate(radii):
                changed = _corrupted(images, kind, radius, noise, rng)
                right[kind][i] += int((decided(changed) == wanted).sum())
    if number == 0:
        raise DataError("images: got none")
    return [
        Robustness(
            subject.label,
            kind,
            tuple(map(float, radii)),
            tuple((right[kind] / number).tolist()),
            clean / number,
            number,
            unlabelled,
        )
        for kind in corruptions
    ]


def _corrupted(
    images: Tensor, kind: str, radius: float, noise: float, rng: torch.Generator
) -> Tensor:
    if kind == "noise":
        # A fifth of the way to the next band on both sides, one cycle at least.
        return images + band_noise(images.shape, radius, max(2.0, 0.4 * radius), noise, rng)
    return passed(images, radius, kind)
