"""What the data modules of detection and segmentation share: their loaders, and normalisation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeVar

from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from spanet_lightning.data.batches import DetectionBatch, SegmentationBatch
from spanet_lightning.data.loaders import Collate, exact_loader, grouped_loader
from spanet_lightning.data.normalize import Channels, Normalize, in_precision_of_run
from spanet_lightning.errors import invalid

Batch = TypeVar("Batch", DetectionBatch, SegmentationBatch)


class DenseDataModule(LightningDataModule, ABC):
    """Base of the data modules of dense tasks.

    The loaders give images as uint8: worker processes and the bus to a device carry a quarter of
    what float32 takes. `on_after_batch_transfer`, which Lightning calls once a batch is on its
    device, normalises the images there. Who iterates over a loader by hand calls `normalized`.

    Args:
        mean: Mean of each channel, of values in [0, 1], that is subtracted.
        std: Standard deviation of each channel that is divided by.
        batch_size: Images in a training batch, on each device.
        eval_batch_size: Images in a batch of evaluation, on each device.
        num_workers: Processes that load, on each device; 0 loads in the training process.

    Raises:
        ConfigError: If a value is out of its range.
    """

    def __init__(
        self,
        mean: Channels,
        std: Channels,
        batch_size: int,
        eval_batch_size: int,
        num_workers: int,
    ) -> None:
        super().__init__()
        for key, number, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("num_workers", num_workers, 0),
        ):
            if number < least:
                raise invalid(key, number, f"at least {least}")
        self.normalize = Normalize(mean, std)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers

    # -- what each has of its own

    @abstractmethod
    def collate(self, *, training: bool) -> Collate:
        """Return what makes a batch of a list of samples."""

    @abstractmethod
    def evaluated(self, split: str) -> Dataset[Any]:
        """Return the images of a split, "val" or "test", as they are evaluated."""

    def predicted(self) -> Dataset[Any]:
        """Return the images to predict: those of the test, where it has no others."""
        return self.evaluated("test")

    # -- Lightning's hooks

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the images that steer a run, in order."""
        return self._in_order(self.evaluated("val"))

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the images that a run is judged by, in order."""
        return self._in_order(self.evaluated("test"))

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the images to predict, in order."""
        return self._in_order(self.predicted())

    def on_after_batch_transfer(
        self,
        batch: Batch,
        dataloader_idx: int,  # noqa: ARG002 - Lightning gives it
    ) -> Batch:
        """Return a batch on its device, its images normalised: see `normalized`.

        Args:
            batch: As a loader gives it.
            dataloader_idx: Not used: all loaders are treated alike.
        """
        found = self.normalized(batch)
        return found._replace(images=in_precision_of_run(found.images, self))

    def normalized(self, batch: Batch) -> Batch:
        """Return a batch of a loader, its images normalised, float32, and zero where padded."""
        images = self.normalize(batch.images, batch.sizes)
        return batch._replace(images=images)

    # -- loaders

    def _shuffled(self, dataset: Any, groups: Sequence[int] | None = None) -> DataLoader[Any]:
        """Return a loader of training batches, each of one group where there are groups."""
        return grouped_loader(
            dataset,
            [0] * len(dataset) if groups is None else groups,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            epoch=0 if self.trainer is None else self.trainer.current_epoch,
            collate=self.collate(training=True),
        )

    def _in_order(self, dataset: Any) -> DataLoader[Any]:
        return exact_loader(
            dataset,
            batch_size=self.eval_batch_size,
            num_workers=self.num_workers,
            collate=self.collate(training=False),
        )
