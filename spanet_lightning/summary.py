"""The table that ends a run: what came out, where it is, and how to look at it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from spanet_lightning.cost import ModelCost


def show(title: str, rows: Mapping[str, str | None]) -> None:
    """Print a table of two columns on stdout; rows without a value are left out.

    Args:
        title: Heading of the table.
        rows: Name and value, in order.
    """
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold")
    # Paths and commands are to be copied, so they are folded, not cut.
    table.add_column(overflow="fold")
    for name, value in rows.items():
        if value is not None:
            table.add_row(name, value)
    Console().print(table)  # 80 columns in a file


def console(least: int = 0) -> Console:
    """Return a console on stdout; a file has no width of its own, and gets room for commands.

    Args:
        least: Characters below which a table would lose digits; a narrower terminal breaks lines.
    """
    plain = Console()
    return Console(width=max(least, plain.width if plain.is_terminal else 120))


def macs(cost: ModelCost) -> str:
    """Write a model's MACs per image in a readable unit, those of its spectral filters apart."""
    spectral = f", {scaled(cost.spectral_macs)} in spectral filters" if cost.spectral_macs else ""
    return f"{scaled(cost.macs)} per image{spectral}"


def scaled(number: int) -> str:
    """Write a large number with its unit: 4193000000 is "4.193 G"."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3f} {unit}"
    return str(number)
