"""LightningDataModules, and the checks of what they read."""

from spanet_lightning.data.classification import ImageClassificationDataModule
from spanet_lightning.data.coco import CocoDataModule
from spanet_lightning.data.digit_scenes import DigitScenesDataModule
from spanet_lightning.data.digits import DigitsDataModule
from spanet_lightning.data.segmentation import SegmentationFoldersDataModule

__all__ = [
    "CocoDataModule",
    "DigitScenesDataModule",
    "DigitsDataModule",
    "ImageClassificationDataModule",
    "SegmentationFoldersDataModule",
]
