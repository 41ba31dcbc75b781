"""What was logged and MLflow does not have yet: listing it, and sending it.

A run records what it logs in `metrics.jsonl` in its folder, and sends that to MLflow. What could
not be sent by the end of the run stays there. Sending twice does no harm. Exit code of sync: 0 once
everything is sent, 1 where something is pending or was refused.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spanet_lightning.errors import invalid

if TYPE_CHECKING:
    from spanet_lightning.tracking.sender import Status

EXIT_PENDING = 1
_ROOT = "runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `spanet track sync` and `spanet track status`."""
    parser.set_defaults(action="status", paths=[], all=False)  # `spanet track` alone
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    text = f"folders of runs, or of one run (default: all below {_ROOT})"
    for name, what in (
        ("status", "list the runs that MLflow does not have completely"),
        ("sync", "send what is pending"),
    ):
        one = actions.add_parser(name, help=what, description=__doc__, allow_abbrev=False)
        one.add_argument("paths", nargs="*", metavar="PATH", default=[], help=text)
        if name == "status":
            one.add_argument("--all", action="store_true", help="those that are sent as well")
        else:
            text_uri = "the store with its login, where the environment has none"
            one.add_argument("--tracking-uri", default=None, metavar="URI", help=text_uri)
            text_patience = "seconds to try a store that is unavailable (default: 30)"
            one.add_argument("--patience", type=float, default=30.0, help=text_patience)


def run(args: argparse.Namespace) -> None:
    """List the runs, or send what is pending.

    Raises:
        ConfigError: If an argument is wrong, or MLflow is not installed.
    """
    from spanet_lightning.tracking.sender import find_logs, status, sync

    logs = find_logs(map(Path, args.paths or ([_ROOT] if Path(_ROOT).is_dir() else [])))
    if args.action != "sync":
        _show([status(log) for log in logs], args.all)
        return
    if not args.patience > 0:
        raise invalid("--patience", args.patience, "more than 0")
    left = sent = 0
    for log in logs:
        before = status(log)
        if not before.pending:
            continue
        after = sync(log, args.tracking_uri, args.patience)
        done = max(0, before.pending - after.pending)
        points = max(0, before.pending_points - after.pending_points)
        sent += done
        left += after.pending + after.refused
        line = f"{log.parent}: {_count(done, 'event')} sent ({_count(points, 'point')})"
        line += f", {after.pending} pending" if after.pending else ""
        line += f", {after.refused} refused" if after.refused else ""
        line += f": {after.error}" if after.error and (after.pending or after.refused) else ""
        print(line, flush=True)
    print(f"{_count(sent, 'event')} sent, {left} left" if sent or left else "No pending events.")
    if left:
        sys.exit(EXIT_PENDING)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' if number != 1 else ''}"


def _show(rows: Sequence[Status], everything: bool) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from spanet_lightning.summary import console

    out = console()
    shown = [row for row in rows if everything or row.pending or row.refused]
    if shown:
        table = Table(title="Runs", title_justify="left", box=box.SIMPLE_HEAD)
        for name in ("run", "store", "state", "reason"):
            table.add_column(name, overflow="fold")
        for name in ("points", "pending", "refused", "since"):
            table.add_column(name, justify="right")
        for row in shown:
            when = (
                "" if row.since is None else time.strftime("%m-%d %H:%M", time.localtime(row.since))
            )
            texts = (str(row.log.parent), row.uri, row.state, row.error)
            numbers = (row.points, row.pending_points, row.refused)
            table.add_row(*map(escape, texts), *map(str, numbers), when)
        out.print(table)
    pending = sum(row.pending for row in rows)
    out.print(f"{_count(len(rows), 'run')}, {_count(pending, 'event')} pending.", highlight=False)
    if pending:
        out.print("To send them: spanet track sync", highlight=False)
