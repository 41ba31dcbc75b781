"""Loaders that both data modules use: shuffled by epoch for training, in order otherwise."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from spanet_lightning.errors import DataError

Collate = Callable[[list[Any]], Any]


class EpochShuffle(Sampler[int]):
    """All indices in an order that depends on the run's seed and the epoch alone.

    torch's own sampler draws from the process's generator, so the order after a resume depends on
    what else has been drawn. Lightning calls `set_epoch` before each epoch.

    Args:
        size: Number of indices.
        epoch: The epoch of the first pass: that of the checkpoint where a run is resumed.
    """

    def __init__(self, size: int, epoch: int) -> None:
        self.size = size
        # What DataLoader draws the seeds of its workers from, so these repeat as well.
        self.generator = torch.Generator()
        self.set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        self.epoch = epoch
        self.generator.manual_seed(_seed(epoch))

    def __iter__(self) -> Iterator[int]:
        order = torch.Generator().manual_seed(_seed(self.epoch))
        yield from torch.randperm(self.size, generator=order).tolist()

    def __len__(self) -> int:
        return self.size


class Stream(IterableDataset[Any]):
    """An iterable data set that does not tell its length, so that it is read to its end.

    Each worker ends with a batch of its own that is not full. A loader whose length is known counts
    one such batch, and Lightning stops there: with two workers the last images would be missing.

    Args:
        dataset: What to iterate over.
    """

    def __init__(self, dataset: IterableDataset[Any]) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        yield from self.dataset


def _seed(epoch: int) -> int:
    # Lightning's seed_everything leaves the run's seed there; 0 without, as Lightning's samplers.
    return (int(os.environ.get("PL_GLOBAL_SEED", "0")) << 20) + epoch


def train_loader(
    dataset: Dataset[Any],
    *,
    batch_size: int,
    num_workers: int,
    epoch: int,
    collate: Collate | None = None,
) -> DataLoader[Any]:
    """Return a loader of shuffled batches, all of `batch_size`: the rest of an epoch is dropped.

    Args:
        dataset: What to draw from; an iterable data set has to shuffle by itself.
        batch_size: Images in a batch, on each device.
        num_workers: Processes that load; 0 loads in the training process.
        epoch: The epoch that the run starts or resumes at.
        collate: Makes a batch of a list of samples; torch's default where it is None.

    Raises:
        DataError: If the data set does not fill one batch.
    """
    shared: dict[str, Any] = {
        "batch_size": batch_size,
        "num_workers": num_workers,
        "collate_fn": collate,
        "drop_last": True,
        "pin_memory": torch.cuda.is_available(),
    }
    if isinstance(dataset, IterableDataset):
        return DataLoader(dataset, **shared)
    size = len(dataset)  # type: ignore[arg-type]  # every map-style set here is sized
    if size < batch_size:
        raise DataError(
            f"batch_size: got {batch_size}, expected at most {size}, the training images"
        )
    shuffle = EpochShuffle(size, epoch)
    return DataLoader(dataset, sampler=shuffle, generator=shuffle.generator, **shared)


def eval_loader(dataset: Dataset[Any], *, batch_size: int, num_workers: int) -> DataLoader[Any]:
    """Return a loader of everything in its own order, the last batch as small as it comes.

    Args:
        dataset: What to evaluate.
        batch_size: Images in a batch, on each device.
        num_workers: Processes that load; 0 loads in the training process.
    """
    if isinstance(dataset, IterableDataset):
        dataset = Stream(dataset)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
    )
