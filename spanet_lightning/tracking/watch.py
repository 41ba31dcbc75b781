"""What a training process says about its tracker: one line when it is away, one when it is back."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from spanet_lightning.tracking.addresses import without_secret
from spanet_lightning.tracking.spool import Sent

_LOOK = 2.0  # seconds between looks
_BLINK = 2.0  # seconds for which a store may be away without a word
_QUIET = 600.0  # seconds for which a store that comes and goes is not told of again


class Watch:
    """Looks now and then at how far a spool was sent, and says what a person should know.

    Args:
        folder: The spool.
        uri: Its store.
    """

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder = folder
        self.uri = without_secret(uri)
        self.before = Sent.load(folder).beat
        self._away = False
        self._wrong = False
        self._quiet_until = 0.0
        self._next = time.monotonic() + _LOOK

    def look(self) -> None:
        """Look, if it is time to."""
        if time.monotonic() >= self._next:
            self.look_now()

    def look_now(self) -> None:
        """Look, and say what has changed."""
        self._next = time.monotonic() + _LOOK
        sent = Sent.load(self.folder)
        if sent.beat <= self.before:  # of an earlier process
            return
        if sent.state == "away" and time.time() - sent.since >= _BLINK:
            self.away(sent.error)
        elif sent.state == "wrong" and not self._wrong:
            self._wrong = True
            say(
                f"{self.uri} does not take this run ({sent.error}). What is logged stays in "
                f"{self.folder}; once that is mended: spanet track sync {self.folder}"
            )
        elif sent.state == "sending" and self._away:
            self._away = False
            if time.monotonic() >= self._quiet_until:
                self._quiet_until = time.monotonic() + _QUIET
                say(f"{self.uri} is back; what waited is being sent")

    def away(self, reason: str) -> None:
        """Say that the store is away, unless that was said.

        Args:
            reason: Why.
        """
        if self._away:
            return
        self._away = True
        if time.monotonic() >= self._quiet_until:
            say(
                f"{self.uri} is away ({reason[:160]}). Training goes on; what is logged waits in "
                f"{self.folder} and is sent when it is back"
            )

    def left(self, waiting: int) -> None:
        """Say that training ended before everything was sent.

        Args:
            waiting: Records that were not.
        """
        if not self._wrong:
            say(
                f"{waiting} record{'s' if waiting != 1 else ''} could not be sent to {self.uri} "
                f"yet. To send what is left: spanet track sync {self.folder}"
            )


def say(line: str) -> None:
    """Write a line for a person; not a Python warning, which some turn into errors."""
    sys.stderr.write(f"Tracking: {line}.\n")
    sys.stderr.flush()
