"""LightningModules: one for each task. They take built parts and own steps, metrics, optimizers."""

from spanet_lightning.tasks.base import Task
from spanet_lightning.tasks.classification import ClassificationTask
from spanet_lightning.tasks.detection import DetectionTask
from spanet_lightning.tasks.segmentation import SegmentationTask
from spanet_lightning.tasks.sharding import FullyShardedStrategy

__all__ = [
    "ClassificationTask",
    "DetectionTask",
    "FullyShardedStrategy",
    "SegmentationTask",
    "Task",
]
