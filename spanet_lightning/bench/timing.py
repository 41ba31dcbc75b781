"""Paired measurement: subjects take turns, and ratios are taken within a round.

A single time says little on a machine that does other work: its clock changes, a neighbour wakes
up. What two subjects have to be compared by is the ratio of their times at about the same moment.
So every round measures each subject once, every second round in reverse order, which cancels a
steady drift, and a comparison is the median of the rounds' ratios with their quartiles.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

# The next import looks for a CUDA compiler, and warns where it finds one but no device.
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)

from torch.utils.benchmark import Timer  # noqa: E402

Turn = Callable[[], float]
"""Measures a subject once: seconds."""
Say = Callable[[str], None]
"""Tells the user how far it is."""
Name = TypeVar("Name")


@dataclass(frozen=True)
class Spread:
    """Median, quartiles and range of the rounds."""

    median: float
    q1: float
    q3: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Return the spread of one value or more; quartiles are interpolated between values."""
    if len(values) == 1:
        return Spread(*[values[0]] * 5)
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, q1, q3, min(values), max(values))


def speedups(subject: Sequence[float], against: Sequence[float]) -> list[float]:
    """Return each round's time of `against` over that of `subject`: 2 is twice as fast."""
    return [b / a for a, b in zip(subject, against, strict=True)]


def alternate(
    turns: Mapping[Name, Turn], rounds: int, say: Say = lambda _line: None
) -> dict[Name, list[float]]:
    """Measure every subject once a round, in reverse order every second round.

    Args:
        turns: Subject → what measures it once.
        rounds: Number of rounds.
        say: Is told before each round.

    Returns:
        Subject → its value in each round.
    """
    values: dict[Name, list[float]] = {name: [] for name in turns}
    order = list(turns)
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for name in order if number % 2 == 0 else reversed(order):
            values[name].append(turns[name]())
    return values


def timed(call: Callable[[], Any], seconds: float) -> Turn:
    """Return a turn of `torch.utils.benchmark`: the median time of `call` over some seconds.

    One call or more warm up first: the subject before has left the caches full of its own. The
    timer waits for the accelerator, and keeps the garbage collector out.

    Args:
        call: What to time.
        seconds: Least time that is measured in a turn.
    """
    timer = _timer(call)

    def turn() -> float:
        return timer.blocked_autorange(min_run_time=seconds).median

    return turn


def shortest(call: Callable[[], Any], seconds: float) -> float:
    """Return the shortest time of `call` over some seconds: anything longer was disturbed."""
    return min(_timer(call).blocked_autorange(min_run_time=seconds).times)


def _timer(call: Callable[[], Any]) -> Timer:
    # It has one thread unless it is told otherwise.
    return Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
