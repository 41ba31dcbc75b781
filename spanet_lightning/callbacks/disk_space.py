"""Whether the disk takes a run's checkpoints, checked before the first step."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from spanet_lightning import checkpoints
from spanet_lightning.errors import NoSpaceError


def check_disk_space(trainer: Trainer, model: LightningModule) -> None:
    """Refuse folders of checkpoints that can't be written or have too little space.

    Args:
        trainer: About to begin; its checkpoint callbacks know their folders.
        model: What is saved.

    Raises:
        NoSpaceError: In all processes.
    """
    problem = ""
    for saver in trainer.checkpoint_callbacks:
        if not isinstance(saver, ModelCheckpoint) or saver.dirpath is None:
            continue
        if trainer.is_global_zero and not problem and "://" not in str(saver.dirpath):
            size = checkpoints.estimate_size(model, trainer.optimizers)
            problem = checkpoints.disk_problem(Path(saver.dirpath), size, _names(saver))
    problem = trainer.strategy.broadcast(problem)
    if problem:
        raise NoSpaceError(problem)


def _names(saver: ModelCheckpoint) -> list[str]:
    """Return the files that are to be there in the end, as far as they are known."""
    missing = max(saver.save_top_k, 0) - len(saver.best_k_models)
    names = [f"{saver.filename}{saver.FILE_EXTENSION}"] if missing > 0 else []
    names += [f"{number} of the best" for number in range(1, missing)]
    if saver.save_last is True:
        names.append(f"{saver.CHECKPOINT_NAME_LAST}{saver.FILE_EXTENSION}")
    return names
