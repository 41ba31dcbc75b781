"""LightningDataModules, and the checks of what they read."""

from spanet_lightning.data.classification import ImageClassificationDataModule
from spanet_lightning.data.coco import CocoDataModule
from spanet_lightning.data.digits import DigitsDataModule

__all__ = ["CocoDataModule", "DigitsDataModule", "ImageClassificationDataModule"]
