"""One at a time: a lock that all who use a study share, on one machine or on several."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

PATIENCE = 120.0
"""Seconds to wait; what is done under the lock takes a fraction of one."""
_POLL = 0.05


class LockError(RuntimeError):
    """The lock was not to be had in time."""


@contextmanager
def exclusive(engine: sa.Engine, name: str, patience: float = PATIENCE) -> Iterator[None]:
    """Hold the lock of a name in a database.

    For a file of SQLite's it is a lock on a file next to it; on a server, one of the session's, so
    that both are free as soon as their holder is dead or cut off.

    Args:
        engine: The database.
        name: What is locked, such as the name of a study. A file is locked as a whole.
        patience: Seconds to wait for it.

    Raises:
        LockError: If another one kept it for longer.
    """
    on_file = engine.dialect.name == "sqlite"
    with _file(engine, patience) if on_file else _session(engine, name, patience):
        yield


def held(descriptor: int) -> bool:
    """Take the lock of an open file, if it is free; it goes with the last copy of the descriptor.

    Args:
        descriptor: Of the open file.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _file(engine: sa.Engine, patience: float) -> Iterator[None]:
    path = Path(f"{engine.url.database}.lock")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _wait(lambda: held(descriptor), patience, str(path))
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _session(engine: sa.Engine, name: str, patience: float) -> Iterator[None]:
    digest = hashlib.sha256(f"spanet-sweep:{name}".encode()).digest()
    key = {"key": int.from_bytes(digest[:8], "big", signed=True)}
    connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    try:
        take = sa.text("SELECT pg_try_advisory_lock(:key)")
        _wait(lambda: bool(connection.execute(take, key).scalar()), patience, f"lock of {name!r}")
        yield
        with suppress(SQLAlchemyError):
            connection.execute(sa.text("SELECT pg_advisory_unlock(:key)"), key)
    except BaseException:
        # Not back into the pool: closing the session is what surely frees the lock.
        with suppress(SQLAlchemyError):
            connection.invalidate()
        raise
    finally:
        with suppress(SQLAlchemyError):
            connection.close()


def _wait(take: Callable[[], bool], patience: float, what: str) -> None:
    until = time.monotonic() + patience
    while not take():
        if time.monotonic() > until:
            raise LockError(f"{what} was held by another process for {patience:.0f} s")
        time.sleep(_POLL)
