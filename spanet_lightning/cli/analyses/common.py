"""What the analyses of `spanet analyze` share: the models, and what is told of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from spanet_lightning.errors import invalid
from spanet_lightning.summary import console

DEFAULT_MODEL = "spanetv2_s18_pure"


def subjects(args: argparse.Namespace, num_classes: int | None = None) -> list[Any]:
    """Build the models; random weights are said, since no figure shows them."""
    import spanet_lightning  # noqa: F401  (registers our models with timm)
    from spanet_lightning.analysis.models import subject

    if args.size < 32:
        raise invalid("--size", args.size, "at least 32 pixels")
    options = {
        "size": args.size,
        "seed": args.seed,
        "pretrained": args.pretrained,
        "weights_set": args.weights_set,
    }
    names = args.model or [DEFAULT_MODEL]
    found = [subject(name, num_classes=num_classes, **options) for name in names]
    random = [one.label for one in found if not one.trained]
    if random:
        print(f"random weights: {', '.join(random)}")
    return found


def show(title: str, rows: Sequence[Any]) -> None:
    """Print rows of equal columns."""
    table = Table(title=title, title_justify="left")
    for key in rows[0]:
        numeric = isinstance(rows[0][key], (int, float))
        table.add_column(key, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    console(100).print(table)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def file_name(label: str) -> str:
    """Return a model's label as the name of a folder."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in label)


def integers(key: str, text: str) -> list[int]:
    """Read whole numbers between commas.

    Raises:
        ConfigError: If there is none, or one is no whole number.
    """
    values = numbers(key, text)
    if any(value != int(value) for value in values):
        raise invalid(key, text, "integers, separated by commas")
    return [int(value) for value in values]


def numbers(key: str, text: str) -> list[float]:
    """Read numbers between commas.

    Raises:
        ConfigError: If there is none, or one is no finite number.
    """
    try:
        values = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        values = []
    if not values or any(value != value or abs(value) == float("inf") for value in values):
        raise invalid(key, text, "one number or more, separated by commas")
    return values


def say(line: str) -> None:
    """Tell a person at a terminal how far it is."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{line}")
        sys.stderr.flush()
