"""Detectors and segmentation heads on any backbone with four pyramid levels.

Knows the backbones' feature contract, torch and torchvision. Each head is imported when it is first
named.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spanet_lightning.heads.base import (
        DenseModel,
        DetectionHead,
        Detections,
        SegmentationHead,
    )
    from spanet_lightning.heads.cascade import CascadeMaskRCNN
    from spanet_lightning.heads.rcnn import FasterRCNN, MaskRCNN
    from spanet_lightning.heads.retinanet import RetinaNet
    from spanet_lightning.heads.segmentation import SemanticFPN, UPerNet

__all__ = [
    "CascadeMaskRCNN",
    "DenseModel",
    "DetectionHead",
    "Detections",
    "FasterRCNN",
    "MaskRCNN",
    "RetinaNet",
    "SegmentationHead",
    "SemanticFPN",
    "UPerNet",
]

_MODULES = {
    "CascadeMaskRCNN": "cascade",
    "DenseModel": "base",
    "DetectionHead": "base",
    "Detections": "base",
    "FasterRCNN": "rcnn",
    "MaskRCNN": "rcnn",
    "RetinaNet": "retinanet",
    "SegmentationHead": "base",
    "SemanticFPN": "segmentation",
    "UPerNet": "segmentation",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
