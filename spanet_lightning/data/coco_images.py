"""The images of a COCO set as samples: augmented, to evaluate on, or of a folder alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import cast

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision.transforms import v2

from spanet_lightning.data import detection_transforms
from spanet_lightning.data.batches import DetectionTarget
from spanet_lightning.data.checks import SampleError
from spanet_lightning.data.coco_file import CocoIndex
from spanet_lightning.data.draws import Draw
from spanet_lightning.data.faults import Fault
from spanet_lightning.data.images import read_image
from spanet_lightning.data.listing import Listing, NearNames, images_to_predict
from spanet_lightning.data.padding import DetectionSample

LEAST_SIDE = 32
"""Pixels: smaller images are not trained on, as in the published runs."""


class TrainImages(Dataset[DetectionSample]):
    """Training images, augmented by the seed of each draw.

    Args:
        index: The annotations.
        folder: Folder of the images.
        transform: The augmentation.
        masks: Whether to draw instance masks.
        kept: Indices of the images that are trained on.
    """

    def __init__(
        self,
        index: CocoIndex,
        folder: Path,
        transform: v2.Transform,
        masks: bool,
        kept: np.ndarray,
    ) -> None:
        self.index = index
        self.folder = folder
        self.transform = transform
        self.masks = masks
        self.kept = kept

    def __len__(self) -> int:
        return len(self.kept)

    @property
    def tall(self) -> list[int]:
        """Whether each image is at least as high as wide: the group that it is batched with."""
        sizes = self.index.sizes[self.kept]
        return cast("list[int]", (sizes[:, 0] >= sizes[:, 1]).astype(int).tolist())

    def __getitem__(self, draw: Draw) -> DetectionSample:
        number = int(self.kept[draw.number])
        sample = read_sample(self.index, number, self.folder, crowds=False, masks=self.masks)
        with draw.seeded():
            image, target = detection_transforms.apply(self.transform, sample.image, sample.target)
        return sample._replace(image=image, target=target)


class EvalImages(Dataset[DetectionSample]):
    """Images to evaluate on, resized, with annotations at the stored size.

    Args:
        index: The annotations.
        folder: Folder of the images.
        transform: Resizes.
        masks: Whether to draw instance masks.
        kept: Indices of the images that are evaluated.
    """

    def __init__(
        self,
        index: CocoIndex,
        folder: Path,
        transform: v2.Transform,
        masks: bool,
        kept: np.ndarray,
    ) -> None:
        self.index = index
        self.folder = folder
        self.transform = transform
        self.masks = masks
        self.kept = kept

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, place: int) -> DetectionSample:
        number = int(self.kept[place])
        sample = read_sample(self.index, number, self.folder, crowds=True, masks=self.masks)
        return sample._replace(image=self.transform(sample.image))


class FolderImages(Dataset[DetectionSample]):
    """Images of a folder, without annotations; their ids count from 1.

    Args:
        folder: Searched through for images.
        transform: Resizes.

    Raises:
        DataError: If there are none.
    """

    def __init__(self, folder: Path, transform: v2.Transform) -> None:
        self.paths = images_to_predict(folder)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> DetectionSample:
        path = str(self.paths[number])
        image = read_image(path, index=number)
        height, width = image.shape[1:]
        target = DetectionTarget(
            boxes=torch.zeros(0, 4),
            labels=torch.zeros(0, dtype=torch.int64),
            iscrowd=torch.zeros(0, dtype=torch.bool),
            area=torch.zeros(0),
            image_id=number + 1,
        )
        return DetectionSample(self.transform(image), (height, width), target, path)


def read_sample(
    index: CocoIndex, number: int, folder: Path, *, crowds: bool, masks: bool
) -> DetectionSample:
    """Read an image with its annotations, as stored.

    Raises:
        SampleError: If the image can't be read, or has another size than its annotations say.
    """
    record = index.images[number]
    path = str(folder / record.file)
    image = read_image(path, (record.height, record.width), number)
    height, width = image.shape[1:]
    if (height, width) != (record.height, record.width):
        raise SampleError(
            f"image {path} (index {number}, id {record.id}): got {width}×{height} px, expected "
            f"{record.width}×{record.height}, the size in its annotations"
        )
    target = index.target(number, crowds=crowds, masks=masks)
    return DetectionSample(image, (height, width), target, path)


def trained_images(index: CocoIndex, keep_empty: bool) -> np.ndarray:
    """Return the indices of the images to train on.

    Args:
        index: The annotations.
        keep_empty: Whether those without a box stay.
    """
    kept = index.sizes.min(axis=1) >= LEAST_SIDE
    if not keep_empty:
        kept &= index.trained_boxes() > 0
    found: np.ndarray = np.flatnonzero(kept)
    return found


def missing_images(files: Iterator[str], listing: Listing, annotations: str) -> Iterator[Fault]:
    """Yield a fault for each image that an annotation file names and its folder lacks."""
    # One listing, as asking for each of 118,287 files takes minutes on a network drive.
    present = {*listing.names, *listing.others}
    near = NearNames(present)
    for file in files:
        if PurePosixPath(file).as_posix() not in present and not (listing.folder / file).is_file():
            detail = f"there is no such file, but {annotations} names it{near.hint(file)}"
            yield Fault("missing image", str(listing.folder / file), "", detail)
