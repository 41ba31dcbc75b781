"""LightningModules: one for each task. They take built parts and own steps, metrics, optimizers.

Each is imported when it is first named: a classifier needs no detector.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_MODULES = {
    "ClassificationTask": "classification",
    "DetectionTask": "detection",
    "FullyShardedStrategy": "sharding",
    "SegmentationTask": "segmentation",
    "Task": "base",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
