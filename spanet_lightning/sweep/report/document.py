"""A report as values that Markdown and HTML are written from alike.

Texts may hold `code` between backticks and **strong** words between pairs of asterisks; nothing
else in them is markup.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spanet_lightning.sweep.report.scene import Scene

Tone = Literal["", "better", "worse", "inconclusive", "flag", "muted"]


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: What it says.
        tone: How it is to be seen, beside what it says.
    """

    text: str
    tone: Tone = ""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: Its heading.
        numeric: Whether it is aligned at the right.
    """

    title: str
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row is its heading.

    Attributes:
        caption: What it shows.
        columns: From left to right.
        rows: From top to bottom.
        notes: What to know of it.
        strong: Indices of rows that the others are compared with.
    """

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    strong: tuple[int, ...] = ()


@dataclass(frozen=True)
class Bullets:
    """A list of texts."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Commands:
    """Commands to copy, folded where that is possible.

    Attributes:
        title: What they do.
        items: Name and command.
    """

    title: str
    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Picture:
    """A figure that others have drawn.

    Attributes:
        file: Where it is, seen from the report.
        png: The same as PNG, for a page that needs no other file.
        alt: What it shows, for those who don't see it.
        caption: What to know of it.
    """

    file: str
    png: bytes
    alt: str
    caption: str


Block = str | Table | Bullets | Commands | Scene | Picture


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        title: Its heading.
        blocks: In order.
    """

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """A whole report.

    Attributes:
        name: Of the study.
        question: What it asks.
        verdict: The answer, in a sentence or two.
        tone: Whether something is claimed.
        facts: Name and value of what one wants to know first.
        warnings: What one should know before believing it.
        sections: In order.
    """

    name: str
    question: str
    verdict: str
    tone: Tone
    facts: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    sections: tuple[Section, ...]

    @property
    def scenes(self) -> tuple[Scene, ...]:
        """The figures, in order."""
        return tuple(b for s in self.sections for b in s.blocks if isinstance(b, Scene))
