"""Check a data set before training: what it contains, and all of its faults, each with its file.

Give its folder, or --config FILE for the data of an experiment with its keys. Layouts of a folder:
COCO annotations, images with masks, and a folder for each class. Every image is decoded to its end.
Exit code: 0 without faults, 1 with some, 2 if the check itself is impossible.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table

from spanet_lightning.errors import ConfigError, invalid

if TYPE_CHECKING:
    from spanet_lightning.data.contents import Contents

EXIT_FAULTS = 1
TAKES_OVERRIDES = True  # keys of the data of an experiment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `spanet data check`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    check = actions.add_parser("check", help="list all faults of a data set", description=__doc__)
    check.add_argument("root", metavar="ROOT", nargs="?", help="folder of the data set")
    text = "configuration of an experiment, also several, with --data.KEY=VALUE: checks its data"
    check.add_argument("--config", action="append", default=[], metavar="FILE", help=text)
    text = "layout of ROOT (default: recognised)"
    check.add_argument("--layout", default=None, metavar="coco|masks|folders", help=text)
    check.add_argument("--images", default=None, help="COCO: folder of the images, below ROOT")
    text = "masks: classes that count (default: those of the list of classes in ROOT)"
    check.add_argument("--num-classes", type=int, default=None, help=text)
    text = "masks: 0 is a class (default: as the list of classes or the masks tell)"
    check.add_argument("--zero-is-class", action="store_true", help=text)
    check.add_argument("--json", action="store_true", help="print a JSON object, for scripts")


def run(args: argparse.Namespace) -> None:
    """Check, print the result, and exit with 1 if there are faults.

    Raises:
        ConfigError: If an argument is wrong.
        DataError: If there is no data set.
    """
    # Lightning takes seconds to import; the help needs none of it.
    from spanet_lightning.data.check import check
    from spanet_lightning.data.contents import contents_of

    data = _experiment(args) if args.config else _folder(args)
    contents = contents_of(data, whole=not args.config)
    if not args.json:
        show_summary(contents)
    checked = check(contents, _progress)
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K")
    counts = Counter(fault.kind for fault in checked.faults)
    if args.json:
        document = {
            "root": str(contents.root),
            "layout": contents.layout,
            "counted": contents.unit,
            "classes": contents.classes,
            "splits": {
                name: {
                    "images": len(split.jobs),
                    "classes": dict(zip(contents.classes, split.counts, strict=False)),
                }
                for name, split in contents.splits.items()
            },
            "notes": checked.notes,
            "counts": counts,
            "faults": [fault._asdict() for fault in checked.faults],
        }
        print(json.dumps(document, indent=1, ensure_ascii=False))
    else:
        _show(contents, checked.faults, checked.notes, counts)
    if checked.faults:
        sys.exit(EXIT_FAULTS)


def _folder(args: argparse.Namespace) -> Any:
    from spanet_lightning.data.contents import recognise

    if args.root is None:
        raise ConfigError("ROOT: is missing; give the folder of a data set, or --config FILE")
    if args.overrides:
        raise ConfigError(f"{args.overrides[0]}: is a key of an experiment, expected --config FILE")
    root = Path(args.root)
    if args.images is not None and not (root / args.images).is_dir():
        raise invalid("--images", args.images, f"a folder below {root}")
    options: dict[str, Any] = {
        "num_classes": args.num_classes,
        "reduce_zero_label": False if args.zero_is_class else None,
    }
    options |= {f"{split}_images": args.images for split in ("train", "val")}
    return recognise(root, args.layout, **options)


def _experiment(args: argparse.Namespace) -> Any:
    """Return the data module of a configuration."""
    from spanet_lightning.cli.data_module import build_data

    # What follows `--data.root` without an equals sign is no ROOT.
    if args.root is not None and args.overrides and "=" not in args.overrides[-1]:
        args.overrides, args.root = [*args.overrides, args.root], None
    if args.root is not None or args.layout is not None:
        key = "ROOT" if args.root is not None else "--layout"
        raise ConfigError(f"{key}: got a value beside --config, which says where the data are")
    return build_data(args.config, args.overrides)


def show_summary(contents: Contents) -> None:
    """Print what a data set contains."""
    from spanet_lightning.data.contents import summary
    from spanet_lightning.summary import console

    out = console()
    table = Table(title=str(contents.root), title_justify="left", box=None, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in summary(contents):
        table.add_row(escape(name), escape(value))
    out.print(table)


def _show(contents: Contents, faults: list[Any], notes: list[str], counts: Counter[str]) -> None:
    from spanet_lightning.summary import console

    out = console()
    if faults:
        table = Table(title="Faults", title_justify="left", box=box.SIMPLE_HEAD)
        for name in ("fault", "file", "where", "what"):
            table.add_column(name, overflow="fold")
        for fault in faults:
            file = fault.file
            if Path(file).is_relative_to(contents.root):
                file = str(Path(file).relative_to(contents.root))
            table.add_row(*map(escape, (fault.kind, file, fault.item, fault.detail)))
        out.print(table)
    for note in notes:
        out.print(f"Note: {note}.", highlight=False, markup=False)
    seen = {"images": contents.num_images, "annotations": contents.annotations}
    seen["classes"] = len(contents.classes)
    text = ", ".join(f"{number:,} {what}" for what, number in seen.items() if number is not None)
    total = sum(counts.values())
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(counts.items()))
    verdict = f"{total} fault{'s' if total != 1 else ''}: {kinds}." if total else "No faults."
    out.print(f"{contents.root} ({contents.layout}): {text}.", highlight=False, markup=False)
    out.print(verdict, highlight=False, markup=False)


def _progress(what: str, done: int, total: int) -> None:
    """Show a person at a terminal the progress."""
    if sys.stderr.isatty() and (done % 50 == 0 or done == total):
        sys.stderr.write(f"\r\033[K{what}: {done}/{total}")
        sys.stderr.flush()
