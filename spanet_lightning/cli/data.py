"""Look at a data set before it is trained on: all of its faults at once, each with its file.

Layouts: COCO (annotations/*.json), images with masks (images/SPLIT and annotations/SPLIT, as
ADE20K), and class folders (SPLIT/CLASS). Every image is decoded to its end. Exit code: 0 without
faults, 1 with some, 2 where the check itself could not be made.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.table import Table

from spanet_lightning.errors import ConfigError, invalid, invalid_choice

if TYPE_CHECKING:
    from spanet_lightning.data.check_sets import Checked

EXIT_FAULTS = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `spanet data check`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    check = actions.add_parser("check", help="list all faults of a data set", description=__doc__)
    check.add_argument("root", metavar="ROOT", help="folder of the data set")
    check.add_argument(
        "--layout", default=None, metavar="coco|masks|folders", help="default: found"
    )
    check.add_argument("--images", default=None, help="COCO: folder of the images, below ROOT")
    text = "masks: classes that count (default: those of the list of classes in ROOT)"
    check.add_argument("--num-classes", type=int, default=None, help=text)
    text = "masks: 0 is a class (default: it does not count, data.reduce_zero_label)"
    check.add_argument("--zero-is-class", action="store_true", help=text)
    check.add_argument("--json", action="store_true", help="print a JSON object, for scripts")


def run(args: argparse.Namespace) -> None:
    """Check, print what was found, and exit with 1 if that is anything.

    Raises:
        ConfigError: If an argument is wrong.
        DataError: If there is no data set.
    """
    # Lightning takes seconds to import; the help needs none of it.
    from spanet_lightning.data.check_sets import LAYOUTS, check, layout_of

    root = Path(args.root)
    found = layout_of(root) if args.layout is None else args.layout
    if found not in LAYOUTS:
        raise invalid_choice("--layout", found, LAYOUTS)
    if not root.is_dir():
        raise ConfigError(f"ROOT: found no folder at {root}, expected one of a data set")
    if args.images is not None and not (root / args.images).is_dir():
        raise invalid("--images", args.images, f"a folder below {root}")
    checked = check(
        root,
        found,
        images=args.images,
        num_classes=args.num_classes,
        reduce_zero_label=False if args.zero_is_class else None,
        say=_say,
    )
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K")
    counts = Counter(fault.kind for fault in checked.faults)
    if args.json:
        document = {
            "root": checked.root,
            "layout": checked.layout,
            "seen": checked.seen,
            "notes": checked.notes,
            "counts": counts,
            "faults": [fault._asdict() for fault in checked.faults],
        }
        print(json.dumps(document, indent=1, ensure_ascii=False))
    else:
        _show(checked, counts)
    if checked.faults:
        sys.exit(EXIT_FAULTS)


def _show(checked: Checked, counts: Counter[str]) -> None:
    from spanet_lightning.summary import console

    out = console()
    if checked.faults:
        table = Table(title="Faults", title_justify="left", box=box.SIMPLE_HEAD)
        for name in ("fault", "file", "where", "what"):
            table.add_column(name, overflow="fold")
        for fault in checked.faults:
            file = fault.file
            if Path(file).is_relative_to(checked.root):
                file = str(Path(file).relative_to(checked.root))
            table.add_row(*map(escape, (fault.kind, file, fault.item, fault.detail)))
        out.print(table)
    for note in checked.notes:
        out.print(f"Note: {note}.", highlight=False, markup=False)
    seen = ", ".join(f"{number:,} {what}" for what, number in checked.seen.items())
    total = sum(counts.values())
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(counts.items()))
    verdict = f"{total} fault{'s' if total != 1 else ''}: {kinds}." if total else "No faults."
    out.print(f"{checked.root} ({checked.layout}): {seen}.", highlight=False, markup=False)
    out.print(verdict, highlight=False, markup=False)


def _say(what: str, done: int, total: int) -> None:
    """Tell a person at a terminal how far it is."""
    if sys.stderr.isatty() and (done % 50 == 0 or done == total):
        sys.stderr.write(f"\r\033[K{what}: {done}/{total}")
        sys.stderr.flush()
