"""The order of samples: repeatable, of one group a batch, shared out exactly."""

from __future__ import annotations

from collections import Counter

import pytest

from spanet_lightning.data.samplers import ExactShare, GroupedShuffle

GROUPS = [0, 1, 1] * 7 + [0] * 4  # 11 and 14


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_out_what_one_would_see(
    processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    alone = GroupedShuffle(GROUPS, 3, epoch=2, num_replicas=1, rank=0)
    assert len(alone.batches()) == 11 // 3 + 14 // 3
    shares = [GroupedShuffle(GROUPS, 3, 2, processes, rank) for rank in range(processes)]
    draws = [list(share) for share in shares]
    assert {len(draw) for draw in draws} == {len(shares[0])} == {len(s) for s in shares}
    numbers = [draw.number for share in draws for draw in share]
    assert len(numbers) == len(set(numbers)) == 7 // processes * processes * 3
    known = {tuple(batch) for batch in alone.batches()}
    for share in draws:
        for start in range(0, len(share), 3):
            batch = tuple(draw.number for draw in share[start : start + 3])
            assert batch in known
            assert len({GROUPS[number] for number in batch}) == 1
    # The same image is augmented alike, whichever process reads it.
    seeds = dict(alone)
    assert all(draw.seed == seeds[draw.number] for share in draws for draw in share)


def test_order_and_seeds_follow_the_seed_and_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    def draws(seed: int, epoch: int) -> list[tuple[int, int]]:
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        sampler = GroupedShuffle(GROUPS, 3, num_replicas=1, rank=0)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert draws(0, 1) == draws(0, 1)
    assert draws(0, 1) != draws(0, 2)
    assert draws(0, 1) != draws(1, 1)
    assert not {s for _, s in draws(0, 1)} & {s for _, s in draws(0, 2)}


def test_no_image_sits_out_every_epoch() -> None:
    sampler = GroupedShuffle(GROUPS, 4, num_replicas=1, rank=0)
    seen: Counter[int] = Counter()
    for epoch in range(30):
        sampler.set_epoch(epoch)
        seen.update(draw.number for draw in sampler)
    assert set(seen) == set(range(len(GROUPS)))


@pytest.mark.parametrize("size", [1, 7, 8])
def test_evaluation_sees_each_sample_once(size: int) -> None:
    shares = [ExactShare(size, 3, rank) for rank in range(3)]
    assert sorted(i for share in shares for i in share) == list(range(size))
    assert sum(map(len, shares)) == size
