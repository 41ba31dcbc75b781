"""How a trainer writes, reads and removes its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from spanet_lightning import seal
from spanet_lightning.checkpoints import files
from spanet_lightning.errors import CheckpointError


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
        files.save(checkpoint, _local(path))

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any | None = lambda storage, _: storage,
        weights_only: bool | None = None,  # noqa: ARG002
    ) -> dict[str, Any]:
        """Read a checkpoint, once its size and digest are those that were written.

        Args:
            path: The file.
            map_location: As `torch.load` takes it.
            weights_only: Always true: with false, a file could run any code that it brings.

        Raises:
            CheckpointError: If it is damaged, or an address.
        """
        file = _local(path)
        try:
            seal.verify(file)
            found: dict[str, Any] = torch.load(file, map_location=map_location, weights_only=True)
        except seal.DamagedError as error:
            raise CheckpointError(f"checkpoint {file} is damaged: {error}") from None
        except OSError as error:
            raise CheckpointError(
                f"checkpoint {file} can't be read ({error.strerror or error})"
            ) from None
        return found

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint that another has taken the place of.

        Args:
            path: The file.
        """
        _local(path).unlink(missing_ok=True)


def _local(path: str | Path) -> Path:
    if "://" in str(path):
        raise CheckpointError(f"checkpoint: got {str(path)!r}, expected a local file, no address")
    return Path(path)
