"""The training process's end of the sender: starting it, and waiting for it at the end."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from spanet_lightning.tracking.spool import Sent, size

WAIT_VARIABLE = "SPANET_TRACKING_WAIT"
"""Environment variable: seconds for which the end of training waits while nothing gets on."""
_WAIT = 10.0
# The package itself imports torch and timm, which the sender needs not: a second of a processor's
# time, and hundreds of megabytes, for every run.
_START = """
import sys, types
package = types.ModuleType("spanet_lightning")
package.__path__ = [sys.argv.pop(1)]
sys.modules["spanet_lightning"] = package
from spanet_lightning.tracking.sender import main
main()
"""


class _Sender:
    """The sender of this process, or none yet."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.owner = 0
        self.told: dict[str, str] = {}
        self.starts = 0

    def alive(self) -> bool:
        # A copy of this process that a fork has made is another process.
        mine = self.owner == os.getpid()
        return mine and self.process is not None and self.process.poll() is None

    def tell(self, folder: Path, uri: str) -> None:
        """Have a spool sent, by a new sender where there is none."""
        if self.owner != os.getpid():
            self.process, self.owner, self.told, self.starts = None, os.getpid(), {}, 0
        self.told[str(folder)] = uri
        if not self.alive():
            if self.starts >= 3:  # it dies each time; the records stay where they are
                return
            self.starts += 1
            self._start()
            lines = self.told
        else:
            lines = {str(folder): uri}
        text = "".join(
            json.dumps({"folder": one, "uri": address}) + "\n" for one, address in lines.items()
        )
        self._write(text.encode())

    def nudge(self) -> None:
        """Have it look at once."""
        if self.alive():
            self._write(b"\n")

    def let_go(self) -> None:
        """Let it end by itself, after this process."""
        if self.alive() and self.process is not None and self.process.stdin is not None:
            with suppress(OSError):
                self.process.stdin.close()
            self.process.returncode = 0  # or Python warns of a child that is still there

    def _start(self) -> None:
        if self.starts == 1:
            atexit.register(self.let_go)
        package = Path(__file__).resolve().parents[1]
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START, str(package), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C is training's to act on
        )

    def _write(self, text: bytes) -> None:
        if self.process is not None and self.process.stdin is not None:
            with suppress(OSError):
                self.process.stdin.write(text)
                self.process.stdin.flush()


_sender = _Sender()


def deliver(folder: Path, uri: str) -> None:
    """Have a spool sent by a process of its own.

    Args:
        folder: The spool.
        uri: Its store, with credentials, which go to that process alone.
    """
    with suppress(OSError):  # no more processes: the records stay where they are
        _sender.tell(folder.absolute(), uri)


def revive(folder: Path, uri: str) -> None:
    """Start the sender again, should it have died."""
    if not _sender.alive():
        deliver(folder, uri)


def arrived(folder: Path, *, before: int = 0, run_id: bool = False) -> bool:
    """Wait until the store has everything, as long as that gets on.

    Args:
        folder: The spool.
        before: Signs of life (`Sent.beat`) of earlier senders, which say nothing of now.
        run_id: Whether it is enough that the run is created.

    Returns:
        Whether it has; False where the store is away or nothing happens for too long.
    """
    patience = float(os.environ.get(WAIT_VARIABLE) or _WAIT)
    target, pause = size(folder), 0.01
    seen: Sent | None = None
    until = time.monotonic() + patience
    _sender.nudge()
    while True:
        sent = Sent.load(folder)
        if sent.offset >= target or (run_id and sent.run_id):
            return True
        if (sent.beat > before and sent.state in ("away", "wrong")) or not _sender.alive():
            return False
        if sent != seen:
            seen, until = sent, time.monotonic() + patience
        if time.monotonic() > until:
            return False
        time.sleep(pause)
        pause = min(0.1, 1.5 * pause)
