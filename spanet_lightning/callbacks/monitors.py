"""Which metrics callbacks monitor: verified, with their direction, before the first step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from spanet_lightning.errors import invalid, invalid_choice
from spanet_lightning.tasks.logged import logged
from spanet_lightning.tasks.metrics import direction

_ALWAYS = ("loss", "step", "epoch")  # logged, or counted, in any run
_BEST = {"min": "smallest", "max": "largest"}


class MonitorCheck(Callback):
    """Refuses a monitor that the task never logs, where that can be known.

    It can't of a task, or with a callback, of the user's own: both may log whatever they like.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the monitor and the mode of each callback that has them.

        Raises:
            ConfigError: If a monitor is not logged in this run.
        """
        if stage != "fit":
            return
        known = None if _has_foreign_callback(trainer) else logged(pl_module)
        validates: Any = trainer.limit_val_batches
        for key, callback in _monitoring(trainer):
            name = str(callback.monitor)
            if name in _ALWAYS:
                continue
            if known is not None and (name.startswith("test/") or not known.has(name)):
                raise invalid_choice(key, name, known.of("val", "train"))
            if validates == 0 and name.startswith("val/"):
                if isinstance(callback, EarlyStopping):
                    accepted = "a metric of training: trainer.limit_val_batches=0 logs none of val/"
                    raise invalid(key, name, accepted)
                rank_zero_info("Without validation there is no best checkpoint, only the last one.")
            best = direction(name)
            if callback.mode != best:
                rank_zero_info(
                    f"{key}: {name} is best at its {_BEST[best]} value, but mode is "
                    f"{callback.mode!r}"
                )


def set_modes(config: dict[str, Any]) -> None:
    """Set the `mode` of callbacks that state none: Lightning's default is always "min".

    Args:
        config: A configuration as it was written; it is changed.
    """
    callbacks = (config.get("trainer") or {}).get("callbacks") or []
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        if isinstance(callback, dict) and callback.get("class_path") in _WITH_MODE:
            given = callback.get("init_args") or {}
            if isinstance(given.get("monitor"), str):
                given.setdefault("mode", direction(given["monitor"]))


_WITH_MODE = [f"lightning.pytorch.callbacks.{n}" for n in ("EarlyStopping", "ModelCheckpoint")]


def _monitoring(trainer: Trainer) -> Iterator[tuple[str, EarlyStopping | ModelCheckpoint]]:
    """Yield each callback that monitors a metric, with the key of its monitor."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EarlyStopping | ModelCheckpoint) and callback.monitor is not None:
            ours = callback is trainer.checkpoint_callback
            key = "checkpoint" if ours else f"trainer.callbacks: {type(callback).__name__}"
            yield f"{key}.monitor", callback


def _has_foreign_callback(trainer: Trainer) -> bool:
    known = ("lightning", "spanet_lightning")
    modules = {type(callback).__module__ for callback in trainer.callbacks}  # type: ignore[attr-defined]
    return any(module.partition(".")[0] not in known for module in modules)
