"""Names, values and colours of the classes of masks, as files beside a data set state them."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from spanet_lightning.errors import DataError

FILES = ("palette.yaml", "labelmap.txt", "objectInfo150.txt", "classes.csv", "classes.txt")
"""File names of class lists, in the order in which they are looked for."""

Colour = tuple[int, int, int]
_IGNORED_NAMES = re.compile(r"\b(void|ignored?|unlabell?ed)\b", re.IGNORECASE)


class ClassList(NamedTuple):
    """The classes of stored masks.

    Attributes:
        names: Name of each code in a mask: a value, or a colour as 0xRRGGBB.
        colours: Colour of each code, where the file states them.
        by_colour: Whether codes are colours.
    """

    names: Mapping[int, str]
    colours: Mapping[int, Colour]
    by_colour: bool = False

    def ignored(self) -> set[int]:
        """Return the codes whose names say that they do not count, as "void" does."""
        return {code for code, name in self.names.items() if _IGNORED_NAMES.search(name)}


def find(root: Path, file: str | None) -> Path | None:
    """Return the class list: the file given, or the first of the usual ones that exists.

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
    """Read a class list.

    Five forms: YAML with a colour `name: [r, g, b]` or a value `name: 7` per class; CVAT's
    `labelmap.txt` (`name:r,g,b:parts:actions`); ADE20K's `objectInfo150.txt` (tabs; `Idx` and
    `Name`); a CSV with `id`, `name` and optionally `r`, `g`, `b`; or one name per line, for the
    values from 0.

    Raises:
        DataError: If it has none of them, or a name, value or colour twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: can't be read: {error}") from error
    lines = [line for line in text.splitlines() if line.strip()]
    if path.suffix in (".yaml", ".yml"):
        rows = list(_yaml_rows(path, text))
    elif path.name == "labelmap.txt":
        rows = list(_labelmap_rows(path, lines))
    else:
        rows = list(_table_rows(path, lines))
    if not rows:
        raise DataError(f"{path}: got an empty file, expected a list of classes")
    by_colour = any(code is None for _, code, _ in rows)
    names: dict[int, str] = {}
    colours: dict[int, Colour] = {}
    for name, value, colour in rows:
        code = packed(colour) if value is None and colour is not None else value
        if code is None or (by_colour and value is not None):
            raise DataError(f"{path}: {name}: expected a colour [r, g, b], as the others have")
        if code in names:
            what = f"the colour {list(colour or ())}" if by_colour else f"the id {code}"
            raise DataError(f"{path}: got {what} twice, for {names[code]!r} and {name!r}")
        if name in names.values():
            raise DataError(f"{path}: got the name {name!r} twice, expected each once")
        names[code] = name
        if colour is not None:
            colours[code] = colour
    return ClassList(names, colours, by_colour)


_Row = tuple[str, int | None, Colour | None]


def _yaml_rows(path: Path, text: str) -> Iterator[_Row]:
    try:
        root = yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise DataError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(root, yaml.MappingNode):
        raise DataError(f"{path}: expected `name: [r, g, b]` for each class")
    # Nodes have names as they are typed, `off` and `007` included, and those that are there twice.
    for key, node in root.value:
        value = [item.value for item in node.value] if isinstance(node.value, list) else node.value
        try:
            if isinstance(value, str) and re.fullmatch("#[0-9a-fA-F]{6}", value):
                yield key.value, None, unpacked(int(value[1:], 16))
            else:
                yield key.value, *_value_or_colour([value] if isinstance(value, str) else value)
        except (ValueError, TypeError) as error:
            raise DataError(
                f"{path}: {key.value}: got {value!r:.40}, expected [r, g, b]"
            ) from error


def _value_or_colour(texts: list[str]) -> tuple[int | None, Colour | None]:
    numbers = [int(text) for text in texts]
    if len(numbers) not in (1, 3) or not all(0 <= number <= 255 for number in numbers):
        raise ValueError
    return (numbers[0], None) if len(numbers) == 1 else (None, (numbers[0], numbers[1], numbers[2]))


def _labelmap_rows(path: Path, lines: list[str]) -> Iterator[_Row]:
    for line in lines:
        if not line.startswith("#"):
            name, _, rest = line.partition(":")
            try:
                yield name.strip(), *_value_or_colour(rest.partition(":")[0].split(","))
            except ValueError as error:
                raise DataError(f"{path}: got {line!r}, expected name:r,g,b") from error


def _table_rows(path: Path, lines: list[str]) -> Iterator[_Row]:
    head = lines[0].lower() if lines else ""
    separator = "\t" if "\t" in head else ","
    columns = [name.strip() for name in head.split(separator)]
    key = next((name for name in ("id", "idx") if name in columns), None)
    if key is None or "name" not in columns:
        yield from ((line.strip(), value, None) for value, line in enumerate(lines))
        return
    rows = csv.DictReader(lines[1:], fieldnames=columns, delimiter=separator)
    for number, row in enumerate(rows, 2):
        try:
            value, colour = int(row[key]), None
            if {"r", "g", "b"} <= set(columns):
                colour = (int(row["r"]), int(row["g"]), int(row["b"]))
            if value < 0:
                raise ValueError
            yield row["name"].strip(), value, colour
        except (TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"{path}: line {number}: got {lines[number - 1]!r}, expected {', '.join(columns)}"
            ) from error


def packed(colour: Colour) -> int:
    """Return a colour as 0xRRGGBB."""
    red, green, blue = colour
    return red << 16 | green << 8 | blue


def unpacked(code: int) -> Colour:
    """Return the colour of 0xRRGGBB."""
    return code >> 16, code >> 8 & 255, code & 255


def palette(count: int) -> list[Colour]:
    """Return distinct colours, the same for each number of classes.

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
