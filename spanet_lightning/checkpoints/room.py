"""Whether a folder takes the checkpoints of a run, asked before the first step."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from spanet_lightning.checkpoints import files

ROOM_FOR_TEXT = 1 << 20
"""Bytes of what is no tensor in a checkpoint, and of the small files beside it."""


def estimate(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> int:
    """Return about how many bytes a checkpoint will take, tensors alone.

    Args:
        model: What is trained, with all that is stored with it.
        optimizers: Optimizers, whose states may not be there before the first step.
    """
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    for optimizer in optimizers:
        weights = sum(
            p.numel() * p.element_size()
            for group in optimizer.param_groups
            for p in group["params"]
        )
        size += _states(optimizer) * weights
    return int(size)


def _states(optimizer: torch.optim.Optimizer) -> int:
    """Return how many tensors of a weight's size an optimizer keeps for each."""
    if isinstance(optimizer, torch.optim.SGD):
        return int(any(group.get("momentum", 0) for group in optimizer.param_groups))
    return 2 if any("betas" in group for group in optimizer.param_groups) else 1


def problem(folder: Path, size: int, names: Iterable[str]) -> str:
    """Return why a folder can't take the checkpoints of a run; "" where it can.

    Args:
        folder: The folder; it is made where there is none.
        size: Bytes of one checkpoint.
        names: The checkpoints that are to be there in the end. One more is there while it is
            written.
    """
    probe = folder / f".probe.{uuid.uuid4().hex[:12]}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with probe.open("xb") as file:
            file.write(b"\0" * 4096)  # a full disk may still take names
            os.fsync(file.fileno())
    except OSError as error:
        known = {**files.NO_SPACE, **files.NOT_WRITABLE}
        return f"{folder} can't be written: {known.get(error.errno or 0, error.strerror)}"
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    free = files.free_bytes(folder)
    new = 1 + sum(not (folder / name).exists() for name in names)
    needed = new * (size + ROOM_FOR_TEXT)
    if free is None or free >= needed:
        return ""
    return (
        f"{folder} has {free:,} bytes free; {new} files of about {size:,} bytes, of which one is "
        f"being written, need {needed:,}"
    )
