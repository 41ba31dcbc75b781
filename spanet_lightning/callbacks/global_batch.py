"""The images of one optimizer step, whatever the devices: `global_batch` of a configuration.

A recipe's learning rate, schedule and number of steps hold for one batch size. What a machine can
take at once is another matter, so the recipe states the first, and how many images a device takes
and how many batches are accumulated follow from the devices that are there.
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
    """How the images of one optimizer step are shared out.

    Attributes:
        devices: Processes that train, on all nodes.
        per_device: Images that one of them takes at once.
        accumulated: Batches between two updates of the weights.
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


def share(images: int, devices: int, at_most: int) -> GlobalBatch:
    """Share the images of a step out: as many at once as fit, in batches that are all alike.

    Args:
        images: Of one optimizer step.
        devices: That train.
        at_most: Images that a device takes at once.

    Raises:
        ConfigError: If the images can't be shared out evenly.
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
    """Set the batch of a device and the accumulation of a run that is about to begin.

    `trainer.val_check_interval` counts batches for Lightning; a whole number of them is taken as
    optimizer steps here, or validation would come at another time with other devices.

    Args:
        images: Of one optimizer step.
        trainer: Built, not yet running.
        data: Its `batch_size` is the most that a device takes at once, and is replaced.

    Raises:
        ConfigError: If the images can't be shared out, or the configuration says otherwise.
    """
    if trainer.accumulate_grad_batches != 1:
        accepts = "1 (leave it out): global_batch derives it"
        raise invalid("trainer.accumulate_grad_batches", trainer.accumulate_grad_batches, accepts)
    at_most: Any = getattr(data, "batch_size", None)
    if not isinstance(at_most, int):
        raise invalid("global_batch_size", images, "null: the data does not tell its batch_size")
    found = share(images, trainer.num_devices * trainer.num_nodes, at_most)
    data.batch_size = found.per_device  # type: ignore[attr-defined]
    trainer.accumulate_grad_batches = found.accumulated
    if isinstance(trainer.val_check_interval, int):
        trainer.val_check_interval *= found.accumulated
    return found


class WholeSteps(Callback):
    """Says how the batch is shared out, and ends each epoch with its last whole optimizer step.

    Lightning takes a last step from whatever batches are left over, with gradients that are too
    small for them; how many are left depends on the devices. Data that doesn't tell its length is
    read to its end.

    Args:
        batch: The images of a step.
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
