"""What a dense-prediction loader hands to its task: padded images and their annotations."""

from __future__ import annotations

from typing import NamedTuple, NotRequired, TypedDict

from torch import Tensor


class DetectionTarget(TypedDict):
    """The annotations of one image, as torchvision's detectors name them.

    In training, boxes and masks are in pixels of the augmented image and crowds are left out. In
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


class DetectionBatch(NamedTuple):
    """A batch of B images of unlike sizes, padded at the right and the bottom.

    Attributes:
        images: Shape (B, 3, H, W), H and W multiples of 32. As a task gets them: normalised, zero
            where padded. As a loader gives them: uint8, see `DenseDataModule.normalized`.
        sizes: Height and width in pixels of each image before padding.
        original_sizes: Height and width of each image as stored: predictions are scaled to it.
        targets: One set of annotations an image.
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
        masks: The class of each pixel, one (H, W) int64 tensor an image; 255 is ignored.
        paths: Where each image came from, for error messages and pictures.
    """

    images: Tensor
    sizes: list[tuple[int, int]]
    masks: list[Tensor]
    paths: list[str]
