"""The folder of a run and what is written into it once training really starts."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from spanet_lightning import tracking
from spanet_lightning.checkpoints.files import hold
from spanet_lightning.cli import ranks
from spanet_lightning.errors import ConfigError
from spanet_lightning.tracking import provenance

CONFIG_FILE = "config.yaml"
RESUMED_FILE = "config.resumed.yaml"
_PATIENCE = 15.0  # seconds; the loaders of a killed process outlive it by a few


class RunRecord(Callback):
    """Reserves the folder of a run, saves the configuration there and with the tracker.

    All of it happens when the first step is about to be taken, or the first batch evaluated. By
    then the data has been found and the checkpoint read: whatever a user got wrong has come up,
    and leaves no trace on disk.

    Args:
        folder: Wanted folder; where it is taken, a number is added to its name.
        config: The resolved configuration as YAML.
        params: The configuration by dotted keys, and what the model costs.
        checkpoints: The checkpoint callbacks that save into the folder.
        look: Looks at code, machine and data, once all are known.
        resumed: Whether the folder is that of the run that is resumed, and so is used as it is.

    Attributes:
        folder: The folder of the run, as reserved.
    """

    def __init__(
        self,
        folder: Path,
        config: str,
        params: Mapping[str, Any],
        checkpoints: Sequence[ModelCheckpoint] = (),
        look: Callable[[Trainer], provenance.Provenance] | None = None,
        resumed: bool = False,
    ) -> None:
        self.folder = folder
        self.config = config
        self.params = params
        self.checkpoints = checkpoints
        self.look = look
        self.resumed = resumed
        self._recorded = False
        self._held: int | None = None
        if resumed:
            # Before Lightning restores their state, which holds only for the same folder.
            self._place_checkpoints()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reserve the folder, save the configuration, and tell the tracker.

        Raises:
            ConfigError: If the tracker will never take the run.
        """
        if trainer.is_global_zero:
            for logger in _trackers(trainer):
                logger.check()
        if not self.resumed:
            reserved = reserve(self.folder) if trainer.is_global_zero else self.folder
            self.folder = Path(trainer.strategy.broadcast(str(reserved)))
            self._place_checkpoints()
        if trainer.is_global_zero:
            self._hold()
            # A resumed run keeps the file that it began with.
            name = RESUMED_FILE if self.resumed else CONFIG_FILE
            write(self.folder / name, self.config)
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
            # First: a name that the run is given wins over one that it has by itself.
            if self.look is not None and _trackers(trainer):
                known = self.look(trainer)
                provenance.record(trainer.loggers, known, resumed=self.resumed)
            tracking.record(trainer.loggers, self.params, self.config, tags, file)
        self._recorded = True

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Tell the tracker what ends the run; Lightning tells it only that something does."""
        self._let_go()
        if trainer.is_global_zero:
            for logger in _trackers(trainer):
                logger.set_failure(ranks.cause(exception))

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let a run whose folder was moved know its best checkpoint still.

        Without its score Lightning would take the next epoch for the best, and overwrite the file.
        """
        states = checkpoint.get("callbacks", {})
        for callback in self.checkpoints if self.resumed else ():
            state = states.get(callback.state_key)
            if state and state["dirpath"] != callback.dirpath:
                states[callback.state_key] = _moved(state, str(callback.dirpath))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the folder to whoever goes on with the run."""
        self._let_go()

    def _hold(self) -> None:
        """Take the folder: two processes that save into it would mix two runs.

        Raises:
            ConfigError: If another process trains in it.
        """
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                self._held = hold(self.folder)
            except BlockingIOError:
                if time.monotonic() < until:
                    time.sleep(0.2)
                    continue
                raise ConfigError(
                    f"resume: {self.folder} is in use: another process trains there; expected a "
                    "run that has ended"
                ) from None
            return

    def _let_go(self) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None

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


def reserve(folder: Path) -> Path:
    """Create a folder that did not exist, so that runs started at once never share one.

    Args:
        folder: Wanted folder; where it is taken, `-2`, `-3`, … is added to its name.

    Returns:
        The folder that was created.
    """
    candidate, number = folder, 1
    while True:
        try:
            candidate.mkdir(parents=True)
        except FileExistsError:
            number += 1
            candidate = folder.with_name(f"{folder.name}-{number}")
        else:
            return candidate


def write(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def run_name(configs: Sequence[str]) -> str:
    """Name a run after its first configuration: `configs/digits/spanetv2.yaml`, "digits-spanetv2".

    Args:
        configs: Paths of the configurations, as given.
    """
    if not configs:
        return "run"
    path = Path(configs[0])
    if path.name in (CONFIG_FILE, RESUMED_FILE):  # of an earlier run: named as its folder
        return path.resolve().parent.name
    parent = path.resolve().parent.name
    return path.stem if parent in ("", "configs") else f"{parent}-{path.stem}"
