"""What every task shares: an optimizer with its schedule, and seeding by epoch."""

from __future__ import annotations

import inspect
import os
import random
from typing import Any, Self

import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn

from spanet_lightning.errors import invalid
from spanet_lightning.optim import OptimizerConfig, ScheduleConfig
from spanet_lightning.tasks.loading import safely


class Task(LightningModule):
    """Base of the tasks: configures the optimization of what `trained` returns.

    Args:
        optimizer: Which optimizer updates it.
        schedule: How the learning rate moves over the run.
    """

    def __init__(self, optimizer: OptimizerConfig, schedule: ScheduleConfig) -> None:
        super().__init__()
        self.optimizer_config = optimizer
        self.schedule_config = schedule

    def _remember_arguments(self) -> None:
        """Store what a checkpoint needs to rebuild the task.

        Built by LightningCLI, that is the configuration with its class paths. Built by hand, the
        parts are objects, which would be pickled into each checkpoint and then refused when it is
        loaded safely; they are left out: `load_from_checkpoint(path, backbone=...)`.
        """
        frame = inspect.currentframe()
        init = None if frame is None else frame.f_back
        # Not to the logger: the resolved configuration is recorded there as a whole.
        parts = ["backbone", "head", "optimizer", "schedule"]
        self.save_hyperparameters(ignore=parts, frame=init, logger=False)
        if "_instantiator" in self.hparams:  # LightningCLI's mark
            self.save_hyperparameters(frame=init, logger=False)
        # The command line offers the data's number of classes to all tasks; not all take it.
        if "num_classes" not in inspect.signature(type(self)).parameters:
            self.hparams.pop("num_classes", None)
        # The checkpoint holds the weights: reloading it must not need the file they began from.
        self.hparams["weights"] = None

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = True,
        **kwargs: Any,
    ) -> Self:
        """Rebuild a task from its checkpoint; see Lightning's method, and `loading.safely`.

        Args:
            checkpoint_path: A local file, or an open one.
            map_location: Where its tensors go.
            hparams_file: Hyperparameters in place of its own.
            strict: Whether its tensors have to be all of those of the task.
            weights_only: Only true, which null stands for.
            kwargs: Arguments in place of those in the checkpoint.

        Raises:
            ConfigError: If `weights_only` is false.
            CheckpointError: If the checkpoint is an address, or holds code.
        """
        with safely(checkpoint_path, weights_only):
            return super().load_from_checkpoint(
                checkpoint_path, map_location, hparams_file, strict, weights_only=True, **kwargs
            )

    def trained(self) -> nn.Module:
        """Return the module whose parameters are optimized; its names decide on weight decay."""
        raise NotImplementedError

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Build the optimizer and its schedule for a run of `trainer.max_epochs` or `max_steps`.

        Raises:
            ConfigError: If the run has no end to plan for.
        """
        schedule = self.schedule_config
        max_epochs, max_steps = self.trainer.max_epochs, self.trainer.max_steps
        if max_epochs is None or max_epochs < 1:
            if max_steps < 1 or schedule.needs_epochs:
                accepts = "at least 1, which the schedule spans"
                raise invalid("trainer.max_epochs", max_epochs, accepts)
            max_epochs = 0
        in_epochs = schedule.name != "poly" and schedule.warmup_images is None
        if in_epochs and 0 < max_epochs <= schedule.warmup_epochs:
            # Not an error: a run cut short to try something out is a common and honest use.
            rank_zero_info(
                f"The run of {max_epochs} epochs ends within the warm-up of "
                f"{schedule.warmup_epochs}: the learning rate never reaches its peak."
            )
        optimizer = self.optimizer_config.build(self.trained())
        # Asked for later: now it would start the training loader, before a resume sets the epoch.
        scheduler = schedule.build(
            optimizer,
            max_epochs=max_epochs,
            steps_per_epoch=self._steps_per_epoch,
            total_steps=lambda: float(self.trainer.estimated_stepping_batches),
            images_per_step=self._images_per_step,
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": schedule.update},
        }

    def _steps_per_epoch(self) -> float:
        """Return the optimizer steps in an epoch."""
        max_epochs = self.trainer.max_epochs
        if max_epochs is not None and max_epochs > 0 and self.trainer.max_steps < 1:
            return self.trainer.estimated_stepping_batches / max_epochs
        return self.trainer.num_training_batches / self.trainer.accumulate_grad_batches

    def _images_per_step(self) -> float:
        """Return the images of an optimizer step, of all devices and accumulated batches."""
        trainer = self.trainer
        data: Any = getattr(trainer, "datamodule", None)
        batch_size = getattr(data, "batch_size", None)
        batch_size = batch_size or getattr(trainer.train_dataloader, "batch_size", None)
        if not isinstance(batch_size, int):
            accepts = "null: the data does not tell its batch_size"
            raise invalid("schedule.warmup_images", self.schedule_config.warmup_images, accepts)
        return float(batch_size * trainer.world_size * trainer.accumulate_grad_batches)

    def on_train_epoch_start(self) -> None:
        """Seed this process for the epoch, so that a resumed run repeats the unbroken one.

        Each process gets its own stream, as the published runs' `seed + rank` did: one stream for
        all would mix the batches and drop the paths of every process alike.
        """
        seed = os.environ.get("PL_GLOBAL_SEED")  # where Lightning's seed_everything leaves it
        if seed is not None:
            entropy = [int(seed), self.current_epoch, self.global_rank]
            word = int(np.random.SeedSequence(entropy).generate_state(1)[0])
            random.seed(word)
            np.random.seed(word)  # noqa: NPY002 - timm's Mixup and RandAugment draw from it
            torch.manual_seed(word)
        # Lightning tells samplers the epoch; a data set that shuffles itself (WebDataset) needs
        # to know as well, or each epoch repeats the order of the first.
        dataset = getattr(self.trainer.train_dataloader, "dataset", None)
        set_epoch = getattr(dataset, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(self.current_epoch)
