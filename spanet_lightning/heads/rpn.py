"""Region proposal network (arXiv:1506.01497): class-agnostic proposals from every pyramid level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou

from spanet_lightning.heads.base import Losses, Size
from spanet_lightning.heads.boxes import (
    IGNORED,
    assign,
    decode,
    encode,
    has_area,
    inside,
    nms,
    per_anchor,
    pyramid_anchors,
    sample,
)
from spanet_lightning.heads.layers import init_normal, mean_over_devices

STRIDES = (4, 8, 16, 32, 64)
RATIOS = (0.5, 1.0, 2.0)
POSITIVE_IOU, NEGATIVE_IOU, LOW_QUALITY_IOU = 0.7, 0.3, 0.3
BATCH_SIZE_PER_IMAGE, POSITIVE_FRACTION = 256, 0.5
NMS_THRESH = 0.7
PRE_NMS_TOP_N_TRAIN, PRE_NMS_TOP_N_TEST = 2000, 1000  # per level


class Predicted(NamedTuple):
    """Predictions for every anchor, level by level.

    Attributes:
        logits: Objectness, (B, N_l).
        deltas: Shift and scale of each anchor, (B, N_l, 4).
        anchors: In pixels, (N_l, 4).
    """

    logits: list[Tensor]
    deltas: list[Tensor]
    anchors: list[Tensor]


class RPN(nn.Module):
    """Objectness and box of three anchors at each cell of five levels.

    Args:
        channels: Channels of the pyramid.
        anchor_scale: Side of a level's square anchor over its stride; 8 gives 32 to 512 pixels.
        smooth_l1_beta: Where the box loss turns from quadratic to linear; 0 is plain L1.
        drop_outside: Whether anchors that cross the image's border are left out of training.
        post_nms_top_n_train: Proposals per image in training.
        post_nms_top_n_test: Proposals per image in evaluation.
    """

    def __init__(
        self,
        channels: int,
        anchor_scale: float = 8.0,
        *,
        smooth_l1_beta: float = 0.0,
        drop_outside: bool = False,
        post_nms_top_n_train: int = 1000,
        post_nms_top_n_test: int = 1000,
    ) -> None:
        super().__init__()
        self.anchor_scale = anchor_scale
        self.smooth_l1_beta = smooth_l1_beta
        self.drop_outside = drop_outside
        self.post_nms_top_n_train = post_nms_top_n_train
        self.post_nms_top_n_test = post_nms_top_n_test
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.relu = nn.ReLU()
        self.cls_logits = nn.Conv2d(channels, len(RATIOS), 1)
        self.bbox_pred = nn.Conv2d(channels, 4 * len(RATIOS), 1)
        for layer in (self.conv, self.cls_logits, self.bbox_pred):
            init_normal(0.01)(layer)

    def forward(self, levels: Sequence[Tensor]) -> Predicted:
        """Return the predictions for every anchor of five levels."""
        hidden = [self.relu(self.conv(x)) for x in levels]
        logits = [per_anchor(self.cls_logits(x), 1)[..., 0] for x in hidden]
        deltas = [per_anchor(self.bbox_pred(x), 4) for x in hidden]
        anchors = pyramid_anchors(levels, STRIDES, self.anchor_scale, 1, RATIOS)
        return Predicted(logits, deltas, anchors)

    @torch.no_grad()
    def proposals(self, predicted: Predicted, sizes: Sequence[Size]) -> list[Tensor]:
        """Return the proposed boxes of each image, best first, in pixels and inside the image.

        The best of each level, NMS within the level, then the best of all.
        """
        pre_nms_top_n = PRE_NMS_TOP_N_TRAIN if self.training else PRE_NMS_TOP_N_TEST
        post_nms_top_n = self.post_nms_top_n_train if self.training else self.post_nms_top_n_test
        proposals = []
        for i, size in enumerate(sizes):
            level_boxes, level_scores, level_idxs = [], [], []
            for number, (logit, delta, anchors) in enumerate(zip(*predicted, strict=True)):
                probs = logit[i].float().sigmoid()
                best = probs.topk(min(pre_nms_top_n, len(probs)))
                level_boxes.append(decode(delta[i][best.indices], anchors[best.indices], size=size))
                level_scores.append(best.values)
                level_idxs.append(torch.full_like(best.indices, number))
            boxes, scores = torch.cat(level_boxes), torch.cat(level_scores)
            idxs = torch.cat(level_idxs)
            area = has_area(boxes)
            boxes, scores, idxs = boxes[area], scores[area], idxs[area]
            proposals.append(boxes[nms(boxes, scores, idxs, NMS_THRESH, post_nms_top_n)])
        return proposals

    def losses(
        self,
        predicted: Predicted,
        sizes: Sequence[Size],
        targets: Sequence[Mapping[str, Any]],
    ) -> Losses:
        """Return `rpn_class` (binary cross-entropy) and `rpn_box` ((smooth) L1 of the deltas).

        Both are summed and divided by the sampled anchors of the batch, positive and negative,
        over all devices.
        """
        logits = torch.cat(predicted.logits, dim=1).float()
        deltas = torch.cat(predicted.deltas, dim=1).float()
        anchors = torch.cat(predicted.anchors)
        classes, box = logits.sum() * 0, deltas.sum() * 0
        count = 0
        for i, (size, target) in enumerate(zip(sizes, targets, strict=True)):
            matched_idxs = self._assign(anchors, size, target["boxes"])
            positive, negative = sample(matched_idxs, BATCH_SIZE_PER_IMAGE, POSITIVE_FRACTION)
            sampled = torch.cat([positive, negative])
            labels = (torch.arange(len(sampled), device=sampled.device) < len(positive)).float()
            classes = classes + F.binary_cross_entropy_with_logits(
                logits[i][sampled], labels, reduction="sum"
            )
            regression_targets = encode(target["boxes"][matched_idxs[positive]], anchors[positive])
            box = box + F.smooth_l1_loss(
                deltas[i][positive], regression_targets, reduction="sum", beta=self.smooth_l1_beta
            )
            count += len(sampled)
        share = mean_over_devices(count, like=box)
        return {"rpn_class": classes / share, "rpn_box": box / share}

    def _assign(self, anchors: Tensor, size: Size, objects: Tensor) -> Tensor:
        """Match anchors with objects; those that cross the border may be ignored."""
        valid = torch.ones(len(anchors), dtype=torch.bool, device=anchors.device)
        if self.drop_outside:
            valid = inside(anchors, size)
        matched_idxs = torch.full((len(anchors),), IGNORED, device=anchors.device)
        iou = box_iou(objects, anchors[valid])
        matched_idxs[valid] = assign(iou, POSITIVE_IOU, NEGATIVE_IOU, LOW_QUALITY_IOU)
        return matched_idxs
