"""A report as values, from which Markdown, HTML and LaTeX are rendered. Texts are plain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Tone = Literal["", "better", "worse", "equivalent", "undecided", "flag", "muted"]


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading, alignment, and whether its cells are code."""

    title: str
    numeric: bool = True
    code: bool = False


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row is its heading.

    Attributes:
        caption: What it shows.
        columns: From left to right.
        rows: From top to bottom.
        notes: What to know about it.
        strong: Index of the row that the others are compared with.
        tones: Tone of the cell at a row and column.
    """

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    strong: int | None = None
    tones: dict[tuple[int, int], Tone] = field(default_factory=dict)


@dataclass(frozen=True)
class Items:
    """A list of a term and its text."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Commands:
    """Commands to copy: a title, and name and command of each."""

    title: str
    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
        name: Path of its files in the report's folder, without suffix.
        svg: The figure.
        png: The same as PNG.
        alt: What it shows, for readers who can't see it.
        caption: How to read it.
    """

    name: str
    svg: bytes
    png: bytes
    alt: str
    caption: str


Block = str | Table | Items | Commands | Figure


@dataclass(frozen=True)
class Section:
    """A part of the report."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Report:
    """A whole report.

    Attributes:
        name: Name of the study.
        kind: "ablation" or "search".
        question: What the study asks.
        verdict: The answer, in a sentence or two.
        tone: Tone of the answer.
        facts: Name and value of what a reader wants to know first.
        warnings: What a reader should know before believing it.
        sections: In order.
    """

    name: str
    kind: str
    question: str
    verdict: str
    tone: Tone
    facts: Sequence[tuple[str, str]]
    warnings: Sequence[str]
    sections: Sequence[Section]

    @property
    def figures(self) -> list[Figure]:
        """The figures, in order."""
        return [b for s in self.sections for b in s.blocks if isinstance(b, Figure)]

    @property
    def tables(self) -> list[Table]:
        """The tables, in order."""
        return [b for s in self.sections for b in s.blocks if isinstance(b, Table)]
