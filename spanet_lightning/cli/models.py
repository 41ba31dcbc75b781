"""List the variants with what they cost at 224×224 px, beside what is published.

MACs: one for each multiplication with its addition in convolutions, linear layers and attention
products. Spectral operators are charged by a formula of our own and stand apart, as the published
figures leave them out: 2.5·n·log2(n) + n for each map of n values.

With --task: the published detectors or segmentation models, under both conventions that their
tables are counted with.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from spanet_lightning.errors import ConfigError, did_you_mean
from spanet_lightning.published import PUBLISHED, PUBLISHED_DENSE
from spanet_lightning.summary import console

if TYPE_CHECKING:
    from spanet_lightning.cost import VariantCost
    from spanet_lightning.dense_cost import DenseCost

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

_DENSE_COLUMNS = (
    "head",
    "backbone",
    "size",
    "parameters",
    "published\nM",
    "MACs A\nG",
    "MACs B\nG",
    "published\nG",
    "diff.\n%",
    "spectral\nG",
    "published\nquality",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `spanet models`."""
    parser.add_argument(
        "pattern", nargs="?", default="*", help="part of a name, or a pattern: 's18', '*_hybrid'"
    )
    parser.add_argument(
        "--task",
        choices=("classification", "detection", "segmentation"),
        default="classification",
        help="which models; the pattern then matches heads as well",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list, for scripts")


def run(args: argparse.Namespace) -> None:
    """Print the table.

    Raises:
        ConfigError: If no variant matches.
    """
    from spanet_lightning.cost import variant_costs
    from spanet_lightning.dense_cost import dense_costs

    if args.task == "classification":
        names = list(PUBLISHED)
        variants = variant_costs(args.pattern)
        _print(args, variants, names, lambda: _show(variants))
        return
    names = [n for row in PUBLISHED_DENSE if row.task == args.task for n in (row.head, row.variant)]
    models = dense_costs(args.task, args.pattern)
    _print(args, models, list(dict.fromkeys(names)), lambda: _show_dense(models))


def _print(
    args: argparse.Namespace,
    rows: Sequence[VariantCost | DenseCost],
    names: Sequence[str],
    show: Callable[[], None],
) -> None:
    if not rows:
        hint = did_you_mean(args.pattern, names)
        raise ConfigError(
            f"pattern: got {args.pattern!r}, which matches no variant; "
            f"expected part of one of {', '.join(names)}{hint}"
        )
    if args.json:
        print(json.dumps([row.as_dict() for row in rows], indent=2))
    else:
        show()


def _show(rows: list[VariantCost]) -> None:
    title = "Variants, for one image of 224×224 px"
    out, kept = _fitting(112, (0, 1, 5, 6, 8, 9))
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for i in kept or range(len(_COLUMNS)):
        table.add_column(_COLUMNS[i], justify="right" if i else "left", no_wrap=True)
    notes: list[str] = []
    for row in rows:
        if row.note and row.note not in notes:
            notes.append(row.note)
        mark = "*" * (notes.index(row.note) + 1) if row.note else ""
        cells = (
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
        table.add_row(*(cells[i] for i in kept or range(len(cells))))
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


def _show_dense(rows: list[DenseCost]) -> None:
    task = rows[0].published.task
    data = "COCO, 80 classes" if task == "detection" else "ADE20K, 150 classes"
    out, kept = _fitting(144, (0, 1, 3, 6, 7, 10))
    table = Table(title=f"Models of {task} ({data})", title_justify="left", box=box.SIMPLE_HEAD)
    for i in kept or range(len(_DENSE_COLUMNS)):
        table.add_column(_DENSE_COLUMNS[i], justify="right" if i > 1 else "left", overflow="fold")
    notes: list[str] = []
    for row in rows:
        published = row.published
        if published.note and published.note not in notes:
            notes.append(published.note)
        mark = "*" * (notes.index(published.note) + 1) if published.note else ""
        ours = row.macs_a if published.convention == "A" else row.macs_b
        macs = "–" if published.macs is None else f"{published.macs:g} ({published.convention})"
        cells = (
            published.head + mark,
            published.variant,
            "{1}×{0}".format(*row.size),
            f"{row.cost.parameters:,}",
            _number(published.parameters),
            f"{row.macs_a / 1e9:.1f}",
            f"{row.macs_b / 1e9:.1f}",
            macs,
            _difference(ours / 1e9, published.macs),
            f"{row.cost.spectral_macs / 1e9:.2f}",
            published.quality,
        )
        table.add_row(*(cells[i] for i in kept or range(len(cells))))
    out.print(table)
    for i, note in enumerate(notes, 1):
        out.print(f"{'*' * i} {note}", highlight=False)
    if any(row.unused_classifier for row in rows):
        out.print(
            "parameters: SPANetV2 minus 3,104,744 of a classifier that is never called; published "
            "counts include it.",
            highlight=False,
        )
    out.print(
        "MACs A: convolutions, linear layers, one for each value of a norm or ReLU, no attention "
        "products.\n"
        "MACs B: convolutions, linear layers, attention products.\n"
        "spectral: the spectral operators' own MACs, in no other column.\n"
        + (
            "Two-stage heads: 1000 regions through each box head, 100 through each mask head.\n"
            "quality: published box AP, or box/mask AP, in percent."
            if task == "detection"
            else "quality: published mIoU in percent."
        ),
        highlight=False,
    )


def _fitting(width: int, columns: tuple[int, ...]) -> tuple[Console, tuple[int, ...]]:
    """Return where to print, and the columns that fit; none where all do, as they do in a file."""
    terminal = Console()
    if terminal.is_terminal and terminal.width < width:
        return terminal, columns
    return console(least=width), ()


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


def _difference(ours: float, published: float | None) -> str:
    return "–" if published is None else f"{100 * (ours / published - 1):+.1f}"
