"""An exponential moving average of the weights that begins when its arguments say."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info


class EMAWeightAveraging(lightning_callbacks.EMAWeightAveraging):
    """Lightning's `EMAWeightAveraging` with the delay that its arguments promise (2.6.6).

    Until the average begins, Lightning's validates and saves the initial weights, and
    `update_starting_at_epoch` adds updates at the end of epochs without delaying the others. Here
    the average equals the trained weights until its first update, both arguments delay it, and a
    run whose average never begins says so. With `update_every_n_steps=0` it is updated once per
    epoch.

    The name is Lightning's, because it is the key of the callback's state in a checkpoint.
    """

    _epoch = 0

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Return whether to update after an optimizer step or at the end of an epoch.

        Args:
            step_idx: Optimizer steps before this one.
            epoch_idx: Epochs before this one, at its end.
        """
        if step_idx is None:
            by_epoch = self.update_every_n_steps == 0
            return by_epoch and super().should_update(epoch_idx=epoch_idx)
        first = self.update_starting_at_epoch or 0
        return self._epoch >= first and super().should_update(step_idx=step_idx)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn about an average that begins only after the end of the run."""
        key, first, end = "step", self.update_starting_at_step or 0, float("inf")
        if trainer.max_epochs is not None and trainer.max_epochs > 0:
            key, first, end = "epoch", self.update_starting_at_epoch or 0, trainer.max_epochs
        if first < end:
            key, first = "step", self.update_starting_at_step or 0
            end = trainer.estimated_stepping_batches
        if first >= end:
            rank_zero_info(
                f"EMAWeightAveraging: got update_starting_at_{key}={first}, expected less than "
                f"{end:.0f}, the {key}s of this run: the average never begins, and the weights are "
                "the trained ones"
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average, where this step is one to do so."""
        self._epoch = trainer.current_epoch
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the average."""
        self._follow(pl_module)
        super().on_validation_epoch_start(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the average, and the trained weights beside it."""
        self._follow(pl_module)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End with the average as the model's weights."""
        self._follow(pl_module)
        super().on_train_end(trainer, pl_module)

    def _follow(self, model: LightningModule) -> None:
        """Set an average that has not begun to the trained weights."""
        average = self._average_model
        if average is None or average.n_averaged:
            return
        copies = chain(average.module.parameters(), average.module.buffers())
        for copy, tensor in zip(copies, chain(model.parameters(), model.buffers()), strict=True):
            copy.data.copy_(tensor.data)


def replace_stock_averages(callbacks: Sequence[Callback]) -> None:
    """Turn callbacks of Lightning's `EMAWeightAveraging` into those of this module, in place.

    Args:
        callbacks: Of a trainer that is about to be built.
    """
    for callback in callbacks:
        if type(callback) is lightning_callbacks.EMAWeightAveraging:
            callback.__class__ = EMAWeightAveraging  # which adds methods, and no state
