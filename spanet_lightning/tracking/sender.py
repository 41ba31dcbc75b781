"""Sending the record of a run to MLflow: by a thread while it trains, by `spanet track sync` later.

Whoever sends holds the lock beside the log, so that two never send the same one. How far MLflow
has it is noted only after MLflow has answered; what has no answer is sent again.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from spanet_lightning.errors import ConfigError
from spanet_lightning.tracking import client, event_log
from spanet_lightning.tracking.addresses import absolute, complete, sqlite_file, without_secret
from spanet_lightning.tracking.event_log import Event, Progress

if TYPE_CHECKING:
    from filelock import FileLock
    from mlflow.tracking import MlflowClient

WAIT_VARIABLE = "SPANET_TRACKING_WAIT"
"""Environment variable: seconds that the end of a run waits for MLflow at most."""
_WAIT = 60.0  # seconds in all,
_IDLE = 10.0  # of which so many while a server stores nothing,
_IDLE_UNAVAILABLE = 2.0  # and so many where it was unavailable before
_KILLED = 10.0  # seconds for a run that a signal ends: whoever sent it may soon send SIGKILL
_INTERVAL = 1.0  # seconds for which events are collected while a run trains
_FIRST_RETRY, _LONGEST_RETRY = 0.5, 10.0  # seconds between attempts
_SILENCE = 2.0  # seconds for which a store may be unavailable without a message
_LOCAL_ATTEMPTS = 20  # at the end of a run: a database file may be locked for a moment
_POINTS = 1000  # of metrics in a request


class Transfer:
    """Sends one event log, from where it left off.

    Args:
        log: `metrics.jsonl`.
        uri: Its store, with its login.

    Attributes:
        progress: How far it is.
    """

    def __init__(self, log: Path, uri: str) -> None:
        self.log = log
        self.uri = uri
        self.progress = Progress.load(log)
        self._client: MlflowClient | None = None
        self._lock: FileLock | None = None

    def lock(self, timeout: float) -> bool:
        """Take the right to send, and how far it was sent in the meantime.

        Args:
            timeout: Seconds to wait for whoever has it.
        """
        from filelock import FileLock, Timeout

        if self._lock is not None:
            return True
        path = self.log.with_name(f".{self.log.name}.lock")
        if path.is_symlink():  # of a stranger's folder: it would be opened, and created
            path.unlink()
        lock = FileLock(path, thread_local=False)
        try:
            lock.acquire(timeout=timeout)
        except Timeout:
            return False
        except (OSError, NotImplementedError) as error:
            raise client.UnavailableError(f"{path} can't be locked: {error}") from None
        self._lock = lock
        found = Progress.load(self.log)
        if found.offset >= self.progress.offset:
            self.progress, self._client = found, None
        return True

    def unlock(self) -> None:
        """Let others send."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def send(self) -> bool:
        """Send the next events of one kind.

        Returns:
            Whether there were any.

        Raises:
            UnavailableError: If MLflow can't be reached; nothing is lost.
            RunRefusedError: If it will not take this run.
        """
        events, end = self._batch()
        if events:
            refused = self.progress.refused
            try:
                with client.sending_to(self.uri):
                    self._send(events)
            except Exception as raised:
                self.progress.refused = refused  # all of them are sent again
                raise client.classify(raised, self.uri) from None
            self.progress.offset = end
            self.progress.save(self.log)
        return bool(events)

    def close_killed(self) -> None:
        """Set the status of a run whose process was killed."""
        last, length = event_log.was_killed(self.log), event_log.size(self.log)
        if last is None or self.progress.killed_at == length or not self.progress.run_id:
            return
        try:
            with client.sending_to(self.uri):
                self._open().set_terminated(self.progress.run_id, "KILLED", end_time=last["time"])
        except Exception as raised:
            raise client.classify(raised, self.uri) from None
        self.progress.killed_at = length
        self.progress.save(self.log)

    def _send(self, events: list[Event]) -> None:
        """Send events; where MLflow refuses them, each value by itself."""
        opened, run_id = self._open(), self.progress.run_id
        try:
            client.send(opened, run_id, self.log, events)
        except Exception as raised:
            error = client.classify(raised, self.uri)
            if not isinstance(error, client.EventRefusedError):
                raise error from None
            parts = client.split(events)
            if len(parts) > 1:
                for part in parts:
                    self._send([part])
            else:
                self.progress.refused += 1
                self.progress.error = str(error)
        if events[0]["kind"] == "end":
            client.delete_duplicates(opened, self._head(), run_id)

    def _head(self) -> Event:
        head = event_log.head(self.log)
        if head is None:
            raise client.RunRefusedError(f"{self.log} does not begin with its run")
        return {**head, "uri": self.uri}

    def _open(self) -> MlflowClient:
        if self._client is None or not self.progress.run_id:
            head = self._head()
            self._client = client.open_store(self.uri)
            if not self.progress.run_id:
                # On disk first: the training waits for the id and then reads the file.
                progress = replace(self.progress, run_id=client.ensure_run(self._client, head))
                progress.save(self.log)
                self.progress = progress
        return self._client

    def _batch(self) -> tuple[list[Event], int]:
        """Return the next events that go in one request, and the offset at their end."""
        events: list[Event] = []
        points, end = 0, self.progress.offset
        for event, after in event_log.read(self.log, end):
            count = len(event["metrics"]) if event["kind"] == "metrics" else 0
            if events and (not count or points + count > _POINTS):
                break
            events.append(event)
            points, end = points + count, after
            if not count:
                break
        return events, end


class Sender(threading.Thread):
    """Sends the event log of a run while it trains; training never waits for it.

    A daemon: the process may end while a request hangs.

    Args:
        log: `metrics.jsonl`.
        uri: Its store, with its login.
    """

    def __init__(self, log: Path, uri: str) -> None:
        super().__init__(name="spanet-tracking", daemon=True)
        self.transfer = Transfer(log, uri)
        self.log = log
        self.store = without_secret(uri)
        self.stopped = False
        self._is_local = sqlite_file(uri) is not None
        self._unavailable = self._refused = ""  # why
        self._reported = False
        self._attempts = 0
        self._wake, self._progressed = threading.Event(), threading.Event()

    def run(self) -> None:
        """Send until the run ends."""
        retry, failing_since = _FIRST_RETRY, 0.0
        while not self.stopped and not self._refused:
            pause, pending = _INTERVAL, self._pending()
            if pending and not self._try():
                failing_since = failing_since or time.monotonic()
                if time.monotonic() - failing_since >= _SILENCE:
                    self._report_unavailable()
                pause, retry = retry, min(_LONGEST_RETRY, 2 * retry)
            elif pending:
                retry, failing_since = _FIRST_RETRY, 0.0
            self._progressed.set()
            self._wake.wait(pause)
            self._wake.clear()
        self.transfer.unlock()
        self._progressed.set()

    def wait(self, *, for_run: bool = False, killed: bool = False) -> bool:
        """Wait until MLflow has everything, within a bound.

        A minute at most, of which ten seconds without progress at a server, and two where that was
        unavailable before. A database file is waited for: it may just be being created.

        Args:
            for_run: Whether it is enough that the run is created.
            killed: Whether a signal ends the run, so that there is less time.

        Returns:
            Whether it has.
        """
        limit = float(os.environ.get(WAIT_VARIABLE) or 0)
        idle = limit or (_WAIT if self._is_local else _IDLE)
        if self._unavailable:
            idle = min(idle, _IDLE_UNAVAILABLE)
        total = limit or (_KILLED if killed else _WAIT)
        end, attempts = time.monotonic() + total, self._attempts
        offset, moved = self.transfer.progress.offset, time.monotonic()
        while self._pending() and not (for_run and self.transfer.progress.run_id):
            if self.transfer.progress.offset != offset:
                offset, moved = self.transfer.progress.offset, time.monotonic()
            left = min(end, moved + idle) - time.monotonic()
            tried = self._attempts - attempts >= (_LOCAL_ATTEMPTS if self._is_local else 1)
            gives_up = bool(self._refused) or (bool(self._unavailable) and tried)
            if left <= 0 or gives_up or not self.is_alive():
                return False
            self._wake.set()
            self._progressed.wait(min(left, 0.1))
            self._progressed.clear()
        return True

    def stop(self) -> None:
        """Let others send what is left."""
        self.stopped = True
        self._wake.set()
        if threading.current_thread() is not self:
            self.join(0.5)

    def report_left(self) -> None:
        """Report that training ended before everything was sent."""
        self._report_unavailable()
        if not self._refused:
            left = sum(1 for _ in event_log.read(self.log, self.transfer.progress.offset))
            say(
                f"{left} event{'s' if left != 1 else ''} not sent to {self.store} yet. To send "
                f"them: spanet track sync {_short(self.log.parent)}"
            )

    def _pending(self) -> bool:
        return self.transfer.progress.offset < event_log.size(self.log)

    def _try(self) -> bool:
        """Send what there is; return whether that went well."""
        try:
            if not self.transfer.lock(0):
                raise client.UnavailableError("another process is sending this run")
            while self.transfer.send():
                self._unavailable = ""
                self._progressed.set()
        except client.RunRefusedError as error:
            self._refused = str(error)
            say(
                f"{self.store} does not accept this run ({error}). It is recorded in "
                f"{_short(self.log)}; once that is corrected: spanet track sync "
                f"{_short(self.log.parent)}"
            )
        except Exception as error:  # of a file system, or whatever MLflow raises on the way out
            self._unavailable = " ".join(str(error).split())[:160] or type(error).__name__
        finally:
            self._attempts += 1
        return not (self._unavailable or self._refused)

    def _report_unavailable(self) -> None:
        """Report once in a run that the store can't be reached."""
        if self._unavailable and not self._reported:
            self._reported = True
            say(
                f"{self.store} is unavailable ({self._unavailable}). Training continues; the run "
                f"is recorded in {_short(self.log)} and sent later"
            )


@dataclass(frozen=True)
class Status:
    """How far an event log is.

    Attributes:
        log: `metrics.jsonl`.
        uri: Its store, without credentials.
        run_id: The run in MLflow; empty before it was created.
        points: Values of metrics.
        pending: Events that MLflow does not have.
        pending_points: Values of metrics among these.
        refused: Events that MLflow refused.
        since: When the first pending event was logged, in seconds since 1970.
        state: "sent", "running" (a process trains, or sends), "pending" or "refused".
        error: Why it is pending or refused, where that is known.
    """

    log: Path
    uri: str
    run_id: str
    points: int
    pending: int
    pending_points: int
    refused: int
    since: float | None
    state: str
    error: str


def find_logs(paths: Iterable[Path]) -> list[Path]:
    """Return the event logs in folders and below them; links are not followed.

    Args:
        paths: Folders of runs, or of many runs.

    Raises:
        ConfigError: If one is no folder.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            raise ConfigError(f"PATH: there is no folder {path}; expected one of runs or of a run")
        for folder, folders, files in os.walk(path):
            if "tracking" in folders and event_log.convert_first_version(Path(folder)):
                files.append(event_log.NAME)
            for name in sorted(files):
                log = Path(folder) / name
                if name.startswith("metrics") and name.endswith(".jsonl") and not log.is_symlink():
                    found[log] = None
    return [log for log in found if event_log.head(log) is not None]


def status(log: Path) -> Status:
    """Return how far an event log is.

    Args:
        log: `metrics.jsonl`.
    """
    first, progress = event_log.head(log), Progress.load(log)
    events = [
        (end > progress.offset, len(event.get("metrics", ())), event["time"] / 1000)
        for event, end in event_log.read(log)
    ]
    left = [(points, time_) for is_pending, points, time_ in events if is_pending]
    pending, running = len(left), _is_locked(log)
    if not running and not pending and progress.killed_at != event_log.size(log):
        pending = int(event_log.was_killed(log) is not None)  # its status
    settled = "refused" if progress.refused else "sent"
    return Status(
        log=log,
        uri="" if first is None else str(first["uri"]),
        run_id=progress.run_id,
        points=sum(points for _, points, _ in events),
        pending=pending,
        pending_points=sum(points for points, _ in left),
        refused=progress.refused,
        since=left[0][1] if left else None,
        state="running" if running else "pending" if pending else settled,
        error=progress.error if pending or progress.refused else "",
    )


def _is_locked(log: Path) -> bool:
    transfer = Transfer(log, "")
    try:
        return not transfer.lock(0)
    except client.UnavailableError:  # of a folder that can only be read
        return False
    finally:
        transfer.unlock()


def sync(
    log: Path, uri: str | None = None, patience: float = 30.0, report: Callable[[str], None] = print
) -> Status:
    """Send what MLflow does not have of an event log.

    Args:
        log: `metrics.jsonl`.
        uri: Its store, where the log was never sent to one, or where that needs a login.
        patience: Seconds to try a store that is unavailable.
        report: Takes lines for the user.

    Returns:
        How far it is afterwards.

    Raises:
        ConfigError: If MLflow is not installed, or the store is another one than the run's.
    """
    if not client.installed():
        raise ConfigError("mlflow: is not installed; pip install mlflow, then sync again")
    first = event_log.head(log)
    if first is None:
        report(f"{log}: does not begin with its run; nothing was sent")
        return status(log)
    own = str(first["uri"])
    transfer = Transfer(log, uri or complete(own))
    if uri is not None and without_secret(absolute(uri)) != own and transfer.progress.run_id:
        raise ConfigError(
            f"--tracking-uri: got {without_secret(uri)!r}, but the run of {log.parent} began in "
            f"{own!r}"
        )
    until, pause = time.monotonic() + patience, _FIRST_RETRY
    try:
        while True:
            try:
                if not transfer.lock(max(0.0, until - time.monotonic())):
                    report(f"{log}: another process is sending it")
                    break
                while transfer.send():
                    until = time.monotonic() + patience
                transfer.close_killed()
                break
            except (client.RunRefusedError, client.UnavailableError) as error:
                transfer.progress.error = str(error)
                transfer.progress.save(log)
                if isinstance(error, client.RunRefusedError) or time.monotonic() + pause > until:
                    break
                time.sleep(pause)
                pause = min(_LONGEST_RETRY, 2 * pause)
    finally:
        transfer.unlock()
    return status(log)


def say(line: str) -> None:
    """Write a line for the user; not a Python warning, which some turn into errors."""
    sys.stderr.write(f"Tracking: {line}.\n")
    sys.stderr.flush()


def _short(path: Path) -> Path:
    """Return a path as seen from the working directory, where it is below it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
