"""Metrics over a whole set, whatever its batches and processes, and their directions."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassCalibrationError
from torchmetrics.detection import MeanAveragePrecision

from spanet_lightning.heads import Detections

# The twelve numbers of COCO's evaluation: its name in torchmetrics, and ours.
COCO_NUMBERS = {
    "map": "ap",
    "map_50": "ap50",
    "map_75": "ap75",
    "map_small": "ap_small",
    "map_medium": "ap_medium",
    "map_large": "ap_large",
    "mar_1": "ar1",
    "mar_10": "ar10",
    "mar_100": "ar100",
    "mar_small": "ar_small",
    "mar_medium": "ar_medium",
    "mar_large": "ar_large",
}
_KINDS = {"bbox": "box", "segm": "mask"}
_LOWER_IS_BETTER = {
    *("loss", "error", "err", "ece", "nll", "perplexity", "brier"),
    *("mae", "mse", "rmse", "fid", "wer", "cer"),
}


def direction(name: str) -> Literal["min", "max"]:
    """Return whether the best value of a metric is its smallest or its largest one.

    Args:
        name: As it is logged, such as `val/loss`, `train/loss_cls` or `val/top1`.
    """
    words = name.rpartition("/")[2].lower().replace("-", "_").split("_")
    return "max" if _LOWER_IS_BETTER.isdisjoint(words) else "min"


class CalibrationError(MulticlassCalibrationError):
    """Expected calibration error of logits, over 15 equal bins of the confidence.

    Sum over bins of the share of images in it times |accuracy - mean confidence|
    (arXiv:1706.04599, Eq. 3); in [0, 1].

    Args:
        num_classes: Classes K.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, n_bins=15, norm="l1", validate_args=False)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch of logits, shape (B, K), and classes, shape (B,)."""
        # torchmetrics takes logits that all lie in [0, 1], as those of a zero head, for
        # probabilities.
        super().update(preds.softmax(dim=-1), target)


class CocoMetric(MeanAveragePrecision):
    """COCO's average precision and recall of boxes and, on request, of instance masks.

    torchmetrics' metric on the faster of its two backends, with its results under our names:
    `box_ap`, `box_ap50`, ..., `mask_ar_large`. Fractions in [0, 1]; -1 where the set has no object
    of that size, as COCO's own evaluation says.

    Args:
        masks: Whether to evaluate instance masks beside boxes.
        per_class: Whether to give `box_ap/CLASS` for each class as well.
    """

    higher_is_better = True

    def __init__(self, masks: bool = False, per_class: bool = False) -> None:
        kinds: Any = ("bbox", "segm") if masks else ("bbox",)
        with torch.device("cpu"):  # torchmetrics computes its thresholds as tensors
            super().__init__(iou_type=kinds, class_metrics=per_class, backend="faster_coco_eval")
        self.warn_on_many_detections = False  # more than 100 are cut, as COCO's evaluation does
        self.kinds: tuple[str, ...] = kinds

    def numbers(self, class_names: Sequence[str] = ()) -> dict[str, Tensor]:
        """Compute and return the results under our names.

        Args:
            class_names: The name of each label from 1 on; numbers where there are too few.
        """
        logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)
        computed: Mapping[str, Tensor] = self.compute()
        out = {}
        for kind in self.kinds:
            prefix = f"{kind}_" if len(self.kinds) > 1 else ""
            for theirs, ours in COCO_NUMBERS.items():
                out[f"{_KINDS[kind]}_{ours}"] = computed[prefix + theirs]
            if self.class_metrics:
                values = computed[f"{prefix}map_per_class"].reshape(-1)
                labels = computed["classes"].reshape(-1).tolist()
                for label, value in zip(labels, values, strict=True):
                    known = 0 < label <= len(class_names)
                    name = class_names[label - 1] if known else str(label)
                    out[f"{_KINDS[kind]}_ap/{name}"] = value
        return out

    def _sync_dist(self, dist_sync_fn: Any = None, process_group: Any = None) -> None:  # noqa: ARG002
        """Gather the images of all processes, however many each has evaluated.

        torchmetrics gathers image by image, and hangs or aborts where one process has one more.
        """
        own = {
            name: [v.cpu() if isinstance(v, Tensor) else v for v in getattr(self, name)]
            for name in self._defaults
        }
        group = process_group or self.process_group
        parts: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(parts, own, group=group)
        for name in own:
            setattr(self, name, [value for part in parts for value in part[name]])

    def add(self, found: Sequence[Detections], targets: Sequence[Mapping[str, Any]]) -> None:
        """Add images: what was found and what is there, both in pixels of the stored image."""
        keys = ("boxes", "labels", "iscrowd", "area") + (("masks",) if len(self.kinds) > 1 else ())
        with_scores = ("boxes", "scores", "labels", *keys[4:])
        self.update(
            [{key: value for key, value in d.items() if key in with_scores} for d in found],  # type: ignore[misc]
            [{key: t[key] for key in keys} for t in targets],
        )


class SegmentationMetric(Metric):
    """mIoU, mean class accuracy and pixel accuracy from counts over the whole set.

    - `miou`: mean over classes of intersection / union; a class that is neither in the masks nor
      predicted anywhere is left out.
    - `mean_accuracy`: mean over the classes of the masks of the share of their pixels found.
    - `pixel_accuracy`: share of all pixels found.

    Counts are integers, so sums over processes are exact.

    Args:
        num_classes: Classes K.
        ignored: Value of pixels that count nowhere.
    """

    full_state_update = False
    higher_is_better = True
    intersection: Tensor
    predicted: Tensor
    labelled: Tensor

    def __init__(self, num_classes: int, ignored: int = 255) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.ignored = ignored
        for name in ("intersection", "predicted", "labelled"):
            zeros = torch.zeros(num_classes, dtype=torch.int64)
            self.add_state(name, zeros, dist_reduce_fx="sum")

    def update(self, labels: Int[Tensor, "h w"], mask: Int[Tensor, "h w"]) -> None:
        """Add an image: the predicted class of each pixel, and the true one."""
        counted = mask != self.ignored
        labels, mask = labels[counted], mask[counted]
        for state, values in (
            (self.intersection, labels[labels == mask]),
            (self.predicted, labels),
            (self.labelled, mask),
        ):
            state += torch.bincount(values, minlength=self.num_classes)

    def iou(self) -> Tensor:
        """Return the IoU of each class, NaN for those that occur nowhere."""
        union = self.predicted + self.labelled - self.intersection
        return self.intersection.double() / union

    def compute(self) -> dict[str, Tensor]:
        """Return the three figures; NaN where nothing was counted."""
        accuracy = self.intersection.double() / self.labelled
        return {
            "miou": self.iou().nanmean().float(),
            "mean_accuracy": accuracy.nanmean().float(),
            "pixel_accuracy": (self.intersection.sum().double() / self.labelled.sum()).float(),
        }
