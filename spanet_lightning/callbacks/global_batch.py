"""The global batch size: images per optimizer step, on however many devices.

A recipe's learning rate, schedule and number of steps hold for one batch size, which it states as
`global_batch_size`. Images per device and accumulated batches follow from the devices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info

from spanet_lightning.errors import invalid


@dataclass(frozen=True)
class GlobalBatch:
    """How a global batch is split.

    Attributes:
        devices: Training processes, on all nodes.
        per_device: Images per device and batch.
        accumulated: Batches per optimizer step.
    """

    devices: int
    per_device: int
    accumulated: int

    @property
    def images(self) -> int:
        """Images of one optimizer step."""
        return self.devices * self.per_device * self.accumulated

    def __str__(self) -> str:
        """Return the line that a run prints."""
        return (
            f"global batch {self.images} = {_count(self.devices, 'device')} x "
            f"{_count(self.per_device, 'image')} x {self.accumulated} accumulated"
        )

    def params(self) -> dict[str, int]:
        """Return the derived numbers as the tracker records them."""
        return {
            "batch.devices": self.devices,
            "batch.per_device": self.per_device,
            "batch.accumulated": self.accumulated,
        }


def split(images: int, devices: int, at_most: int) -> GlobalBatch:
    """Split a global batch: as many images at once as fit, in batches of equal size.

    Args:
        images: Images per optimizer step.
        devices: Training processes.
        at_most: Images that a device takes at once.

    Raises:
        ConfigError: If they can't be split evenly.
    """
    if images < 1:
        raise invalid("global_batch_size", images, "at least 1 image, or null")
    if images % devices:
        accepts = (
            f"a multiple of {devices}, the devices of all nodes (trainer.devices × "
            "trainer.num_nodes)"
        )
        raise invalid("global_batch_size", images, accepts)
    each = images // devices
    per_device = max(n for n in range(1, min(each, at_most) + 1) if each % n == 0)
    return GlobalBatch(devices, per_device, each // per_device)


def apply(images: int, trainer: Trainer, data: LightningDataModule) -> GlobalBatch:
    """Set batch size and accumulation of a run that is about to begin.

    An integer `trainer.val_check_interval`, which counts batches in Lightning, counts optimizer
    steps here, or the moment of validation would depend on the devices.

    Args:
        images: Images per optimizer step.
        trainer: Of the run.
        data: Its `batch_size`, the most images per device, is replaced.

    Raises:
        ConfigError: If they can't be split, or the configuration states the accumulation too.
    """
    if trainer.accumulate_grad_batches != 1:
        accepts = "1 (leave it out): global_batch derives it"
        raise invalid("trainer.accumulate_grad_batches", trainer.accumulate_grad_batches, accepts)
    at_most: Any = getattr(data, "batch_size", None)
    if not isinstance(at_most, int):
        raise invalid("global_batch_size", images, "null: the data does not tell its batch_size")
    found = split(images, trainer.num_devices * trainer.num_nodes, at_most)
    data.batch_size = found.per_device  # type: ignore[attr-defined]
    trainer.accumulate_grad_batches = found.accumulated
    if isinstance(trainer.val_check_interval, int):
        trainer.val_check_interval *= found.accumulated
    return found


class WholeSteps(Callback):
    """Ends each epoch with its last whole optimizer step, and prints how the batch is split.

    Lightning takes one more step from the remaining batches, with gradients that are too small; how
    many remain depends on the devices. Data without a length is read to its end.

    Args:
        batch: The global batch.
    """

    def __init__(self, batch: GlobalBatch) -> None:
        self.batch = batch

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Limit the batches of an epoch, once the data is known.

        Raises:
            ConfigError: If the training images do not fill one step.
        """
        if stage != "fit":
            return
        # A user's own limit is for trying things out, and means batches.
        trying: Any = trainer.fast_dev_run  # type: ignore[attr-defined]
        if not trying and trainer.limit_train_batches == 1.0:
            self._limit(trainer)
        rank_zero_info(str(self.batch))

    def _limit(self, trainer: Trainer) -> None:
        loader: Any = trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
        try:
            batches = len(loader)
        except TypeError:
            return
        accumulated = self.batch.accumulated
        if batches < accumulated:
            most = batches * self.batch.per_device * self.batch.devices
            accepts = f"at most {most}, what the training images fill"
            raise invalid("global_batch_size", self.batch.images, accepts)
        trainer.limit_train_batches = batches // accumulated * accumulated


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
