"""Semantic FPN (arXiv:1901.02446) and UPerNet (arXiv:1807.10221), with its auxiliary FCN head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from spanet_lightning.backbones.validate import fraction, positive, positive_int
from spanet_lightning.errors import ConfigError, invalid
from spanet_lightning.heads.base import Rules, SegmentationHead, SegmentationLayers
from spanet_lightning.heads.layers import (
    ConvNormReLU,
    HeadNorm,
    SyncBatchNorm,
    batch_norm,
    devices,
    init_normal,
    mean_over_devices,
)
from spanet_lightning.heads.necks import FPN

POOL_SCALES = (1, 2, 3, 6)


def resize(x: Float[Tensor, "b c h w"], size: Sequence[int]) -> Float[Tensor, "b c i j"]:
    """Return maps resized bilinearly to (height, width), corners not aligned."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


class SemanticFPN(SegmentationHead):
    """Semantic FPN: a pyramid whose levels are brought to stride 4 and summed (arXiv:1901.02446).

    Args:
        width: Channels of the pyramid.
        head_width: Channels of the branches.
        dropout: Share of channels dropped before the classifier.
        norm: Batch norm: of each device's own images, or, as published, of those of all devices.

    Raises:
        ConfigError: If a value is out of its range.
    """

    def __init__(
        self,
        width: int = 256,
        head_width: int = 128,
        dropout: float = 0.1,
        norm: HeadNorm = "sync",
    ) -> None:
        self.width = positive_int("width", width)
        self.head_width = positive_int("head_width", head_width)
        self.dropout = fraction("dropout", dropout, below_one=True)
        batch_norm(norm, 1)  # refuses what is no norm before anything is built
        self.norm: HeadNorm = norm

    def build(self, channels: Sequence[int], num_classes: int) -> SemanticFPNLayers:
        """Return the layers for a backbone with these channels a level."""
        return SemanticFPNLayers(self, channels, num_classes)


class SemanticFPNLayers(SegmentationLayers):
    """The layers of `SemanticFPN`: at stride 2^k·4, max(k, 1) convolutions, ×2 after each."""

    official_rules: Rules = (
        (r"neck\.lateral_convs\.(\d)\.conv\.(.+)", r"neck.laterals.\1.\2"),
        (r"neck\.fpn_convs\.(\d)\.conv\.(.+)", r"neck.outputs.\1.\2"),
        # Official branches list the up-sampling as well, so their convolutions are 0, 2 and 4.
        (r"decode_head\.scale_heads\.(\d)\.(\d)\.conv\.(.+)", r"branches.\1.<half \2>.conv.\3"),
        (r"decode_head\.scale_heads\.(\d)\.(\d)\.bn\.(.+)", r"branches.\1.<half \2>.norm.\3"),
        (r"decode_head\.conv_seg\.(.+)", r"classes.\1"),
    )

    def __init__(self, config: SemanticFPN, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.neck = FPN(channels, config.width)
        self.branches = nn.ModuleList(
            nn.ModuleList(
                ConvNormReLU(
                    config.width if i == 0 else config.head_width,
                    config.head_width,
                    3,
                    config.norm,
                )
                for i in range(max(level, 1))
            )
            for level in range(len(channels))
        )
        self.dropout = nn.Dropout2d(config.dropout)
        self.classes = nn.Conv2d(config.head_width, num_classes, 1)
        init_normal(0.01)(self.classes)

    def forward(self, features: Sequence[Tensor]) -> Float[Tensor, "b k h w"]:
        """Return logits at stride 4."""
        levels = self.neck(features)
        total: Tensor | None = None
        for i, (branch, x) in enumerate(zip(self.branches, levels, strict=True)):
            assert isinstance(branch, nn.ModuleList)  # noqa: S101 - for the type checker
            for conv in branch:
                x = conv(x)
                if i > 0:
                    x = resize(x, (2 * x.shape[-2], 2 * x.shape[-1]))
            # Twice a rounded size may be a pixel more than the finest level has.
            x = x if x.shape == levels[0].shape else resize(x, levels[0].shape[-2:])
            total = x if total is None else total + x
        logits: Tensor = self.classes(self.dropout(total))
        return logits

    def work(self, features: Sequence[Tensor]) -> None:
        """Run the head once."""
        self(features)


class UPerNet(SegmentationHead):
    """UPerNet: pyramid pooling on the last stage and a pyramid over it (arXiv:1807.10221).

    Args:
        width: Channels of all its convolutions. The default alone explains the published
            parameters and MACs; the official configurations say 320.
        auxiliary_weight: Weight of the loss of an FCN head on stage 3; 0 leaves that head out.
        auxiliary_width: Channels of that head.
        dropout: Share of channels dropped before the classifiers.
        norm: Batch norm: of each device's own images, or, as published, of those of all devices.

    Raises:
        ConfigError: If a value is out of its range.
    """

    def __init__(
        self,
        width: int = 512,
        auxiliary_weight: float = 0.4,
        auxiliary_width: int = 256,
        dropout: float = 0.1,
        norm: HeadNorm = "sync",
    ) -> None:
        self.width = positive_int("width", width)
        if auxiliary_weight != 0:
            positive("auxiliary_weight", auxiliary_weight)
        self.auxiliary_weight = auxiliary_weight
        self.auxiliary_width = positive_int("auxiliary_width", auxiliary_width)
        self.dropout = fraction("dropout", dropout, below_one=True)
        batch_norm(norm, 1)
        self.norm: HeadNorm = norm

    def build(self, channels: Sequence[int], num_classes: int) -> UPerNetLayers:
        """Return the layers for a backbone with these channels a level."""
        return UPerNetLayers(self, channels, num_classes)


class FCNHead(nn.Module):
    """A 3×3 convolution and a classifier: the auxiliary head.

    Args:
        channels: Channels of the level.
        width: Channels of the convolution.
        num_classes: Classes.
        dropout: Share of channels dropped before the classifier.
        norm: Which batch norm.
    """

    def __init__(
        self, channels: int, width: int, num_classes: int, dropout: float, norm: HeadNorm
    ) -> None:
        super().__init__()
        self.conv = ConvNormReLU(channels, width, 3, norm)
        self.dropout = nn.Dropout2d(dropout)
        self.classes = nn.Conv2d(width, num_classes, 1)
        init_normal(0.01)(self.classes)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        """Return logits at the level's own stride."""
        logits: Tensor = self.classes(self.dropout(self.conv(x)))
        return logits


class UPerNetLayers(SegmentationLayers):
    """The layers of `UPerNet`, the auxiliary head included."""

    official_rules: Rules = (
        (r"decode_head\.psp_modules\.(\d)\.1\.conv\.(.+)", r"pools.\1.conv.\2"),
        (r"decode_head\.psp_modules\.(\d)\.1\.bn\.(.+)", r"pools.\1.norm.\2"),
        (r"decode_head\.bottleneck\.conv\.(.+)", r"pooled.conv.\1"),
        (r"decode_head\.bottleneck\.bn\.(.+)", r"pooled.norm.\1"),
        (r"decode_head\.lateral_convs\.(\d)\.conv\.(.+)", r"laterals.\1.conv.\2"),
        (r"decode_head\.lateral_convs\.(\d)\.bn\.(.+)", r"laterals.\1.norm.\2"),
        (r"decode_head\.fpn_convs\.(\d)\.conv\.(.+)", r"outputs.\1.conv.\2"),
        (r"decode_head\.fpn_convs\.(\d)\.bn\.(.+)", r"outputs.\1.norm.\2"),
        (r"decode_head\.fpn_bottleneck\.conv\.(.+)", r"fused.conv.\1"),
        (r"decode_head\.fpn_bottleneck\.bn\.(.+)", r"fused.norm.\1"),
        (r"decode_head\.conv_seg\.(.+)", r"classes.\1"),
        (r"auxiliary_head\.convs\.0\.conv\.(.+)", r"auxiliary_head.conv.conv.\1"),
        (r"auxiliary_head\.convs\.0\.bn\.(.+)", r"auxiliary_head.conv.norm.\1"),
        (r"auxiliary_head\.conv_seg\.(.+)", r"auxiliary_head.classes.\1"),
    )

    def __init__(self, config: UPerNet, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        width, norm = config.width, config.norm
        *finer, last = channels
        self.weight = config.auxiliary_weight
        self.pools = nn.ModuleList(ConvNormReLU(last, width, 1, norm) for _ in POOL_SCALES)
        self.pooled = ConvNormReLU(last + len(POOL_SCALES) * width, width, 3, norm)
        self.laterals = nn.ModuleList(ConvNormReLU(c, width, 1, norm) for c in finer)
        self.outputs = nn.ModuleList(ConvNormReLU(width, width, 3, norm) for _ in finer)
        self.fused = ConvNormReLU(len(channels) * width, width, 3, norm)
        self.dropout = nn.Dropout2d(config.dropout)
        self.classes = nn.Conv2d(width, num_classes, 1)
        init_normal(0.01)(self.classes)
        self.auxiliary_head = (
            FCNHead(channels[2], config.auxiliary_width, num_classes, config.dropout, norm)
            if config.auxiliary_weight > 0
            else None
        )

    def forward(self, features: Sequence[Tensor]) -> Float[Tensor, "b k h w"]:
        """Return logits at stride 4.

        Raises:
            ConfigError: In training, if one image is all that batch norm would see of a map that is
                pooled to one pixel.
        """
        *finer, last = features
        if self.training and len(last) == 1 and not _shared(self.pools[0]):
            raise invalid("batch_size", 1, "at least 2: UPerNet normalises over pooled pixels")
        pools = [
            resize(pool(F.adaptive_avg_pool2d(last, scale)), last.shape[-2:])
            for pool, scale in zip(self.pools, POOL_SCALES, strict=True)
        ]
        merged = [lateral(x) for lateral, x in zip(self.laterals, finer, strict=True)]
        merged.append(self.pooled(torch.cat([last, *pools], dim=1)))
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + resize(merged[i], merged[i - 1].shape[-2:])
        levels = [output(x) for output, x in zip(self.outputs, merged[:-1], strict=True)]
        size = merged[0].shape[-2:]
        levels = [*levels, merged[-1]]
        fused = self.fused(torch.cat([resize(x, size) for x in levels], dim=1))
        logits: Tensor = self.classes(self.dropout(fused))
        return logits

    def auxiliary(self, features: Sequence[Tensor]) -> tuple[Tensor, float] | None:
        """Return the auxiliary head's logits at stride 16 and the weight of their loss."""
        if self.auxiliary_head is None:
            return None
        return self.auxiliary_head(features[2]), self.weight

    def work(self, features: Sequence[Tensor]) -> None:
        """Run the head once, without the auxiliary one, which evaluation does not need."""
        self(features)


def _shared(unit: nn.Module) -> bool:
    """Whether batch norm sees the images of other devices as well."""
    return isinstance(unit.norm, SyncBatchNorm) and devices() > 1


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
        raise ConfigError(f"masks: got {len(masks)}, expected {len(logits)}, one for each image")
    full = resize(logits.float(), masks.shape[-2:])
    total = F.cross_entropy(full, masks, ignore_index=ignored, reduction="sum")
    if over_all:  # as many on each device
        return total / max(masks.numel(), 1)
    return total / mean_over_devices(int((masks != ignored).sum()), like=total)
