"""What was logged while the tracker was away: how much waits, and sending it.

A run writes what it logs into its folder, and a process of its own sends that to MLflow. What could
not be sent by the end of the run stays there. Sending twice does no harm. Exit code of sync: 0 once
everything is sent, 1 where something still waits or was refused.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.table import Table

from spanet_lightning.errors import invalid
from spanet_lightning.tracking import redact

if TYPE_CHECKING:
    from spanet_lightning.tracking.sync import Row

EXIT_WAITING = 1
_ROOT = "runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `spanet track sync` and `spanet track status`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    text = f"folders of runs, or of one run (default: all below {_ROOT})"
    for name, what in (
        ("status", "list what was logged and how much of it waits"),
        ("sync", "send what waits"),
    ):
        one = actions.add_parser(name, help=what, description=__doc__, allow_abbrev=False)
        one.add_argument("paths", nargs="*", metavar="PATH", default=[], help=text)
        if name == "status":
            one.add_argument("--all", action="store_true", help="those that are sent as well")
        else:
            text_uri = "the store with its credentials, where the environment has none"
            one.add_argument("--tracking-uri", default=None, metavar="URI", help=text_uri)
            text_patience = "seconds to try a store that does not answer (default: 30)"
            one.add_argument("--patience", type=float, default=30.0, help=text_patience)


def run(args: argparse.Namespace) -> None:
    """List the spools, or send what they hold.

    Raises:
        ConfigError: If an argument is wrong, or MLflow is not installed.
    """
    from spanet_lightning.tracking.sync import find, look, sync

    folders = find(map(Path, args.paths or ([_ROOT] if Path(_ROOT).is_dir() else [])))
    if args.action == "status":
        _show([look(folder) for folder in folders], args.all)
        return
    if not args.patience > 0:
        raise invalid("--patience", args.patience, "more than 0")
    left = sent = 0
    for folder in folders:
        before = look(folder)
        if before.state == "sent" and not before.waiting:
            continue
        after = sync(folder, args.tracking_uri, args.patience)
        done = max(0, before.waiting - after.waiting)
        points = max(0, before.waiting_points - after.waiting_points)
        sent += done
        left += after.waiting + after.refused
        line = f"{folder}: {_count(done, 'record')} sent ({_count(points, 'point')})"
        if after.waiting:
            line += f", {after.waiting} still waiting"
        if after.refused:
            line += f", {after.refused} refused"
        why = f": {redact(after.error)}" if after.error else ""
        print(line + why, flush=True)
    print(f"{_count(sent, 'record')} sent, {left} left" if sent or left else "Nothing waits.")
    if left:
        sys.exit(EXIT_WAITING)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' if number != 1 else ''}"


def _show(rows: Sequence[Row], everything: bool) -> None:
    from spanet_lightning.summary import console

    out = console()
    shown = [row for row in rows if everything or row.waiting or row.refused]
    if shown:
        table = Table(title="Runs", title_justify="left", box=box.SIMPLE_HEAD)
        for name in ("spool", "store", "run", "state", "why"):
            table.add_column(name, overflow="fold")
        for name in ("points", "sent", "waiting", "refused", "since"):
            table.add_column(name, justify="right")
        for row in shown:
            since = row.since
            when = "" if since is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(since))
            texts = (str(row.folder), row.uri, row.run_id[:8], row.state, redact(row.error))
            numbers = (row.points, row.points - row.waiting_points, row.waiting_points, row.refused)
            table.add_row(*map(escape, texts), *map(str, numbers), when)
        out.print(table)
    waiting = sum(row.waiting for row in rows)
    said = f"{_count(len(rows), 'run')}, {_count(waiting, 'record')} waiting."
    out.print(said, highlight=False)
    if waiting:
        out.print("To send them: spanet track sync", highlight=False)
