"""A checkpoint's file: whole under its name or not there, and able to tell that it is whole.

It is written beside its target under a hidden name, forced to disk, and renamed. Its digest is
within it; see `seal`.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

import torch

from spanet_lightning import seal
from spanet_lightning.errors import NoSpaceError

_PARTIAL = re.compile(r"\..+\.[0-9a-f]{12}\.partial")

NO_SPACE = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up"}
"""What an operating system's error number says of a disk that takes no more."""
NOT_WRITABLE = {
    errno.EROFS: "it is read-only",
    errno.EACCES: "it may not be written",
    errno.EPERM: "it may not be written",
}
"""The same of a folder that takes nothing."""

# Partial files of this process, for whoever has to leave at once.
_in_progress: set[Path] = set()


class _Sink:
    """Passes bytes on to a file, and keeps their count, digest and end."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.size = 0
        self.end = b""
        self.error: OSError | None = None

    def write(self, block: Any) -> int:
        try:
            self.file.write(block)
        except OSError as error:
            self.error = error  # torch raises one of its own over it
            raise
        self.digest.update(block)
        self.size += len(block)
        self.end = (self.end + bytes(block[-seal.END_SIZE :]))[-seal.END_SIZE :]
        return len(block)

    def flush(self) -> None:
        self.file.flush()


def save(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Write a checkpoint; the file of that name is the old one or the new one at every moment.

    Args:
        checkpoint: What `torch.save` takes.
        path: The file.

    Raises:
        NoSpaceError: If the disk does not take it. The old file is as it was.
    """
    file = Path(path)
    partial = file.with_name(f".{file.name}.{uuid.uuid4().hex[:12]}.partial")
    size = 0
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _in_progress.add(partial)
        with partial.open("xb") as out:
            _lock(out.fileno())  # while its writer lives, nobody clears it away
            sink = _Sink(out)
            try:
                torch.save(checkpoint, cast("IO[bytes]", sink))  # it writes, and does no more
            except RuntimeError:
                size = sink.size
                if sink.error is not None:
                    raise sink.error from None
                raise
            size = sink.size
            seal.put(out, sink.end, sink.size, sink.digest.hexdigest())
            out.flush()
            os.fsync(out.fileno())
        partial.replace(file)
        _sync_folder(file.parent)
    except OSError as error:
        raise refused(error, file, size) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        _in_progress.discard(partial)


def refused(error: OSError, file: Path, size: int = 0) -> Exception:
    """Return the user's error for a file that can't be written; other errors as they are.

    Args:
        error: What the operating system said.
        file: The file.
        size: Bytes that were written before.
    """
    why = NO_SPACE.get(error.errno or 0) or NOT_WRITABLE.get(error.errno or 0)
    if why is None:
        return error
    free = free_bytes(file.parent)
    there = "the file of that name is as it was" if file.exists() else "nothing of it is left"
    written = f" after {size:,} bytes" if size else ""
    left = "" if free is None or error.errno not in NO_SPACE else f", {free:,} bytes are free"
    return NoSpaceError(f"{file}: can't be written{written}: {why}{left}; {there}")


def free_bytes(folder: Path) -> int | None:
    """Return how much a folder's disk takes; None where that can't be told."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def clear_partials(folder: Path) -> list[Path]:
    """Remove what writers left that were killed; files of a living writer stay.

    Args:
        folder: Folder of one run; those below it are left alone.

    Returns:
        What was removed.
    """
    removed = []
    for path in sorted(folder.glob(".*.partial")):
        if not _PARTIAL.fullmatch(path.name) or path.is_symlink() or not path.is_file():
            continue
        try:
            with path.open("rb+") as file:
                if not _lock(file.fileno()):
                    continue
                path.unlink()
        except OSError:
            continue
        removed.append(path)
    return removed


def leave_no_partial() -> None:
    """Remove this process's partial files: it is about to end in the middle of writing."""
    for path in tuple(_in_progress):
        with suppress(OSError):
            path.unlink(missing_ok=True)


def hold(folder: Path) -> int | None:
    """Take a folder for this process, until it ends or the descriptor is closed.

    Args:
        folder: Folder of a run.

    Returns:
        An open descriptor; None where the file system has no locks.

    Raises:
        BlockingIOError: If another living process has it.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: nobody else can tell either
        return True
    return True


def _sync_folder(folder: Path) -> None:
    """Force a rename to disk, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
