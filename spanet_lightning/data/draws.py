"""Random numbers that are functions of the seed, the epoch and the sample alone.

The augmentation of an image does not depend on the number of processes or workers, on what they
have drawn before, or on whether the run was interrupted.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Draw(NamedTuple):
    """One reading of a training sample.

    Attributes:
        number: Which sample.
        seed: Seed of its augmentation, made of the run's seed, the epoch and the number.
    """

    number: int
    seed: int

    @classmethod
    def of(cls, item: Draw | int) -> Draw:
        """Return a draw of a number alone, as from Lightning's sampler for `overfit_batches`."""
        return item if isinstance(item, Draw) else cls(item, entropy(item))

    @contextmanager
    def seeded(self) -> Iterator[None]:
        """Draw the random numbers of torch, numpy and Python by the seed.

        The caller's streams go on as if unused.
        """
        with preserved():
            # A hundredth of the time of torch.manual_seed, which goes through all devices.
            torch.default_generator.manual_seed(self.seed)
            np.random.seed(self.seed & 0xFFFFFFFF)  # noqa: NPY002 - timm's RandAugment draws from it
            random.seed(self.seed)
            yield


class Drawn(Dataset[Any]):
    """A data set whose random transforms draw by the seed of each `Draw`.

    Args:
        dataset: Reads a sample by its number.
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # every map-style set here is sized

    def __getitem__(self, draw: Draw | int) -> Any:
        if not isinstance(draw, Draw):  # of Lightning's sampler for `overfit_batches`
            return self.dataset[draw]
        with draw.seeded():
            return self.dataset[draw.number]


@contextmanager
def preserved() -> Iterator[None]:
    """Let the streams of torch (on the CPU), numpy and Python go on afterwards as if unused."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    of_torch = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(of_torch)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def run_seed() -> int:
    """Return the run's seed: Lightning's seed_everything leaves it there; 0 without."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def entropy(*numbers: int) -> int:
    """Return a seed of 63 bits, which is what torch takes, of the run's seed and more numbers."""
    word = np.random.SeedSequence([run_seed(), *numbers]).generate_state(1, np.uint64)[0]
    return int(word >> np.uint64(1))


def spread(key: int, numbers: np.ndarray) -> np.ndarray:
    """Return a seed of 63 bits for each number, by SplitMix64 (doi:10.1145/2714064.2660195).

    As `entropy(..., number)` in purpose, and a hundred times as fast: for all images of an epoch.

    Args:
        key: What all seeds depend on.
        numbers: Counted from 0, shape (N,).

    Returns:
        Shape (N,), int64, at least 0.
    """
    return (_mixed(np.uint64(key), numbers) >> np.uint64(1)).astype(np.int64)


def uniform(seeds: np.ndarray, count: int) -> np.ndarray:
    """Return numbers of [0, 1) by seeds: those of one never depend on the others.

    Args:
        seeds: Shape (N,).
        count: How many for each.

    Returns:
        Shape (N, count), float64.
    """
    columns = [_mixed(seeds.astype(np.uint64), np.full(len(seeds), i)) for i in range(count)]
    return (np.stack(columns, axis=1) >> np.uint64(11)) * 2.0**-53


def _mixed(key: Any, numbers: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # arithmetic is modulo 2^64
        word = key + (numbers.astype(np.uint64) + np.uint64(1)) * _GOLDEN
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(word ^ (word >> np.uint64(31)))
