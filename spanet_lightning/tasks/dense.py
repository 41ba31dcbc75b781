"""What detection and segmentation share: the dense model, its start, and the names of its logs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from spanet_lightning.backbones import Backbone
from spanet_lightning.backbones.timm_backbone import as_backbone
from spanet_lightning.backbones.weights import WeightsSet
from spanet_lightning.errors import DataError
from spanet_lightning.heads import DenseModel, DetectionHead, SegmentationHead
from spanet_lightning.tasks.base import Task
from spanet_lightning.tasks.loading import load_weights
from spanet_lightning.tasks.optim import OptimizerConfig, ScheduleConfig


class DenseTask(Task):
    """Base of detection and segmentation: a backbone with a head, trained together.

    Args:
        backbone: The network, built; its classifier is given up. In Python, timm's name of a model
            does as well.
        head: Describes the head.
        num_classes: Classes, without background.
        optimizer: Which optimizer updates the weights, and how.
        schedule: How the learning rate moves over the run.
        frozen_stages: Stem and first stages that are not trained, 0 to 4.
        weights: Checkpoint to start from: of a whole dense model, or of ImageNet for the backbone
            alone. Null starts from random weights.
        weights_set: Which weights of a file that holds their moving average as well: "model" or
            "ema". Null takes what the file calls its state dict.

    Raises:
        ConfigError: If a value is out of its range.
        CheckpointError: If `weights` can't be read or don't fit.

    Attributes:
        headline: Figures that the progress bar shows, the main one first.
        targets: What is scored, in words.
        val_metric: Collects the figures under `val/`.
        test_metric: Collects those under `test/`.
    """

    headline: ClassVar[tuple[str, ...]] = ()
    targets: ClassVar[str] = ""
    val_metric: Any
    test_metric: Any

    def __init__(
        self,
        backbone: Backbone | str,
        head: DetectionHead | SegmentationHead,
        num_classes: int,
        optimizer: OptimizerConfig,
        schedule: ScheduleConfig,
        frozen_stages: int,
        weights: str | None,
        weights_set: WeightsSet | None,
    ) -> None:
        super().__init__(optimizer, schedule)
        self.model = DenseModel(as_backbone(backbone), head, num_classes, frozen_stages)
        if weights is not None:
            load_weights(self.model, weights, weights_set)

    @property
    def backbone(self) -> Backbone:
        """The backbone inside the dense model."""
        return self.model.backbone

    def trained(self) -> nn.Module:
        """Return the dense model."""
        return self.model

    def check_num_classes(self) -> None:
        """Refuse a number of classes that is not that of the data."""
        self.refuse_num_classes("num_classes", self.model.num_classes)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes as the data tells them; empty where it does not."""
        names = getattr(self.trainer.datamodule, "class_names", None)  # type: ignore[attr-defined]
        return tuple(names or ())

    def log_losses(self, losses: Mapping[str, Tensor], images: int) -> Tensor:
        """Log the parts of the loss and return their sum."""
        loss = torch.stack(list(losses.values())).sum()
        parts = {f"train/loss_{name}": value for name, value in losses.items()}
        self.log_means({"train/loss": loss, **parts}, images)
        self.log("loss", loss.detach(), prog_bar=True, logger=False)
        return loss

    # -- evaluation

    def evaluate(self, batch: Any, batch_idx: int, metric: Any) -> None:
        """Add a batch to `metric`, which is computed once the whole set has been seen."""
        raise NotImplementedError

    def figures(self, metric: Any) -> dict[str, Tensor]:
        """Return the figures of the whole set by name."""
        raise NotImplementedError

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch to the figures under `val/`."""
        self.evaluate(batch, batch_idx, self.val_metric)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch to the figures under `test/`."""
        self.evaluate(batch, batch_idx, self.test_metric)

    def on_validation_epoch_end(self) -> None:
        """Log the figures under `val/`."""
        self._log_figures("val", self.val_metric)
        super().on_validation_epoch_end()

    def on_test_epoch_end(self) -> None:
        """Log the figures under `test/`."""
        self._log_figures("test", self.test_metric)

    def _log_figures(self, split: str, metric: Any) -> None:
        """Log what could be scored; a class or size of objects that can't be has no figure.

        Raises:
            DataError: If nothing could be scored.
        """
        figures = self.figures(metric)
        metric.reset()
        scored = {name: value for name, value in figures.items() if value >= 0}  # no NaN, no -1
        main = self.headline[0]
        if main not in scored and not self.trainer.sanity_checking:
            raise DataError(
                f"{split}/{main}: nothing to score, none of the images has {self.targets}; "
                "expected at least one in the set"
            )
        for name, value in scored.items():
            value = value.to(self.device).float()
            self.log(f"{split}/{name}", value, prog_bar=name in self.headline, sync_dist=True)
