"""What every task shares: a backbone, an optimizer with its schedule, and seeding by epoch."""

from __future__ import annotations

import os
import random

import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn

from spanet_lightning.backbones import Backbone
from spanet_lightning.errors import invalid
from spanet_lightning.optim import OptimizerConfig, ScheduleConfig


class Task(LightningModule):
    """Base of the tasks: owns a backbone and configures its optimization.

    Args:
        backbone: The network, built.
        optimizer: Which optimizer updates it.
        schedule: How the learning rate moves over the run.
    """

    def __init__(
        self, backbone: Backbone, optimizer: OptimizerConfig, schedule: ScheduleConfig
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.optimizer_config = optimizer
        self.schedule_config = schedule

    def trained(self) -> nn.Module:
        """Return the module whose parameters are optimized; its names decide on weight decay."""
        return self.backbone

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Build the optimizer and its schedule for a run of `trainer.max_epochs` epochs.

        Raises:
            ConfigError: If the run has no last epoch to plan for.
        """
        max_epochs = self.trainer.max_epochs
        if max_epochs is None or max_epochs < 1:
            raise invalid("trainer.max_epochs", max_epochs, "at least 1, which the schedule spans")
        schedule = self.schedule_config
        if max_epochs <= schedule.warmup_epochs:
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
            steps_per_epoch=lambda: self.trainer.estimated_stepping_batches / max_epochs,
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": schedule.update},
        }

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
