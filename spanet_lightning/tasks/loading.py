"""Weights to start from, and rebuilding a task from its checkpoint; no file's code is run."""

from __future__ import annotations

import inspect
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from torch import nn

import spanet_lightning
from spanet_lightning.backbones import checkpoint_file, load_official
from spanet_lightning.backbones.weights import WeightsSet
from spanet_lightning.errors import CheckpointError, invalid
from spanet_lightning.remote import is_address
from spanet_lightning.renamed import modernize
from spanet_lightning.trust import restrict_imports


def load_weights(model: nn.Module, weights: str, weights_set: WeightsSet | None) -> None:
    """Load the weights that a run starts from, and print how each tensor was handled.

    Args:
        model: A backbone or a dense model.
        weights: As `load_official` takes it.
        weights_set: Which set of the file.

    Raises:
        CheckpointError: If they can't be read, or don't fit.
    """
    report = load_official(model, weights, weights_set)
    lines = str(report).replace("\n", "\n  ")
    rank_zero_info(f"model.weights: {weights}\n  {lines}")


@contextmanager
def safely(checkpoint: Any, weights_only: bool | None) -> Iterator[dict[str, Any]]:
    """Let Lightning load a checkpoint: a local file, tensors and plain values, trusted classes.

    Yields the parts of a task that the first version stored, as this version builds them.

    Lightning alone unpickles whatever an address of http sends, and builds what the
    hyperparameters name.

    Args:
        checkpoint: What is to be loaded.
        weights_only: What the caller wants; only true, which null stands for, is accepted.

    Raises:
        ConfigError: If it is false.
        CheckpointError: If the checkpoint is an address, is not what was written, or holds code.
    """
    if weights_only is False:
        raise invalid("weights_only", weights_only, "true: anything else could run code")
    if isinstance(checkpoint, str) and is_address(checkpoint):
        raise CheckpointError(f"checkpoint: got {checkpoint!r}, expected a local file")
    restrict_imports()
    parts = {}
    if isinstance(checkpoint, str | Path) and Path(checkpoint).is_file():
        content, _ = checkpoint_file.read(checkpoint)  # names what is wrong with it in one line
        parts = _modernized_parts(content)
    try:
        with warnings.catch_warnings():  # torch warns of a protocol just before it refuses the file
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            yield parts
    except pickle.UnpicklingError as error:
        first = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{checkpoint}: refused, it holds more than tensors and plain values ({first})"
        ) from None


def _modernized_parts(content: Any) -> dict[str, Any]:
    """Return what a checkpoint's hyperparameters say of backbone and head, under present names."""
    stored = content.get("hyper_parameters") if isinstance(content, Mapping) else None
    described = {k: v for k, v in (stored or {}).items() if k in ("backbone", "head")}
    parts = {}
    for key, part in described.items():
        arguments = part.get("init_args") if isinstance(part, Mapping) else None
        package, _, name = str(part.get("class_path") if arguments else "").rpartition(".")
        if arguments and package.partition(".")[0] == "spanet_lightning":
            accepted = inspect.signature(getattr(spanet_lightning, name)).parameters
            parts[key] = {**part, "init_args": modernize(arguments, accepted)}
    return parts
