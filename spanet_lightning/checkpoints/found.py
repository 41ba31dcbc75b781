"""The checkpoints that are in the folder of a run, and which of them to go on from."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch

from spanet_lightning import seal

LAST = "last"


@dataclass(frozen=True)
class Found:
    """A checkpoint that loads.

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


def in_folder(folder: Path) -> list[Path]:
    """Return the checkpoints of a run: `last.ckpt` first, then the newest.

    Args:
        folder: Folder of the run.
    """

    def order(path: Path) -> tuple[bool, float]:
        return (path.stem == LAST, path.stat().st_mtime)

    return sorted(
        (path for path in folder.glob("*.ckpt") if path.is_file()), key=order, reverse=True
    )


def best_of(paths: list[Path], resumable: bool = True) -> Found | None:
    """Return the checkpoint that is whole and the furthest on, if any is.

    Args:
        paths: Checkpoints.
        resumable: Whether one of weights alone does not do.
    """
    found = [one for path in paths if (one := look(path)) is not None]
    found = [one for one in found if one.resumable or not resumable]
    return max(found, key=lambda one: one.step, default=None)


def look(path: Path) -> Found | None:
    """Return what a checkpoint is; None where it is damaged, or none of a run.

    Args:
        path: The file.
    """
    try:
        seal.verify(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on how the file was pickled
            state = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except (seal.DamagedError, pickle.UnpicklingError, OSError, RuntimeError, EOFError, ValueError,
            KeyError):  # fmt: skip
        return None
    if not isinstance(state, dict) or "pytorch-lightning_version" not in state:
        return None
    return Found(
        path=path,
        epoch=int(state.get("epoch", 0)) + 1,
        step=int(state.get("global_step", 0)),
        resumable="optimizer_states" in state and "loops" in state,
    )
