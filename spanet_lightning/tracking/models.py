"""Checkpoints as artifacts of a run, and its model in MLflow's registry."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from spanet_lightning.errors import invalid
from spanet_lightning.tracking.logger import MLflowLogger
from spanet_lightning.tracking.options import CheckpointPolicy
from spanet_lightning.tracking.sender import say

CHECKPOINTS = "checkpoints"
"""Folder of checkpoints among the artifacts of a run."""
MODEL = "model"
"""Folder of the MLflow model in the folder of a run."""
_SECONDS = 60.0  # that the registry may take: a server that hangs must not keep a run from ending


class ModelArtifacts(Callback):
    """Records a run's checkpoint with the tracker, and registers its model.

    Both happen once training has ended; the checkpoint is recorded after an exception or Ctrl-C as
    well. Only the registry is waited for, a minute at most: what keeps a model from being
    registered is said in one line with the command that does it later, and fails no run.

    Args:
        policy: Which checkpoint becomes an artifact: the best one (the last where none is best),
            the last one, or none.
        register: Name of the registered model that the best checkpoint's model becomes the next
            version of; None registers none.
    """

    def __init__(self, policy: CheckpointPolicy, register: str | None = None) -> None:
        self.policy: CheckpointPolicy = policy
        self.register = register
        self._stored = ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a model that can't be registered before hours are spent on training it.

        Raises:
            ConfigError: If it is no classifier, or a package is missing.
        """
        if self.register is None or stage != "fit":
            return
        from spanet_lightning.export.onnx_file import require_packages

        if "ClassificationTask" not in {cls.__name__ for cls in type(pl_module).__mro__}:
            raise invalid("tracking.register", self.register, "null: only classifiers are exported")
        require_packages("tracking.register")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the checkpoint and register the model."""
        if not trainer.is_global_zero:
            return
        self._store(trainer)
        best = _path(trainer, "best")
        if self.register is not None and best is not None:
            for logger in _loggers(trainer):
                _register(logger, best, self.register, _size(trainer))

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Record the checkpoint that there is: a run that was cut short may be resumed from it."""
        if trainer.is_global_zero:
            self._store(trainer)

    def _store(self, trainer: Trainer) -> None:
        path = None if self.policy == "none" else _path(trainer, self.policy)
        if path is not None and str(path) != self._stored:
            for logger in _loggers(trainer):
                logger.log_artifact(path, CHECKPOINTS)
            self._stored = str(path)


def _loggers(trainer: Trainer) -> Iterator[MLflowLogger]:
    return (logger for logger in trainer.loggers if isinstance(logger, MLflowLogger))


def _path(trainer: Trainer, policy: CheckpointPolicy) -> Path | None:
    saver = trainer.checkpoint_callback
    if not isinstance(saver, ModelCheckpoint):
        return None
    best, last = saver.best_model_path, saver.last_model_path
    found = (best or last) if policy == "best" else last
    return Path(found) if found and Path(found).is_file() else None


def _size(trainer: Trainer) -> tuple[int, int] | None:
    """Return the size of the images that the data delivers, where it says so."""
    size = getattr(getattr(trainer, "datamodule", None), "image_size", None)
    if isinstance(size, int):
        return size, size
    return (size[0], size[1]) if isinstance(size, (tuple, list)) and len(size) == 2 else None


def _register(
    logger: MLflowLogger, checkpoint: Path, name: str, size: tuple[int, int] | None
) -> None:
    from spanet_lightning import export
    from spanet_lightning.tracking import pyfunc

    folder = checkpoint.parent / MODEL
    run_id = logger.run_id
    try:
        source = export.from_checkpoint(checkpoint)
        pyfunc.save(source, folder, size or source.size)
        problem = "the store does not answer"
        if run_id and logger.flush():
            problem = _bounded(
                lambda: say(
                    "the model is registered as "
                    + pyfunc.store(folder, run_id, logger.tracking_uri, name)
                )
            )
    except Exception as error:  # the run is over, and its weights are saved
        problem = _reason(error)
    if problem:
        say(
            f"the model was not registered ({problem}). Later: spanet export {_short(checkpoint)} "
            f"--format pyfunc --output {_short(folder)} --overwrite --run {run_id or 'RUN_ID'} "
            f"--register {name}"
        )


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _short(path: Path) -> Path:
    """Return a path as seen from the working directory, where it is below it."""
    here = Path.cwd().resolve()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _bounded(function: Callable[[], None]) -> str:
    """Call a function, and leave it alone where it takes too long; return what went wrong."""
    found = [f"no answer within {_SECONDS:g} s"]

    def call() -> None:
        try:
            function()
            found[0] = ""
        except Exception as error:  # as above
            found[0] = _reason(error)

    # A daemon: the process may end while it still waits.
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(_SECONDS)
    return found[0]
