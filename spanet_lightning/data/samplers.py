"""The order of training samples, by seed and epoch.

The samplers are torch's DistributedSampler by type, so that Lightning leaves them alone: it would
replace any other by one whose order depends on what else the process has drawn, and that repeats
samples until every process has as many.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DistributedSampler

from spanet_lightning.data.draws import Draw, entropy, run_seed, spread


class EpochShuffle(DistributedSampler[Any]):
    """All samples in random order and full batches; each epoch excludes another remainder.

    Several processes share the very batches that one process with the batch size of all of them
    together would see: the first takes the first part of each, and so on. Lightning calls
    `set_epoch` before each epoch.

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
        self.batch_size = batch_size
        self.num_replicas, self.rank = processes(num_replicas, rank)
        # Source of the seeds of DataLoader's workers, which repeat with it.
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
            self.skipped = 0  # a run resumed at the end of an epoch began no pass of it
        self.epoch = epoch
        self.generator.manual_seed(entropy(epoch))

    def skip(self, batches: int) -> None:
        """Exclude the first batches of this epoch's pass, without reading them."""
        self.skipped = batches

    def num_batches(self) -> int:
        """Return how many batches an epoch has."""
        return self.size // self.global_batch

    def batches(self) -> np.ndarray:
        """Return the samples of the epoch's batches, each of all processes, shape (N, batch)."""
        generator = torch.Generator().manual_seed((run_seed() << 20) + self.epoch)
        order: np.ndarray = torch.randperm(self.size, generator=generator).numpy()
        return order[: self.num_batches() * self.global_batch].reshape(-1, self.global_batch)

    def seeds(self, batch: np.ndarray) -> list[int]:
        """Return the seed of the augmentation of each sample of a batch in this epoch."""
        seeds: list[int] = spread(entropy(self.epoch), batch).tolist()
        return seeds

    def __iter__(self) -> Iterator[Draw]:
        skipped, self.skipped = self.skipped, 0
        first = self.rank * self.batch_size
        for batch in self.batches()[skipped:]:
            share = batch[first : first + self.batch_size]
            for number, seed in zip(share.tolist(), self.seeds(share), strict=True):
                yield Draw(number % self.size, seed)

    def __len__(self) -> int:
        return self.num_batches() * self.batch_size


class FixedShuffle(EpochShuffle):
    """The order of the first epoch in all of them, augmentation included: to overfit a few batches.

    Args:
        size: Number of samples.
        batch_size: Samples of a batch, on each process.
    """

    def __init__(self, size: int, batch_size: int) -> None:
        super().__init__(size, min(batch_size, size))

    def set_epoch(self, epoch: int) -> None:  # noqa: ARG002 - Lightning calls it
        """Do nothing but begin anew."""
        super().set_epoch(0)


class BalancedShuffle(EpochShuffle):
    """As many samples as there are, drawn with replacement by weight.

    Args:
        weights: How often to draw each sample, relative to the others, shape (samples,).
        batch_size: Samples of a batch, on each process.
        epoch: The epoch of the first pass: that of the checkpoint where a run is resumed.
    """

    def __init__(self, weights: np.ndarray, batch_size: int, epoch: int = 0) -> None:
        self.weights = weights / weights.sum()
        super().__init__(len(weights), batch_size, epoch)

    def batches(self) -> np.ndarray:
        """Return the samples of the epoch's batches, each of all processes, shape (N, batch)."""
        rng = np.random.default_rng(entropy(self.epoch))
        count = super().__len__() * self.num_replicas
        order = rng.choice(self.size, count, p=self.weights)
        # A sample that is drawn again is augmented by another seed: that of number + size.
        occurrence: dict[int, int] = {}
        for i, number in enumerate(order.tolist()):
            occurrence[number] = occurrence.get(number, -1) + 1
            order[i] += occurrence[number] * self.size
        found: np.ndarray = order.reshape(-1, self.global_batch)
        return found


class GroupedShuffle(EpochShuffle):
    """Samples in random order, so that each batch holds samples of one group only.

    Detection groups images by aspect ratio: a batch of wide and tall images would be mostly
    padding. A group that can't fill a batch of all processes joins the largest group, so that no
    sample is never trained on.

    Args:
        groups: The group of each sample.
        batch_size: Samples of a batch, on each process.
        epoch: The epoch of the first pass: that of the checkpoint where a run is resumed.
        num_replicas: Processes; null asks torch.distributed.
        rank: Which of them this is; null asks torch.distributed.

    Attributes:
        regrouped: Samples of groups that were too small.
    """

    def __init__(
        self,
        groups: Sequence[int],
        batch_size: int,
        epoch: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        super().__init__(len(groups), batch_size, epoch, num_replicas, rank)
        self.groups = np.array(groups, dtype=np.int64)
        names, counts = np.unique(self.groups, return_counts=True)
        small = np.isin(self.groups, names[counts < self.global_batch])
        self.regrouped = 0 if small.all() else int(small.sum())
        if self.regrouped:
            self.groups[small] = names[counts.argmax()]

    def num_batches(self) -> int:
        """Return how many batches an epoch has."""
        counts = np.unique(self.groups, return_counts=True)[1]
        return int((counts // self.global_batch).sum())

    def batches(self) -> np.ndarray:
        """Return the samples of the epoch's batches, each of all processes, shape (N, batch)."""
        order = np.random.default_rng(entropy(self.epoch))
        batches = []
        for group in np.unique(self.groups):
            members = order.permutation(np.flatnonzero(self.groups == group))
            full = len(members) // self.global_batch
            batches.append(members[: full * self.global_batch].reshape(full, self.global_batch))
        shuffled: np.ndarray = np.concatenate(batches)
        return shuffled[order.permutation(len(shuffled))]

    def seeds(self, batch: np.ndarray) -> list[int]:
        """Return the seed of the augmentation of each sample of a batch in this epoch."""
        return [entropy(self.epoch, number) for number in batch.tolist()]


def processes(num_replicas: int | None = None, rank: int | None = None) -> tuple[int, int]:
    """Return the number of processes and the rank of this one, by default of torch.distributed."""
    initialized = dist.is_available() and dist.is_initialized()
    if num_replicas is None:
        num_replicas = dist.get_world_size() if initialized else 1
    if rank is None:
        rank = dist.get_rank() if initialized else 0
    return num_replicas, rank
