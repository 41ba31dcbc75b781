"""Checks of constructor arguments: one line that names argument, value and what is accepted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from spanet_lightning.errors import invalid, invalid_choice

Row = TypeVar("Row")

STAGES = 4
MAX_KERNEL_SIZE = 31


def row(key: str, value: str, table: Mapping[str, Row]) -> Row:
    """Look `value` up in a table of variants."""
    return table[choice(key, value, table)]


def choice(key: str, value: str, choices: Collection[str]) -> str:
    """Return `value`, one of `choices`."""
    if value not in choices:
        raise invalid_choice(key, value, choices)
    return value


def positive_int(key: str, value: Any, minimum: int = 1) -> int:
    """Return `value`, an integer of at least `minimum`."""
    if not _is_int(value) or value < minimum:
        raise invalid(key, value, f"an integer of at least {minimum}")
    return int(value)


def fraction(key: str, value: Any, *, below_one: bool = False) -> float:
    """Return `value`, a number in [0, 1], or in [0, 1) with `below_one`."""
    if not _is_number(value) or not 0 <= value <= 1 or (below_one and value == 1):
        raise invalid(key, value, "a number in " + ("[0, 1)" if below_one else "[0, 1]"))
    return float(value)


def positive(key: str, value: Any) -> float:
    """Return `value`, a finite number above 0."""
    if not _is_number(value) or not 0 < value < float("inf"):
        raise invalid(key, value, "a number above 0")
    return float(value)


def kernel_size(key: str, value: Any) -> int:
    """Return `value`, an odd kernel size in pixels: an even one would shift the features."""
    if not _is_int(value) or value % 2 == 0 or not 1 <= value <= MAX_KERNEL_SIZE:
        raise invalid(key, value, f"an odd integer from 1 to {MAX_KERNEL_SIZE}")
    return int(value)


def fractions(key: str, value: Any) -> tuple[float, ...]:
    """Return `value`, one or more numbers in [0, 1]."""
    if not _is_sequence(value) or not value:
        raise invalid(key, value, "one or more numbers in [0, 1]")
    return tuple(fraction(f"{key}[{i}]", v) for i, v in enumerate(value))


def per_stage_ints(key: str, value: Any) -> tuple[int, int, int, int]:
    """Return `value`, one positive integer for each of the four stages."""
    return _per_stage(
        key, value, lambda v: _is_int(v) and v > 0, "four positive integers, one per stage"
    )


def radii(key: str, value: Any) -> tuple[float, float, float, float]:
    """Return `value`, one non-negative radius for each of the four stages."""
    return _per_stage(
        key,
        value,
        lambda v: _is_number(v) and 0 <= v < float("inf"),
        "four numbers of at least 0 (cycles per side), one per stage",
    )


def choices_per_stage(key: str, value: Any, choices: Collection[str]) -> tuple[Any, ...]:
    """Return `value`, one of `choices` for each of the four stages."""
    accepted = f"four of {', '.join(map(repr, choices))}, one per stage"
    stages = _per_stage(key, value, lambda _: True, accepted)
    return tuple(choice(f"{key}[{i}]", v, choices) for i, v in enumerate(stages))


def image_size(key: str, value: Any) -> tuple[int, int]:
    """Return `value` as (height, width) in pixels, both at least 32."""
    pair = tuple(value) if _is_sequence(value) else (value, value)
    if len(pair) != 2 or not all(_is_int(v) and v >= 32 for v in pair):
        raise invalid(key, value, "a side, or (height, width), of at least 32 pixels")
    return pair[0], pair[1]


def _per_stage(
    key: str, value: Any, is_valid: Callable[[Any], bool], accepted: str
) -> tuple[Any, Any, Any, Any]:
    if not _is_sequence(value) or len(value) != STAGES or not all(map(is_valid, value)):
        raise invalid(key, value, accepted)
    a, b, c, d = value
    return a, b, c, d


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
