"""LightningDataModules, and the checks of what they read.

Modules are imported when they are first named: listing and decoding need no Lightning.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spanet_lightning.data.classification import ImageClassificationDataModule
    from spanet_lightning.data.coco import CocoDataModule
    from spanet_lightning.data.digit_scenes import DigitScenesDataModule
    from spanet_lightning.data.digits import DigitsDataModule
    from spanet_lightning.data.info import DataInfo
    from spanet_lightning.data.segmentation import SegmentationFoldersDataModule

_MODULES = {
    "CocoDataModule": "coco",
    "DataInfo": "info",
    "DigitScenesDataModule": "digit_scenes",
    "DigitsDataModule": "digits",
    "ImageClassificationDataModule": "classification",
    "SegmentationFoldersDataModule": "segmentation",
}

__all__ = [
    "CocoDataModule",
    "DataInfo",
    "DigitScenesDataModule",
    "DigitsDataModule",
    "ImageClassificationDataModule",
    "SegmentationFoldersDataModule",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
