"""The published augmentation of semantic segmentation, on an image and its mask together."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from spanet_lightning.data.detection_transforms import FitWithin, fitted

IGNORED = 255
"""Label of pixels that count neither in training nor in evaluation."""

Image = UInt8[Tensor, "3 _ _"]
_TRIES = 10
_MOST_OF_ONE = 0.75  # share of a crop's labelled pixels that one class may have
_BRIGHTNESS = 32.0  # of 255
_CONTRAST = _SATURATION = (0.5, 1.5)
_HUE = 18.0  # of 180, a full turn


def uniform(low: float, high: float) -> float:
    """Return a random number in a range."""
    return float(torch.empty(()).uniform_(low, high))


def maybe(probability: float = 0.5) -> bool:
    """Return true with a probability."""
    return float(torch.rand(())) < probability


class SegmentationAugmentation:
    """Random resize, crop, flip and colours, as in the published ADE20K runs.

    Args:
        crop: Height and width of what comes out, in pixels; the mask is padded to it.
        long: Limit of an image's longer side before the random factor, in pixels.
        short: Limit of its shorter side.
        scale: Range of the random factor of both limits.
        hflip: Probability of a horizontal flip.
        photometric: Whether to distort brightness, contrast, saturation and hue.
    """

    def __init__(
        self,
        crop: int,
        long: int,
        short: int,
        scale: tuple[float, float],
        hflip: float,
        photometric: bool,
    ) -> None:
        self.crop = crop
        self.long = long
        self.short = short
        self.scale = scale
        self.hflip = hflip
        self.photometric = photometric

    def __call__(
        self, image: UInt8[Tensor, "3 h w"], mask: Int64[Tensor, "h w"]
    ) -> tuple[UInt8[Tensor, "3 i j"], Int64[Tensor, "c c"]]:
        """Return an augmented image, at most as large as the crop, and a mask of its size."""
        factor = uniform(*self.scale)
        height, width = image.shape[1:]
        size = fitted(height, width, int(self.long * factor), int(self.short * factor))
        image = F.resize(image, list(size), antialias=True)
        labels = F.resize(tv_tensors.Mask(mask[None]), list(size)).as_subclass(Tensor)[0]
        top, left, bottom, right = random_crop(labels, self.crop)
        image, labels = image[:, top:bottom, left:right], labels[top:bottom, left:right]
        if maybe(self.hflip):
            image, labels = F.horizontal_flip(image), labels.flip(-1)
        if self.photometric:
            image = distorted(image)
        padded = labels.new_full((self.crop, self.crop), IGNORED)
        padded[: labels.shape[0], : labels.shape[1]] = labels
        return image, padded


def random_crop(mask: Int64[Tensor, "h w"], side: int) -> tuple[int, int, int, int]:
    """Return a random part of at most side×side px: top, left, bottom, right.

    Another one is drawn, ten times at most, while one class has 75 % or more of the labelled
    pixels; the last one is taken as it is.
    """
    height, width = mask.shape
    for attempt in range(_TRIES + 1):
        top = int(torch.randint(max(height - side, 0) + 1, ()))
        left = int(torch.randint(max(width - side, 0) + 1, ()))
        bottom, right = min(top + side, height), min(left + side, width)
        if attempt == _TRIES or not dominated(mask[top:bottom, left:right]):
            break
    return top, left, bottom, right


def dominated(mask: Int64[Tensor, "h w"]) -> bool:
    """Whether one class has 75 % or more of the labelled pixels, or there are none."""
    counts = torch.bincount(mask.reshape(-1), minlength=IGNORED + 1)
    counts[IGNORED] = 0
    total = int(counts.sum())
    return total == 0 or int(counts.max()) >= _MOST_OF_ONE * total


def distorted(image: UInt8[Tensor, "3 h w"]) -> UInt8[Tensor, "3 h w"]:
    """Return an image with random brightness, contrast, saturation and hue, each for half of them.

    Contrast comes before saturation and hue, or after them, with equal probability. Values are cut
    off at 0 and 255 after each.
    """
    steps: list[Callable[[Image], Image]] = []
    if maybe():
        shift = uniform(-_BRIGHTNESS, _BRIGHTNESS)
        steps.append(lambda x: _to_uint8(x.float() + shift))
    contrast_first = maybe()
    contrast = [uniform(*_CONTRAST)] if maybe() else []
    if contrast_first:
        steps += [lambda x, by=by: _to_uint8(x.float() * by) for by in contrast]  # type: ignore[misc]
    if maybe():
        share = uniform(*_SATURATION)
        steps.append(lambda x: saturated(x, share))
    if maybe():
        turn = uniform(-_HUE, _HUE) / 180
        steps.append(lambda x: F.adjust_hue(x, turn))
    if not contrast_first:
        steps += [lambda x, by=by: _to_uint8(x.float() * by) for by in contrast]  # type: ignore[misc]
    for step in steps:
        image = step(image)
    return image


def saturated(image: UInt8[Tensor, "3 h w"], share: float) -> UInt8[Tensor, "3 h w"]:
    """Return an image with HSV's saturation multiplied, its hue and value as they were.

    With value V, the largest channel, and saturation S = 1 - (smallest channel)/V, channels at the
    same hue and value are V - t(V - c) for a saturation of t·S, which is 1 at most. torchvision's
    `adjust_saturation` blends with grey instead, which changes the value.

    Args:
        image: RGB.
        share: What saturation is multiplied by.
    """
    channels = image.float()
    value, least = channels.amax(dim=0, keepdim=True), channels.amin(dim=0, keepdim=True)
    # 1/S; where the image is grey or black there is nothing to multiply.
    limit = value / (value - least).clamp(min=1e-6)
    return _to_uint8(value - limit.clamp(max=share) * (value - channels))


def evaluation(long: int, short: int) -> v2.Transform:
    """Return the transform of evaluation: resize an image to fit, nothing random."""
    return FitWithin(long, [short])


def _to_uint8(image: Tensor) -> Image:
    return image.round_().clamp_(0, 255).to(torch.uint8)
