"""Ends a run with a non-finite loss or weight, before anything of it is validated or saved."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor

from spanet_lightning.errors import NotFiniteError, invalid

EVERY = 10
_NEVER = torch.iinfo(torch.int64).max


class FiniteGuard(Callback):
    """Checks the loss of every step, and all weights before they are validated or saved.

    An accelerator records the first non-finite loss itself and is asked for it every few steps
    only, because asking waits for it. A CPU answers at once.

    Args:
        every: Steps between checks on an accelerator; 0 never checks.

    Raises:
        ConfigError: If `every` is negative.
    """

    def __init__(self, every: int = EVERY) -> None:
        if every < 0:
            raise invalid("finite_every", every, "0 (never) or a number of steps")
        self.every = every
        self._first_step: Tensor | None = None  # of a non-finite loss, on the device
        self._loss: Tensor | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the loss, and check what was recorded where it is due.

        Raises:
            NotFiniteError: If a loss since the last check was not finite.
        """
        if not self.every:
            return
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            self._record(loss.detach().float(), trainer.global_step)
        if batch_idx % (1 if pl_module.device.type == "cpu" else self.every) == 0:
            self._check_losses(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the weights before they are validated: metrics may not show it.

        Raises:
            NotFiniteError: If one is not finite.
        """
        if self.every and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._check_losses(trainer)
            self._check_tensors(trainer, pl_module.parameters())

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Check everything that is saved.

        Raises:
            NotFiniteError: If a tensor of the model is not finite, or a loss was not.
        """
        if self.every:
            self._check_losses(trainer)
            self._check_tensors(trainer, pl_module.state_dict().values())

    def _record(self, loss: Tensor, step: int) -> None:
        if self._first_step is None or self._loss is None:
            self._first_step = torch.full((), _NEVER, device=loss.device)
            self._loss = torch.zeros((), device=loss.device)
        is_first = ~loss.isfinite().all() & (self._first_step == _NEVER)
        self._first_step = torch.where(is_first, step, self._first_step)
        self._loss = torch.where(is_first, loss.sum(), self._loss)

    def _check_losses(self, trainer: Trainer) -> None:
        """Raise in all processes where one has recorded a non-finite loss."""
        first = _NEVER if self._first_step is None else int(self._first_step)
        if not _in_any_process(trainer, first != _NEVER):
            return
        here = first != _NEVER and self._loss is not None
        value = f"{float(self._loss)}" if here else "not finite in another process"  # type: ignore[arg-type]
        raise NotFiniteError(
            f"the loss was {value} at step {first if here else trainer.global_step}, epoch "
            f"{trainer.current_epoch + 1}{_advice(trainer)}"
        )

    def _check_tensors(self, trainer: Trainer, tensors: Iterable[Tensor]) -> None:
        floats = [tensor.detach() for tensor in tensors if tensor.is_floating_point()]
        # One request to the device, not one per tensor.
        wrong = bool(floats) and not bool(torch.stack([_is_finite(one) for one in floats]).all())
        if _in_any_process(trainer, wrong):
            raise NotFiniteError(
                f"weights were not finite after step {trainer.global_step}, epoch "
                f"{trainer.current_epoch + 1}{_advice(trainer)}"
            )


def _is_finite(tensor: Tensor) -> Tensor:
    local = getattr(tensor, "to_local", None)  # this process's part of a sharded weight
    return (local() if callable(local) else tensor).isfinite().all()


def _in_any_process(trainer: Trainer, wrong: bool) -> bool:
    """Return whether it is so in any process: the others would wait for it for ever."""
    if trainer.world_size == 1:
        return wrong
    return bool(trainer.strategy.reduce_boolean_decision(wrong, all=False))


def _advice(trainer: Trainer) -> str:
    """Return which checkpoint there is, and what may help."""
    saver, path = trainer.checkpoint_callback, ""
    if isinstance(saver, ModelCheckpoint):
        path = saver.last_model_path or saver.best_model_path
    saved = f"the last finite checkpoint is {path}" if path else "no checkpoint was saved before"
    return (
        f"; {saved}. A lower model.optimizer.lr, a longer warm-up, trainer.gradient_clip_val or "
        "trainer.precision bf16-mixed in place of 16-mixed may help"
    )
