"""Spools that are not fully sent: finding them, and sending them by hand."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

from spanet_lightning.errors import ConfigError
from spanet_lightning.tracking.addresses import absolute, complete, without_secret
from spanet_lightning.tracking.spool import (
    NO_LINK,
    SENDER_LOCK,
    SPOOL,
    WRITER_LOCK,
    Sent,
    close_dead,
    head,
    read,
    take,
)


@dataclass(frozen=True)
class Row:
    """How far a spool is.

    Attributes:
        folder: The spool.
        uri: Its store, without credentials.
        run_id: The run in the store; empty before it was created.
        records: How many there are.
        points: Values of metrics among them.
        waiting: Records that the store has not.
        waiting_points: Values of metrics among these.
        refused: Records that the store refused.
        since: When the first of those that wait was logged, in seconds since 1970.
        state: "sent", "running" (a training writes to it), "sending" (a sender is at it), "waiting"
            or "wrong".
        error: Why it waits, where that is known.
    """

    folder: Path
    uri: str
    run_id: str
    records: int
    points: int
    waiting: int
    waiting_points: int
    refused: int
    since: float | None
    state: str
    error: str


def find(paths: Iterable[Path]) -> list[Path]:
    """Return the spools in folders and below them.

    Args:
        paths: Folders of spools, of runs, or of many runs.

    Raises:
        ConfigError: If one is no folder.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            raise ConfigError(f"PATH: found no folder at {path}, expected one of runs or of a run")
        for file in sorted(path.rglob(SPOOL)):
            # What a link leads to is not below the folder that was named.
            if not file.is_symlink() and file.resolve().is_relative_to(path.resolve()):
                found[file.parent] = None
    return list(found)


def look(folder: Path) -> Row:
    """Return how far a spool is.

    Args:
        folder: The spool.
    """
    first, sent = head(folder), Sent.load(folder)
    records = points = waiting = waiting_points = 0
    since: float | None = None
    for record, end in read(folder):
        count = len(record["metrics"]) if record["op"] == "metrics" else 0
        records, points = records + 1, points + count
        if end > sent.offset:
            waiting, waiting_points = waiting + 1, waiting_points + count
            since = since or record["t"] / 1000
    if not waiting:
        state = "running" if _held(folder / WRITER_LOCK) else "sent"
    elif sent.state == "wrong":
        state = "wrong"
    elif _held(folder / SENDER_LOCK):
        state = "sending"
    else:
        state = "running" if _held(folder / WRITER_LOCK) else "waiting"
    return Row(
        folder=folder,
        uri="" if first is None else str(first["uri"]),
        run_id=sent.run_id,
        records=records,
        points=points,
        waiting=waiting,
        waiting_points=waiting_points,
        refused=sent.refused,
        since=since,
        state=state,
        error=sent.error if waiting or sent.refused else "",
    )


def sync(
    folder: Path, uri: str | None = None, patience: float = 30.0, say: Callable[[str], None] = print
) -> Row:
    """Send what a spool still holds.

    Args:
        folder: The spool.
        uri: Its store, where that needs credentials that are not in the environment.
        patience: Seconds to try a store that does not answer.
        say: Called with what a person should know.

    Returns:
        How far it is afterwards.

    Raises:
        ConfigError: If MLflow is not installed, or the store is another one than the run's.
    """
    from spanet_lightning.tracking.refusals import installed
    from spanet_lightning.tracking.replay import Replay, Step

    if not installed():
        raise ConfigError("mlflow: is not installed here; pip install mlflow, then sync again")
    first = head(folder)
    if first is None:
        say(f"{folder}: does not say which run it is; nothing was sent")
        return look(folder)
    if (
        uri is not None
        and without_secret(absolute(uri)) != first["uri"]
        and Sent.load(folder).run_id
    ):
        raise ConfigError(
            f"--tracking-uri: got {without_secret(uri)!r}, but the run of {folder} began in "
            f"{first['uri']!r}"
        )
    close_dead(folder)
    before = dict(os.environ)
    replay = Replay(folder.absolute(), uri or complete(str(first["uri"])))
    until = time.monotonic() + patience
    try:
        with chdir("."):  # back to here afterwards
            while True:
                step = replay.step()
                if step is Step.SENT:
                    until = time.monotonic() + patience
                elif step is Step.WAITING and time.monotonic() < until:
                    time.sleep(0.1)
                else:
                    break
    finally:
        replay.close()
        os.environ.clear()
        os.environ.update(before)
    return look(folder)


def _held(path: Path) -> bool:
    """Whether a living process holds the lock of a file."""
    try:
        descriptor = os.open(path, os.O_RDWR | NO_LINK)
    except OSError:
        return False
    try:
        return not take(descriptor)
    finally:
        os.close(descriptor)
