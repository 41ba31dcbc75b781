"""The folder of a run and what is written into it once training really starts."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from spanet_lightning import run_dir, tracking
from spanet_lightning.callbacks import lost_process
from spanet_lightning.callbacks.disk_space import check_disk_space
from spanet_lightning.checkpoints import list_checkpoints, remove_partial_files
from spanet_lightning.errors import ConfigError, NoSpaceError
from spanet_lightning.run_dir import CONFIG_FILE, RESUMED_FILE
from spanet_lightning.tracking import provenance


class RunRecord(Callback):
    """Reserves the folder of a run, saves the configuration there and with the tracker.

    All of it happens right before the first step or the first evaluated batch. By then the data has
    been opened and the checkpoint read: whatever a user got wrong has been refused, and leaves
    nothing on disk.

    Args:
        folder: Wanted folder; where it is taken, a number is added to its name.
        config: The resolved configuration as YAML.
        params: The configuration by dotted keys, and what the model costs.
        checkpoints: The checkpoint callbacks that save into the folder.
        provenance_of: Describes code, machine and data, once all are known.
        resumed: Whether the folder is that of the run that is resumed, and so is used as it is.
        named: Whether the run has to have this very folder: its next attempt looks there.

    Attributes:
        folder: The folder of the run, as reserved.
    """

    def __init__(
        self,
        folder: Path,
        config: str,
        params: Mapping[str, Any],
        checkpoints: Sequence[ModelCheckpoint] = (),
        provenance_of: Callable[[Trainer], provenance.Provenance] | None = None,
        resumed: bool = False,
        named: bool = False,
    ) -> None:
        self.folder = folder
        self.config = config
        self.params = params
        self.checkpoints = checkpoints
        self.provenance_of = provenance_of
        self.resumed = resumed
        self._recorded = False
        self.named = named
        self._created = True
        self._lock: FileLock | None = None
        if resumed:
            # Before Lightning restores their state, which holds only for the same folder.
            self._place_checkpoints()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reserve the folder, save the configuration, and tell the tracker.

        Raises:
            ConfigError: If the tracker will never take the run, or another process has the folder.
            NoSpaceError: If the disk does not take its checkpoints.
        """
        if trainer.is_global_zero:
            for logger in _trackers(trainer):
                logger.check()
        if not self.resumed:
            reserved = self._claim() if trainer.is_global_zero else self.folder
            self.folder = Path(trainer.strategy.broadcast(str(reserved)))
            self._place_checkpoints()
        if trainer.is_global_zero:
            self._acquire()
        try:
            check_disk_space(trainer, pl_module)
        except NoSpaceError:
            if trainer.is_global_zero:
                self._remove_new_folder()
            raise
        if trainer.is_global_zero:
            # A resumed run keeps the file that it began with.
            name = RESUMED_FILE if self.resumed else CONFIG_FILE
            run_dir.write_text(self.folder / name, self.config)
            for logger in _trackers(trainer):
                logger.set_folder(self.folder)
        self._record(trainer, {"mlflow.runName": self.folder.name, "folder": str(self.folder)})

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the tracker what is validated, where this is no part of a training run."""
        if trainer.state.fn == "validate":
            self._record(trainer, {"mlflow.runName": f"{self.folder.name} validate"})

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the tracker what is tested, unless the same run was trained before."""
        self._record(trainer, {"mlflow.runName": f"{self.folder.name} test"})

    def _record(self, trainer: Trainer, tags: Mapping[str, str]) -> None:
        if trainer.is_global_zero and not self._recorded:
            for logger in _trackers(trainer):  # of a run that has no folder
                logger.set_folder(self.folder.parent / ".tracking" / uuid.uuid4().hex)
            file = RESUMED_FILE if self.resumed else CONFIG_FILE
            # First: a name that the run is given overrides its own.
            if self.provenance_of is not None and _trackers(trainer):
                known = self.provenance_of(trainer)
                provenance.record(trainer.loggers, known, resumed=self.resumed)
            tracking.record(trainer.loggers, self.params, self.config, tags, file)
        self._recorded = True

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Record what ends the run; Lightning passes only that it failed."""
        self._release()
        if trainer.is_global_zero:
            for logger in _trackers(trainer):
                logger.set_failure(lost_process.cause(exception, trainer))

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the best checkpoint of a run whose folder was moved.

        Without its score Lightning would take the next epoch for the best, and overwrite the file.
        """
        states = checkpoint.get("callbacks", {})
        for callback in self.checkpoints if self.resumed else ():
            state = states.get(callback.state_key)
            if state and state["dirpath"] != callback.dirpath:
                states[callback.state_key] = _moved(state, str(callback.dirpath))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Unlock the folder."""
        self._release()

    def _claim(self) -> Path:
        """Create the folder of a run that begins; one that `--resume auto` names is taken as it is.

        Raises:
            ConfigError: If another process began the run of that name meanwhile.
        """
        if not self.named:
            return run_dir.reserve(self.folder)
        self._created = not self.folder.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder

    def _acquire(self) -> None:
        self._lock = run_dir.lock(self.folder, run_dir.PATIENCE)
        if not self.resumed and list_checkpoints(self.folder):
            self._release()
            raise ConfigError(
                f"resume: another process has begun {self.folder} meanwhile; the same command "
                "again resumes it"
            )
        remove_partial_files(self.folder)

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _remove_new_folder(self) -> None:
        """Remove the new folder of a run that was refused before its first step."""
        self._release()
        if not self.resumed and self._created:
            (self.folder / run_dir.LOCK_FILE).unlink(missing_ok=True)
            with suppress(OSError):  # unless something is in it
                self.folder.rmdir()

    def _place_checkpoints(self) -> None:
        for callback in self.checkpoints:
            # The form that Lightning compares with what a checkpoint remembers.
            callback.dirpath = os.path.realpath(self.folder)


def _moved(state: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """Return the state of a checkpoint callback for another folder with the same files."""

    def there(path: str) -> str:
        return str(Path(folder) / Path(path).name) if path else path

    return {
        **state,
        "dirpath": folder,
        **{key: there(value) for key, value in state.items() if key.endswith("_path")},
        "best_k_models": {there(path): score for path, score in state["best_k_models"].items()},
    }


def _trackers(trainer: Trainer) -> list[tracking.MLflowLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, tracking.MLflowLogger)]
