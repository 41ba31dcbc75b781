"""Names and colours of the classes of masks, as files beside a data set give them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np

from spanet_lightning.errors import DataError

FILES = ("objectInfo150.txt", "classes.csv", "classes.txt")
"""Where names are looked for, in this order."""

Colour = tuple[int, int, int]


class ClassList(NamedTuple):
    """The classes of stored masks, the value 0 included where the file names it.

    Attributes:
        names: Name of each value of a mask.
        colours: Colour of each value, where the file gives them.
    """

    names: dict[int, str]
    colours: dict[int, Colour]


def find(root: Path, file: str | None) -> Path | None:
    """Return the file of names: the one given, or the first of the usual ones that exists.

    Raises:
        DataError: If the one given does not exist.
    """
    if file is not None:
        path = root / file
        if not path.is_file():
            raise DataError(f"classes_file: found no file at {path}, expected a list of classes")
        return path
    return next((root / name for name in FILES if (root / name).is_file()), None)


def read(path: Path) -> ClassList:
    """Read a list of classes.

    Three forms: ADE20K's `objectInfo150.txt` (tabs; `Idx` and `Name`), a CSV with `id`, `name` and
    perhaps `r`, `g`, `b`, or one name a line, for the values from 0.

    Raises:
        DataError: If it has none of them.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: can't be read: {error}") from error
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{path}: got an empty file, expected a list of classes")
    head = lines[0].lower()
    separator = "\t" if "\t" in head else ","
    columns = [name.strip() for name in head.split(separator)]
    key = next((name for name in ("id", "idx") if name in columns), None)
    if key is None or "name" not in columns:
        return ClassList({i: line.strip() for i, line in enumerate(lines)}, {})
    names: dict[int, str] = {}
    colours: dict[int, Colour] = {}
    rows = csv.DictReader(lines[1:], fieldnames=columns, delimiter=separator)
    for number, row in enumerate(rows, 2):
        try:
            value = int(row[key])
            name = row["name"].strip()
            if {"r", "g", "b"} <= set(columns):
                colours[value] = (int(row["r"]), int(row["g"]), int(row["b"]))
        except (TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"{path}: line {number}: got {lines[number - 1]!r}, expected {', '.join(columns)}"
            ) from error
        if value in names or value < 0:
            raise DataError(f"{path}: line {number}: got the id {value}, expected each once, ≥ 0")
        names[value] = name
    return ClassList(names, colours)


def palette(count: int) -> list[Colour]:
    """Return colours that differ well from one another, the same for each number of classes.

    Bits of a class's number, lowest first, go to the highest bits of red, green and blue in turn,
    as in PASCAL VOC's palette; so the first are far apart.

    Args:
        count: How many.
    """
    colours = np.zeros((count, 3), dtype=int)
    for value in range(count):
        rest, bit = value + 1, 7
        while rest and bit >= 0:
            for channel in range(3):
                colours[value, channel] |= ((rest >> channel) & 1) << bit
            rest, bit = rest >> 3, bit - 1
    return [(int(r), int(g), int(b)) for r, g, b in colours]
