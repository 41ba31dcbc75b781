"""Images with their masks as samples: augmented, to evaluate on, or of a folder alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from spanet_lightning.data.checks import SampleError
from spanet_lightning.data.draws import Draw
from spanet_lightning.data.images import read_image, read_mask
from spanet_lightning.data.listing import images_to_predict
from spanet_lightning.data.padding import SegmentationSample
from spanet_lightning.data.segmentation_transforms import IGNORED, SegmentationAugmentation

Pair = tuple[Path, Path]


class Pairs:
    """Images with their masks, as stored.

    Args:
        pairs: Paths of each.
        num_classes: Classes that count.
        reduce_zero_label: Whether 0 does not count and all others are one less.

    Attributes:
        numbers: Number of each pair as listed, before any was left out.
    """

    def __init__(self, pairs: list[Pair], num_classes: int, reduce_zero_label: bool) -> None:
        self.pairs = pairs
        self.numbers: Sequence[int] = range(len(pairs))
        self.num_classes = num_classes
        self.reduce_zero_label = reduce_zero_label

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, number: int) -> SegmentationSample:
        """Read an image and its mask.

        Raises:
            SampleError: If one can't be read, they differ in size, or a value is no class.
        """
        path, file = self.pairs[number]
        index = self.numbers[number]
        stored = read_mask(file, index)
        image = read_image(path, (stored.shape[0], stored.shape[1]), index)
        if image.shape[1:] != stored.shape:
            (h, w), (mask_h, mask_w) = image.shape[1:], stored.shape
            raise SampleError(
                f"mask {file} (index {index}): got {mask_w}×{mask_h} px, expected {w}×{h} as {path}"
            )
        mask = reduced(stored, self.reduce_zero_label)
        wrong = (mask != IGNORED) & ((mask < 0) | (mask >= self.num_classes))
        if wrong.any():
            shift = 1 if self.reduce_zero_label else 0
            raise SampleError(
                f"mask {file} (index {index}): got the value {int(stored[wrong][0])}, expected "
                f"{shift} to {self.num_classes - 1 + shift}, the classes, or "
                f"{'0 or ' if shift else ''}{IGNORED}, which do not count"
            )
        return SegmentationSample(image, mask, str(path))

    def keep(self, numbers: Sequence[int]) -> None:
        """Leave out all but some pairs, given by their numbers."""
        self.pairs = [self.pairs[number] for number in numbers]
        self.numbers = list(numbers)


class TrainPairs(Dataset[SegmentationSample]):
    """Training images, augmented by the seed of each draw.

    Args:
        pairs: What is stored.
        augmentation: The augmentation.
    """

    def __init__(self, pairs: Pairs, augmentation: SegmentationAugmentation) -> None:
        self.pairs = pairs
        self.augmentation = augmentation

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, draw: Draw) -> SegmentationSample:
        stored = self.pairs.read(draw.number)
        with draw.seeded():
            image, mask = self.augmentation(stored.image, stored.mask)
        return stored._replace(image=image, mask=mask)


class EvalPairs(Dataset[SegmentationSample]):
    """Images to evaluate on, resized, with masks at their stored size.

    Args:
        pairs: What is stored.
        transform: Resizes.
    """

    def __init__(self, pairs: Pairs, transform: v2.Transform) -> None:
        self.pairs = pairs
        self.transform = transform

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, number: int) -> SegmentationSample:
        stored = self.pairs.read(number)
        return stored._replace(image=self.transform(stored.image))


class FolderImages(Dataset[SegmentationSample]):
    """Images without masks: none of their pixels counts.

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

    def __getitem__(self, number: int) -> SegmentationSample:
        image = read_image(self.paths[number], index=number)
        mask = torch.full(image.shape[1:], IGNORED, dtype=torch.int64)
        return SegmentationSample(self.transform(image), mask, str(self.paths[number]))


def reduced(mask: Int64[Tensor, "h w"], reduce_zero_label: bool) -> Int64[Tensor, "h w"]:
    """Return a mask whose classes count from 0: where told so, 0 becomes 255, others one less."""
    if not reduce_zero_label:
        return mask
    # What is above 255 is no class and stays so: 256 must not become 255.
    lower = torch.where(mask > IGNORED, mask, mask - 1)
    return lower.masked_fill((mask == 0) | (mask == IGNORED), IGNORED)
