"""Accuracy by the frequencies of the input: filtered images, noise in a band, Fourier heat maps.

Filters and noise after Park and Kim (ICLR 2022, arXiv:2202.06709). Frequencies are in cycles per
image side; a circle of radius r keeps, or removes, a part of each channel's spectrum. High-pass
filtering keeps the mean, so that the loss of low frequencies is measured and not that of
brightness. Noise is white, filtered to a ring and scaled to one standard deviation.

The heat map (Yin et al., NeurIPS 2019, arXiv:1906.08988) shows the error rate under each Fourier
basis perturbation: X + r·ε·U(u, v), where U is the real wave of frequency (u, v) with ‖U‖₂ = 1, ε
the norm and r a random sign per image and channel. (-u, -v) is the same wave, and not measured
twice. Nothing is clipped to [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from spanet_lightning.analysis.figures import Curve, Figure, Panel, in_rows
from spanet_lightning.analysis.images import Batch, normalise
from spanet_lightning.analysis.models import LoadedModel
from spanet_lightning.errors import DataError, invalid, invalid_choice

Corruption = Literal["low", "high", "noise"]

IMAGENET_NORM = 15.7
"""ε of Yin et al. at 224 px; at another size it grows with the side, as the norm of an image."""


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
        agreement: Whether the images have no labels, and accuracy is agreement with the model's own
            decision without corruption.
    """

    model: str
    corruption: str
    radii: tuple[float, ...]
    accuracy: tuple[float, ...]
    clean: float
    images: int
    agreement: bool


@dataclass(frozen=True)
class HeatMap:
    """Error rates of one model under Fourier basis perturbations.

    Attributes:
        model: Its label.
        error: (S, S) error rate by frequency, rows u and columns v from -(S // 2); zero frequency
            in the centre.
        norm: ε, of images in [0, 1].
        clean: Error rate without perturbation.
        images: Number of images.
        agreement: As in `Robustness`.
    """

    model: str
    error: Float[np.ndarray, "s s"]
    norm: float
    clean: float
    images: int
    agreement: bool


def frequency_radius(height: int, width: int) -> Float[Tensor, "h f"]:
    """Return the distance from zero of each bin of a real FFT, in cycles per (shorter) side."""
    u = torch.fft.fftfreq(height, 1 / height).double()
    v = torch.fft.rfftfreq(width, 1 / width).double()
    return torch.hypot(u[:, None] * min(height, width) / height, v * min(height, width) / width)


def filter_images(
    images: Float[Tensor, "b c h w"], radius: float, kind: str
) -> Float[Tensor, "b c h w"]:
    """Return images with frequencies up to a radius ("low"), or beyond it and the mean ("high")."""
    height, width = images.shape[-2:]
    distance = frequency_radius(height, width)
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
        rng: Source of random numbers.

    Raises:
        ConfigError: If no frequency is in the ring.
    """
    white = torch.randn(tuple(shape), generator=rng, dtype=torch.float64)
    distance = frequency_radius(shape[-2], shape[-1])
    mask = ((distance - middle).abs() <= width / 2) & (distance > 0)
    if not mask.any():
        raise invalid("--radii", middle, f"a frequency that {shape[-2]}×{shape[-1]} pixels have")
    noise = torch.fft.irfft2(torch.fft.rfft2(white) * mask, s=tuple(shape[-2:]))
    scale = noise.square().mean((1, 2, 3), keepdim=True).sqrt()
    scaled: Tensor = (noise * (std / scale)).float()
    return scaled


def fourier_basis(height: int, width: int, u: int, v: int) -> Float[Tensor, "{height} {width}"]:
    """Return the real wave of frequency (u, v), in cycles per image, with ‖U‖₂ = 1.

    Its phase is that of the inverse FFT of a spectrum of 1 + i at (u, v) and its conjugate at
    (-u, -v): cos - sin, which vanishes for no frequency.
    """
    y, x = torch.arange(height).double()[:, None], torch.arange(width).double()[None, :]
    phase = 2 * torch.pi * (u * y / height + v * x / width)
    wave = phase.cos() - phase.sin()
    unit: Float[Tensor, "{height} {width}"] = (wave / wave.norm()).float()
    return unit


@torch.no_grad()
def robustness(
    model: LoadedModel,
    batches: Iterable[Batch],
    corruptions: Sequence[str] = ("low", "high", "noise"),
    radii: Sequence[float] = (2, 4, 8, 16, 32, 64),
    noise: float = 0.1,
    seed: int = 0,
) -> list[Robustness]:
    """Measure a model's accuracy under each corruption at each radius.

    Args:
        model: A classifier.
        batches: Images in [0, 1] and their classes; `None` where they have no labels.
        corruptions: Which.
        radii: In cycles per image side.
        noise: Standard deviation of the noise, in values of [0, 1].
        seed: Of the noise: the same for all models.

    Raises:
        ConfigError: If a value is out of range.
        DataError: If there is no image.
    """
    for kind in corruptions:
        if kind not in get_args(Corruption):
            raise invalid_choice("--corruptions", kind, get_args(Corruption))
    if not radii or list(radii) != sorted(set(radii)) or radii[0] <= 0:
        raise invalid("--radii", list(radii), "positive numbers in ascending order")
    if noise <= 0:
        raise invalid("--noise", noise, "a positive standard deviation")
    correct = {kind: np.zeros(len(radii)) for kind in corruptions}
    rng = torch.Generator().manual_seed(seed)
    count = _Count(model)
    for images, labels in batches:
        wanted = count.clean(images, labels)
        for kind in corruptions:
            for i, radius in enumerate(radii):
                if kind == "noise":
                    # The ring is a fifth of its radius wide on both sides, at least one cycle.
                    band = band_noise(images.shape, radius, max(2.0, 0.4 * radius), noise, rng)
                    changed = images + band
                else:
                    changed = filter_images(images, radius, kind)
                correct[kind][i] += count.correct(changed, wanted)
    count.check()
    number = count.images
    return [
        Robustness(
            model.label,
            kind,
            tuple(map(float, radii)),
            tuple((correct[kind] / number).tolist()),
            count.right / number,
            number,
            count.agreement,
        )
        for kind in corruptions
    ]


@torch.no_grad()
def heat_map(
    model: LoadedModel,
    batches: Iterable[Batch],
    side: int = 31,
    norm: float | None = None,
    seed: int = 0,
) -> HeatMap:
    """Measure a model's error rate under each Fourier basis perturbation.

    It costs (side² + 1) / 2 forward passes per image.

    Args:
        model: A classifier.
        batches: Images in [0, 1] and their classes; `None` where they have no labels.
        side: Frequencies per side, odd: from -(side // 2) to side // 2 cycles per image.
        norm: ε per channel; default: `IMAGENET_NORM` scaled to the image size.
        seed: Of the random signs: the same for all models.

    Raises:
        ConfigError: If a value is out of range.
        DataError: If there is no image.
    """
    if side < 1 or side % 2 == 0:
        raise invalid("--side", side, "an odd number of frequencies")
    if norm is not None and norm <= 0:
        raise invalid("--norm", norm, "a positive number")
    half = side // 2
    wrong = np.zeros((side, side))
    count = _Count(model)
    rng = torch.Generator().manual_seed(seed)
    for images, labels in batches:
        height, width = images.shape[-2:]
        if half > min(height, width) // 2:
            raise invalid("--side", side, f"at most {min(height, width) | 1} for these images")
        norm = norm or IMAGENET_NORM * (height * width) ** 0.5 / 224
        wanted = count.clean(images, labels)
        for u in range(-half, half + 1):
            for v in range(-half, half + 1):
                if (u, v) < (0, 0):
                    continue  # the same wave as (-u, -v)
                signs = torch.randint(0, 2, (*images.shape[:2], 1, 1), generator=rng) * 2 - 1
                changed = images + signs * norm * fourier_basis(height, width, u, v)
                errors = len(images) - count.correct(changed, wanted)
                wrong[half + u, half + v] += errors
                if (u, v) != (0, 0):
                    wrong[half - u, half - v] += errors
    count.check()
    clean = 1 - count.right / count.images
    error = wrong / count.images
    return HeatMap(model.label, error, norm or 0, clean, count.images, count.agreement)


@dataclass
class _Count:
    """Decisions of one model over batches."""

    model: LoadedModel
    right: int = 0
    images: int = 0
    agreement: bool = False

    def decide(self, images: Tensor) -> Tensor:
        return self.model.logits(normalise(images, self.model)).argmax(1)

    def clean(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """Count a batch without corruption, and return the right answers."""
        decided = self.decide(images)
        self.agreement = labels is None
        wanted = decided if labels is None else labels
        self.right += int((decided == wanted).sum())
        self.images += len(images)
        return wanted

    def correct(self, images: Tensor, wanted: Tensor) -> int:
        return int((self.decide(images) == wanted).sum())

    def check(self) -> None:
        if self.images == 0:
            raise DataError("--images: got none")


# Figures

_TITLES = {
    "low": ("low-pass filtered", "radius, cycles per side"),
    "high": ("high-pass filtered", "radius, cycles per side"),
    "noise": ("noise in a band", "middle of the band, cycles per side"),
}


def robustness_figure(found: Sequence[Robustness], title: str) -> Figure:
    """Return accuracy by radius: a panel per corruption, a curve per model."""
    models = list(dict.fromkeys(one.model for one in found))
    agreement = any(one.agreement for one in found)
    panels: list[Panel] = []
    rows: list[dict[str, Any]] = []
    for kind in dict.fromkeys(one.corruption for one in found):
        own = [one for one in found if one.corruption == kind]
        series = [models.index(one.model) for one in own]
        panels.append(
            Panel(
                _TITLES[kind][0],
                tuple(
                    Curve(np.array(one.radii), np.array(one.accuracy), one.model, i)
                    for one, i in zip(own, series, strict=True)
                ),
                xlabel=_TITLES[kind][1],
                ylabel="" if panels else "agreement" if agreement else "top-1 accuracy",
                xticks=tuple((radius, f"{radius:g}") for radius in own[0].radii),
                ylim=(0, 1.03),
                hlines=tuple((one.clean, i) for one, i in zip(own, series, strict=True)),
                xscale="log2",
            )
        )
    for one in found:
        rows += [
            {
                "model": one.model,
                "corruption": one.corruption,
                "radius": radius,
                "accuracy": accuracy,
                "clean": one.clean,
                "images": one.images,
                "reference": "clean decision" if one.agreement else "label",
            }
            for radius, accuracy in zip(one.radii, one.accuracy, strict=True)
        ]
    return Figure(f"{title} (thin lines: clean)", (tuple(panels),), legend="-", table=rows)


def heat_map_figure(found: Sequence[HeatMap], title: str) -> Figure:
    """Return error rates by frequency, a panel per model."""
    panels: list[Panel] = []
    rows: list[dict[str, Any]] = []
    for one in found:
        half = len(one.error) // 2
        ticks = tuple((float(at), str(at - half)) for at in sorted({0, half, 2 * half}))
        below = f"clean {one.clean:.3f}, mean {one.error.mean():.3f}"
        panels.append(Panel(one.model, image=one.error, xlabel=below, xticks=ticks, yticks=ticks))
        rows += [
            {"model": one.model, "u": i - half, "v": j - half, "error": float(error)}
            for (i, j), error in np.ndenumerate(one.error)
        ]
    agreement = any(one.agreement for one in found)
    label = "share of changed decisions" if agreement else "error rate"
    size = (2.6, 2.7)
    return Figure(
        title, in_rows(panels, 4), colorbar=label, limits=(0, 1), panel_size=size, table=rows
    )
