"""What the data modules of detection and segmentation share: loaders and normalisation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import rgb_to_grayscale

from spanet_lightning.data.batches import Collate, DetectionBatch, SegmentationBatch
from spanet_lightning.data.holdout import Holdout
from spanet_lightning.data.images import images_to_predict, read_image
from spanet_lightning.data.loaders import exact_loader, grouped_loader
from spanet_lightning.data.normalize import Normalize, channel_statistics, in_precision_of_run
from spanet_lightning.errors import invalid
from spanet_lightning.keywords import CheckedKeywords

Batch = TypeVar("Batch", DetectionBatch, SegmentationBatch)


class DenseDataModule(LightningDataModule, CheckedKeywords, ABC):
    """Base of the data modules of dense tasks.

    The loaders give images as uint8: worker processes and the bus to a device carry a quarter of
    what float32 takes. `on_after_batch_transfer`, which Lightning calls once a batch is on its
    device, normalises the images there. Who iterates over a loader by hand calls `normalized`.

    Args:
        in_chans: Channels of the network's input: 3 (grey images are repeated) or 1 (colours become
            grey).
        mean: Mean of each channel, of values in [0, 1], that is subtracted; null is ImageNet's.
        std: Standard deviation of each channel that is divided by; null is ImageNet's.
        batch_size: Images in a training batch, on each device.
        eval_batch_size: Images in a batch of evaluation, on each device.
        num_workers: Processes that load, on each device; 0 loads in the training process.
        holdout: Training images that are validated on; None where there is a validation split.

    Raises:
        ConfigError: If a value is out of its range.
    """

    def __init__(
        self,
        in_chans: int,
        mean: tuple[float, ...] | None,
        std: tuple[float, ...] | None,
        batch_size: int,
        eval_batch_size: int,
        num_workers: int,
        holdout: Holdout | None = None,
    ) -> None:
        super().__init__()
        self.holdout = holdout
        check_minimum(batch_size=(batch_size, 1), eval_batch_size=(eval_batch_size, 1))
        check_minimum(num_workers=(num_workers, 0))
        self.normalize = Normalize(*channel_statistics(in_chans, mean, std))
        self.in_chans = in_chans
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers

    @abstractmethod
    def collate(self, *, training: bool) -> Collate:
        """Return the function that makes a batch of a list of samples."""

    @abstractmethod
    def evaluated(self, split: str) -> Dataset[Any]:
        """Return the images of a split, "val" or "test", as they are evaluated."""

    def predicted(self) -> Dataset[Any]:
        """Return the images to predict: those of the test set by default."""
        return self.evaluated("test")

    # -- Lightning's hooks

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation set, in order."""
        return self._in_order(self.evaluated("val"))

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the test set, in order."""
        return self._in_order(self.evaluated("test"))

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the images to predict, in order."""
        return self._in_order(self.predicted())

    def on_after_batch_transfer(
        self,
        batch: Batch,
        dataloader_idx: int,  # noqa: ARG002 - Lightning passes it
    ) -> Batch:
        """Return a batch on its device, its images normalised: see `normalized`.

        Args:
            batch: As a loader gives it.
            dataloader_idx: Not used: all loaders are treated alike.
        """
        batch = self.normalized(batch)
        return batch._replace(images=in_precision_of_run(batch.images, self))

    def normalized(self, batch: Batch) -> Batch:
        """Return a batch of a loader, its images normalised, float32, and zero where padded."""
        images = batch.images if self.in_chans == 3 else rgb_to_grayscale(batch.images)
        return batch._replace(images=self.normalize(images, batch.sizes))

    # -- loaders

    def _shuffled(self, dataset: Any, groups: Sequence[int] | None = None) -> DataLoader[Any]:
        """Return a loader of training batches, each of one group where there are groups."""
        collate: Any = self.collate(training=True)
        loader = grouped_loader(
            dataset,
            [0] * len(dataset) if groups is None else groups,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            epoch=0 if self.trainer is None else self.trainer.current_epoch,
            collate=collate,
        )
        sampler: Any = loader.sampler
        if sampler.regrouped:
            rank_zero_info(
                f"group_by_aspect: {sampler.regrouped} of {len(dataset)} training images are tall "
                f"or wide ones too few to fill a batch of {sampler.global_batch}; their batches "
                "mix both."
            )
        return loader

    def _in_order(self, dataset: Any) -> DataLoader[Any]:
        collate: Any = self.collate(training=False)
        return exact_loader(
            dataset,
            batch_size=self.eval_batch_size,
            num_workers=self.num_workers,
            collate=collate,
        )


class FolderImages(Dataset[Any]):
    """Images of a folder, without annotations.

    Args:
        folder: Searched recursively for images.
        transform: Resizes.
        sample: Makes a sample of a resized image, its stored size, its index and its path.

    Raises:
        DataError: If there are none.
    """

    def __init__(
        self,
        folder: Path,
        transform: v2.Transform,
        sample: Callable[[Tensor, tuple[int, int], int, str], Any],
    ) -> None:
        self.paths = images_to_predict(folder)
        self.transform = transform
        self.sample = sample

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        path = str(self.paths[index])
        image = read_image(path, index=index)
        height, width = image.shape[1:]
        return self.sample(self.transform(image), (height, width), index, path)


def check_minimum(**arguments: tuple[float, float]) -> None:
    """Refuse an argument below its minimum.

    Args:
        arguments: Value and minimum of each.

    Raises:
        ConfigError: If one is.
    """
    for key, (value, minimum) in arguments.items():
        if value < minimum:
            raise invalid(key, value, f"at least {minimum}")
