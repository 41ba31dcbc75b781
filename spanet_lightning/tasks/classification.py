"""Image classification: training with Mixup and CutMix, evaluation by top-1, top-5 and loss."""

from __future__ import annotations

from typing import TypedDict

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.data.mixup import Mixup
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from spanet_lightning.backbones import Backbone
from spanet_lightning.backbones.timm_backbone import as_backbone
from spanet_lightning.backbones.weights import WeightsSet
from spanet_lightning.errors import DataError, invalid
from spanet_lightning.tasks.base import Task, cheap_to_check, check_finite
from spanet_lightning.tasks.loading import load_weights
from spanet_lightning.tasks.metrics import CalibrationError
from spanet_lightning.tasks.optim import OptimizerConfig, ScheduleConfig

Batch = tuple[Tensor, Tensor]  # images (B, C, H, W) and class indices (B,)

_ADAMW = OptimizerConfig()
_COSINE = ScheduleConfig()


class Prediction(TypedDict):
    """What `predict_step` returns for a batch of B images and K classes.

    Attributes:
        probabilities: Softmax of the logits, shape (B, K).
        top_classes: The `min(5, K)` most probable classes of each image, best first.
        top_probabilities: Their probabilities.
    """

    probabilities: Tensor
    top_classes: Tensor
    top_probabilities: Tensor


class Evaluated(TypedDict):
    """What evaluating a batch of B images and K classes returns, for callbacks.

    Attributes:
        logits: Shape (B, K), float32.
        losses: Cross-entropy of each image, in nats, shape (B,).
    """

    logits: Tensor
    losses: Tensor


class ClassificationTask(Task):
    """Train and evaluate a backbone as an image classifier.

    Logs `val/top1`, `val/top5` (with more than 5 classes), `val/loss` and `val/ece` (expected
    calibration error, 15 bins), the same under `test/`, `train/loss`, and `train/top1` where
    neither Mixup nor CutMix is on. Accuracies are fractions in [0, 1]. `val/` and `test/` cover the
    whole set, every image with the same weight; their loss is the plain cross-entropy in nats, that
    of training is against smoothed and mixed targets.

    The defaults of mixing and smoothing are those of the published ImageNet recipe.

    Args:
        backbone: The network, built for the number of classes of the data; in Python, timm's name
            of a model does as well.
        optimizer: Which optimizer updates the weights, and how.
        schedule: How the learning rate moves over the run.
        mixup_alpha: Mixup blends two images in shares drawn from Beta(alpha, alpha); 0 is off
            (arXiv:1710.09412).
        cutmix_alpha: CutMix pastes a box whose share is drawn likewise; 0 is off
            (arXiv:1905.04899).
        mixup_prob: Probability that a batch is mixed at all.
        mixup_switch_prob: Probability of CutMix rather than Mixup for a batch where both are on.
        label_smoothing: Share of each target spread evenly over all classes, mixed or not.
        weights: Checkpoint to start from: official, of a run or exported, read by
            `spanet_lightning.load_official`. Null starts from random weights.
        num_classes: Classes of a backbone that is given by name.
        weights_set: Which weights of a file that holds their moving average as well: "model" or
            "ema". Null takes what the file calls its state dict.

    Raises:
        ConfigError: If a value is out of its range.
        CheckpointError: If `weights` can't be read or don't fit the backbone.
    """

    def __init__(
        self,
        backbone: Backbone | str,
        optimizer: OptimizerConfig = _ADAMW,
        schedule: ScheduleConfig = _COSINE,
        mixup_alpha: float = 0.8,
        cutmix_alpha: float = 1.0,
        mixup_prob: float = 1.0,
        mixup_switch_prob: float = 0.5,
        label_smoothing: float = 0.1,
        weights: str | None = None,
        num_classes: int | None = None,
        weights_set: WeightsSet | None = None,
    ) -> None:
        super().__init__(optimizer, schedule)
        self.backbone = as_backbone(backbone, num_classes)
        self._remember_arguments(backbone)
        for key, alpha in (("mixup_alpha", mixup_alpha), ("cutmix_alpha", cutmix_alpha)):
            if not 0 <= alpha < float("inf"):
                raise invalid(key, alpha, "a number of at least 0")
        for key, share in (
            ("mixup_prob", mixup_prob),
            ("mixup_switch_prob", mixup_switch_prob),
            ("label_smoothing", label_smoothing),
        ):
            if not 0 <= share <= 1:
                raise invalid(key, share, "a number in [0, 1]")
        classes = self.backbone.num_classes
        if classes < 2:
            raise invalid("backbone.num_classes", classes, "at least 2 classes")
        if weights is not None:
            load_weights(self.backbone, weights, weights_set)

        self.label_smoothing = label_smoothing
        self._class_weights: Tensor | None = None
        self.mixup: Mixup | None = None
        if mixup_prob > 0 and (mixup_alpha > 0 or cutmix_alpha > 0):
            self.mixup = Mixup(  # type: ignore[no-untyped-call]
                mixup_alpha=mixup_alpha,
                cutmix_alpha=cutmix_alpha,
                prob=mixup_prob,
                switch_prob=mixup_switch_prob,
                label_smoothing=label_smoothing,
                num_classes=classes,
            )
        self.train_top1 = _top(1, classes)
        self.val_metrics = _metrics("val", classes)
        self.test_metrics = _metrics("test", classes)

    def trained(self) -> nn.Module:
        """Return the backbone."""
        return self.backbone

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Return the logits of images, float32."""
        logits: Tensor = self.backbone(images)
        return logits.float()

    def setup(self, stage: str) -> None:
        """Check the data against the task, and take the data's weights of classes.

        Args:
            stage: What the trainer is about to do.
        """
        super().setup(stage)
        weights = getattr(getattr(self.trainer, "datamodule", None), "loss_weights", None)
        self._class_weights = weights() if weights and stage == "fit" else None

    def check_num_classes(self) -> None:
        """Refuse a backbone whose number of classes is not that of the data."""
        self.refuse_num_classes("backbone.num_classes", self.backbone.num_classes)

    def check_batch_size(self, batch_size: int) -> None:
        """Refuse to mix single images."""
        if batch_size < 2 and self.mixup is not None:
            accepts = "at least 2: Mixup and CutMix mix images in pairs (mixup_prob=0 mixes none)"
            raise invalid("data.batch_size", batch_size, accepts)

    def check(self, batch: Batch) -> None:
        """Refuse images that are not finite and labels that are not classes of the backbone.

        Raises:
            DataError: In either case, with the value received.
        """
        images, labels = batch
        classes = self.backbone.num_classes
        check_finite(images)
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            raise DataError(
                f"labels: got {low if low < 0 else high}, expected 0 to {classes - 1}, "
                f"as backbone.num_classes is {classes}"
            )

    def mixed(
        self, images: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b c h w"], Tensor]:
        """Return a batch as it is trained on: mixed images, soft targets of shape (b, classes).

        Without Mixup and CutMix both come back as they are. Images are mixed in pairs, the first
        with the last and so on; of an odd number, the last one is there twice for that.
        """
        if self.mixup is None:
            return images, labels
        count = len(images)
        if count % 2:
            images, labels = torch.cat([images, images[-1:]]), torch.cat([labels, labels[-1:]])
        images, targets = self.mixup(images, labels)
        return images[:count], targets[:count]

    def erased(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return training images with boxes of noise, as the data says: after mixing, as published.

        Data modules may offer `erase(images)`; without it nothing is erased.
        """
        data = getattr(self.trainer, "datamodule", None) if self.is_attached else None
        erase = getattr(data, "erase", None)
        return images if erase is None else erase(images)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean cross-entropy of a batch against its smoothed, possibly mixed targets."""
        if cheap_to_check(batch[0], batch_idx):
            self.check(batch)
        images, targets = self.mixed(*batch)
        logits = self(self.erased(images))
        # Mixup has smoothed its soft targets already; class indices are smoothed here.
        smoothing = self.label_smoothing if self.mixup is None else 0.0
        weight = None if self._class_weights is None else self._class_weights.to(logits.device)
        loss = F.cross_entropy(logits, targets, weight, label_smoothing=smoothing)
        if self.mixup is None:
            self.train_top1.update(logits, targets)
            self.log_epoch_metric("train/top1", self.train_top1)
        self.log_means({"train/loss": loss}, len(images))
        self.log("loss", loss, prog_bar=True, logger=False)  # of this batch, for who watches
        return loss

    def epoch_metrics(self) -> dict[str, Metric]:
        """Return the metrics of the training epoch under way, by the name they are logged by."""
        top1: dict[str, Metric] = {"train/top1": self.train_top1} if self.mixup is None else {}
        return super().epoch_metrics() | top1

    def validation_step(self, batch: Batch, batch_idx: int) -> Evaluated:
        """Add a batch to the figures under `val/`; return what callbacks draw."""
        return self.evaluate(batch, batch_idx, self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> Evaluated:
        """Add a batch to the figures under `test/`; return what callbacks draw."""
        return self.evaluate(batch, batch_idx, self.test_metrics)

    def evaluate(self, batch: Batch, batch_idx: int, metrics: MetricCollection) -> Evaluated:
        """Add a batch to `metrics`, which are computed once the whole set has been seen."""
        if cheap_to_check(batch[0], batch_idx):
            self.check(batch)
        images, labels = batch
        logits = self(images)
        losses = F.cross_entropy(logits, labels, reduction="none")
        metrics.update(preds=logits, target=labels, value=losses)
        self.log_dict(metrics, batch_size=len(images), prog_bar=True)
        return {"logits": logits, "losses": losses}

    def predict_step(self, batch: Batch | Tensor) -> Prediction:
        """Return the probabilities of a batch; labels that come along are ignored."""
        images = batch if isinstance(batch, Tensor) else batch[0]
        probabilities = self(images).softmax(dim=-1)
        top = probabilities.topk(min(5, probabilities.shape[-1]))
        return {
            "probabilities": probabilities,
            "top_classes": top.indices,
            "top_probabilities": top.values,
        }


def _top(k: int, classes: int) -> MulticlassAccuracy:
    """Return the share of images whose class is among the `k` most probable ones."""
    # Labels are checked in the step; torchmetrics' own check would stall an accelerator each time.
    return MulticlassAccuracy(classes, top_k=k, average="micro", validate_args=False)


def _metrics(split: str, classes: int) -> MetricCollection:
    """Return the metrics of one split, named `split/...`."""
    metrics: dict[str, Metric | MetricCollection] = {
        "top1": _top(1, classes),
        "loss": MeanMetric(),
        "ece": CalibrationError(classes),
    }
    if classes > 5:
        metrics["top5"] = _top(5, classes)
    # Compute groups would merge metrics whose states agree after the first batch: one batch with
    # top-1 = top-5, such as any that is all correct, and top-5 reports top-1 from then on.
    return MetricCollection(metrics, prefix=f"{split}/", compute_groups=False)
