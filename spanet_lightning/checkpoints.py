"""Checkpoints of runs: written whole or not at all, verified and read without running code.

A checkpoint is written beside its target under a hidden name, forced to disk, and renamed. Whether
it is whole, the checksums of the zip archive tell that every checkpoint of torch is.
"""

from __future__ import annotations

import errno
import os
import pickle
import re
import shutil
import uuid
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from torch import nn

from spanet_lightning.backbones import checkpoint_file
from spanet_lightning.errors import CheckpointError, NoSpaceError

LAST = "last"
SMALL_FILES = 1 << 20
"""Bytes of what is no tensor in a checkpoint, and of the small files beside it."""

NO_SPACE = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up"}
"""What an operating system's error number says of a disk that takes no more."""
NOT_WRITABLE = {
    errno.EROFS: "it is read-only",
    errno.EACCES: "it may not be written",
    errno.EPERM: "it may not be written",
}
"""The same of a folder that takes nothing."""
STORAGE_ERRORS = {**NO_SPACE, **NOT_WRITABLE}

_PARTIAL = re.compile(r"\..+\.[0-9a-f]{12}\.partial")
# Partial files of this process, for whoever has to leave at once.
_in_progress: set[Path] = set()


# -- writing


class _Output:
    """Passes bytes on to a file; keeps their count and the operating system's own error."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.size = 0
        self.error: OSError | None = None

    def write(self, block: Any) -> int:
        try:
            self.file.write(block)
        except OSError as error:
            self.error = error  # torch raises one of its own over it
            raise
        self.size += len(block)
        return len(block)

    def flush(self) -> None:
        self.file.flush()


def save(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Write a checkpoint; the file of that name is the old one or the new one at every moment.

    Args:
        checkpoint: What `torch.save` takes.
        path: The file.

    Raises:
        NoSpaceError: If the disk does not take it. The old file is as it was.
    """
    file = Path(path)
    partial = file.with_name(f".{file.name}.{uuid.uuid4().hex[:12]}.partial")
    size = 0
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _in_progress.add(partial)
        with partial.open("xb") as out:
            output = _Output(out)
            try:
                torch.save(checkpoint, cast("IO[bytes]", output))
            except RuntimeError:
                if output.error is not None:
                    raise output.error from None
                raise
            finally:
                size = output.size
            out.flush()
            os.fsync(out.fileno())
        partial.replace(file)
        _sync_folder(file.parent)
    except OSError as error:
        raise storage_error(error, file, size) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        _in_progress.discard(partial)


def storage_error(error: OSError, file: Path, size: int = 0) -> Exception:
    """Return the user's error for a file that can't be written; other errors as they are.

    Args:
        error: Of the operating system.
        file: The file.
        size: Bytes that were written before.
    """
    number = error.errno or 0
    if number not in STORAGE_ERRORS:
        return error
    free = free_bytes(file.parent)
    old = "the file of that name is unchanged" if file.exists() else "no part of it is left"
    written = f" after {size:,} bytes" if size else ""
    left = "" if free is None or number not in NO_SPACE else f", {free:,} bytes are free"
    return NoSpaceError(f"{file}: can't be written{written}: {STORAGE_ERRORS[number]}{left}; {old}")


def remove_partial_files(folder: Path) -> list[Path]:
    """Remove what killed writers left in the folder of a run that this process has locked.

    Args:
        folder: The folder; those below it are left alone.

    Returns:
        What was removed.
    """
    removed = []
    for path in sorted(folder.glob(".*.partial")):
        if _PARTIAL.fullmatch(path.name) and not path.is_symlink() and path.is_file():
            with suppress(OSError):
                path.unlink()
                removed.append(path)
    return removed


def discard_partial_files() -> None:
    """Remove this process's partial files: it is about to end in the middle of writing."""
    for path in tuple(_in_progress):
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Force a rename to disk, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# -- disk space


def free_bytes(folder: Path) -> int | None:
    """Return how much a folder's disk takes; None where that can't be told."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def estimate_size(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> int:
    """Return about how many bytes the tensors of a checkpoint take.

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


def disk_problem(folder: Path, size: int, names: Iterable[str]) -> str:
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
        reason = STORAGE_ERRORS.get(error.errno or 0, error.strerror)
        return f"{folder} can't be written: {reason}"
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    free = free_bytes(folder)
    new = 1 + sum(not (folder / name).exists() for name in names)
    needed = new * (size + SMALL_FILES)
    if free is None or free >= needed:
        return ""
    return (
        f"{folder} has {free:,} bytes free; {new} files of about {size:,} bytes, of which one is "
        f"being written, need {needed:,}"
    )


# -- reading


@dataclass(frozen=True)
class CheckpointInfo:
    """A checkpoint of a run that loads.

    Attributes:
        path: The file.
        epoch: Epochs that were begun when it was written.
        step: Optimizer steps taken.
        resumable: Whether it holds more than weights.
    """

    path: Path
    epoch: int
    step: int
    resumable: bool


def read_info(path: Path) -> CheckpointInfo:
    """Return what a checkpoint is, once all of it has been verified.

    Args:
        path: The file.

    Raises:
        CheckpointError: If it is damaged, refused for what it would run, or none of a run.
    """
    state = _read(path, mmap=True)
    if not isinstance(state, dict) or "pytorch-lightning_version" not in state:
        raise CheckpointError(f"{path}: is not a checkpoint of a run")
    return CheckpointInfo(
        path=path,
        epoch=int(state.get("epoch", 0)) + 1,
        step=int(state.get("global_step", 0)),
        resumable="optimizer_states" in state and "loops" in state,
    )


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run: `last.ckpt` first, then the newest.

    Args:
        folder: Folder of the run.
    """

    def order(path: Path) -> tuple[bool, float]:
        return (path.stem == LAST, path.stat().st_mtime)

    files = (path for path in folder.glob("*.ckpt") if path.is_file())
    return sorted(files, key=order, reverse=True)


def latest(paths: Iterable[Path], resumable: bool = True) -> CheckpointInfo | None:
    """Return the checkpoint of the most steps among those that load, if any does.

    Args:
        paths: Checkpoints.
        resumable: Whether one of weights alone is left out.
    """
    usable = []
    for path in paths:
        with suppress(CheckpointError):
            info = read_info(path)
            if info.resumable or not resumable:
                usable.append(info)
    return max(usable, key=lambda info: info.step, default=None)


class SafeCheckpointIO(CheckpointIO):
    """Writes checkpoints that can't be lost, and reads only what is whole and runs no code.

    Lightning's own writes to the temporary folder and moves the file from there, with nothing
    forced to disk; on another file system the move is a copy, and a kill leaves half a file under
    the final name. It also unpickles whatever an address holds.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint beside its target, and put it in its place once it is on disk.

        Args:
            checkpoint: The state.
            path: The file.
            storage_options: Not supported.

        Raises:
            NoSpaceError: If the disk does not take it. The old file is as it was.
        """
        if storage_options is not None:
            raise TypeError("storage_options: not supported")
        save(checkpoint, _local(path))

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any | None = lambda storage, _: storage,
        weights_only: bool | None = None,  # noqa: ARG002
    ) -> dict[str, Any]:
        """Read a checkpoint, once its checksums agree with its content.

        Args:
            path: The file.
            map_location: As `torch.load` takes it.
            weights_only: Always true: with false, a file could run any code that it brings.

        Raises:
            CheckpointError: If it is damaged, refused, or an address.
        """
        state: dict[str, Any] = _read(_local(path), map_location)
        return state

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint that another has taken the place of.

        Args:
            path: The file.
        """
        _local(path).unlink(missing_ok=True)


def _read(file: Path, map_location: Any = "cpu", mmap: bool = False) -> Any:
    """Verify and load a checkpoint of tensors and plain values."""
    try:
        if file.stat().st_size == 0:
            raise CheckpointError(f"{file}: is damaged: it is empty")
        checkpoint_file.verify(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on how the file was pickled
            return torch.load(
                file, map_location=map_location, weights_only=True, mmap=mmap and _is_zip(file)
            )
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{file}: is refused: it holds more than tensors and plain values, which could run code"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{file}: can't be read ({error.strerror or error})") from None
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{file}: is damaged: it can't be unpacked") from None


def _is_zip(file: Path) -> bool:
    with file.open("rb") as data:
        return data.read(2) == b"PK"


def _local(path: str | Path) -> Path:
    if "://" in str(path):
        raise CheckpointError(f"checkpoint: got {str(path)!r}, expected a local file, no address")
    return Path(path)
