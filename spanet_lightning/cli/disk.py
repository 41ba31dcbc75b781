"""Whether the disk takes a run's checkpoints, asked before the first step."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from spanet_lightning import checkpoints
from spanet_lightning.errors import NoSpaceError


class DiskCheck(Callback):
    """Tidies the folders that checkpoints go to, and refuses to start where they can't.

    Comes after the run's folder is known.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the folder of each checkpoint callback.

        Raises:
            NoSpaceError: In all processes, if one can't be written or has too little space.
        """
        found = ""
        for saver in trainer.checkpoint_callbacks:
            if not isinstance(saver, ModelCheckpoint) or saver.dirpath is None:
                continue
            if trainer.is_global_zero and not found and "://" not in str(saver.dirpath):
                folder = Path(saver.dirpath)
                checkpoints.clear_partials(folder)
                size = checkpoints.estimate(pl_module, trainer.optimizers)
                found = checkpoints.problem(folder, size, _names(saver))
        found = trainer.strategy.broadcast(found)
        if found:
            raise NoSpaceError(found)


def _names(saver: ModelCheckpoint) -> list[str]:
    """Return what is to be there in the end, as far as it is known now."""
    kept = max(saver.save_top_k, 0) - len(saver.best_k_models)
    names = [f"{saver.filename}{saver.FILE_EXTENSION}"] if kept > 0 else []
    names += [f"{number} of the best" for number in range(1, kept)]
    if saver.save_last is True:
        names.append(f"{saver.CHECKPOINT_NAME_LAST}{saver.FILE_EXTENSION}")
    return names
