"""Batches of images of unlike sizes: normalised, and padded at the right and the bottom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from spanet_lightning.data.batches import DetectionBatch, DetectionTarget, SegmentationBatch
from spanet_lightning.errors import invalid

Channels = tuple[float, float, float]
MEAN: Channels = IMAGENET_DEFAULT_MEAN  # 123.675, 116.28, 103.53 of 255
STD: Channels = IMAGENET_DEFAULT_STD  # 58.395, 57.12, 57.375 of 255


class DetectionSample(NamedTuple):
    """One image, not yet normalised, with its annotations; see `DetectionBatch`."""

    image: UInt8[Tensor, "3 h w"]
    original_size: tuple[int, int]
    target: DetectionTarget
    path: str


class SegmentationSample(NamedTuple):
    """One image, not yet normalised, with the class of each pixel; see `SegmentationBatch`."""

    image: UInt8[Tensor, "3 h w"]
    mask: Tensor
    path: str


class Normalize(NamedTuple):
    """Makes batches; a plain value, so that worker processes can be sent it.

    Attributes:
        mean: Mean of each channel, of values in [0, 1], that is subtracted.
        std: Standard deviation of each channel that is divided by.
        multiple: Height and width of a batch are multiples of this many pixels.
        least: Height and width in pixels that a batch has at least.
    """

    mean: Channels = MEAN
    std: Channels = STD
    multiple: int = 32
    least: tuple[int, int] = (0, 0)

    def images(self, images: Sequence[UInt8[Tensor, "3 _ _"]]) -> Float[Tensor, "b 3 h w"]:
        """Return images as one tensor, zero after normalisation where padded."""
        largest = (
            max(least, *(image.shape[axis] for image in images))
            for axis, least in enumerate(self.least, 1)
        )
        height, width = (-(-side // self.multiple) * self.multiple for side in largest)
        batch = torch.zeros(len(images), 3, height, width)
        mean = 255 * torch.tensor(self.mean).reshape(3, 1, 1)
        std = 255 * torch.tensor(self.std).reshape(3, 1, 1)
        for slot, image in zip(batch, images, strict=True):
            h, w = image.shape[1:]
            # In place: an image of 1333×800 px is 13 MB as float32.
            slot[:, :h, :w].copy_(image).sub_(mean).div_(std)
        return batch

    def detection(self, samples: list[DetectionSample]) -> DetectionBatch:
        """Return a batch of images with their annotations, which padding does not touch."""
        return DetectionBatch(
            images=self.images([sample.image for sample in samples]),
            sizes=[_size(sample.image) for sample in samples],
            original_sizes=[sample.original_size for sample in samples],
            targets=[sample.target for sample in samples],
            paths=[sample.path for sample in samples],
        )

    def segmentation(self, samples: list[SegmentationSample]) -> SegmentationBatch:
        """Return a batch of images with the class of each pixel."""
        return SegmentationBatch(
            images=self.images([sample.image for sample in samples]),
            sizes=[_size(sample.image) for sample in samples],
            masks=[sample.mask for sample in samples],
            paths=[sample.path for sample in samples],
        )


def check_normalisation(mean: Channels, std: Channels) -> None:
    """Refuse standard deviations that can't be divided by.

    Raises:
        ConfigError: If one is not above 0, with key `std`.
    """
    if min(std) <= 0:
        raise invalid("std", std, "numbers above 0")
    if not all(abs(value) < float("inf") for value in (*mean, *std)):
        raise invalid("mean", mean, "finite numbers")


def _size(image: Tensor) -> tuple[int, int]:
    return int(image.shape[1]), int(image.shape[2])
