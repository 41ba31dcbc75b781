"""What every task shares: an optimizer with its schedule, seeding by step, and exact restarts."""

from __future__ import annotations

import inspect
import os
import random
import secrets
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from spanet_lightning.data.draws import entropy
from spanet_lightning.data.info import KEY, check_same, info_of, stored_info
from spanet_lightning.errors import DataError, invalid
from spanet_lightning.keywords import CheckedKeywords
from spanet_lightning.tasks import resume
from spanet_lightning.tasks.loading import safely
from spanet_lightning.tasks.optim import OptimizerConfig, ScheduleConfig

SEED_VARIABLE = "PL_GLOBAL_SEED"
"""Environment variable in which Lightning's `seed_everything` leaves the seed."""


class Task(LightningModule, CheckedKeywords):
    """Base of the tasks: configures the optimization of what `trained` returns.

    Args:
        optimizer: Which optimizer updates it.
        schedule: How the learning rate moves over the run.
    """

    def __init__(self, optimizer: OptimizerConfig, schedule: ScheduleConfig) -> None:
        super().__init__()
        self.optimizer_config = optimizer
        self.schedule_config = schedule
        self._means: dict[str, Metric] = {}
        self._validating = self._validated = self._drew_seed = False
        self._restart: resume.Restart | None = None

    def _remember_arguments(self, backbone: object) -> None:
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
        if isinstance(backbone, str):
            self.hparams["backbone"] = backbone
        # The checkpoint holds the weights: reloading it must not need the file they began from.
        self.hparams["weights"] = self.hparams["weights_set"] = None
        described = self.hparams.get("backbone")
        if isinstance(described, Mapping) and "pretrained" in described.get("init_args", {}):
            described["init_args"]["pretrained"] = False

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
            CheckpointError: If the checkpoint is an address, is damaged, or holds code.
        """
        with safely(checkpoint_path, weights_only) as parts:
            kwargs = kwargs if hparams_file else parts | kwargs
            return super().load_from_checkpoint(
                checkpoint_path, map_location, hparams_file, strict, weights_only=True, **kwargs
            )

    def setup(self, stage: str) -> None:
        """Choose a seed where none was given, and refuse what does not fit the data.

        Raises:
            ConfigError: If the number of classes is not that of the data, or a batch is too small.
        """
        if stage == "fit":
            self._choose_seed()
            strategy = self.trainer.strategy
            synced = getattr(strategy, "_layer_sync", None) is not None
            on_cpu = strategy.root_device.type == "cpu"
            if synced and on_cpu and isinstance(strategy, ParallelStrategy):
                accepts = "false on CPUs: torch synchronises batch norms on GPUs only"
                raise invalid("trainer.sync_batchnorm", True, accepts)
            batch_size = getattr(getattr(self.trainer, "datamodule", None), "batch_size", None)
            if isinstance(batch_size, int):
                self.check_batch_size(batch_size)
        if stage != "predict":
            self.check_num_classes()

    def check_batch_size(self, batch_size: int) -> None:
        """Refuse a number of images per batch and device that can't be trained on."""

    def check_num_classes(self) -> None:
        """Refuse a number of classes that is not that of the data."""

    def refuse_num_classes(self, key: str, own: int) -> None:
        """Refuse `own` classes, the value of `key`, if the data has another number."""
        of_data = getattr(getattr(self.trainer, "datamodule", None), "num_classes", None)
        if of_data not in (None, own):
            raise invalid(key, own, f"{of_data}, the number of classes of the data")

    def _choose_seed(self) -> None:
        """Draw a seed for a run without one, the same for all processes, and say which.

        Checkpoints and the run's record hold it, as if it had been given.
        """
        seed = os.environ.get(SEED_VARIABLE)
        self._drew_seed = self._drew_seed or seed is None
        chosen = secrets.randbelow(2**32) if seed is None else int(seed)
        chosen = int(self.trainer.strategy.broadcast(chosen))
        os.environ[SEED_VARIABLE] = str(chosen)
        if seed is None:
            rank_zero_info(
                f"No seed was given: drew {chosen} (lightning.seed_everything({chosen}))"
            )

    def teardown(self, stage: str) -> None:  # noqa: ARG002 - Lightning gives it
        """Leave the next run without a seed to draw its own."""
        if self._drew_seed:
            os.environ.pop(SEED_VARIABLE, None)
            self._drew_seed = False

    @property
    def is_attached(self) -> bool:
        """Whether a trainer has the task."""
        try:
            return self.trainer is not None
        except RuntimeError:  # Lightning's, for a module on its own
            return False

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

    # -- metrics of an epoch of training

    def log_means(self, values: Mapping[str, Tensor], images: int) -> None:
        """Log the means over the epoch of what training steps give.

        Not `self.log(..., on_epoch=True)`: a checkpoint would lose what the epoch had so far.

        Args:
            values: Means over a batch, scalars, by name.
            images: Images of the batch.
        """
        for name, value in values.items():
            mean = self.epoch_metric(name)
            mean.update(value.detach(), images)
            self.log_epoch_metric(name, mean)

    def epoch_metrics(self) -> dict[str, Metric]:
        """Return the metrics of the training epoch under way, by the name they are logged by."""
        return dict(self._means)

    def epoch_metric(self, name: str) -> Metric:
        """Return a metric of the training epoch; a mean where there is none of that name yet."""
        found = self.epoch_metrics().get(name)
        if found is None:
            # A loss that is not finite is for the guard against it, not for the metric.
            found = self._means[name] = MeanMetric(nan_strategy="disable").to(self.device)
        return found

    def log_epoch_metric(self, name: str, metric: Metric) -> None:
        """Log a metric of the training epoch, which is computed at its end."""
        # Lightning asks for the attribute that a metric is, and then makes nothing of it.
        self.log(name, metric, on_step=False, on_epoch=True, metric_attribute=name)

    # -- randomness and restarts

    def on_train_epoch_start(self) -> None:
        """Tell a data set that shuffles itself (WebDataset) the epoch, as Lightning does samplers.

        It would repeat the order of the first epoch in each.
        """
        dataset = getattr(self.trainer.train_dataloader, "dataset", None)
        set_epoch = getattr(dataset, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(self.current_epoch)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Seed this process for the batch: what is drawn depends on nothing that came before.

        Each process gets its own numbers, as the published runs' `seed + rank` did: the same ones
        for all would mix the batches and drop the paths of every process alike.
        """
        self._validated = False
        word = entropy(self.current_epoch, batch_idx, self.global_rank)
        random.seed(word)
        np.random.seed(word & 0xFFFFFFFF)  # noqa: NPY002 - timm's Mixup draws from it
        if self.device.type == "cpu":
            torch.default_generator.manual_seed(word)  # torch.manual_seed tries all devices
        else:
            torch.manual_seed(word)

    def on_validation_epoch_start(self) -> None:
        """Note that a checkpoint from here on is written amid a validation."""
        self._validating, self._validated = True, False

    def on_validation_epoch_end(self) -> None:
        """Note that a checkpoint from here on holds the validation as done."""
        self._validating, self._validated = False, True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what an exact restart needs; see `resume`."""
        if self._validating and "current_model_state" in checkpoint:
            # Lightning's average of the weights has changed places with them to be validated.
            weights = checkpoint["state_dict"]
            checkpoint["state_dict"] = checkpoint["current_model_state"]
            checkpoint["current_model_state"] = weights
        data = info_of(getattr(self.trainer, "datamodule", None))
        if data is not None:
            checkpoint[KEY] = data.to_dict()
        checkpoint[resume.KEY] = resume.record(self, self._validated)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Prepare the exact restart of a run; weights alone need none.

        Raises:
            DataError: If the data names other classes than those that it was trained on.
        """
        if self.is_attached:
            stored = stored_info(checkpoint)
            current = info_of(getattr(self.trainer, "datamodule", None))
            if stored is not None and current is not None:
                check_same(stored, current)
        if self.is_attached and self.trainer.state.fn == TrainerFn.FITTING:
            resume.restore_seed(checkpoint)
            self._restart = resume.prepare(checkpoint, resume.batch_of(self.trainer))

    def on_fit_start(self) -> None:
        """Forget what another run gathered."""
        self._means = {}

    def on_train_start(self) -> None:
        """Put back what a checkpoint held beside Lightning's own."""
        if self._restart is not None:
            resume.finish(self, self._restart)
            self._restart = None


def check_finite(images: Tensor) -> None:
    """Refuse images with a value that is not finite.

    Raises:
        DataError: If there is one.
    """
    if not torch.isfinite(images.sum()):
        raise DataError("images: got a value that is not finite, expected finite numbers")


def cheap_to_check(images: Tensor, batch_idx: int) -> bool:
    """Return whether to check a batch: an accelerator has to wait for it, so once per epoch."""
    return batch_idx == 0 or images.device.type == "cpu"
