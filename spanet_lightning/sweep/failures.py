"""Why a trial failed: the kind, and a sentence for a person."""

from __future__ import annotations

import signal
from pathlib import Path

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
_LOADER = "DataLoader worker"
_EVENTS = Path("/sys/fs/cgroup/memory.events")
_LONGEST = 500


def of_error(error: BaseException) -> tuple[Failure, str]:
    """Return why a trial that raised has failed.

    Args:
        error: What it raised.
    """
    found = users_error(error)
    if found is not None:
        for one, kind in _KINDS.items():
            if isinstance(found, one):
                return kind, message(found)
        return "error", message(found)
    text = _sentence(error)
    lowered = str(error).lower()
    if isinstance(error, MemoryError) or any(words in lowered for words in _NO_MEMORY):
        return "out-of-memory", text
    if _LOADER in str(error) and "killed" in lowered:
        return "out-of-memory", f"{text}; fewer data.num_workers need less memory"
    return "error", text


def of_exit(code: int, tail: str, *, out_of_memory: bool = False) -> tuple[Failure, str]:
    """Return why a trial whose process ended without a word has failed.

    Args:
        code: What the process returned; below 0, the signal that ended it.
        tail: The last line that it wrote.
        out_of_memory: Whether the kernel ended a process for want of memory meanwhile.
    """
    said = f"; its last line: {tail}" if tail else ""
    starved = any(words in tail.lower() for words in _NO_MEMORY)
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        if out_of_memory:
            return "out-of-memory", f"ended by the kernel, which had no memory left ({name})"
        if starved:
            return "out-of-memory", f"ended by {name}{said}"
        hint = ", often the kernel's when memory runs out" if name == "SIGKILL" else ""
        return "killed", f"ended by {name}{hint}{said}"
    kind: Failure = "out-of-memory" if starved else "error"
    return kind, f"ended with code {code} and no result{said}"


def kills_for_memory() -> int:
    """Return how many processes of this control group the kernel has ended for want of memory."""
    try:
        lines = _EVENTS.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    counts = dict(line.split() for line in lines if line.count(" ") == 1)
    return int(counts.get("oom_kill", 0))


def _sentence(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:_LONGEST] if text else type(error).__name__
