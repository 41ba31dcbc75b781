"""Look whether this machine can train: packages, devices, disk, stores, and one batch on request.

Exit code: 0 without a fault, 1 with one. With --config, and whatever keys follow, the experiment
is tried: one batch is trained and evaluated, a checkpoint is written and read back; all of it in a
temporary folder and without the tracker.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from spanet_lightning.doctor.finding import Finding
from spanet_lightning.errors import ConfigError

TAKES_OVERRIDES = True
EXIT_FAULT = 1
_COLOURS = {"ok": "green", "warning": "yellow", "fault": "red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `spanet doctor`."""
    text = "experiment to try with one batch; several are layered, --KEY=VALUE sets a key"
    parser.add_argument("--config", action="append", default=[], metavar="FILE", help=text)
    text = "where runs are (default: MLFLOW_TRACKING_URI, or sqlite:///mlflow.db)"
    parser.add_argument("--tracking-uri", default=None, metavar="URI", help=text)
    text = "database of studies to look at, too"
    parser.add_argument("--storage", default=None, metavar="URL", help=text)
    parser.add_argument("--json", action="store_true", help="print a JSON list, for scripts")


def run(args: argparse.Namespace) -> None:
    """Look, print a line for each thing, and exit with 1 if one is a fault.

    Raises:
        ConfigError: If a file is not there, or keys are given without a file.
    """
    for file in args.config:
        if not Path(file).is_file():
            raise ConfigError(f"--config: got {file!r}, which does not exist; expected a YAML file")
    if args.overrides and not args.config:
        raise ConfigError(f"{args.overrides[0]}: is given without --config FILE, whose key it is")
    found = list(_look(args))
    if args.json:
        print(json.dumps([finding._asdict() for finding in found], indent=1, ensure_ascii=False))
    else:
        _show(found)
    if any(finding.status == "fault" for finding in found):
        sys.exit(EXIT_FAULT)


def _look(args: argparse.Namespace) -> Iterator[Finding]:
    from spanet_lightning.doctor import hardware, packages, stores

    yield from packages.packages()
    pair = packages.pair()
    yield pair
    if pair.status != "ok":
        left = "CUDA, processor, stores, one batch"
        yield Finding("warning", "the rest", f"not looked at: {left}", "mend torch first")
        yield hardware.disk(Path("runs"))
        return
    yield from hardware.cuda()
    yield from hardware.processor()
    yield hardware.disk(Path("runs"))
    yield stores.tracker(args.tracking_uri)
    if args.storage is not None:
        yield stores.studies(args.storage)
    if args.config:
        from spanet_lightning.doctor.dry_run import dry_run

        configs = [item for file in args.config for item in ("--config", file)]
        yield from dry_run([*configs, *args.overrides])


def _show(found: list[Finding]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for name in ("", "what", "found", "what to do"):
        table.add_column(name, overflow="fold")
    for finding in found:
        colour = _COLOURS[finding.status]
        cells = map(escape, (finding.what, finding.found, finding.advice))
        table.add_row(f"[{colour}]{finding.status}[/]", *cells)
    plain = Console()
    Console(width=plain.width if plain.is_terminal else 120).print(table)
    counts = {name: sum(finding.status == name for finding in found) for name in _COLOURS}
    print(f"{counts['fault']} faults, {counts['warning']} warnings.")
