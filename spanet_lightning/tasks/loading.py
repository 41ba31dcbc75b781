"""Rebuilding a task from its checkpoint without running code that the file brings or names."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spanet_lightning import seal
from spanet_lightning.errors import CheckpointError, invalid
from spanet_lightning.remote import is_address
from spanet_lightning.trust import restrict_imports


@contextmanager
def safely(checkpoint: Any, weights_only: bool | None) -> Iterator[None]:
    """Let Lightning load a checkpoint: a local file, tensors and plain values, trusted classes.

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
    try:
        if isinstance(checkpoint, str | Path) and Path(checkpoint).is_file():
            seal.verify(checkpoint)
        with warnings.catch_warnings():  # torch warns of a protocol just before it refuses the file
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            yield
    except seal.DamagedError as error:
        raise CheckpointError(f"{checkpoint}: is damaged: {error}") from None
    except pickle.UnpicklingError as error:
        first = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{checkpoint}: refused, it holds more than tensors and plain values ({first})"
        ) from None
