"""Region proposal network (arXiv:1506.01497): where objects may be, whatever their class."""

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
    inside,
    proper,
    sample,
)
from spanet_lightning.heads.layers import init_normal, mean_over_devices
from spanet_lightning.heads.levels import keep_best, per_anchor, pyramid_anchors

STRIDES = (4, 8, 16, 32, 64)
RATIOS = (0.5, 1.0, 2.0)
POSITIVE_IOU, NEGATIVE_IOU, LOW_QUALITY_IOU = 0.7, 0.3, 0.3
SAMPLES, POSITIVE_SHARE = 256, 0.5
PROPOSAL_NMS_IOU = 0.7
TRAIN_PER_LEVEL, TEST_PER_LEVEL = 2000, 1000


class Predicted(NamedTuple):
    """What the network says of every anchor, level by level.

    Attributes:
        logits: Objectness, (B, N_l).
        deltas: How each anchor would move, (B, N_l, 4).
        anchors: In pixels, (N_l, 4).
    """

    logits: list[Tensor]
    deltas: list[Tensor]
    anchors: list[Tensor]


class RPN(nn.Module):
    """Objectness and box of three anchors at each cell of five levels.

    Args:
        width: Channels of the pyramid.
        anchor_scale: Side of a level's square anchor over its stride; 8 gives 32 to 512 pixels.
        smooth_l1_beta: Where the box loss turns from quadratic to linear; 0 is plain L1.
        drop_outside: Whether anchors that cross the image's border are left out of training.
        train_proposals: Proposals of an image in training.
        test_proposals: Proposals of an image in evaluation.
    """

    def __init__(
        self,
        width: int,
        anchor_scale: float = 8.0,
        *,
        smooth_l1_beta: float = 0.0,
        drop_outside: bool = False,
        train_proposals: int = 1000,
        test_proposals: int = 1000,
    ) -> None:
        super().__init__()
        self.anchor_scale = anchor_scale
        self.smooth_l1_beta = smooth_l1_beta
        self.drop_outside = drop_outside
        self.train_proposals = train_proposals
        self.test_proposals = test_proposals
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.relu = nn.ReLU()
        self.objectness = nn.Conv2d(width, len(RATIOS), 1)
        self.deltas = nn.Conv2d(width, 4 * len(RATIOS), 1)
        for layer in (self.conv, self.objectness, self.deltas):
            init_normal(0.01)(layer)

    def forward(self, levels: Sequence[Tensor]) -> Predicted:
        """Return what is predicted for every anchor of five levels."""
        hidden = [self.relu(self.conv(x)) for x in levels]
        logits = [per_anchor(self.objectness(x), 1)[..., 0] for x in hidden]
        deltas = [per_anchor(self.deltas(x), 4) for x in hidden]
        anchors = pyramid_anchors(levels, STRIDES, self.anchor_scale, 1, RATIOS)
        return Predicted(logits, deltas, anchors)

    @torch.no_grad()
    def proposals(self, predicted: Predicted, sizes: Sequence[Size]) -> list[Tensor]:
        """Return the proposed boxes of each image, best first, in pixels and inside the image.

        The best of each level, NMS within the level, then the best of all.
        """
        per_level = TRAIN_PER_LEVEL if self.training else TEST_PER_LEVEL
        total = self.train_proposals if self.training else self.test_proposals
        proposed = []
        for i, size in enumerate(sizes):
            boxes, scores, ids = [], [], []
            for number, (logit, delta, level) in enumerate(zip(*predicted, strict=True)):
                score = logit[i].float().sigmoid()
                best = score.topk(min(per_level, len(score)))
                boxes.append(decode(delta[i][best.indices], level[best.indices], size=size))
                scores.append(best.values)
                ids.append(torch.full_like(best.indices, number))
            all_boxes, all_scores, all_ids = torch.cat(boxes), torch.cat(scores), torch.cat(ids)
            some = proper(all_boxes)
            all_boxes, all_scores, all_ids = all_boxes[some], all_scores[some], all_ids[some]
            proposed.append(
                all_boxes[keep_best(all_boxes, all_scores, all_ids, PROPOSAL_NMS_IOU, total)]
            )
        return proposed

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
        all_logits = torch.cat(predicted.logits, dim=1).float()
        all_deltas = torch.cat(predicted.deltas, dim=1).float()
        all_anchors = torch.cat(predicted.anchors)
        classes, box = all_logits.sum() * 0, all_deltas.sum() * 0
        count = 0
        for i, (size, target) in enumerate(zip(sizes, targets, strict=True)):
            taken = self._assign(all_anchors, size, target["boxes"])
            positive, negative = sample(taken, SAMPLES, POSITIVE_SHARE)
            chosen = torch.cat([positive, negative])
            wanted = (torch.arange(len(chosen), device=chosen.device) < len(positive)).float()
            classes = classes + F.binary_cross_entropy_with_logits(
                all_logits[i][chosen], wanted, reduction="sum"
            )
            goal = encode(target["boxes"][taken[positive]], all_anchors[positive])
            box = box + F.smooth_l1_loss(
                all_deltas[i][positive], goal, reduction="sum", beta=self.smooth_l1_beta
            )
            count += len(chosen)
        share = mean_over_devices(count, like=box)
        return {"rpn_class": classes / share, "rpn_box": box / share}

    def _assign(self, anchors: Tensor, size: Size, objects: Tensor) -> Tensor:
        """Return what each anchor is to learn; those that cross the border may be left out."""
        used = (
            inside(anchors, size)
            if self.drop_outside
            else torch.ones(len(anchors), dtype=torch.bool, device=anchors.device)
        )
        taken = torch.full((len(anchors),), IGNORED, device=anchors.device)
        iou = box_iou(objects, anchors[used])
        taken[used] = assign(iou, POSITIVE_IOU, NEGATIVE_IOU, LOW_QUALITY_IOU)
        return taken
