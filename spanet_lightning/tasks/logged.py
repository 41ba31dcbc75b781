"""Which metrics a run of a task logs, so that a misspelt one is refused before the first step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lightning.pytorch import LightningModule

from spanet_lightning.tasks.classification import ClassificationTask

_SEGMENTATION = ("miou", "mean_accuracy", "pixel_accuracy")


@dataclass(frozen=True)
class Logged:
    """The metrics of a run.

    Attributes:
        names: Those known by name.
        prefixes: What others begin with, such as those of each class.
    """

    names: tuple[str, ...]
    prefixes: tuple[str, ...] = ()

    def has(self, metric: str) -> bool:
        """Whether a run logs this metric."""
        return metric in self.names or metric.startswith(self.prefixes or ("\0",))

    def of(self, *splits: str) -> list[str]:
        """Return the names under some splits."""
        return [name for name in self.names if name.partition("/")[0] in splits]


def logged(model: LightningModule) -> Logged | None:
    """Return what a model logs; None where that can't be known, as for a class of the user's own.

    Args:
        model: The task, built.
    """
    if type(model) is ClassificationTask:
        own = [str(name) for name in (*model.val_metrics.keys(), *model.test_metrics.keys())]
        train = ["train/loss", *(["train/top1"] if model.mixup is None else [])]
        return Logged((*own, *train))
    from spanet_lightning.tasks import DetectionTask, SegmentationTask
    from spanet_lightning.tasks.metrics import COCO_NUMBERS

    if type(model) is SegmentationTask:
        return _dense(_SEGMENTATION, ("iou",) if model.per_class else ())
    if type(model) is DetectionTask:
        metric = model.val_metric
        kinds = ["box", "mask"] if "segm" in metric.kinds else ["box"]
        figures = [f"{kind}_{number}" for kind in kinds for number in COCO_NUMBERS.values()]
        return _dense(figures, [f"{kind}_ap" for kind in kinds] if metric.class_metrics else ())
    return None


def _dense(figures: Iterable[str], by_class: Iterable[str]) -> Logged:
    figures, by_class = list(figures), list(by_class)
    names = [f"{split}/{figure}" for split in ("val", "test") for figure in figures]
    classes = [f"{split}/{figure}/" for split in ("val", "test") for figure in by_class]
    return Logged((*names, "train/loss"), (*classes, "train/loss_"))
