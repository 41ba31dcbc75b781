"""What ends a run from outside the code, in one line that says what to change."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from spanet_lightning.checkpoints import NO_SPACE, STORAGE_ERRORS, free_bytes
from spanet_lightning.errors import NoMemoryError, NoSpaceError, SpanetError

_WORKER = re.compile(
    r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\) (?:is killed by signal: (\w+)|exited)"
)
_HOST = ("can't allocate memory", "cannot allocate memory", "not enough memory", "bad_alloc")
_SIZE = re.compile(r"[Tt]ried to allocate ([\d.]+ ?\w+)|allocate (\d+ bytes)")
# What takes memory, by the last word of its key, and what a smaller or other value changes.
_BATCH = ("batch_size",)
_RESOLUTION = ("image_size", "img_size", "crop_size", "size", "short_side", "min_size", "max_size")
_SAVERS = ("grad_checkpointing", "gradient_checkpointing", "precision", "accumulate_grad_batches")


def explain(error: BaseException, flat: Mapping[str, Any], device: str = "") -> SpanetError | None:
    """Return the user's error that a fault comes to; None where it is none that is known.

    Args:
        error: What ended the run.
        flat: The configuration by dotted keys.
        device: What the model ran on.
    """
    for one in _chain(error):
        text = str(one)
        worker = _WORKER.search(text)
        if worker is not None:
            return _worker(worker, text, flat)
        lowered = text.lower()
        if isinstance(one, torch.OutOfMemoryError) or "out of memory" in lowered:
            return _memory(text, flat, device)
        if isinstance(one, MemoryError) or any(words in lowered for words in _HOST):
            return _memory(text, flat, "the machine")
        if isinstance(one, OSError) and one.errno in STORAGE_ERRORS:
            if one.filename is None and one.errno not in NO_SPACE:
                continue
            return _disk(one)
    return None


def _chain(error: BaseException | None) -> Iterable[BaseException]:
    """Yield an error, and those that it was raised from or while handling."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _worker(found: re.Match[str], text: str, flat: Mapping[str, Any]) -> NoMemoryError:
    workers = _settings(flat, ("num_workers",)) or "data.num_workers"
    if "shared memory" in text.lower() or found[2] == "Bus":
        why = (
            "most likely the shared memory is used up (`df -h /dev/shm`; in Docker, --shm-size or "
            "--ipc=host)"
        )
    elif found[2] in (None, "Killed"):
        why = "most likely the machine ran out of memory and its kernel ended it (`dmesg` tells)"
    else:
        why = "a library that it called crashed, or memory ran out"
    how = f"by signal {found[2]}" if found[2] else "without a word"
    return NoMemoryError(
        f"a process that loads data (pid {found[1].strip()}) was ended {how}: {why}. Lower "
        f"{workers}; each process holds images of its own, 0 loads in the main one"
    )


def _memory(text: str, flat: Mapping[str, Any], device: str) -> NoMemoryError:
    size = _SIZE.search(text)
    asked = f" (another {size[1] or size[2]} were asked for)" if size else ""
    batch = _settings(flat, _BATCH) or "data.batch_size"
    resolution = _settings(flat, _RESOLUTION)
    savers = [key for key in flat if key.rpartition(".")[2] in _SAVERS]
    more = ", ".join(f"{key}={flat[key]}" for key in savers)
    return NoMemoryError(
        f"out of memory on {device or 'the device'}{asked} with {batch}"
        f"{f' and {resolution}' if resolution else ''}. What lowers it: a smaller "
        f"{_names(flat, _BATCH) or 'data.batch_size'} with trainer.accumulate_grad_batches raised "
        "by the same factor, a smaller image, trainer.precision=bf16-mixed"
        f"{f' (now {more})' if more else ''}"
    )


def _disk(error: OSError) -> NoSpaceError:
    where = Path(str(error.filename)) if error.filename is not None else Path()
    known = STORAGE_ERRORS[error.errno or 0]
    free = free_bytes(where.absolute().parent)
    left = f" ({free:,} bytes are free)" if free is not None and error.errno in NO_SPACE else ""
    return NoSpaceError(f"{where}: can't be written: {known}{left}")


def _settings(flat: Mapping[str, Any], names: tuple[str, ...]) -> str:
    found = [
        f"{key}={value}"
        for key, value in flat.items()
        if key.rpartition(".")[2] in names and key.startswith(("data.", "model."))
        if value is not None
    ]
    return ", ".join(found)


def _names(flat: Mapping[str, Any], names: tuple[str, ...]) -> str:
    return ", ".join(
        key for key in flat if key.rpartition(".")[2] in names and key.startswith("data.")
    )
