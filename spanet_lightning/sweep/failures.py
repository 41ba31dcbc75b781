"""Why a trial failed: the kind, and a sentence for a person."""

from __future__ import annotations

import signal

from spanet_lightning.errors import NoMemoryError, NoSpaceError, NotFiniteError, SpanetError
from spanet_lightning.exit import message, users_error
from spanet_lightning.sweep.records import Failure

_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "bad_alloc",
    "can't start new thread",
    "memoryerror",
)
_KINDS: dict[type[SpanetError], Failure] = {
    NotFiniteError: "nan",
    NoMemoryError: "out-of-memory",
    NoSpaceError: "no-space",
}
_LONGEST = 500


def of_error(error: BaseException) -> tuple[Failure, str]:
    """Return why a trial that raised has failed."""
    found = users_error(error)
    if found is not None:
        kinds = (kind for one, kind in _KINDS.items() if isinstance(found, one))
        return next(kinds, "error"), message(found)
    text, lowered = " ".join(str(error).split()), str(error).lower()
    text = f"{type(error).__name__}: {text}"[:_LONGEST] if text else type(error).__name__
    if isinstance(error, MemoryError) or any(words in lowered for words in _NO_MEMORY):
        return "out-of-memory", text
    if "dataloader worker" in lowered and "killed" in lowered:
        return "out-of-memory", f"{text}; fewer data.num_workers need less memory"
    return "error", text


def of_exit(code: int, last_line: str) -> tuple[Failure, str]:
    """Return why a trial whose process ended without a result has failed.

    Args:
        code: Exit code of the process; below 0, the signal that ended it.
        last_line: The last line that it wrote.
    """
    wrote = f"; its last line: {last_line}" if last_line else ""
    starved = any(words in last_line.lower() for words in _NO_MEMORY)
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        hint = ", often the kernel's when memory runs out" if name == "SIGKILL" else ""
        return "out-of-memory" if starved else "killed", f"ended by {name}{hint}{wrote}"
    kind: Failure = "out-of-memory" if starved else "error"
    return kind, f"ended with code {code} and no result{wrote}"
