"""Which sample comes when: by seed and epoch in training, each exactly once in evaluation.

All are torch's DistributedSampler by type, so that Lightning leaves them alone: what it would put
in their place repeats samples of an evaluation until every process has as many.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DistributedSampler

from spanet_lightning.data.draws import Draw, entropy, run_seed, spread


class TrainingSampler(DistributedSampler[Any]):
    """Base of the orders of training: full batches that depend on the run's seed and the epoch.

    Several processes share out the very batches that one process with the batch size of all of them
    together would see: the first takes the first part of each, and so on.

    Args:
        batch_size: Samples of a batch, on each process.
        epoch: The epoch of the first pass: that of the checkpoint where a run is resumed.
        num_replicas: Processes; null asks torch.distributed.
        rank: Which of them this is; null asks torch.distributed.
    """

    def __init__(
        self,
        batch_size: int,
        epoch: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        self.batch_size = batch_size
        self.num_replicas, self.rank = processes(num_replicas, rank)
        # What DataLoader draws the seeds of its workers from, so these repeat as well.
        self.generator = torch.Generator()
        self.epoch, self.skipped = epoch, 0
        self.set_epoch(epoch)

    @property
    def global_batch(self) -> int:
        """Samples of a batch, on all processes together."""
        return self.batch_size * self.num_replicas

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        if epoch != self.epoch:
            self.skipped = 0  # a resumed run that had all batches of its epoch began no pass
        self.epoch = epoch
        self.generator.manual_seed(entropy(epoch))

    def skip(self, batches: int) -> None:
        """Leave out the first batches of this epoch's pass: none of them is read."""
        self.skipped = batches

    @abstractmethod
    def batches(self) -> np.ndarray:
        """Return the samples of the epoch's batches, each of all processes, shape (N, batch)."""

    @abstractmethod
    def rounds(self) -> int:
        """Return how many batches an epoch has."""

    @abstractmethod
    def seeds(self, batch: np.ndarray) -> list[int]:
        """Return the seed of the augmentation of each sample of a batch in this epoch."""

    def __iter__(self) -> Iterator[Draw]:
        skipped, self.skipped = self.skipped, 0
        first = self.rank * self.batch_size
        for batch in self.batches()[skipped:]:
            share = batch[first : first + self.batch_size]
            for number, seed in zip(share.tolist(), self.seeds(share), strict=True):
                yield Draw(number, seed)

    def __len__(self) -> int:
        return self.rounds() * self.batch_size


class EpochShuffle(TrainingSampler):
    """All samples in random order; what does not fill a last batch sits out that epoch.

    torch's own sampler draws from the process's generator, so the order after a resume depends on
    what else has been drawn. Lightning calls `set_epoch` before each epoch.

    Args:
        size: Number of samples.
        batch_size: Samples of a batch, on each process.
        epoch: The epoch of the first pass: that of the checkpoint where a run is resumed.
        num_replicas: Processes; null asks torch.distributed.
        rank: Which of them this is; null asks torch.distributed.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        epoch: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        self.size = size
        super().__init__(batch_size, epoch, num_replicas, rank)

    def batches(self) -> np.ndarray:
        """Return the samples of the epoch's batches, each of all processes, shape (N, batch)."""
        generator = torch.Generator().manual_seed((run_seed() << 20) + self.epoch)
        order: np.ndarray = torch.randperm(self.size, generator=generator).numpy()
        return order[: self.rounds() * self.global_batch].reshape(-1, self.global_batch)

    def rounds(self) -> int:
        """Return how many batches an epoch has."""
        return self.size // self.global_batch

    def seeds(self, batch: np.ndarray) -> list[int]:
        """Return the seed of the augmentation of each sample of a batch in this epoch."""
        seeds: list[int] = spread(entropy(self.epoch), batch).tolist()
        return seeds


class GroupedShuffle(TrainingSampler):
    """Samples in random order, so that each batch holds samples of one group alone.

    Detection groups images by aspect ratio: a batch of wide and tall images would be mostly
    padding. What does not fill a batch of its group, on all processes together, sits out that
    epoch.

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
        super().__init__(batch_size, epoch, num_replicas, rank)

    def batches(self) -> np.ndarray:
        """Return the samples of the epoch's batches, each of all processes, shape (N, batch)."""
        order = np.random.default_rng(entropy(self.epoch))
        found = []
        for group in np.unique(self.groups):
            members = order.permutation(np.flatnonzero(self.groups == group))
            full = len(members) // self.global_batch
            found.append(members[: full * self.global_batch].reshape(full, self.global_batch))
        batches = np.concatenate(found)
        return batches[order.permutation(len(batches))]

    def rounds(self) -> int:
        """Return how many batches an epoch has."""
        counts = np.unique(self.groups, return_counts=True)[1]
        return int((counts // self.global_batch).sum())

    def seeds(self, batch: np.ndarray) -> list[int]:
        """Return the seed of the augmentation of each sample of a batch in this epoch."""
        return [entropy(self.epoch, number) for number in batch.tolist()]


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
