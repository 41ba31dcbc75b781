"""The two backbone families, and timm's models beside them. Knows only torch and timm."""

from spanet_lightning.backbones.metaformer import Backbone
from spanet_lightning.backbones.official import load_official
from spanet_lightning.backbones.spanet import SPANet
from spanet_lightning.backbones.spanetv2 import SPANetV2
from spanet_lightning.backbones.timm_backbone import TimmBackbone

__all__ = ["Backbone", "SPANet", "SPANetV2", "TimmBackbone", "load_official"]
