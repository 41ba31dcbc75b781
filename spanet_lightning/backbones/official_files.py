"""Read a checkpoint's file without running code from it."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from spanet_lightning import seal
from spanet_lightning.errors import CheckpointError
from spanet_lightning.remote import fetched, is_address


def read(
    checkpoint: str | Path | Mapping[str, Any],
) -> tuple[str, dict[str, Tensor], dict[str, str]]:
    """Return a name for messages, the state dict, and the file's metadata.

    Args:
        checkpoint: A file, its address with its hash (see `spanet_lightning.remote`), or a mapping.

    Raises:
        CheckpointError: If it can't be had or read, or holds more than tensors and plain values.
    """
    if isinstance(checkpoint, Mapping):
        return "checkpoint", unwrap("checkpoint", checkpoint), {}
    if is_address(str(checkpoint)):
        checkpoint = fetched(str(checkpoint))
    path = Path(checkpoint)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                return str(path), tensors, file.metadata() or {}
        except SafetensorError as error:
            raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from None
    return str(path), unwrap(str(path), load(path)), {}


def load(path: Path) -> Any:
    """Return what `torch.save` wrote to a file: tensors and plain values.

    Raises:
        CheckpointError: If it can't be read, is not what was written, or holds more than that.
    """
    try:
        seal.verify(path)
        with warnings.catch_warnings():  # torch warns of a protocol just before it refuses the file
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except seal.DamagedError as error:
        raise CheckpointError(f"{path}: is damaged: {error}") from None
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused, it holds more than tensors and plain values{_offender(error)}; "
            "loading it could run code. Save its state_dict alone where it was made"
        ) from None
    except (EOFError, RuntimeError, OSError, ValueError, KeyError) as error:
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not a readable checkpoint ({cause})") from None


def _offender(error: Exception) -> str:
    found = re.search(r"(?:GLOBAL|global) (\S+)", str(error))
    return f" ({found[1].rstrip('.,')})" if found else ""


def unwrap(name: str, content: Any) -> dict[str, Tensor]:
    """Find the mapping of names to tensors inside the wrappers that trainers put around it."""
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{name}: got {type(content).__name__}, expected a state dict")
    state = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not state:
        raise CheckpointError(f"{name}: holds no tensors, expected a state dict")
    for prefix in ("module.", "model."):  # saved from DataParallel; our dense tasks' checkpoints
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state
