"""Regions of interest: their features, and the heads that classify, refine and segment them.

In the softmax over classes the background comes first (label 0), as in torchvision.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import roi_align

from spanet_lightning.heads.base import STRIDES
from spanet_lightning.heads.layers import (
    ConvNormReLU,
    HeadNorm,
    conv_relu,
    init_kaiming,
    init_normal,
    init_xavier,
)

BOX_CELLS, MASK_CELLS = 7, 14
FINEST = 56  # pixels: boxes of twice this side and more leave the finest level


def roi_level(boxes: Float[Tensor, "n 4"]) -> Tensor:
    """Return the level, 0 to 3, that each box is read from (arXiv:1612.03144, Eq. 1).

    clamp(floor(log2(sqrt(area) / 56 + 1e-6)), 0, 3).
    """
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=0).sqrt()
    return (side / FINEST + 1e-6).log2().floor().clamp(0, len(STRIDES) - 1).long()


def pool_rois(
    levels: Sequence[Tensor], boxes: Sequence[Tensor], cells: int
) -> Float[Tensor, "n c p p"]:
    """Return the features of every box of every image, cells × cells.

    RoIAlign with pixel centres at half (`aligned`) and as many samples a cell as it has pixels
    (arXiv:1703.06870).

    Args:
        levels: The pyramid; the first four levels are read.
        boxes: Boxes of each image in pixels.
        cells: Side of the grid.
    """
    rois = torch.cat(
        [torch.cat([box.new_full((len(box), 1), i), box], 1) for i, box in enumerate(boxes)]
    ).float()
    level = roi_level(rois[:, 1:])
    # float32: half precision would shift boxes by whole pixels.
    maps = [x.float() for x in levels[: len(STRIDES)]]
    pooled = maps[0].new_zeros((len(rois), maps[0].shape[1], cells, cells))
    for i, (x, stride) in enumerate(zip(maps, STRIDES, strict=True)):
        here = (level == i).nonzero()[:, 0]
        # Also where no box is: its level stays in the graph, which DistributedDataParallel needs.
        part = roi_align(x, rois[here], cells, 1 / stride, sampling_ratio=0, aligned=True)
        pooled = pooled.index_copy(0, here, part)
    return pooled


class BoxHead(nn.Module):
    """Classes and class-specific deltas of pooled regions.

    Two forms: two fully connected layers (Mask R-CNN), or four 3×3 convolutions with batch norm
    and one fully connected layer (Cascade).

    Args:
        channels: Channels of the pyramid.
        hidden: Width of the fully connected layers.
        num_classes: Classes K, without background.
        norm: Batch norm of the convolutions; None for the form without convolutions.
    """

    def __init__(
        self, channels: int, hidden: int, num_classes: int, norm: HeadNorm | None = None
    ) -> None:
        super().__init__()
        convs = (
            [] if norm is None else [ConvNormReLU(channels, channels, 3, norm) for _ in range(4)]
        )
        self.convs = nn.Sequential(*convs)
        widths = [channels * BOX_CELLS**2, hidden, *([] if convs else [hidden])]
        self.fcs = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.relu = nn.ReLU()
        self.classes = nn.Linear(hidden, num_classes + 1)
        self.deltas = nn.Linear(hidden, 4 * num_classes)
        for layer in self.fcs:
            assert isinstance(layer, nn.Linear)  # noqa: S101 - for the type checker
            init_xavier(layer)
        init_normal(0.01)(self.classes)
        init_normal(0.001)(self.deltas)

    def forward(
        self, pooled: Float[Tensor, "n c p p"]
    ) -> tuple[Float[Tensor, "n labels"], Float[Tensor, "n k 4"]]:
        """Return logits (N, K + 1), background first, and deltas (N, K, 4)."""
        x = self.convs(pooled).flatten(1)
        for layer in self.fcs:
            x = self.relu(layer(x))
        deltas: Tensor = self.deltas(x)
        return self.classes(x).float(), deltas.float().reshape(len(x), -1, 4)


class MaskHead(nn.Module):
    """One 28×28 mask for each class of a pooled region (arXiv:1703.06870, Fig. 4, right).

    Args:
        channels: Channels of the pyramid.
        num_classes: Classes K.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(conv_relu(channels, channels, init_kaiming) for _ in range(4)))
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.relu = nn.ReLU()
        self.classes = nn.Conv2d(channels, num_classes, 1)
        for layer in (self.upsample, self.classes):
            init_kaiming(layer)

    def forward(self, pooled: Float[Tensor, "n c p p"]) -> Float[Tensor, "n k q q"]:
        """Return mask logits (N, K, 28, 28)."""
        logits: Tensor = self.classes(self.relu(self.upsample(self.convs(pooled))))
        return logits.float()

    def of_labels(self, pooled: Float[Tensor, "n c p p"], labels: Tensor) -> Tensor:
        """Return the mask logits of each region's own class, (N, 28, 28); labels from 1 on."""
        logits = self(pooled)
        own: Tensor = logits[torch.arange(len(logits), device=logits.device), labels - 1]
        return own


def mask_targets(masks: Tensor, which: Tensor, boxes: Float[Tensor, "n 4"]) -> Tensor:
    """Return what the masks of n boxes should be: 28×28, zeros and ones.

    Args:
        masks: The image's masks, (G, H, W).
        which: The object of each box, (n,).
        boxes: The boxes in pixels; the mask is cropped to them.
    """
    rois = torch.cat([which[:, None].to(boxes.dtype), boxes], dim=1)
    cells = 2 * MASK_CELLS
    cropped: Tensor = roi_align(masks[:, None].float(), rois, cells, sampling_ratio=0, aligned=True)
    return (cropped[:, 0] >= 0.5).float()


def mask_loss(logits: Float[Tensor, "n q q"], wanted: Float[Tensor, "n q q"]) -> Tensor:
    """Return the mean binary cross-entropy over the pixels of all masks."""
    loss: Tensor = F.binary_cross_entropy_with_logits(logits, wanted)
    return loss
