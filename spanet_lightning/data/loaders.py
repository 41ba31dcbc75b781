"""Loaders that all data modules use: shuffled by epoch for training, in order otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Dataset, IterableDataset, SequentialSampler

from spanet_lightning.data.draws import Drawn
from spanet_lightning.data.samplers import (
    BalancedShuffle,
    EpochShuffle,
    FixedShuffle,
    GroupedShuffle,
    processes,
)
from spanet_lightning.data.workers import worker_options
from spanet_lightning.errors import DataError

Collate = Callable[..., Any]
BATCH = "spanet_batch"
"""Key of a loader's state in a checkpoint: batches of the epoch that had been trained on."""


class ResumableLoader(DataLoader[Any]):
    """A loader that a resumed run begins in the middle of, reading none of what comes before.

    Lightning takes its state for a checkpoint and gives it back. What to write there only the task
    knows: the loader is some batches ahead of the training where workers fill a queue.
    """

    def __init__(self, dataset: Dataset[Any], **options: Any) -> None:
        # Lightning's for `overfit_batches`: its first batches would be of one class in class
        # folders, and most of our samples are read by a `Draw`.
        if isinstance(options.get("sampler"), SequentialSampler):
            size = len(dataset)  # type: ignore[arg-type]
            options["sampler"] = FixedShuffle(size, int(options["batch_size"]))
            rank_zero_info(
                "trainer.overfit_batches: every epoch has the same batches, drawn by the seed."
            )
        super().__init__(dataset, **options)

    def state_dict(self) -> dict[str, Any]:
        """Return what marks the place in a checkpoint for `Task.on_load_checkpoint` to fill in."""
        return {BATCH: 0}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin the next pass after the batches that the state counts."""
        batches = int(state.get(BATCH, 0))
        if isinstance(self.sampler, EpochShuffle):
            self.sampler.skip(batches)


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


def train_loader(
    dataset: Dataset[Any],
    *,
    batch_size: int,
    num_workers: int,
    epoch: int,
    collate: Collate | None = None,
    weights: np.ndarray | None = None,
) -> DataLoader[Any]:
    """Return a loader of shuffled batches, all of `batch_size`: the rest of an epoch is dropped.

    Args:
        dataset: What to draw from, by a `Draw` if it takes one; an iterable data set has to shuffle
            by itself.
        batch_size: Images in a batch, on each device.
        num_workers: Processes that load; 0 loads in the training process.
        epoch: The epoch that the run starts or resumes at.
        collate: Makes a batch of a list of samples; torch's default where it is None.
        weights: How often to draw each sample, relative to the others, with replacement; None
            visits each once.

    Raises:
        DataError: If the data set does not fill one batch on every process.
    """
    if isinstance(dataset, IterableDataset):
        return DataLoader(
            dataset,
            batch_size=batch_size,
            **worker_options(num_workers),
            collate_fn=collate,
            drop_last=True,
            pin_memory=torch.cuda.is_available(),
        )
    size = len(dataset)  # type: ignore[arg-type]  # every map-style set here is sized
    sampler = (
        EpochShuffle(size, batch_size, epoch)
        if weights is None
        else BalancedShuffle(weights, batch_size, epoch)
    )
    if len(sampler) == 0:
        raise _too_few(batch_size, f"{size}, the training images", sampler)
    return _shuffled(dataset, sampler, num_workers, collate)


def drawn_loader(
    dataset: Dataset[Any],
    *,
    batch_size: int,
    num_workers: int,
    epoch: int,
    weights: np.ndarray | None = None,
) -> DataLoader[Any]:
    """Return `train_loader` of a data set that draws from the process's generators, as timm's do.

    Args:
        dataset: What to draw from; see `Drawn`. An iterable data set is left alone.
        batch_size: Images in a batch, on each device.
        num_workers: Processes that load; 0 loads in the training process.
        epoch: The epoch that the run starts or resumes at.
        weights: See `train_loader`.

    Raises:
        DataError: If the data set does not fill one batch on every process.
    """
    if not isinstance(dataset, IterableDataset):
        dataset = Drawn(dataset)
    return train_loader(
        dataset, batch_size=batch_size, num_workers=num_workers, epoch=epoch, weights=weights
    )


def grouped_loader(
    dataset: Dataset[Any],
    groups: Sequence[int],
    *,
    batch_size: int,
    num_workers: int,
    epoch: int,
    collate: Collate,
) -> DataLoader[Any]:
    """Return a loader of shuffled full batches, each of one group.

    Args:
        dataset: Is asked for each `Draw`.
        groups: The group of each of its samples.
        batch_size: Images in a batch, on each device.
        num_workers: Processes that load; 0 loads in the training process.
        epoch: The epoch that the run starts or resumes at.
        collate: Makes a batch of a list of samples.

    Raises:
        DataError: If no group fills one batch on every process.
    """
    sampler = GroupedShuffle(groups, batch_size, epoch)
    if len(sampler) == 0:
        many = len(np.unique(sampler.groups)) > 1
        of = ", those of one aspect ratio" if many else ""
        raise _too_few(batch_size, f"the {len(groups)} training images{of}", sampler)
    return _shuffled(dataset, sampler, num_workers, collate)


def exact_loader(
    dataset: Dataset[Any],
    *,
    batch_size: int,
    num_workers: int,
    collate: Collate | None = None,
) -> DataLoader[Any]:
    """Return a loader of everything in its own order, the last batch as small as it comes.

    Several processes share the samples out, each to one of them.

    Args:
        dataset: What to evaluate.
        batch_size: Images in a batch, on each device.
        num_workers: Processes that load; 0 loads in the training process.
        collate: Makes a batch of a list of samples; torch's default where it is None.

    Raises:
        DataError: If there are more processes than samples.
    """
    stream = isinstance(dataset, IterableDataset)
    size = 0 if stream else len(dataset)  # type: ignore[arg-type]
    count = processes()[0]
    if not stream and size < count > 1:
        # One without would leave the others waiting for its part of the metrics.
        raise DataError(
            f"trainer.devices: got {count} processes for {size} images to evaluate, expected at "
            "most as many"
        )
    return DataLoader(
        Stream(dataset) if isinstance(dataset, IterableDataset) else dataset,
        batch_size=batch_size,
        # One of torch's by type, which Lightning leaves alone: its own repeats samples.
        sampler=None
        if stream
        else UnrepeatedDistributedSampler(dataset, *processes(), shuffle=False),
        **worker_options(num_workers),
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
    )


def _shuffled(
    dataset: Dataset[Any], sampler: EpochShuffle, num_workers: int, collate: Collate | None
) -> ResumableLoader:
    trained = sampler.num_batches() * sampler.global_batch
    if trained < sampler.size:
        rank_zero_info(
            f"batch_size: each epoch trains on {trained:,} of {sampler.size:,} images, different "
            f"ones each time; {sampler.size - trained} do not fill "
            f"a batch of {sampler.global_batch}."
        )
    return ResumableLoader(
        dataset,
        batch_size=sampler.batch_size,
        # Exactly batch_size samples of a batch follow each other, so the loader's fall on them.
        sampler=sampler,
        generator=sampler.generator,
        **worker_options(num_workers),
        collate_fn=collate,
        drop_last=True,
        pin_memory=torch.cuda.is_available(),
    )


def _too_few(batch_size: int, images: str, sampler: EpochShuffle) -> DataError:
    count = sampler.num_replicas
    each = f", on each of {count} processes" if count > 1 else ""
    return DataError(f"batch_size: got {batch_size}, expected at most {images}{each}")
