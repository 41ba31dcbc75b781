"""Lightning's Trainer for Python code, with this project's checkpoints and one-line errors."""

from __future__ import annotations

from typing import Any

from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.callbacks import Checkpoint

from spanet_lightning.callbacks.model_checkpoint import ModelCheckpoint
from spanet_lightning.callbacks.monitors import MonitorCheck
from spanet_lightning.callbacks.weight_averaging import replace_stock_averages
from spanet_lightning.checkpoints import SafeCheckpointIO
from spanet_lightning.errors import ConfigError
from spanet_lightning.keywords import check_keywords


class Trainer(LightningTrainer):
    """A Trainer whose checkpoints are written atomically and read without running code.

    Runs are saved below `runs/` unless `default_root_dir` says otherwise. Where no checkpoint
    callback is given, `last.ckpt` is written after every epoch.

    Args:
        kwargs: Arguments of `lightning.pytorch.Trainer`.

    Raises:
        ConfigError: If there is no such argument, or its value is refused, in one line as on the
            command line.
    """

    def __init__(self, **kwargs: Any) -> None:
        check_keywords(LightningTrainer.__init__, "Trainer", kwargs)
        callbacks, plugins = _as_list(kwargs.get("callbacks")), _as_list(kwargs.get("plugins"))
        replace_stock_averages(callbacks)
        saves = kwargs.get("enable_checkpointing", True) is not False
        given = any(isinstance(callback, Checkpoint) for callback in callbacks)
        if saves and not given and not kwargs.get("barebones"):
            callbacks.append(
                ModelCheckpoint(save_last=True, save_top_k=0, enable_version_counter=False)
            )
        if not kwargs.get("barebones"):
            callbacks.append(MonitorCheck())
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins.append(SafeCheckpointIO())
        defaults = {"default_root_dir": "runs", "logger": False}
        try:
            super().__init__(**{**defaults, **kwargs, "callbacks": callbacks, "plugins": plugins})
        except (MisconfigurationException, ValueError, TypeError) as error:
            raise ConfigError(f"Trainer: {' '.join(str(error).split())}") from error


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]
