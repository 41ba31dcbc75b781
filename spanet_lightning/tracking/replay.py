"""One spool on its way into its store, as far as the store takes it."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spanet_lightning.tracking import store
from spanet_lightning.tracking.addresses import is_web, redact, use_credentials, without_secret
from spanet_lightning.tracking.spool import (
    NO_LINK,
    SENDER_LOCK,
    Record,
    Sent,
    discard_payload,
    head,
    read,
    size,
    take,
)

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_SHORTEST, _LONGEST = 5.0, 60.0  # seconds that a request gets: more each time that is not enough
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0  # seconds between attempts while the store is away


class Step(Enum):
    """What an attempt came to."""

    SENT = "sent"
    EMPTY = "empty"  # there is nothing more
    WAITING = "waiting"  # the store is away, or another process is sending
    WRONG = "wrong"


class Replay:
    """Sends one spool.

    Args:
        folder: The spool.
        uri: Its store, with credentials.

    Attributes:
        sent: How far it is.
    """

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder = folder
        self.uri = without_secret(uri) if is_web(uri) else uri
        self._full = uri
        self.sent = Sent.load(folder)
        if self.sent.state in ("away", "wrong"):  # for another process; it may be better now
            self.sent.state = "starting"
        self._head: Record | None = None
        self._client: MlflowClient | None = None
        self._lock: int | None = None
        self._pause = _FIRST_PAUSE
        self._timeout = _SHORTEST
        self._not_before = 0.0

    def step(self) -> Step:
        """Send the next records, of one kind, if there are any and it is time to.

        While there is nothing to do, or the store is away, others may send.
        """
        found = self._step()
        if found is not Step.SENT:
            self.close()
        return found

    def _step(self) -> Step:
        if time.monotonic() < self._not_before:
            return Step.WAITING
        if self.sent.state == "wrong":
            return Step.WRONG
        if self.sent.offset >= size(self.folder):
            return Step.EMPTY
        if not self._locked():
            self._not_before = time.monotonic() + _FIRST_PAUSE
            return Step.WAITING
        records, end = _batch(self.folder, self.sent.offset)
        if not records:
            return Step.EMPTY
        refused = self.sent.refused
        try:
            self._send_in_parts(records)
        except (store.AwayError, store.WrongError) as error:
            self.sent.refused = refused  # all of them are sent again
            text = redact(str(error), self._full)
            if isinstance(error, store.AwayError):
                self._away(text)
                return Step.WAITING
            self._note("wrong", text)
            return Step.WRONG
        self._pause = _FIRST_PAUSE
        self.sent.offset = end
        self._note("sending", self.sent.error if self.sent.refused else "")
        for record in records:
            if "payload" in record:
                discard_payload(self.folder, record)
        return Step.SENT

    def close(self) -> None:
        """Let others send."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _locked(self) -> bool:
        if self._lock is not None:
            return True
        try:
            descriptor = os.open(self.folder / SENDER_LOCK, os.O_RDWR | os.O_CREAT | NO_LINK, 0o644)
        except OSError:
            return False
        if not take(descriptor):
            os.close(descriptor)
            return False
        self._lock = descriptor
        found = Sent.load(self.folder)
        if found.offset > self.sent.offset:  # another process has been sending
            self.sent, self._client = found, None
        return True

    def _send_in_parts(self, records: list[Record]) -> None:
        """Send records; where the store refuses them, each value by itself."""
        try:
            self._send(records)
        except Exception as raised:
            error = store.judged(raised)
            if not isinstance(error, store.RefusedError):
                raise error from None
            parts = _parts(records)
            if len(parts) > 1:
                for part in parts:
                    self._send_in_parts([part])
            else:
                self.sent.refused += 1
                self.sent.error = redact(str(error), self._full)

    def _send(self, records: list[Record]) -> None:
        client = self._opened()
        if records[0]["op"] == "run":
            return
        store.send(client, self.sent.run_id, self.folder, records)
        if records[0]["op"] == "end" and self._head is not None:
            store.drop_twins(client, self._head, self.sent.run_id)

    def _opened(self) -> MlflowClient:
        """Return the connection, on which the run is there; the settings are this spool's."""
        self._apply()
        if self._client is None or not self.sent.run_id:
            if self.sent.state not in ("away", "sending"):
                self._note("starting", "")
            self._head = head(self.folder)
            if self._head is None:
                raise store.WrongError(f"{self.folder} does not say which run it is")
            self._client = store.connect(self.uri)
            if not self.sent.run_id:
                self.sent.run_id = store.ensure_run(self._client, self._head)
                self._note("sending", "")
        return self._client

    def _apply(self) -> None:
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(int(self._timeout))
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
        os.environ["MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT"] = str(int(4 * self._timeout))
        use_credentials(self._full)
        # Where MLflow keeps artifacts beside a database of its own is relative to it.
        first = self._head or head(self.folder)
        with suppress(OSError, KeyError, TypeError):
            os.chdir(first["cwd"])  # type: ignore[index]  # None is one of the suppressed

    def _away(self, text: str) -> None:
        self._not_before = time.monotonic() + self._pause
        self._pause = min(_LONGEST_PAUSE, 2 * self._pause)
        if "timed out" in text.lower() or "timeout" in text.lower():
            self._timeout = min(_LONGEST, 2 * self._timeout)
        self._note("away", text)

    def _note(self, state: str, error: str) -> None:
        if state != self.sent.state:
            self.sent.state, self.sent.since = state, time.time()
        self.sent.error = error
        self.sent.beat += 1
        with suppress(OSError):  # a full disk: it is sent again
            self.sent.save(self.folder)


def _batch(folder: Path, offset: int) -> tuple[list[Record], int]:
    """Return the next records that go in one request, and the offset at their end."""
    records: list[Record] = []
    points, end = 0, offset
    for record, after in read(folder, offset):
        count = len(record["metrics"]) if record["op"] == "metrics" else 0
        if records and (not count or points + count > store.POINTS):
            break
        records.append(record)
        points, end = points + count, after
        if record["op"] != "metrics":
            break
    return records, end


def _parts(records: list[Record]) -> list[Record]:
    """Return records as small as they get: one value of points, parameters and tags."""
    found: list[Record] = []
    for record in records:
        kind: str = record["op"]
        if kind in ("metrics", "params", "tags"):
            values: dict[str, Any] = record[kind]
            found += [{**record, kind: {key: value}} for key, value in values.items()]
        else:
            found.append(record)
    return found
