"""The process that sends spools: `python -m spanet_lightning.tracking.sender PARENT`.

A training process starts one when it first logs, and tells it on standard input which spools there
are. It is a process and not a thread because MLflow takes seconds to import and holds the
interpreter's lock meanwhile, and because it is still there when training was killed: it then tells
the store so. It ends once its parent has ended and everything is sent, or after a while.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from spanet_lightning.tracking.replay import Replay, Step
from spanet_lightning.tracking.spool import close_dead

GRACE_VARIABLE = "SPANET_TRACKING_GRACE"
"""Environment variable: seconds for which a sender tries on after training has ended."""
_GRACE = 60.0
_TICK = 0.2  # seconds between looks at the spools


def serve(parent: int, grace: float) -> None:
    """Send what is told on standard input, until the parent has ended.

    Args:
        parent: Number of the parent process.
        grace: Seconds to try on after that.
    """
    replays: dict[str, Replay] = {}
    text, open_ = b"", True
    until = float("inf")
    while True:
        if open_ and select.select([0], [], [], _TICK)[0]:
            found = os.read(0, 1 << 16)
            open_ = bool(found)
            *lines, text = (text + found).split(b"\n")
            for line in filter(None, lines):
                told = json.loads(line)
                replays.setdefault(told["folder"], Replay(Path(told["folder"]), told["uri"]))
        elif not open_:
            time.sleep(_TICK)
        alone = os.getppid() != parent
        if alone and until == float("inf"):
            until = time.monotonic() + grace
        busy = False
        for replay in replays.values():
            if alone:
                close_dead(replay.folder, parent)
            step = Step.SENT
            while step is Step.SENT:
                step = replay.step()
            busy |= step is Step.WAITING
        if alone and (not busy or time.monotonic() > until):
            break


def main() -> None:
    """Be the sender of a process."""
    for number in (signal.SIGINT, signal.SIGHUP):  # training's to act on
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError):
        os.nice(10)
    serve(int(sys.argv[1]), float(os.environ.get(GRACE_VARIABLE) or _GRACE))


if __name__ == "__main__":
    main()
