"""The spool of a run: everything that is logged, on disk in order, until the store has it.

A folder with

- `spool.jsonl`: one record a line, only ever appended to, by the training process alone. Each has
  its number `n`, its time `t` (ms since 1970) and its kind `op`; `docs/outages.md` lists them.
- `payload/N/NAME`: the file of artifact record N, deleted once the store has it.
- `sent.json`: how far the store has it, replaced as a whole by whoever sends, and by nobody else.
- `writer.lock`, `sender.lock`: held by the process that writes, and by the one that sends.

A process may be killed at any point. A line that it did not finish is skipped; what was sent but
not yet noted as sent is sent again, which the store takes as the same.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

SPOOL, SENT, PAYLOAD = "spool.jsonl", "sent.json", "payload"
WRITER_LOCK, SENDER_LOCK = "writer.lock", "sender.lock"
NO_LINK = getattr(os, "O_NOFOLLOW", 0)
"""Flag for opening the files of a run's folder, which may come from a stranger."""

Record = dict[str, Any]


@dataclass
class Sent:
    """How far a spool was sent.

    Attributes:
        offset: Bytes of the spool that the store has.
        run_id: The run in the store; empty before it was created.
        state: "new", "starting", "sending", "away" (the store does not answer) or "wrong" (it
            never will take this).
        since: When the state began, in seconds since 1970.
        error: Why the store is away or wrong, in one line.
        refused: Records that the store refused, and that were left out.
        beat: Number of signs of life of the sender.
    """

    offset: int = 0
    run_id: str = ""
    state: str = "new"
    since: float = 0.0
    error: str = ""
    refused: int = 0
    beat: int = 0

    @classmethod
    def load(cls, folder: Path) -> Sent:
        """Read it; where there is none, nothing was sent."""
        try:
            plain = json.loads((folder / SENT).read_text(encoding="utf-8"))
            return cls(**{f.name: plain[f.name] for f in fields(cls) if f.name in plain})
        except (OSError, ValueError, AttributeError):
            return cls()

    def save(self, folder: Path) -> None:
        """Replace it."""
        partial = folder / f".{SENT}.partial"
        partial.unlink(missing_ok=True)  # a link there would be written through
        with partial.open("x", encoding="utf-8") as file:
            file.write(json.dumps(asdict(self)))
        partial.replace(folder / SENT)


class Writer:
    """Appends to a spool.

    Args:
        folder: The spool; created where it is not there, continued where it is.

    Attributes:
        known: What the spool held before, by parameter's name.
        points: The points that it held before, by metric's name and step, the last of each.
        sessions: Processes that have written before.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.known: dict[str, str] = {}
        self.points: dict[tuple[str, int], float] = {}
        self.sessions = 0
        self.number = 0
        for record, _ in read(folder):
            self.number = max(self.number, record["n"] + 1)
            self.sessions += record["op"] in ("run", "session")
            if record["op"] == "params":
                self.known |= record["params"]
            elif record["op"] == "metrics":
                step = record["step"]
                self.points |= {(key, step): value for key, value in record["metrics"].items()}
        self._guard = threading.Lock()
        # Children of the process keep it a little longer; it is free once all of them are gone.
        self._lock = os.open(folder / WRITER_LOCK, os.O_RDWR | os.O_CREAT | NO_LINK, 0o644)
        for _ in range(20):  # whoever looks whether it is free holds it for a moment
            if take(self._lock):
                break
            time.sleep(0.05)
        path = folder / SPOOL
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | NO_LINK, 0o644)
        self._torn = size(folder) > 0 and not _ends_in_newline(path)

    def append(self, op: str, **values: Any) -> Record:
        """Append a record.

        Args:
            op: Its kind.
            values: What it holds.

        Returns:
            The record.

        Raises:
            OSError: If the disk does not take it.
        """
        with self._guard:
            record = {"n": self.number, "op": op, "t": int(time.time() * 1000), **values}
            line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
            if self._torn:
                line = b"\n" + line
            self._torn = True
            if os.write(self._file, line) != len(line):
                raise OSError("the disk took a part of it")
            self._torn = False
            self.number += 1
        return record

    def close(self) -> None:
        """Give up the files and the lock."""
        os.close(self._file)
        os.close(self._lock)

    def payload(self, name: str) -> Path:
        """Return where to write the file of an artifact, of which a record is appended next.

        Args:
            name: Its last name.
        """
        with self._guard:
            folder = self.folder / PAYLOAD / str(self.number)
            while folder.exists():  # another thread is about to append
                folder = folder.with_name(f"{folder.name}x")
            folder.mkdir(parents=True)
        return folder / name


def payload_file(folder: Path, record: Record) -> Path:
    """Return the file of an artifact record, which is always `payload/N/NAME` in its folder.

    The log of a run may come from somebody else: it must name no other file of this machine.

    Args:
        folder: The spool.
        record: The record.

    Raises:
        ValueError: If the record names a file elsewhere, or there is a symbolic link on the way.
    """
    name = str(record["payload"])
    parts = PurePosixPath(name).parts
    if len(parts) != 3 or parts[0] != PAYLOAD or ".." in parts or "\\" in name or "\0" in name:
        raise ValueError(f"{name!r} is not a file in {PAYLOAD}/ of {folder}")
    path = folder
    for part in parts:
        path /= part
        if path.is_symlink():
            raise ValueError(f"{path} is a symbolic link")
    return path


def discard_payload(folder: Path, record: Record) -> None:
    """Delete the file of an artifact record that was sent, and the folder that held it alone.

    Args:
        folder: The spool.
        record: The record.
    """
    with suppress(OSError, ValueError):
        path = payload_file(folder, record)
        path.unlink()
        path.parent.rmdir()


def read(folder: Path, offset: int = 0) -> Iterator[tuple[Record, int]]:
    """Return the records from an offset on, each with the offset at its end.

    A line that is not whole yet ends them; one that never will be is skipped.

    Args:
        folder: The spool.
        offset: In bytes.
    """
    try:
        with (folder / SPOOL).open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                record = _parsed(line)
                if record is not None:
                    yield record, offset
    except FileNotFoundError:
        return


def head(folder: Path) -> Record | None:
    """Return the record that a spool begins with: which run of which store it is."""
    return next((record for record, _ in read(folder) if record["op"] == "run"), None)


def size(folder: Path) -> int:
    """Return the bytes of a spool's records."""
    try:
        return (folder / SPOOL).stat().st_size
    except OSError:
        return 0


def close_dead(folder: Path, parent: int | None = None) -> bool:
    """Say that a run was killed, where its process is gone and did not say how it ended.

    Args:
        folder: The spool.
        parent: Number of a process that is gone: another one's run is left alone.

    Returns:
        Whether that was so.
    """
    try:
        lock = os.open(folder / WRITER_LOCK, os.O_RDWR | NO_LINK)
    except OSError:
        return False
    try:
        if not take(lock):
            return False
        ended = True
        writer_of: Record = {}
        for record, _ in read(folder):
            if record["op"] in ("run", "session"):
                ended, writer_of = False, record
            elif record["op"] == "end":
                ended = True
        # The lock alone says less: it is not to be had on every file system.
        pid = writer_of.get("pid")
        gone = pid == parent if parent is not None else not _lives(pid, writer_of.get("host"))
        if not gone:
            return False
        if not ended:
            writer = Writer(folder)
            writer.append("end", status="KILLED")
            writer.close()
        return not ended
    finally:
        os.close(lock)


def take(descriptor: int) -> bool:
    """Take the lock of an open file, if it is free; it goes with the last copy of the descriptor.

    Args:
        descriptor: Of the open file.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _lives(pid: Any, host: Any) -> bool:
    """Whether a process of this machine lives; of another one's, the lock has to say it."""
    if not isinstance(pid, int) or host != socket.gethostname() or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _parsed(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(record, dict) and {"n", "op", "t"} <= record.keys()
    return record if whole else None


def _ends_in_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
