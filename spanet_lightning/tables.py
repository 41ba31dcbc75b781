"""Tables as CSV, safe to open in a spreadsheet."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def csv_row(values: Iterable[Any]) -> list[Any]:
    """Return a row for `csv.writer` whose texts no spreadsheet runs as a formula.

    Names of files and classes come from anybody; a cell that begins with = + - or @ is a formula to
    Excel and LibreOffice. Such texts get an apostrophe in front, which shows them as they are.
    Numbers stay numbers, also those that are given as text.

    Args:
        values: The cells.
    """
    return [
        f"'{value}"
        if isinstance(value, str) and value.startswith(_FORMULA) and not _is_number(value)
        else value
        for value in values
    ]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text == text.strip()
