"""The record of a run: `metrics.jsonl` in its folder, everything that is logged, in order.

One JSON object a line, only ever appended, by the training process alone. Each has a `kind` and a
`time` (ms since 1970):

| kind | what it holds |
|---|---|
| `run` | the first line: store, experiment, name and tags of the run in MLflow |
| `session` | a process that resumes the run |
| `metrics` | `step` and `metrics`; values that are not finite are text: "nan", "inf" |
| `params`, `tags` | names and texts |
| `artifact` | `file`, below the run's folder, and the `folder` that it goes to in MLflow |
| `dataset` | name, source, digest and profile of the data |
| `end` | `status`: FINISHED, FAILED or KILLED |

`metrics.jsonl.sent` says how far MLflow has it. A line that a killed process did not finish is
skipped. A run's folder may come from a stranger: no link in it is followed.
"""

from __future__ import annotations

import json
import math
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

NAME = "metrics.jsonl"
ARTIFACTS = "artifacts"
"""Folder of a run's texts and pictures, below the folder of the run."""
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)

Event = dict[str, Any]


@dataclass
class Progress:
    """How far an event log was sent.

    Attributes:
        offset: Bytes of the log that MLflow has.
        run_id: The run in MLflow; empty before it was created.
        refused: Events that MLflow refused, and that were left out.
        error: Why the last of these was refused, or why nothing can be sent.
        killed_at: Length of the log at which MLflow was told that its process was killed.
    """

    offset: int = 0
    run_id: str = ""
    refused: int = 0
    error: str = ""
    killed_at: int = 0

    @classmethod
    def load(cls, log: Path) -> Progress:
        """Read it; where there is none, nothing was sent."""
        try:
            plain = json.loads(_sent_file(log).read_text(encoding="utf-8"))
            known = {f.name: plain[f.name] for f in fields(cls) if f.name in plain}
            return cls(**{**known, "offset": int(known.get("offset", 0))})
        except (OSError, ValueError, TypeError, AttributeError):
            return cls()

    def save(self, log: Path) -> None:
        """Replace it."""
        file = _sent_file(log)
        partial = file.with_name(f".{file.name}.partial")
        partial.unlink(missing_ok=True)  # a link there would be written through
        with partial.open("x", encoding="utf-8") as out:
            out.write(json.dumps(asdict(self)))
        partial.replace(file)


class EventLog:
    """Appends to the record of a run.

    Args:
        path: `metrics.jsonl`; continued where it exists.

    Attributes:
        params: Parameters that it held before.
        points: Metrics that it held before, by name and step, the last value of each.
        sessions: Processes that have written to it before.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.params: dict[str, str] = {}
        self.points: dict[tuple[str, int], float] = {}
        self.sessions = 0
        for event, _ in read(path):
            self.sessions += event["kind"] in ("run", "session")
            if event["kind"] == "params":
                self.params |= event["params"]
            elif event["kind"] == "metrics":
                step = event["step"]
                self.points |= {(key, step): float(v) for key, v in event["metrics"].items()}
        self._lock = threading.Lock()
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | _NO_LINK
        self._file = os.open(path, flags, 0o644)
        end = os.lseek(self._file, 0, os.SEEK_END)
        self._torn = end > 0 and os.pread(self._file, 1, end - 1) != b"\n"

    def append(self, kind: str, **values: Any) -> None:
        """Append an event.

        Args:
            kind: One of those that the module lists.
            values: What it holds.

        Raises:
            OSError: If the disk does not take it.
        """
        with self._lock:
            event = {"kind": kind, "time": int(time.time() * 1000), **values}
            line = json.dumps(event, separators=(",", ":")).encode() + b"\n"
            if self._torn:
                line = b"\n" + line
            self._torn = True
            if os.write(self._file, line) != len(line):
                raise OSError("the disk took only a part of it")
            self._torn = False

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def plain(value: float) -> float | str:
    """Return a number as JSON takes it: text where it is not finite."""
    return value if math.isfinite(value) else str(value)


def read(log: Path, offset: int = 0) -> Iterator[tuple[Event, int]]:
    """Return the events from an offset on, each with the offset at its end.

    A last line that is not complete yet is left out; one that never will be is skipped.

    Args:
        log: `metrics.jsonl`.
        offset: In bytes.
    """
    try:
        with os.fdopen(os.open(log, os.O_RDONLY | _NO_LINK), "rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                event = _parsed(line)
                if event is not None:
                    yield event, offset
    except OSError:
        return


def convert_first_version(folder: Path) -> Path | None:
    """Write the event log of a run whose record is that of the first version, where there is none.

    That was `tracking/spool.jsonl`, with `kind`, `time` and `file` under other names, and
    `tracking/sent.json`, which says how far it was sent. Both are left as they are.

    Args:
        folder: Folder of the run.

    Returns:
        The log; None where there is nothing to convert.
    """
    log, old = folder / NAME, folder / "tracking"
    try:
        if log.exists() or old.is_symlink() or (old / "spool.jsonl").is_symlink():
            return None
        lines = (old / "spool.jsonl").read_bytes().splitlines()
        sent = json.loads((old / "sent.json").read_text(encoding="utf-8"))
        offset, run_id = int(sent["offset"]), str(sent["run_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    progress, read_to, text = Progress(run_id=run_id), 0, b""
    for line in lines:
        read_to += len(line) + 1
        with suppress(ValueError, KeyError, TypeError, AttributeError):
            event = json.loads(line)
            event |= {"kind": event.pop("op"), "time": event.pop("t")}
            if "payload" in event:
                event["file"] = f"tracking/{event.pop('payload')}"
            text += json.dumps(event, separators=(",", ":")).encode() + b"\n"
        if read_to <= offset:
            progress.offset = len(text)
    partial = log.with_name(f".{NAME}.partial")
    partial.unlink(missing_ok=True)  # a link there would be written through
    with partial.open("xb") as out:
        out.write(text)
    progress.save(log)
    partial.replace(log)
    return log


def head(log: Path) -> Event | None:
    """Return the first event: which run of which store it is."""
    return next((event for event, _ in read(log) if event["kind"] == "run"), None)


def size(log: Path) -> int:
    """Return the length of a log, in bytes."""
    try:
        return log.stat().st_size
    except OSError:
        return 0


def artifact_file(log: Path, event: Event) -> Path:
    """Return the file of an artifact event, which is always below the folder of the run.

    Args:
        log: `metrics.jsonl`.
        event: The event.

    Raises:
        ValueError: If the event names a file elsewhere, or there is a link on the way.
    """
    name = str(event["file"])
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise ValueError(f"{name!r} is not below {log.parent}")
    path = log.parent
    for part in parts:
        path /= part
        if path.is_symlink():
            raise ValueError(f"{path} is a symbolic link")
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    return path


def was_killed(log: Path) -> Event | None:
    """Return the last event of a run whose process is gone without an `end`; else None.

    Args:
        log: A log that no process is sending.
    """
    writer: Event | None = None
    last: Event | None = None
    for event, _ in read(log):
        last = event
        if event["kind"] in ("run", "session"):
            writer = event
        elif event["kind"] == "end":
            writer = None
    return None if writer is None or _lives(writer.get("pid"), writer.get("host")) else last


def _lives(pid: Any, host: Any) -> bool:
    """Whether a process of this machine lives; of another machine's, its lock says so."""
    if not isinstance(pid, int) or host != socket.gethostname() or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _sent_file(log: Path) -> Path:
    return log.with_name(f"{log.name}.sent")


def _parsed(line: bytes) -> Event | None:
    """Return the event of a line, or None where it is none that this module has written."""
    try:
        event = json.loads(line)
        kind = event["kind"]
        event["time"] = int(event["time"])
        if kind == "metrics":
            event["step"] = int(event["step"])
            event["metrics"] = {str(key): float(v) for key, v in event["metrics"].items()}
        elif kind in ("params", "tags"):
            event[kind] = {str(key): str(value) for key, value in event[kind].items()}
        elif kind == "run":
            event["uri"], event["uid"] = str(event["uri"]), str(event["uid"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return dict(event)
