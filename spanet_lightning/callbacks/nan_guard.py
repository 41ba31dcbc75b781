"""Ends a run whose loss or weights are no numbers any more, before anything of it is saved."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor

from spanet_lightning.errors import NotFiniteError, invalid

EVERY = 10
_UNTIL_NOW = torch.iinfo(torch.int64).max


class FiniteGuard(Callback):
    """Looks at the loss of every step, and at the weights before they are judged or saved.

    An accelerator is asked for what it has seen only every few steps, because asking waits for it;
    until then the answer is kept there. A CPU answers at once.

    Args:
        every: Steps between looks on an accelerator; 0 never looks.

    Raises:
        ConfigError: If `every` is negative.
    """

    def __init__(self, every: int = EVERY) -> None:
        if every < 0:
            raise invalid("finite_every", every, "0 (never) or a number of steps")
        self.every = every
        self._first: Tensor | None = None  # step of the first loss that was no number
        self._loss: Tensor | None = None  # that loss

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Note the loss, and look at what was noted where it is time to.

        Raises:
            NotFiniteError: If a loss since the last look was not finite.
        """
        if not self.every:
            return
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            self._note(loss.detach().float(), trainer.global_step)
        every = 1 if pl_module.device.type == "cpu" else self.every
        if batch_idx % every == 0:
            self._look(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the weights before they are judged: metrics may tell nothing of them.

        Raises:
            NotFiniteError: If one is not finite.
        """
        if self.every and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._look(trainer)
            self._look_at(trainer, pl_module.parameters())

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Look at all that is saved: a file of a run never holds what is no number.

        Raises:
            NotFiniteError: If a tensor of the model is not finite, or a loss was not.
        """
        if self.every:
            self._look(trainer)
            self._look_at(trainer, pl_module.state_dict().values())

    def _note(self, loss: Tensor, step: int) -> None:
        if self._first is None or self._loss is None:
            self._first = torch.full((), _UNTIL_NOW, device=loss.device)
            self._loss = torch.zeros((), device=loss.device)
        new = ~loss.isfinite().all() & (self._first == _UNTIL_NOW)
        self._first = torch.where(new, step, self._first)
        self._loss = torch.where(new, loss.sum(), self._loss)

    def _look(self, trainer: Trainer) -> None:
        """Raise in all processes where one has seen a loss that was no number."""
        first = _UNTIL_NOW if self._first is None else int(self._first)
        if _anywhere(trainer, first != _UNTIL_NOW):
            seen = first if first != _UNTIL_NOW else trainer.global_step
            value = float("nan") if self._loss is None else float(self._loss)
            what = f"{value}" if first != _UNTIL_NOW else "not finite in another process"
            raise NotFiniteError(
                f"the loss was {what} at step {seen}, epoch {trainer.current_epoch + 1}"
                f"{_kept(trainer)}"
            )

    def _look_at(self, trainer: Trainer, tensors: Iterable[Tensor]) -> None:
        real = [tensor.detach() for tensor in tensors if tensor.is_floating_point()]
        # One question to the device, not one for each tensor.
        wrong = bool(real) and not bool(torch.stack([_finite(tensor) for tensor in real]).all())
        if _anywhere(trainer, wrong):
            raise NotFiniteError(
                f"weights were not finite after step {trainer.global_step}, epoch "
                f"{trainer.current_epoch + 1}{_kept(trainer)}"
            )


def _finite(tensor: Tensor) -> Tensor:
    local = getattr(tensor, "to_local", None)  # a weight's share in this process, where it is split
    return (local() if callable(local) else tensor).isfinite().all()


def _anywhere(trainer: Trainer, wrong: bool) -> bool:
    """Whether it is so in any process; all learn it, or those that go on would wait for ever."""
    if trainer.world_size == 1:
        return wrong
    return bool(trainer.strategy.reduce_boolean_decision(wrong, all=False))


def _kept(trainer: Trainer) -> str:
    """Say what is left of a run that went wrong, and what may help."""
    saver = trainer.checkpoint_callback
    last = (
        (saver.last_model_path or saver.best_model_path)
        if (isinstance(saver, ModelCheckpoint))
        else ""
    )
    kept = f"the last finite checkpoint is {last}" if last else "no checkpoint was saved before"
    return (
        f"; {kept}. A lower model.optimizer.lr, a longer warm-up, trainer.gradient_clip_val or "
        "trainer.precision bf16-mixed in place of 16-mixed may help"
    )
