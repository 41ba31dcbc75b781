"""Detectors and segmentation heads on any backbone with four pyramid levels.

Knows the backbones' feature contract, torch and torchvision.
"""

from spanet_lightning.heads.base import DenseModel, DetectionHead, Detections, SegmentationHead
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
