"""Semantic segmentation, evaluated by mIoU over the whole set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal, TypedDict, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from spanet_lightning.backbones import Backbone
from spanet_lightning.backbones.weights import WeightsSet
from spanet_lightning.data.batches import SegmentationBatch
from spanet_lightning.errors import DataError, invalid, invalid_choice
from spanet_lightning.heads import SegmentationHead
from spanet_lightning.heads.base import SegmentationLayers
from spanet_lightning.heads.inference import class_maps, view, views
from spanet_lightning.heads.segmentation import segmentation_loss
from spanet_lightning.tasks.base import cheap_to_check, check_finite
from spanet_lightning.tasks.dense import DenseTask
from spanet_lightning.tasks.metrics import SegmentationMetric
from spanet_lightning.tasks.optim import OptimizerConfig, ScheduleConfig

Inference = Literal["whole", "slide"]
IGNORED = 255

# The published recipe of Semantic FPN on SPANetV2.
_ADAMW = OptimizerConfig(lr=2e-4, weight_decay=1e-4, no_decay="none")
_POLY = ScheduleConfig(name="poly", power=0.9, min_lr=0.0, update="step", warmup_images=0)


class LabelMap(TypedDict):
    """What `predict_step` returns for one image.

    Attributes:
        labels: The class of each pixel of the image as stored, (H, W), int64.
        path: Where the image came from.
    """

    labels: Tensor
    path: str


class SegmentationTask(DenseTask):
    """Train and evaluate semantic segmentation: Semantic FPN or UPerNet.

    Logs `val/miou`, `val/mean_accuracy` and `val/pixel_accuracy`, from counts over the whole set at
    the size of the stored masks, the same under `test/`; fractions in [0, 1]. In training,
    `train/loss` and each of its parts.

    Args:
        backbone: The network, built; its classifier is given up. In Python, timm's name of a model
            does as well.
        head: Which head, with its settings.
        num_classes: Classes of the data.
        optimizer: Which optimizer updates the weights, and how.
        schedule: How the learning rate moves over the run.
        frozen_stages: Stem and first stages that are not trained, 0 to 4.
        inference: See an image whole, or window by window with their logits averaged.
        window: Side of a window in pixels.
        window_stride: Pixels from one window to the next.
        scales: Factors of the image's sides to average class probabilities over in evaluation.
        flip: Whether to average with the mirror image in evaluation.
        per_class: Whether to log the IoU of each class as well.
        loss_over_all: Whether the loss is divided by all pixels, as the official code does, or by
            those that have a class.
        weights: Checkpoint to start from: of a whole model, or of ImageNet for the backbone alone.
            Null starts from random weights.
        weights_set: Which weights of a file that holds their moving average as well: "model" or
            "ema". Null takes what the file calls its state dict.

    Raises:
        ConfigError: If a value is out of its range.
        CheckpointError: If `weights` can't be read or don't fit.
    """

    headline: ClassVar[tuple[str, ...]] = ("miou",)
    targets: ClassVar[str] = "a pixel with a class"

    def __init__(
        self,
        backbone: Backbone | str,
        head: SegmentationHead,
        num_classes: int,
        optimizer: OptimizerConfig = _ADAMW,
        schedule: ScheduleConfig = _POLY,
        frozen_stages: int = 0,
        inference: Inference = "whole",
        window: int = 512,
        window_stride: int = 341,
        scales: tuple[float, ...] = (1.0,),
        flip: bool = False,
        per_class: bool = False,
        loss_over_all: bool = True,
        weights: str | None = None,
        weights_set: WeightsSet | None = None,
    ) -> None:
        if inference not in get_args(Inference):
            raise invalid_choice("inference", inference, get_args(Inference))
        if window < 32:
            raise invalid("window", window, "at least 32 pixels")
        if not 1 <= window_stride <= window:
            raise invalid("window_stride", window_stride, f"1 to {window}, the window's side")
        if not scales or not all(0 < scale < float("inf") for scale in scales):
            raise invalid("scales", list(scales), "one or more numbers above 0")
        super().__init__(
            backbone, head, num_classes, optimizer, schedule, frozen_stages, weights, weights_set
        )
        self._remember_arguments(backbone)
        self.inference = inference
        self.window, self.window_stride = window, window_stride
        self.scales, self.flip = tuple(scales), flip
        self.per_class = per_class
        self.loss_over_all = loss_over_all
        self.val_metric = SegmentationMetric(num_classes, IGNORED)
        self.test_metric = SegmentationMetric(num_classes, IGNORED)

    @property
    def layers(self) -> SegmentationLayers:
        """The layers of the head."""
        layers = self.model.head
        assert isinstance(layers, SegmentationLayers)  # noqa: S101 - for the type checker
        return layers

    def check_batch_size(self, batch_size: int) -> None:
        """Refuse a batch whose pooled maps are too small for batch norm."""
        synced = getattr(self.trainer.strategy, "_layer_sync", None) is not None
        images = batch_size * (self.trainer.world_size if synced else 1)
        if images < self.layers.min_train_images:
            head = type(self.layers).__name__.removesuffix("Layers")
            accepts = f"at least {self.layers.min_train_images}: {head} normalises pooled pixels"
            raise invalid("data.batch_size", batch_size, accepts)

    def check(self, batch: SegmentationBatch) -> None:
        """Refuse images that are not finite and mask values that are no class.

        Raises:
            DataError: In either case, with the image and the value received.
        """
        check_finite(batch.images)
        classes = self.model.num_classes
        for mask, path in zip(batch.masks, batch.paths, strict=True):
            low, high = int(mask.min()), int(torch.where(mask == IGNORED, 0, mask).max())
            if low < 0 or high >= classes:
                raise DataError(
                    f"{path}: mask value {low if low < 0 else high}: expected 0 to {classes - 1}, "
                    f"or {IGNORED} to ignore a pixel"
                )

    def training_step(self, batch: SegmentationBatch, batch_idx: int) -> Tensor:
        """Return the head's loss and that of its auxiliary head."""
        if cheap_to_check(batch.images, batch_idx):
            self.check(batch)
        masks = torch.stack(batch.masks)
        features = self.model.features(batch.images)
        logits = self.layers(features)
        losses = {"decode": segmentation_loss(logits, masks, over_all=self.loss_over_all)}
        auxiliary = self.layers.auxiliary(features)
        if auxiliary is not None:
            logits, weight = auxiliary
            loss = segmentation_loss(logits, masks, over_all=self.loss_over_all)
            losses["auxiliary"] = weight * loss
        return self.log_losses(losses, len(batch.images))

    def evaluate(
        self, batch: SegmentationBatch, batch_idx: int, metric: SegmentationMetric
    ) -> None:
        """Add a batch to `metric`, which is computed once the whole set has been seen."""
        if cheap_to_check(batch.images, batch_idx):
            self.check(batch)
        for labels, mask in zip(self.label_maps(batch), batch.masks, strict=True):
            metric.update(labels, mask)

    def figures(self, metric: SegmentationMetric) -> dict[str, Tensor]:
        """Return mIoU and accuracies by name."""
        figures: dict[str, Tensor] = metric.compute()
        return figures | self._per_class(metric) if self.per_class else figures

    def _per_class(self, metric: SegmentationMetric) -> dict[str, Tensor]:
        names = self.class_names
        with metric.sync_context():
            values = metric.iou().float()
        return {f"iou/{names[i] if i < len(names) else i}": v for i, v in enumerate(values)}

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        """Return the logits of each pixel, at the images' size; window by window if so set."""
        whole = view(self._logits, images, self._windows)
        return whole.logits(slice(None), images.shape[-2:])

    @property
    def _windows(self) -> tuple[int, int] | None:
        return (self.window, self.window_stride) if self.inference == "slide" else None

    def _logits(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(self.model.features(images))
        return logits

    def label_maps(self, batch: SegmentationBatch) -> Iterator[Tensor]:
        """Yield the class of each pixel of each image, at the size of its stored mask.

        Padding is cut off first: each image is seen as if it were alone.
        """
        for i, ((height, width), mask) in enumerate(zip(batch.sizes, batch.masks, strict=True)):
            image = batch.images[i : i + 1, :, :height, :width]
            found = views(self._logits, image, self._windows, self.scales, flip=self.flip)
            yield class_maps(found, mask.shape[-2:])[0]

    def predict_step(self, batch: SegmentationBatch) -> list[LabelMap]:
        """Return the class of each pixel of each image, at the size of its stored mask."""
        return [
            {"labels": labels, "path": path}
            for labels, path in zip(self.label_maps(batch), batch.paths, strict=True)
        ]
