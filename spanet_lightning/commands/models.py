"""List the variants with what they cost at 224×224 px, beside what is published.

MACs: one for each multiplication with its addition in convolutions, linear layers and attention
products. Spectral operators are charged by a formula of our own and stand apart, as the published
figures leave them out: 2.5·n·log2(n) + n for each map of n values.
"""

from __future__ import annotations

import argparse
import json

from rich import box
from rich.table import Table

from spanet_lightning.cost import VariantCost, variant_costs
from spanet_lightning.errors import ConfigError, did_you_mean
from spanet_lightning.published import PUBLISHED
from spanet_lightning.summary import console

_COLUMNS = (
    "variant",
    "parameters",
    "trainable",
    "published\nM",
    "diff.\n%",
    "MACs\nG",
    "published\nG",
    "diff.\n%",
    "spectral\nG",
    "top-1\n%",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `spanet models`."""
    parser.add_argument(
        "pattern", nargs="?", default="*", help="part of a name, or a pattern: 's18', '*_hybrid'"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list, for scripts")


def run(args: argparse.Namespace) -> None:
    """Print the table.

    Raises:
        ConfigError: If no variant matches.
    """
    rows = variant_costs(args.pattern)
    if not rows:
        hint = did_you_mean(args.pattern, PUBLISHED)
        raise ConfigError(
            f"pattern: got {args.pattern!r}, which matches no variant; "
            f"expected part of one of {', '.join(PUBLISHED)}{hint}"
        )
    if args.json:
        print(json.dumps([row.as_dict() for row in rows], indent=2))
    else:
        _show(rows)


def _show(rows: list[VariantCost]) -> None:
    title = "Variants, for one image of 224×224 px"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name == "variant" else "right", no_wrap=True)
    notes: list[str] = []
    for row in rows:
        if row.note and row.note not in notes:
            notes.append(row.note)
        mark = "*" * (notes.index(row.note) + 1) if row.note else ""
        table.add_row(
            row.name,
            f"{row.cost.parameters:,}",
            f"{row.cost.trainable_parameters:,}",
            f"{_number(row.published_parameters)}{mark}",
            _difference(row.cost.parameters / 1e6, row.published_parameters),
            f"{row.cost.macs / 1e9:.3f}",
            _number(row.published_macs),
            _difference(row.cost.macs / 1e9, row.published_macs),
            f"{row.cost.spectral_macs / 1e9:.3f}",
            _number(row.published_top1),
        )
    out = console(least=112)
    out.print(table)
    for i, note in enumerate(notes, 1):
        out.print(f"{'*' * i} {note}", highlight=False)
    out.print(
        "MACs: convolutions, linear layers, attention products; published figures are rounded.\n"
        "spectral: the spectral operators' own MACs, 2.5·n·log2(n) + n for a map of n values, "
        "in no other column.\n"
        "top-1: published, ImageNet-1K.",
        highlight=False,
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


def _difference(ours: float, published: float | None) -> str:
    return "–" if published is None else f"{100 * (ours / published - 1):+.1f}"
