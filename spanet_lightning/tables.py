"""Tables as CSV, safe to open in a spreadsheet."""

from __future__ import annotations

from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def csv_cell(value: Any) -> Any:
    """Return a value that no spreadsheet runs as a formula.

    Names of files, classes and arms come from anybody; a text that begins with = + - or @ is a
    formula to Excel and LibreOffice. Such a text gets an apostrophe in front, which shows it as it
    is. Numbers stay numbers, also those that are given as text.

    Args:
        value: What `csv.writer` would write.
    """
    if isinstance(value, str) and value.startswith(_FORMULA) and not _is_number(value):
        return f"'{value}"
    return value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text == text.strip()
