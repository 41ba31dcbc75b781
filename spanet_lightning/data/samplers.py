"""Which sample comes when: by seed and epoch in training, each exactly once in evaluation.

Both are torch's DistributedSampler by type, so that Lightning leaves them alone: what it would put
in their place repeats samples of an evaluation until every process has as many.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from spanet_lightning.errors import DataError

Collate = Callable[[list[Any]], Any]


class Draw(NamedTuple):
    """One reading of a training sample.

    Attributes:
        number: Which sample.
        seed: Seed of its augmentation, made of the run's seed, the epoch and the number: neither
            the number of processes nor what they have drawn before changes an image.
    """

    number: int
    seed: int

    @contextmanager
    def seeded(self) -> Iterator[None]:
        """Draw torch's random numbers by the seed; the caller's stream goes on as if unused."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(self.seed)
            yield


class GroupedShuffle(DistributedSampler[Any]):
    """Samples in random order, so that each batch holds samples of one group alone.

    Detection groups images by aspect ratio: a batch of wide and tall images would be mostly
    padding. The batches of an epoch depend on the run's seed and the epoch. Several processes share
    out the very batches that one process would see, each as many as the others: what does not fill
    a batch of its group, or a last round of batches, sits out that epoch.

    Args:
        groups: The group of each sample.
        batch_size: Samples of a batch, on each process.
        epoch: The epoch of the first pass: that of the checkpoint where a run is resumed.
        num_replicas: Processes; null asks torch.distributed.
        rank: Which of them this is; null asks torch.distributed.
    """

    def __init__(
        self,
        groups: Sequence[int],
        batch_size: int,
        epoch: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        self.groups = np.asarray(groups, dtype=np.int64)
        self.batch_size = batch_size
        self.num_replicas, self.rank = processes(num_replicas, rank)
        self.epoch = epoch
        # What DataLoader draws the seeds of its workers from, so these repeat as well.
        self.generator = torch.Generator()
        self.set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        self.epoch = epoch
        self.generator.manual_seed(_entropy(epoch))

    def batches(self) -> list[list[int]]:
        """Return the batches of the epoch, of all processes, in order."""
        order = np.random.default_rng(_entropy(self.epoch))
        found: list[list[int]] = []
        for group in np.unique(self.groups):
            members = order.permutation(np.flatnonzero(self.groups == group))
            full = len(members) // self.batch_size
            found += members[: full * self.batch_size].reshape(full, self.batch_size).tolist()
        rounds = len(found) // self.num_replicas
        return [found[i] for i in order.permutation(len(found))[: rounds * self.num_replicas]]

    def __iter__(self) -> Iterator[Draw]:
        for batch in self.batches()[self.rank :: self.num_replicas]:
            for index in batch:
                yield Draw(index, _entropy(self.epoch, index))

    def __len__(self) -> int:
        full = sum(
            int((self.groups == group).sum()) // self.batch_size for group in np.unique(self.groups)
        )
        return full // self.num_replicas * self.batch_size


class ExactShare(DistributedSampler[Any]):
    """All samples in order, each on one process: none is repeated, so processes may differ by one.

    Args:
        size: Number of samples.
        num_replicas: Processes; null asks torch.distributed.
        rank: Which of them this is; null asks torch.distributed.
    """

    def __init__(self, size: int, num_replicas: int | None = None, rank: int | None = None) -> None:
        self.size = size
        self.num_replicas, self.rank = processes(num_replicas, rank)

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: the order is always the same."""

    def __iter__(self) -> Iterator[int]:
        yield from range(self.rank, self.size, self.num_replicas)

    def __len__(self) -> int:
        return len(range(self.rank, self.size, self.num_replicas))


def processes(num_replicas: int | None = None, rank: int | None = None) -> tuple[int, int]:
    """Return the number of processes and which of them this is, as torch.distributed knows."""
    known = dist.is_available() and dist.is_initialized()
    if num_replicas is None:
        num_replicas = dist.get_world_size() if known else 1
    if rank is None:
        rank = dist.get_rank() if known else 0
    return num_replicas, rank


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
        raise DataError(
            f"batch_size: got {batch_size}, expected at most the {len(groups)} training images"
            f"{', those of one aspect ratio' if many else ''}, on each of {sampler.num_replicas} "
            "processes"
        )
    return DataLoader(
        dataset,
        batch_size=batch_size,
        # Exactly batch_size samples of a group follow each other, so batches fall on them.
        sampler=sampler,
        generator=sampler.generator,
        num_workers=num_workers,
        collate_fn=collate,
        drop_last=True,
        pin_memory=torch.cuda.is_available(),
    )


def exact_loader(
    dataset: Dataset[Any],
    size: int,
    *,
    batch_size: int,
    num_workers: int,
    collate: Collate,
) -> DataLoader[Any]:
    """Return a loader of everything in order, the last batch as small as it comes.

    Args:
        dataset: What to evaluate.
        size: Number of its samples.
        batch_size: Images in a batch, on each device.
        num_workers: Processes that load; 0 loads in the training process.
        collate: Makes a batch of a list of samples.
    """
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=ExactShare(size),
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
    )


def _entropy(*numbers: int) -> int:
    # Lightning's seed_everything leaves the run's seed there; 0 without, as Lightning's samplers.
    seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
    word = np.random.SeedSequence([seed, *numbers]).generate_state(1, np.uint64)[0]
    return int(word >> np.uint64(1))  # torch takes seeds of 63 bits
