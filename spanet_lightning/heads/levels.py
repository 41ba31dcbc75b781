"""What RetinaNet and the region proposal network share: predictions at every cell of a pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.ops import batched_nms

from spanet_lightning.heads.base import Detections
from spanet_lightning.heads.boxes import base_anchors, grid_anchors


def per_anchor(maps: Float[Tensor, "b c h w"], values: int) -> Float[Tensor, "b n v"]:
    """Return a level's predictions anchor by anchor: (B, H·W·A, values), from A·values channels."""
    return maps.permute(0, 2, 3, 1).reshape(len(maps), -1, values)


def pyramid_anchors(
    maps: Sequence[Tensor],
    strides: Sequence[int],
    scale: float,
    octaves: int,
    ratios: Sequence[float],
) -> list[Tensor]:
    """Return the anchors of each level in pixels, in the order of `per_anchor`."""
    anchors = []
    for level, stride in zip(maps, strides, strict=True):
        height, width = level.shape[-2:]
        # Built in float32 whatever the features' type: half precision can't tell 2049 from 2048.
        base = base_anchors(stride, scale, octaves, ratios).to(level.device)
        anchors.append(grid_anchors(base, stride, height, width))
    return anchors


def keep_best(
    boxes: Float[Tensor, "n 4"],
    scores: Float[Tensor, " n"],
    labels: Tensor,
    iou: float,
    count: int,
) -> Tensor:
    """Return the indices of at most `count` boxes, best first, after NMS within each label."""
    kept: Tensor = batched_nms(boxes.float(), scores.float(), labels, iou)
    return kept[:count]


def select(
    boxes: Float[Tensor, "n 4"], scores: Float[Tensor, " n"], labels: Tensor, iou: float, count: int
) -> Detections:
    """Return the detections that NMS within each class leaves, at most `count`, best first."""
    keep = keep_best(boxes, scores, labels, iou, count)
    return {"boxes": boxes[keep], "scores": scores[keep], "labels": labels[keep]}


def no_objects(targets: Tensor) -> Tensor:
    """Return the IoU matrix of an image without objects."""
    return torch.zeros((0, len(targets)), device=targets.device)
