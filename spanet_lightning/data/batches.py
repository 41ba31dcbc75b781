"""Samples and batches of dense prediction: images of unlike sizes, padded right and bottom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, NotRequired, TypedDict

import torch
from jaxtyping import UInt8
from torch import Tensor

STRIDE = 32
"""Height and width of batches of detection are multiples of this many pixels."""


class DetectionTarget(TypedDict):
    """The annotations of one image, as torchvision's detectors name them.

    In training, boxes and masks are in pixels of the augmented image and crowds are excluded. In
    evaluation they are in pixels of the image as stored, crowds included, since COCO's area ranges
    are defined there.

    Attributes:
        boxes: Corners (x1, y1, x2, y2) in pixels, shape (N, 4), float32.
        labels: Class of each box, 1 to the number of classes: 0 is background. Shape (N,), int64.
        masks: Instance masks of shape (N, H, W), bool; only where they were asked for.
        iscrowd: Whether each box encloses a crowd, shape (N,), bool.
        area: COCO's annotated area of each object in pixels of the stored image, shape (N,).
        image_id: The id of the image in its annotation file.
    """

    boxes: Tensor
    labels: Tensor
    masks: NotRequired[Tensor]
    iscrowd: Tensor
    area: Tensor
    image_id: int


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


class DetectionBatch(NamedTuple):
    """A batch of B images of unlike sizes, padded at the right and the bottom.

    Attributes:
        images: Shape (B, 3, H, W), H and W multiples of 32. As a task gets them: normalised, zero
            where padded. As a loader gives them: uint8, see `DenseDataModule.normalized`.
        sizes: Height and width in pixels of each image before padding.
        original_sizes: Height and width of each image as stored: predictions are scaled to it.
        targets: One set of annotations per image.
        paths: Where each image came from, for error messages and pictures.
    """

    images: Tensor
    sizes: list[tuple[int, int]]
    original_sizes: list[tuple[int, int]]
    targets: list[DetectionTarget]
    paths: list[str]


class SegmentationBatch(NamedTuple):
    """A batch of B images with the class of every pixel.

    In training all images have one size and so have their masks. In evaluation images are padded
    at the right and the bottom to the largest of the batch, and masks keep their stored size.

    Attributes:
        images: Shape (B, 3, H, W). As a task gets them: normalised, zero where padded. As a loader
            gives them: uint8, see `DenseDataModule.normalized`.
        sizes: Height and width in pixels of each image before padding.
        masks: The class of each pixel, one (H, W) int64 tensor per image; 255 is ignored.
        paths: Where each image came from, for error messages and pictures.
    """

    images: Tensor
    sizes: list[tuple[int, int]]
    masks: list[Tensor]
    paths: list[str]


class Collate(NamedTuple):
    """Makes batches of samples; a plain value, so that it can be sent to worker processes.

    Attributes:
        multiple: Height and width of a batch are multiples of this many pixels.
        min_size: Height and width in pixels that a batch has at least.
    """

    multiple: int = STRIDE
    min_size: int = 0

    def __call__(self, samples: list[Any]) -> DetectionBatch | SegmentationBatch:
        """Return a batch of samples of one kind; padding touches no annotation and no mask."""
        images = self.pad([sample.image for sample in samples])
        sizes = [(int(s.image.shape[1]), int(s.image.shape[2])) for s in samples]
        paths = [sample.path for sample in samples]
        objects = [sample for sample in samples if isinstance(sample, DetectionSample)]
        if objects:
            original = [sample.original_size for sample in objects]
            return DetectionBatch(images, sizes, original, [s.target for s in objects], paths)
        masks = [sample.mask for sample in samples if isinstance(sample, SegmentationSample)]
        return SegmentationBatch(images, sizes, masks, paths)

    def pad(self, images: Sequence[UInt8[Tensor, "3 _ _"]]) -> UInt8[Tensor, "b 3 h w"]:
        """Return images as one tensor; padding becomes zero by normalisation."""
        sides = (max(self.min_size, *(i.shape[axis] for i in images)) for axis in (1, 2))
        height, width = (-(-side // self.multiple) * self.multiple for side in sides)
        batch = torch.zeros(len(images), 3, height, width, dtype=torch.uint8)
        for slot, image in zip(batch, images, strict=True):
            slot[:, : image.shape[1], : image.shape[2]].copy_(image)
        return batch
