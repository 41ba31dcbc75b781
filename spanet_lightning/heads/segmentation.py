"""Semantic FPN (arXiv:1901.02446) and UPerNet (arXiv:1807.10221), with its auxiliary FCN head.

Modules have mmsegmentation's names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from spanet_lightning.backbones.official import Rules
from spanet_lightning.backbones.validate import fraction, positive, positive_int
from spanet_lightning.errors import ConfigError
from spanet_lightning.heads.base import SegmentationHead, SegmentationLayers, resize
from spanet_lightning.heads.layers import (
    FPN,
    FPN_RULES,
    ConvModule,
    init_normal,
    mean_over_devices,
)

POOL_SCALES = (1, 2, 3, 6)


@dataclass(frozen=True)
class SemanticFPN(SegmentationHead):
    """Semantic FPN: a pyramid whose levels are brought to stride 4 and summed (arXiv:1901.02446).

    The published batch norms were synchronised over devices: `trainer.sync_batchnorm: true`.

    Args:
        out_channels: Channels of the pyramid.
        channels: Channels of the branches.
        dropout_ratio: Share of channels dropped before the classifier.

    Raises:
        ConfigError: If a value is out of its range.
    """

    out_channels: int = 256
    channels: int = 128
    dropout_ratio: float = 0.1

    def __post_init__(self) -> None:
        positive_int("out_channels", self.out_channels)
        positive_int("channels", self.channels)
        fraction("dropout_ratio", self.dropout_ratio, below_one=True)

    def build(self, channels: Sequence[int], num_classes: int) -> SemanticFPNLayers:
        """Return the layers for a backbone with these channels per level."""
        return SemanticFPNLayers(self, channels, num_classes)


class SemanticFPNLayers(SegmentationLayers):
    """The layers of `SemanticFPN`: at stride 2^k·4, max(k, 1) convolutions, ×2 after each."""

    rules: Rules = (
        *FPN_RULES,
        (r"^decode_head\.", ""),
        # The up-sampling layers between convolutions count as well.
        (r"^branches\.(\d)\.2\.", r"scale_heads.\1.4."),
        (r"^branches\.(\d)\.1\.", r"scale_heads.\1.2."),
        (r"^branches\.", r"scale_heads."),
        (r"^(scale_heads\.\d\.\d)\.norm\.", r"\1.bn."),
        (r"^classes\.", "conv_seg."),
    )

    def __init__(self, config: SemanticFPN, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        width = config.channels
        self.neck = FPN(channels, config.out_channels)
        self.scale_heads = nn.ModuleList()
        for level in range(len(channels)):
            layers: list[nn.Module] = []
            for i in range(max(level, 1)):
                layers.append(ConvModule(config.out_channels if i == 0 else width, width, 3))
                if level > 0:
                    layers.append(nn.Upsample(scale_factor=2, mode="bilinear"))
            self.scale_heads.append(nn.Sequential(*layers))
        self.dropout = nn.Dropout2d(config.dropout_ratio)
        self.conv_seg = nn.Conv2d(width, num_classes, 1)
        init_normal(0.01)(self.conv_seg)

    def forward(self, features: Sequence[Tensor]) -> Float[Tensor, "b k h w"]:
        """Return logits at stride 4."""
        levels = self.neck(features)
        outputs = [head(x) for head, x in zip(self.scale_heads, levels, strict=True)]
        total = outputs[0]
        for x in outputs[1:]:
            # Twice a rounded size may be a pixel more than the finest level has.
            total = total + (x if x.shape == total.shape else resize(x, total.shape[-2:]))
        logits: Tensor = self.conv_seg(self.dropout(total))
        return logits


@dataclass(frozen=True)
class UPerNet(SegmentationHead):
    """UPerNet: pyramid pooling on the last stage and a pyramid over it (arXiv:1807.10221).

    The published batch norms were synchronised over devices: `trainer.sync_batchnorm: true`.

    Args:
        channels: Channels of all its convolutions. Only the default explains the published
            parameters and MACs; the official configurations say 320.
        auxiliary_loss_weight: Weight of the loss of an FCN head on stage 3; 0 leaves that head out.
        auxiliary_channels: Channels of that head.
        dropout_ratio: Share of channels dropped before the classifiers.

    Raises:
        ConfigError: If a value is out of its range.
    """

    channels: int = 512
    auxiliary_loss_weight: float = 0.4
    auxiliary_channels: int = 256
    dropout_ratio: float = 0.1

    def __post_init__(self) -> None:
        positive_int("channels", self.channels)
        if self.auxiliary_loss_weight != 0:
            positive("auxiliary_loss_weight", self.auxiliary_loss_weight)
        positive_int("auxiliary_channels", self.auxiliary_channels)
        fraction("dropout_ratio", self.dropout_ratio, below_one=True)

    def build(self, channels: Sequence[int], num_classes: int) -> UPerNetLayers:
        """Return the layers for a backbone with these channels per level."""
        return UPerNetLayers(self, channels, num_classes)


class FCNHead(nn.Module):
    """A 3×3 convolution and a classifier: the auxiliary head.

    Args:
        in_channels: Channels of the level.
        channels: Channels of the convolution.
        num_classes: Classes.
        dropout_ratio: Share of channels dropped before the classifier.
    """

    def __init__(
        self, in_channels: int, channels: int, num_classes: int, dropout_ratio: float
    ) -> None:
        super().__init__()
        self.convs = nn.Sequential(ConvModule(in_channels, channels, 3))
        self.dropout = nn.Dropout2d(dropout_ratio)
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)
        init_normal(0.01)(self.conv_seg)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        """Return logits at the level's own stride."""
        logits: Tensor = self.conv_seg(self.dropout(self.convs(x)))
        return logits


class UPerNetLayers(SegmentationLayers):
    """The layers of `UPerNet`, the auxiliary head included."""

    min_train_images: ClassVar[int] = 2  # pooled to one pixel, of which batch norm needs two
    rules: Rules = (
        (r"^decode_head\.", ""),
        (r"^pools\.(\d)\.", r"psp_modules.\1.1."),
        (r"^pooled\.", "bottleneck."),
        (r"^laterals\.", "lateral_convs."),
        (r"^outputs\.", "fpn_convs."),
        (r"^fused\.", "fpn_bottleneck."),
        (r"^auxiliary_head\.conv\.", "auxiliary_head.convs.0."),
        (r"^((?:auxiliary_head\.)?)classes\.", r"\1conv_seg."),
        (r"\.norm\.", ".bn."),
    )

    def __init__(self, config: UPerNet, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        width, ratio = config.channels, config.dropout_ratio
        *finer, last = channels
        self.auxiliary_loss_weight = config.auxiliary_loss_weight
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), ConvModule(last, width, 1))
            for scale in POOL_SCALES
        )
        self.bottleneck = ConvModule(last + len(POOL_SCALES) * width, width, 3)
        self.lateral_convs = nn.ModuleList(ConvModule(c, width, 1) for c in finer)
        self.fpn_convs = nn.ModuleList(ConvModule(width, width, 3) for _ in finer)
        self.fpn_bottleneck = ConvModule(len(channels) * width, width, 3)
        self.dropout = nn.Dropout2d(ratio)
        self.conv_seg = nn.Conv2d(width, num_classes, 1)
        init_normal(0.01)(self.conv_seg)
        self.auxiliary_head = (
            FCNHead(channels[2], config.auxiliary_channels, num_classes, ratio)
            if config.auxiliary_loss_weight > 0
            else None
        )

    def forward(self, features: Sequence[Tensor]) -> Float[Tensor, "b k h w"]:
        """Return logits at stride 4."""
        *finer, last = features
        pools = [resize(module(last), last.shape[-2:]) for module in self.psp_modules]
        merged = [lateral(x) for lateral, x in zip(self.lateral_convs, finer, strict=True)]
        merged.append(self.bottleneck(torch.cat([last, *pools], dim=1)))
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + resize(merged[i], merged[i - 1].shape[-2:])
        levels = [conv(x) for conv, x in zip(self.fpn_convs, merged[:-1], strict=True)]
        levels.append(merged[-1])
        size = merged[0].shape[-2:]
        fused = self.fpn_bottleneck(torch.cat([resize(x, size) for x in levels], dim=1))
        logits: Tensor = self.conv_seg(self.dropout(fused))
        return logits

    def auxiliary(self, features: Sequence[Tensor]) -> tuple[Tensor, float] | None:
        """Return the auxiliary head's logits at stride 16 and the weight of their loss."""
        if self.auxiliary_head is None:
            return None
        return self.auxiliary_head(features[2]), self.auxiliary_loss_weight


def segmentation_loss(
    logits: Float[Tensor, "b k h w"], masks: Tensor, ignored: int = 255, *, over_all: bool = True
) -> Tensor:
    """Return the cross-entropy of logits that are resized to the masks.

    Args:
        logits: (B, K, h, w), at any stride.
        masks: The class of each pixel, (B, H, W), int64.
        ignored: The value of pixels without a class.
        over_all: Whether to divide by all pixels, as the official code does, or by those that have
            a class. The former weighs images with few labelled pixels less.

    Raises:
        ConfigError: If logits and masks are of different batches.
    """
    if len(logits) != len(masks):
        raise ConfigError(f"masks: got {len(masks)}, expected {len(logits)}, one per image")
    full = resize(logits.float(), masks.shape[-2:])
    total = F.cross_entropy(full, masks, ignore_index=ignored, reduction="sum")
    if over_all:  # as many on each device
        return total / max(masks.numel(), 1)
    return total / mean_over_devices(int((masks != ignored).sum()), like=total)
