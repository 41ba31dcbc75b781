"""Object detection and instance segmentation, evaluated by COCO's average precision."""

from __future__ import annotations

from typing import ClassVar, NotRequired, TypedDict

from jaxtyping import Float
from torch import Tensor

from spanet_lightning.backbones import Backbone
from spanet_lightning.backbones.weights import WeightsSet
from spanet_lightning.data.batches import STRIDE, DetectionBatch
from spanet_lightning.errors import DataError, invalid
from spanet_lightning.heads import DetectionHead, Detections
from spanet_lightning.heads.base import DetectionLayers, Size
from spanet_lightning.heads.boxes import rescale
from spanet_lightning.heads.roi import paste_masks
from spanet_lightning.tasks.base import cheap_to_check, check_finite
from spanet_lightning.tasks.dense import DenseTask
from spanet_lightning.tasks.metrics import CocoMetric
from spanet_lightning.tasks.optim import OptimizerConfig, ScheduleConfig

# The published 1× recipe of SPANet.
_ADAMW = OptimizerConfig(lr=1e-4, weight_decay=1e-4, no_decay="none")
_ONE_X = ScheduleConfig(
    name="step", milestones=(8, 11), update="step", warmup_images=8000, warmup_factor=1e-3
)


class FoundObjects(TypedDict):
    """What `predict_step` returns for one image, in pixels of the image as stored.

    Attributes:
        boxes: Corners (x1, y1, x2, y2), shape (N, 4), best first.
        scores: In [0, 1], shape (N,).
        labels: 1 to the number of classes, shape (N,).
        masks: Shape (N, H, W), bool; with instance masks alone.
        image_id: The id of the image, where the data gives one.
        path: Where the image came from.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: NotRequired[Tensor]
    image_id: int
    path: str


class DetectionTask(DenseTask):
    """Train and evaluate a detector: RetinaNet, Faster, Mask or Cascade Mask R-CNN.

    Logs COCO's twelve numbers over the whole set: `val/box_ap`, `val/box_ap50`, ..., with instance
    masks `val/mask_ap` and so on, the same under `test/`; fractions in [0, 1], absent where the set
    has no object of that size. In training, `train/loss` and each of its parts.

    Args:
        backbone: The network, built; its classifier is given up. In Python, timm's name of a model
            does as well.
        head: Which detector, with its settings.
        num_classes: Classes of the data, without background.
        optimizer: Which optimizer updates the weights, and how.
        schedule: How the learning rate moves over the run.
        frozen_stages: Stem and first stages that are not trained, 0 to 4.
        per_class: Whether to log the average precision of each class as well.
        weights: Checkpoint to start from: of a whole detector, or of ImageNet for the backbone
            alone. Null starts from random weights.
        weights_set: Which weights of a file that holds their moving average as well: "model" or
            "ema". Null takes what the file calls its state dict.

    Raises:
        ConfigError: If a value is out of its range.
        CheckpointError: If `weights` can't be read or don't fit.
    """

    headline: ClassVar[tuple[str, ...]] = ("box_ap", "mask_ap")
    targets: ClassVar[str] = "an object"

    def __init__(
        self,
        backbone: Backbone | str,
        head: DetectionHead,
        num_classes: int,
        optimizer: OptimizerConfig = _ADAMW,
        schedule: ScheduleConfig = _ONE_X,
        frozen_stages: int = 0,
        per_class: bool = False,
        weights: str | None = None,
        weights_set: WeightsSet | None = None,
    ) -> None:
        super().__init__(
            backbone, head, num_classes, optimizer, schedule, frozen_stages, weights, weights_set
        )
        self._remember_arguments(backbone)
        self.val_metric = CocoMetric(self.layers.has_masks, per_class)
        self.test_metric = CocoMetric(self.layers.has_masks, per_class)

    @property
    def layers(self) -> DetectionLayers:
        """The layers of the head."""
        layers = self.model.head
        assert isinstance(layers, DetectionLayers)  # noqa: S101 - for the type checker
        return layers

    def setup(self, stage: str) -> None:
        """Refuse data without instance masks where the head learns them."""
        super().setup(stage)
        masks = getattr(getattr(self.trainer, "datamodule", None), "masks", None)
        if stage != "predict" and self.layers.has_masks and masks is False:
            raise invalid("data.masks", masks, "true: this head learns instance masks")

    def check(self, batch: DetectionBatch) -> None:
        """Refuse images that are not finite, and boxes or labels that can't be learnt.

        Raises:
            DataError: In each case, with the image and the value received.
        """
        check_finite(batch.images)
        classes = self.model.num_classes
        for target, path in zip(batch.targets, batch.paths, strict=True):
            boxes, labels = target["boxes"], target["labels"]
            if len(boxes) != len(labels):
                raise DataError(f"{path}: got {len(labels)} labels for {len(boxes)} boxes")
            if len(boxes) == 0:
                continue
            sides = boxes[:, 2:] - boxes[:, :2]
            bad = (~boxes.isfinite().all(dim=1) | (sides <= 0).any(dim=1)).nonzero()
            if len(bad):
                box = boxes[int(bad[0])].tolist()
                raise DataError(f"{path}: box {box}: expected finite x1 < x2 and y1 < y2")
            low, high = int(labels.min()), int(labels.max())
            if low < 1 or high > classes:
                raise DataError(
                    f"{path}: label {low if low < 1 else high}: expected 1 to {classes}, the "
                    "number of classes"
                )
            if self.layers.has_masks and "masks" not in target:
                raise DataError(f"{path}: has no instance masks, which this head learns")

    def forward(self, images: Float[Tensor, "b c h w"]) -> list[Detections]:
        """Return the detections of each image, in its pixels, masks included."""
        size = tuple(images.shape[-2:])
        found = self.layers.detect(self.model.features(images), [size] * len(images))
        return [at_size(one, size, size) for one in found]

    def training_step(self, batch: DetectionBatch, batch_idx: int) -> Tensor:
        """Return the sum of the head's losses."""
        if cheap_to_check(batch.images, batch_idx):
            self.check(batch)
        features = self.model.features(batch.images)
        losses = self.layers.losses(features, batch.sizes, batch.targets)
        return self.log_losses(losses, len(batch.images))

    def evaluate(self, batch: DetectionBatch, batch_idx: int, metric: CocoMetric) -> None:
        """Add a batch to `metric`, which is computed once the whole set has been seen."""
        if cheap_to_check(batch.images, batch_idx):
            check_finite(batch.images)
        metric.add(self.detections(batch), batch.targets)

    def figures(self, metric: CocoMetric) -> dict[str, Tensor]:
        """Return COCO's numbers by name."""
        return metric.numbers(self.class_names)

    def detections(self, batch: DetectionBatch) -> list[Detections]:
        """Return the detections of each image, in pixels of the image as stored.

        Only images of one padded size share a pass: spectral filters are global, so that the
        padding that another image brings would change what is found.
        """
        groups: dict[Size, list[int]] = {}
        for i, size in enumerate(batch.sizes):
            height, width = (-(-side // STRIDE) * STRIDE for side in size)
            groups.setdefault((height, width), []).append(i)
        found: dict[int, Detections] = {}
        for (height, width), members in groups.items():
            images = batch.images[members, :, :height, :width]
            sizes = [batch.sizes[i] for i in members]
            found |= zip(
                members, self.layers.detect(self.model.features(images), sizes), strict=True
            )
        originals = zip(batch.sizes, batch.original_sizes, strict=True)
        return [at_size(found[i], *sizes) for i, sizes in enumerate(originals)]

    def predict_step(self, batch: DetectionBatch) -> list[FoundObjects]:
        """Return the detections of each image, in pixels of the image as stored."""
        return [
            {**found, "image_id": target["image_id"], "path": path}  # type: ignore[typeddict-unknown-key]
            for found, target, path in zip(
                self.detections(batch), batch.targets, batch.paths, strict=True
            )
        ]


def at_size(detections: Detections, size: Size, original: Size) -> Detections:
    """Return detections in an image of `size` (height, width) in pixels of the image as stored."""
    boxes = rescale(detections["boxes"], size, original)
    found: Detections = {**detections, "boxes": boxes}
    if "mask_probs" in detections:
        del found["mask_probs"]
        found["masks"] = paste_masks(detections["mask_probs"], boxes, original)
    return found
