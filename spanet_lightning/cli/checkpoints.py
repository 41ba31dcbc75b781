"""Checkpoints that a command is asked to read: only local files of tensors, only ones that fit."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spanet_lightning import checkpoints
from spanet_lightning.cli import resume
from spanet_lightning.errors import CheckpointError, did_you_mean


def check(path: str | Path, model: nn.Module, root: str | Path = "runs") -> None:
    """Check that a checkpoint can be read without running code, and holds this model's weights.

    Args:
        path: What the user gave as `ckpt_path`.
        model: The model that is to be restored.
        root: Folder of runs, searched for a suggestion.

    Raises:
        CheckpointError: If it can't, or does not.
    """
    # Lightning takes addresses as well, and then unpickles whatever they hold.
    if "://" in str(path):
        raise CheckpointError(
            f"ckpt_path: got {str(path)!r}, expected a local file, not an address"
        )
    file = Path(path)
    if not file.is_file():
        folder = file if file.is_dir() else Path(root)
        near = [str(found) for found in sorted(folder.glob("**/*.ckpt"))]
        hint = did_you_mean(path, near) or (f"; there is {near[-1]!r}" if near else "")
        problem = "is a folder" if file.is_dir() else "does not exist"
        raise CheckpointError(
            f"ckpt_path: got {str(path)!r}, which {problem}; expected a checkpoint file{hint}"
        )
    try:
        state = _read(file)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{_instead(file)}") from None
    saved = state.get("state_dict") if isinstance(state, dict) else None
    if not isinstance(saved, dict) or "pytorch-lightning_version" not in state:
        raise CheckpointError(
            f"ckpt_path: {path} is not a checkpoint of a run; to start from official weights "
            f"set model.weights{_instead(file)}"
        )
    made_by = (state.get("hyper_parameters") or {}).get("backbone")
    name = made_by.get("class_path") if isinstance(made_by, dict) else None
    _compare(str(path), saved, model, f" ({name.rpartition('.')[2]})" if name else "")


def _instead(file: Path) -> str:
    """Return the hint to a checkpoint beside a damaged one, where one loads."""
    near = [path for path in checkpoints.in_folder(file.parent) if path.name != file.name]
    found = checkpoints.best_of(near, resumable=False)
    if found is None:
        return ""
    return f"; {resume.offer(found)}"


def _read(file: Path) -> Any:
    try:
        checkpoints.verify(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on how the file was pickled
            # Mapped where the format allows it: only names and shapes are looked at.
            mapped = zipfile.is_zipfile(file)
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except checkpoints.DamagedError as error:
        raise CheckpointError(
            f"ckpt_path: {file} ({file.stat().st_size:,} bytes) can't be read: {error}"
        ) from None
    except pickle.UnpicklingError as error:
        found = re.search(
            r"(?:GLOBAL|global) (\S+)|WeightsUnpickler error: (.*?) Check", str(error)
        )
        what = f" ({(found[1] or found[2]).rstrip('.,')})" if found else ""
        raise CheckpointError(
            f"ckpt_path: {file} is refused: it holds more than tensors and plain values{what}, "
            "and reading it could run code"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split()).split(". ")[0] or type(error).__name__
        raise CheckpointError(
            f"ckpt_path: {file} ({file.stat().st_size:,} bytes) can't be read: it is cut off, or "
            f"no checkpoint ({reason})"
        ) from None


def _compare(path: str, saved: dict[str, Any], model: nn.Module, made_by: str) -> None:
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in saved]
    extra = [name for name in saved if name not in wanted]
    other = [
        f"{name}, {tuple(saved[name].shape)} for {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in saved and saved[name].shape != tensor.shape
    ]
    differences = [
        f"{what} {len(names)} ({names[0]}{', …' if len(names) > 1 else ''})"
        for what, names in (
            ("lacks", missing),
            ("has extra", extra),
            ("has another shape of", other),
        )
        if names
    ]
    if differences:
        backbone = getattr(model, "backbone", model)
        raise CheckpointError(
            f"ckpt_path: {path}{made_by} is of another architecture than the configured "
            f"{type(backbone).__name__}: of {len(wanted)} tensors it {', '.join(differences)}"
        )
