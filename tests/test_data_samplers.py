"""The order of samples: repeatable, shared out exactly, begun in the middle where a run goes on."""

from __future__ import annotations

import random
from collections import Counter
from functools import partial
from itertools import chain
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, DistributedSampler

from spanet_lightning.data import DigitsDataModule, loaders
from spanet_lightning.data.draws import Draw, Drawn, spread, uniform
from spanet_lightning.data.loaders import BATCH, drawn_loader, exact_loader
from spanet_lightning.data.samplers import EpochShuffle, GroupedShuffle
from spanet_lightning.errors import DataError

GROUPS = [0, 1, 1] * 7 + [0] * 4  # 11 and 14
SAMPLERS = pytest.mark.parametrize(
    "sampler", [partial(EpochShuffle, 25), partial(GroupedShuffle, GROUPS)], ids=["all", "grouped"]
)


def batches(sampler) -> list[list[Draw]]:
    """The batches that a process loads."""
    draws = list(sampler)
    size = sampler.batch_size
    assert len(draws) == len(sampler)
    return [draws[start : start + size] for start in range(0, len(draws), size)]


@SAMPLERS
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_out_the_batches_that_one_would_see(
    sampler, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seeds of the augmentation included: they learn what one with more memory would."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    alone = batches(sampler(2 * processes, 3, 1, 0))
    shares = [batches(sampler(2, 3, processes, rank)) for rank in range(processes)]
    assert [list(chain(*parts)) for parts in zip(*shares, strict=True)] == alone
    numbers = [draw.number for batch in alone for draw in batch]
    assert len(numbers) == len(set(numbers)) > 0


def test_a_batch_is_of_one_group() -> None:
    alone = GroupedShuffle(GROUPS, 3, epoch=2, num_replicas=1, rank=0)
    assert len(batches(alone)) == 11 // 3 + 14 // 3
    for batch in batches(alone):
        assert len({GROUPS[draw.number] for draw in batch}) == 1


@SAMPLERS
def test_order_and_seeds_follow_the_seed_and_the_epoch(
    sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draws(seed: int, epoch: int) -> list[Draw]:
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        found = sampler(3, num_replicas=1, rank=0)
        found.set_epoch(epoch)
        return list(found)

    assert draws(0, 1) == draws(0, 1)
    assert draws(0, 1) != draws(0, 2)
    assert draws(0, 1) != draws(1, 1)
    assert not {s for _, s in draws(0, 1)} & {s for _, s in draws(0, 2)}
    assert not {s for _, s in draws(0, 1)} & {s for _, s in draws(1, 1)}


@SAMPLERS
def test_a_pass_that_skips_is_the_rest_of_a_whole_one(sampler) -> None:
    found = sampler(2, 4, 2, 1)
    whole = batches(found)
    found.skip(3)
    rest = list(found)
    assert rest == list(chain(*whole[3:]))
    assert batches(found) == whole  # the next pass is whole again
    assert len(found) == len(whole) * 2  # an epoch has as many batches as ever
    found.skip(2**62)
    assert list(found) == []
    found.skip(3)
    found.set_epoch(1)  # that epoch had nothing left to begin a pass for
    assert len(batches(found)) == len(whole)


@SAMPLERS
def test_no_image_sits_out_every_epoch(sampler) -> None:
    found = sampler(4, num_replicas=1, rank=0)
    seen: Counter[int] = Counter()
    for epoch in range(30):
        found.set_epoch(epoch)
        seen.update(draw.number for draw in found)
    assert set(seen) == set(range(len(GROUPS)))


def test_a_group_that_fills_no_batch_joins_the_largest() -> None:
    """Of 8 wide images and 1 tall one, in batches of two, the tall one would never be seen."""
    sampler = GroupedShuffle([0] * 8 + [1], 2, num_replicas=1, rank=0)
    assert sampler.regrouped == 1
    seen: set[int] = set()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        seen |= {draw.number for draw in sampler}
    assert seen == set(range(9))


def test_seeds_of_an_epoch_differ_and_numbers_by_them_are_uniform() -> None:
    seeds = spread(3, np.arange(100_000))
    assert len(set(seeds.tolist())) == 100_000
    assert seeds.min() >= 0  # torch takes no others
    numbers = uniform(seeds, 4)
    assert 0 <= numbers.min() < numbers.max() < 1
    for column in numbers.T:
        counts = np.histogram(column, bins=20, range=(0, 1))[0]
        assert np.abs(counts - 5000).max() < 5 * np.sqrt(5000)
    assert np.abs(np.corrcoef(numbers.T) - np.eye(4)).max() < 0.02
    assert np.array_equal(uniform(seeds[7:8], 4)[0], numbers[7])


# Loaders


class Noise(Dataset):
    """Reads its number and what the three generators give, as transforms draw from them."""

    read: ClassVar[list[int]] = []

    def __len__(self) -> int:
        return 20

    def __getitem__(self, number: int) -> torch.Tensor:
        self.read.append(number)
        drawn = (random.random(), np.random.rand(), float(torch.rand(1)))  # noqa: NPY002 - as timm's
        return torch.tensor([number, *drawn], dtype=torch.float64)


def loaded(workers: int, skip: int = 0) -> list[torch.Tensor]:
    random.seed()  # what a process has drawn before must not matter
    loader = drawn_loader(Noise(), batch_size=4, num_workers=workers, epoch=1)
    loader.load_state_dict({BATCH: skip})
    return list(loader)


def test_workers_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does what was drawn before; another seed changes order and augmentation."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    alone = torch.stack(loaded(0))
    assert torch.equal(alone, torch.stack(loaded(2)))
    monkeypatch.setenv("PL_GLOBAL_SEED", "2")
    other = torch.stack(loaded(0))
    assert not torch.equal(other[..., 0], alone[..., 0])
    assert not {*other[..., 1:].flatten().tolist()} & {*alone[..., 1:].flatten().tolist()}


def test_a_loader_begins_in_the_middle_and_reads_nothing_before() -> None:
    whole = loaded(0)
    Noise.read.clear()
    rest = loaded(0, skip=2)
    assert torch.equal(torch.stack(rest), torch.stack(whole[2:]))
    assert Noise.read == [int(sample[0]) for batch in whole[2:] for sample in batch]


def test_drawing_by_a_seed_leaves_the_streams_alone() -> None:
    def now() -> tuple:
        numpy = np.random.get_state()[1]  # noqa: NPY002
        return random.getstate(), torch.get_rng_state().tolist(), numpy.tolist()

    before = now()
    Drawn(Noise())[Draw(3, seed=2**40)]
    assert now() == before


def test_two_processes_evaluate_each_digit_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """At an odd number; Lightning leaves a sampler alone if it is torch's distributed one."""
    data = DigitsDataModule()
    data.setup("fit")
    images = []
    for rank in (0, 1):
        monkeypatch.setattr(loaders, "processes", lambda *_, rank=rank: (2, rank))
        loader = data.val_dataloader()
        assert isinstance(loader.sampler, DistributedSampler)
        images += [image for batch, _ in loader for image in batch]
    every = data.splits["val"].tensors[0]
    assert len(images) == len(every) == 179
    assert {image.numpy().tobytes() for image in images} == {i.numpy().tobytes() for i in every}


def test_more_processes_than_images_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one without would end its evaluation at once, and the others would wait for it."""
    monkeypatch.setattr(loaders, "processes", lambda: (21, 0))
    with pytest.raises(DataError, match=r"trainer.devices: got 21 processes for 20 images"):
        exact_loader(Noise(), batch_size=4, num_workers=0)
