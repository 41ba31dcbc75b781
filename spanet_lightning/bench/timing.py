"""Paired measurements: subjects alternate, and ratios are taken within a round.

A single time says little on a machine that does other work. Two subjects are compared by the ratio
of their times at about the same moment: every round measures each subject once, every second round
in reverse order, which cancels a steady drift, and the result is the median of the rounds' ratios
with their quartiles.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch.nn import functional as F

from spanet_lightning.bench.settings import Settings

# The next import warns where it finds a CUDA compiler but no device.
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)

from torch.utils.benchmark import Timer  # noqa: E402

Row = dict[str, Any]
Progress = Callable[[str], None]
"""Is told what is measured next."""
Name = TypeVar("Name")

# Sides of square products: small ones do not fill a device, large ones may not fit its caches.
_SIDES = {"cpu": (512, 1024, 2048), "cuda": (2048, 4096, 8192)}
_COPIED_BYTES = {"cpu": 1 << 28, "cuda": 1 << 30}  # far beyond the last-level cache


@dataclass(frozen=True)
class Spread:
    """Median, quartiles and range over the rounds."""

    median: float
    q1: float
    q3: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Return the spread of at least one value; quartiles are interpolated."""
    if len(values) == 1:
        return Spread(*[values[0]] * 5)
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, q1, q3, min(values), max(values))


def ratio(
    subject: str, against: str, mode: str, ours: Sequence[float], theirs: Sequence[float]
) -> Row:
    """Return an entry of `ratios` from the seconds of both in each round."""
    rounds = [b / a for a, b in zip(ours, theirs, strict=True)]
    speedup = {"rounds": rounds, **asdict(spread(rounds))}
    return {"subject": subject, "against": against, "mode": mode, "speedup": speedup}


def alternate(
    calls: Mapping[Name, Callable[[], Any]],
    rounds: int,
    seconds: float,
    progress: Progress = lambda _line: None,
) -> dict[Name, list[float]]:
    """Time every call once per round, in reverse order every second round.

    Args:
        calls: What to time, by subject. It should have run before, so that caches are filled.
        rounds: Number of rounds.
        seconds: Minimum time of a measurement, after one warm-up call: the subject before has left
            the caches full of its own data.
        progress: Called before each round.

    Returns:
        Median seconds per call in each round, by subject.
    """
    values: dict[Name, list[float]] = {name: [] for name in calls}
    timers = {name: _timer(call) for name, call in calls.items()}
    order = list(calls)
    for number in range(rounds):
        progress(f"round {number + 1} of {rounds}")
        for name in order if number % 2 == 0 else reversed(order):
            values[name].append(timers[name].blocked_autorange(min_run_time=seconds).median)
    return values


@dataclass(frozen=True)
class Ceiling:
    """Rates that nothing on this machine exceeds at this precision.

    Attributes:
        macs_per_second: MACs/s of the fastest square matrix product, as `mm` or as a 1×1
            convolution: the libraries behind them differ, and either can be twice as fast.
        bytes_per_second: Bytes read plus bytes written by a copy.
    """

    macs_per_second: float
    bytes_per_second: float


def measure_ceiling(settings: Settings) -> Ceiling:
    """Measure both rates by the shortest of many calls; each size takes twice `seconds`."""
    kind, rates = settings.torch_device.type, []

    def shortest(call: Callable[[], Any]) -> float:
        return min(_timer(call).blocked_autorange(min_run_time=2 * settings.seconds).times)

    for side in _SIDES[kind]:
        a, b = settings.noise(2, side, side).to(settings.matmul_dtype)
        rates.append(side**3 / shortest(partial(torch.mm, a, b, out=a + b)))
        # The same product: `a` as the pixels of 8 images whose channels come last.
        pixels = a.view(8, side // 8, 1, side).permute(0, 3, 1, 2)
        weight = b.view(side, side, 1, 1).to(memory_format=torch.channels_last)
        rates.append(side**3 / shortest(torch.inference_mode()(partial(F.conv2d, pixels, weight))))
    source = torch.ones(_COPIED_BYTES[kind], dtype=torch.uint8, device=settings.torch_device)
    return Ceiling(max(rates), 2 * source.nbytes / shortest(partial(source.clone().copy_, source)))


def _timer(call: Callable[[], Any]) -> Timer:
    # Synchronises the accelerator and keeps the garbage collector out; it would use one thread.
    return Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
