"""The two backbone families. Knows only torch and timm."""

from spanet_lightning.backbones.metaformer import Backbone
from spanet_lightning.backbones.official import load_official
from spanet_lightning.backbones.spanet import SPANet
from spanet_lightning.backbones.spanetv2 import SPANetV2

__all__ = ["Backbone", "SPANet", "SPANetV2", "load_official"]
