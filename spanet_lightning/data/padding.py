"""Batches of images of unlike sizes, padded at the right and the bottom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor

from spanet_lightning.data.batches import DetectionBatch, DetectionTarget, SegmentationBatch


class DetectionSample(NamedTuple):
    """One image with its annotations; see `DetectionBatch`."""

    image: UInt8[Tensor, "3 h w"]
    original_size: tuple[int, int]
    target: DetectionTarget
    path: str


class SegmentationSample(NamedTuple):
    """One image with the class of each pixel; see `SegmentationBatch`."""

    image: UInt8[Tensor, "3 h w"]
    mask: Tensor
    path: str


class Padding(NamedTuple):
    """Makes batches; a plain value, so that worker processes can be sent it.

    Attributes:
        multiple: Height and width of a batch are multiples of this many pixels.
        least: Height and width in pixels that a batch has at least.
    """

    multiple: int = 32
    least: tuple[int, int] = (0, 0)

    def images(self, images: Sequence[UInt8[Tensor, "3 _ _"]]) -> UInt8[Tensor, "b 3 h w"]:
        """Return images as one tensor; what is padded counts after normalisation alone."""
        largest = (
            max(least, *(image.shape[axis] for image in images))
            for axis, least in enumerate(self.least, 1)
        )
        height, width = (-(-side // self.multiple) * self.multiple for side in largest)
        batch = torch.zeros(len(images), 3, height, width, dtype=torch.uint8)
        for slot, image in zip(batch, images, strict=True):
            slot[:, : image.shape[1], : image.shape[2]].copy_(image)
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


def _size(image: Tensor) -> tuple[int, int]:
    return int(image.shape[1]), int(image.shape[2])
