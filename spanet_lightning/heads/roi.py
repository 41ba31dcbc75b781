"""Regions of interest: their features, and the heads that classify, refine and segment them.

In the softmax over classes the background comes first (label 0), as in torchvision.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torchvision.ops import roi_align

from spanet_lightning.heads.base import STRIDES, Size
from spanet_lightning.heads.layers import (
    ConvModule,
    conv_relu,
    init_kaiming,
    init_normal,
    init_xavier,
)

BOX_SIZE, MASK_SIZE = 7, 14  # cells on a side of the pooled features
FINEST = 56  # pixels: boxes of at least twice this side are read from coarser levels
MASK_THRESHOLD = 0.5


def roi_level(boxes: Float[Tensor, "n 4"]) -> Tensor:
    """Return the level, 0 to 3, that each box is read from (arXiv:1612.03144, Eq. 1).

    clamp(floor(log2(sqrt(area) / 56 + 1e-6)), 0, 3).
    """
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=0).sqrt()
    return (side / FINEST + 1e-6).log2().floor().clamp(0, len(STRIDES) - 1).long()


def pool_rois(
    levels: Sequence[Tensor], boxes: Sequence[Tensor], size: int
) -> Float[Tensor, "n c p p"]:
    """Return the features of every box of every image, size × size.

    RoIAlign with pixel centres at half (`aligned`) and as many samples per cell as it has pixels
    (arXiv:1703.06870); torchvision's MultiScaleRoIAlign can't be told to align.

    Args:
        levels: The pyramid; the first four levels are read.
        boxes: Boxes of each image in pixels.
        size: Cells on a side of the grid.
    """
    rois = torch.cat(
        [torch.cat([box.new_full((len(box), 1), i), box], 1) for i, box in enumerate(boxes)]
    ).float()
    level = roi_level(rois[:, 1:])
    # float32: half precision would shift boxes by whole pixels.
    maps = [x.float() for x in levels[: len(STRIDES)]]
    pooled = maps[0].new_zeros((len(rois), maps[0].shape[1], size, size))
    for i, (x, stride) in enumerate(zip(maps, STRIDES, strict=True)):
        here = (level == i).nonzero()[:, 0]
        # Also where no box is: its level stays in the graph, which DistributedDataParallel needs.
        part = roi_align(x, rois[here], size, 1 / stride, sampling_ratio=0, aligned=True)
        pooled = pooled.index_copy(0, here, part)
    return pooled


class BoxHead(nn.Module):
    """Class logits and class-specific deltas of pooled regions.

    Two forms: two fully connected layers (Mask R-CNN), or four 3×3 convolutions with batch norm
    and one fully connected layer (Cascade).

    Args:
        channels: Channels of the pyramid.
        fc_dim: Width of the fully connected layers.
        num_classes: Classes K, without background.
        num_convs: Convolutions before the fully connected layers; 0 for the first form.
    """

    def __init__(self, channels: int, fc_dim: int, num_classes: int, num_convs: int = 0) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(ConvModule(channels, channels, 3) for _ in range(num_convs)))
        widths = [channels * BOX_SIZE**2, fc_dim, *([] if num_convs else [fc_dim])]
        self.fcs = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.relu = nn.ReLU()
        self.cls_logits = nn.Linear(fc_dim, num_classes + 1)
        self.bbox_pred = nn.Linear(fc_dim, 4 * num_classes)
        for layer in self.fcs:
            init_xavier(layer)
        init_normal(0.01)(self.cls_logits)
        init_normal(0.001)(self.bbox_pred)

    def forward(
        self, pooled: Float[Tensor, "n c p p"]
    ) -> tuple[Float[Tensor, "n labels"], Float[Tensor, "n k 4"]]:
        """Return logits (N, K + 1), background first, and deltas (N, K, 4)."""
        x = self.convs(pooled).flatten(1)
        for layer in self.fcs:
            x = self.relu(layer(x))
        deltas: Tensor = self.bbox_pred(x)
        return self.cls_logits(x).float(), deltas.float().reshape(len(x), -1, 4)


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
        self.mask_logits = nn.Conv2d(channels, num_classes, 1)
        for layer in (self.upsample, self.mask_logits):
            init_kaiming(layer)

    def forward(self, pooled: Float[Tensor, "n c p p"]) -> Float[Tensor, "n k q q"]:
        """Return mask logits (N, K, 28, 28)."""
        logits: Tensor = self.mask_logits(self.relu(self.upsample(self.convs(pooled))))
        return logits.float()

    def of_labels(self, pooled: Float[Tensor, "n c p p"], labels: Tensor) -> Tensor:
        """Return the mask logits of each region's own class, (N, 28, 28); labels from 1 on."""
        logits = self(pooled)
        own: Tensor = logits[torch.arange(len(logits), device=logits.device), labels - 1]
        return own


def mask_targets(masks: Tensor, matched_idxs: Tensor, boxes: Float[Tensor, "n 4"]) -> Tensor:
    """Return the ground-truth masks of n boxes: 28×28, zeros and ones.

    Args:
        masks: The image's masks, (G, H, W).
        matched_idxs: The object of each box, (n,).
        boxes: The boxes in pixels; the mask is cropped to them.
    """
    size = 2 * MASK_SIZE
    if len(boxes) == 0:
        return boxes.new_zeros((0, size, size))
    rois = torch.cat([matched_idxs[:, None].to(boxes.dtype), boxes], dim=1)
    cropped: Tensor = roi_align(masks[:, None].float(), rois, size, sampling_ratio=0, aligned=True)
    return (cropped[:, 0] >= MASK_THRESHOLD).float()


def paste_masks(
    probs: Float[Tensor, "n q q"], boxes: Float[Tensor, "n 4"], size: Size
) -> Bool[Tensor, "n h w"]:
    """Return masks of the whole image from the probabilities inside each box.

    A pixel belongs to the object where the probability, interpolated bilinearly at its centre,
    reaches one half; outside the box none does. (mmdetection's way: torchvision rounds boxes.)

    Args:
        probs: Probabilities on a grid over each box.
        boxes: In pixels of the image.
        size: Height and width of the image.
    """
    height, width = size
    masks = torch.zeros((len(probs), height, width), dtype=torch.bool, device=probs.device)
    for mask, prob, box in zip(masks, probs.float(), boxes.tolist(), strict=True):
        x1, y1, x2, y2 = box
        left, top = max(int(x1) - 1, 0), max(int(y1) - 1, 0)
        right, bottom = min(int(x2) + 2, width), min(int(y2) + 2, height)
        if right <= left or bottom <= top or x2 <= x1 or y2 <= y1:
            continue
        x = (torch.arange(left, right, device=prob.device) + 0.5 - x1) / (x2 - x1) * 2 - 1
        y = (torch.arange(top, bottom, device=prob.device) + 0.5 - y1) / (y2 - y1) * 2 - 1
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        values = F.grid_sample(prob[None, None], grid[None], align_corners=False)[0, 0]
        mask[top:bottom, left:right] = values >= MASK_THRESHOLD
    return masks
