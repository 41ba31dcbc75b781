"""Formatting of numbers: as many digits as their spread deserves, a true minus sign."""

from __future__ import annotations

import math
from collections.abc import Iterable

NONE = "–"
_MINUS = "\N{MINUS SIGN}"


def decimals(spreads: Iterable[float | None], values: Iterable[float] = ()) -> int:
    """Return decimals that show two digits of a typical standard deviation, at most 6.

    Args:
        spreads: Standard deviations; those that are 0 or unknown do not count.
        values: What is to be written, where no spread is known: three digits of the largest.
    """
    known = sorted(s for s in spreads if s is not None and math.isfinite(s) and s > 0)
    if known:
        return min(6, max(0, 1 - math.floor(math.log10(known[len(known) // 2]))))
    largest = max((abs(v) for v in values if math.isfinite(v)), default=0.0)
    return min(6, max(0, 2 - math.floor(math.log10(largest)))) if largest else 2


def number(value: float | None, places: int) -> str:
    """Write a number with so many decimals."""
    if value is None or not math.isfinite(value):
        return NONE
    text = f"{value:.{places}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", _MINUS)


def signed(value: float | None, places: int) -> str:
    """Write a difference with its sign."""
    text = number(value, places)
    if text == NONE or text.startswith(_MINUS) or float(text) == 0:
        return text
    return f"+{text}"


def plain(value: float) -> str:
    """Write a number in at most four digits: of an axis, of a parameter."""
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 1e6:
        text = f"{value:.4g}"
        if "e" in text:
            text = f"{value:.0f}"
    else:
        text = f"{value:.2e}".replace(".00e", "e").replace("e-0", "e-").replace("e+0", "e")
    return text.replace("-", _MINUS)


def spread(mean: float, sd: float, places: int) -> str:
    """Write mean ± sd; of one seed, the mean."""
    if not math.isfinite(sd):
        return number(mean, places)
    return f"{number(mean, places)} ± {number(sd, places)}"


def p_value(p: float | None) -> str:
    """Write a p-value in two digits."""
    if p is None:
        return NONE
    if p < 0.001:
        return "< 0.001"
    return f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def scaled(value: float | None) -> str:
    """Write a count with its unit: 4193000 is "4.19 M"."""
    if value is None:
        return NONE
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{three_digits(value / size)} {unit}"
    return f"{value:.0f}"


def three_digits(value: float) -> str:
    """Write a positive number in three digits: "1.23", "12.3", "123", "1234"."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def rate(value: float | None) -> str:
    """Write images a second in three digits."""
    return NONE if value is None else three_digits(value)


def duration(seconds: float | None) -> str:
    """Write a time: "47 s", "3 min 12 s", "2 h 05 min"."""
    if seconds is None:
        return NONE
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def counted(count: int, noun: str, plural: str = "") -> str:
    """Write a count with its noun: "1 arm", "3 arms"."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def listed(words: Iterable[str]) -> str:
    """Join words: "a, b and c"."""
    *front, last = list(words)
    return f"{', '.join(front)} and {last}" if front else last
