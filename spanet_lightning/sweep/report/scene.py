"""Figures as lists of marks, drawn alike as SVG (`svg`) and as PNG (`png`).

A mark names an ink, not a colour: a page in dark mode and a figure on paper use the same scene.
Coordinates are in pixels, from the top left corner.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

Ink = Literal["text", "muted", "grid", "band", "main", "control", "better", "worse", "paper"]
Anchor = Literal["start", "middle", "end"]
Shape = Literal["circle", "diamond", "cross"]
Point = tuple[float, float]

SMALL, NORMAL, LARGE = 11, 12.5, 14


@dataclass(frozen=True)
class Line:
    """A line through points.

    Attributes:
        points: Its corners.
        ink: Its colour.
        width: In pixels.
        opacity: From 0 to 1.
        dash: Lengths of strokes and gaps; empty is a full line.
        title: What is told of it, to a pointer and to a screen reader.
    """

    points: tuple[Point, ...]
    ink: Ink
    width: float = 1.5
    opacity: float = 1.0
    dash: tuple[float, ...] = ()
    title: str = ""


@dataclass(frozen=True)
class Dot:
    """A point.

    Attributes:
        x: Of its centre.
        y: Of its centre.
        radius: In pixels.
        ink: Its colour.
        shape: What it looks like.
        hollow: Whether only its edge is drawn.
        opacity: From 0 to 1.
        title: What is told of it.
    """

    x: float
    y: float
    radius: float
    ink: Ink
    shape: Shape = "circle"
    hollow: bool = False
    opacity: float = 1.0
    title: str = ""


@dataclass(frozen=True)
class Box:
    """A filled rectangle.

    Attributes:
        x: Of its left edge.
        y: Of its upper edge.
        width: In pixels.
        height: In pixels.
        ink: Its colour.
        opacity: From 0 to 1.
        title: What is told of it.
    """

    x: float
    y: float
    width: float
    height: float
    ink: Ink
    opacity: float = 1.0
    title: str = ""


@dataclass(frozen=True)
class Text:
    """A line of text.

    Attributes:
        x: Of its anchor.
        y: Of its baseline.
        text: What it says.
        ink: Its colour.
        size: Of its letters, in pixels.
        anchor: Which part of it is at `x`.
        bold: Whether its letters are.
        turned: Whether it is read upwards.
    """

    x: float
    y: float
    text: str
    ink: Ink = "text"
    size: float = NORMAL
    anchor: Anchor = "start"
    bold: bool = False
    turned: bool = False


Mark = Line | Dot | Box | Text


@dataclass(frozen=True)
class Scene:
    """A figure.

    Attributes:
        name: Of its file, without a suffix.
        width: In pixels.
        height: In pixels.
        title: Heading.
        alt: What it shows, in words, for those who can't see it.
        caption: How to read it.
        marks: In the order in which they are drawn.
    """

    name: str
    width: float
    height: float
    title: str
    alt: str
    caption: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Axis:
    """Where a value is drawn.

    Attributes:
        low: Value at `start`.
        high: Value at `end`.
        start: In pixels.
        end: In pixels.
        log: Whether equal distances are equal ratios.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        scale: Callable[[float], float] = math.log if self.log else float
        low, high = scale(self.low), scale(self.high)
        return self.start + (scale(value) - low) / (high - low) * (self.end - self.start)

    def ticks(self, about: int = 5) -> list[float]:
        """Return round values between the ends.

        Args:
            about: How many there is room for.
        """
        if self.log:
            return _log_ticks(self.low, self.high, about)
        step = _round_step((self.high - self.low) / max(1, about))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)]


def axis(
    values: Iterable[float],
    start: float,
    end: float,
    *,
    pad: float = 0.06,
    log: bool = False,
    around: float | None = None,
) -> Axis:
    """Return an axis on which all values have room.

    Args:
        values: What is to be drawn; at least one is finite.
        start: Pixel of the lower end.
        end: Pixel of the upper end.
        pad: Share of the range that is left free at both ends.
        log: Whether equal distances are equal ratios.
        around: A value that must be on it as well.
    """
    known = [v for v in values if math.isfinite(v)] + ([] if around is None else [around])
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    if log and low > 0 and high / low > 1 + 1e-9:
        ratio = (high / low) ** pad
        return Axis(low / ratio, high * ratio, start, end, log=True)
    width = (high - low) or abs(high) * 0.1 or 1.0
    return Axis(low - pad * width, high + pad * width, start, end)


def text_width(text: str, size: float = NORMAL) -> float:
    """Return about how wide a text is, in pixels; rather more than less."""
    return sum(_NARROW.get(letter, 0.58) for letter in text) * size


def wrapped(text: str, width: float, size: float = NORMAL, most: int = 2) -> list[str]:
    """Break a text into lines; what does not fit the last of them ends with an ellipsis.

    Args:
        text: To break at spaces.
        width: Of a line, in pixels.
        size: Of the letters.
        most: Lines.
    """
    lines: list[str] = []
    for word in text.split(" "):
        if lines and text_width(f"{lines[-1]} {word}", size) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    if len(lines) > most:
        lines = [*lines[: most - 1], " ".join(lines[most - 1 :])]
    return [_cut(line, width, size) for line in lines]


def horizontal(
    found: Axis, top: float, bottom: float, label: str, write: Callable[[float], str], about: int
) -> list[Mark]:
    """Draw an axis below a panel, with its grid.

    Args:
        found: The axis.
        top: Upper edge of the panel.
        bottom: Lower edge of the panel.
        label: What it measures.
        write: Writes a value.
        about: How many ticks there is room for.
    """
    marks: list[Mark] = []
    for value in found.ticks(about):
        x = found(value)
        marks.append(Line(((x, top), (x, bottom)), "grid", 1))
        marks.append(Text(x, bottom + 16, write(value), "muted", SMALL, "middle"))
    if label:
        middle = (found.start + found.end) / 2
        marks.append(Text(middle, bottom + 35, label, "text", NORMAL, "middle"))
    return marks


def vertical(
    found: Axis, left: float, right: float, label: str, write: Callable[[float], str], about: int
) -> list[Mark]:
    """Draw an axis at the left of a panel, with its grid; arguments as those of `horizontal`."""
    marks: list[Mark] = []
    for value in found.ticks(about):
        y = found(value)
        marks.append(Line(((left, y), (right, y)), "grid", 1))
        marks.append(Text(left - 8, y + 4, write(value), "muted", SMALL, "end"))
    if label:
        middle = (found.start + found.end) / 2
        marks.append(Text(left - 52, middle, label, "text", NORMAL, "middle", turned=True))
    return marks


def tick_writer(found: Axis, about: int) -> Callable[[float], str]:
    """Return what writes the ticks of a linear axis with as many decimals as they differ in."""
    from spanet_lightning.sweep.report.words import number, plain

    ticks = found.ticks(about)
    if found.log or len(ticks) < 2:
        return plain
    step = ticks[1] - ticks[0]
    if max(abs(t) for t in ticks) >= 1e5 or step < 1e-5:
        return plain
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    if round(step * 10**places, 6) != round(step * 10**places):
        places += 1
    return lambda value: number(value, places)


@dataclass
class Canvas:
    """Marks as they come."""

    marks: list[Mark] = field(default_factory=list)

    def add(self, *marks: Mark) -> None:
        """Draw marks above those that are there."""
        self.marks.extend(marks)


_NARROW = {
    **dict.fromkeys("ijl.,:;'|!/()[] ", 0.32),
    **dict.fromkeys("ftr-", 0.4),
    **dict.fromkeys("mwMW", 0.88),
    **dict.fromkeys("ABCDEGHKNOPQRSTUVXYZ+=±×", 0.7),
}


def _cut(line: str, width: float, size: float) -> str:
    if text_width(line, size) <= width:
        return line
    while line and text_width(f"{line}…", size) > width:
        line = line[:-1]
    return f"{line}…"


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return min((m * power for m in (1, 2, 5, 10)), key=lambda s: abs(math.log(s / rough)))


def _log_ticks(low: float, high: float, about: int) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for digits in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [d * 10.0**e for e in range(first, last + 1) for d in digits]
        ticks = [t for t in ticks if low <= t <= high]
        if len(ticks) <= about + 1:
            break
    return ticks if len(ticks) >= 2 else [low, high]
