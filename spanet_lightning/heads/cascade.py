"""Cascade Mask R-CNN (arXiv:1906.09756): three box heads, each refining the boxes of the last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss

from spanet_lightning.backbones.official import Rules
from spanet_lightning.heads.base import Detections, Losses, Size
from spanet_lightning.heads.boxes import decode, has_area
from spanet_lightning.heads.layers import mean_over_devices
from spanet_lightning.heads.rcnn import (
    COUNTED_DETECTIONS,
    COUNTED_PROPOSALS,
    RCNN_RULES,
    MaskRCNN,
    RCNNLayers,
    Sampled,
    add_masks,
    class_loss,
    mask_loss,
    own_deltas,
    sample_rois,
)
from spanet_lightning.heads.roi import BOX_SIZE, MASK_SIZE, BoxHead, MaskHead, pool_rois

POSITIVE_IOUS = (0.5, 0.6, 0.7)
STAGE_STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
STAGE_WEIGHTS = (1.0, 0.5, 0.25)
BOX_CONVS = 4
GIOU_WEIGHT = 10.0
GIOU_EPS = 1e-6
RPN_BETA = 1 / 9


@dataclass(frozen=True)
class CascadeMaskRCNN(MaskRCNN):
    """Cascade Mask R-CNN as SPANetV2 trained it (arXiv:1906.09756; the official configuration).

    Three stages learn from boxes of IoU 0.5, 0.6 and 0.7, each refined by the stage before. Box
    losses are GIoU ×10 on decoded boxes; box and mask losses of the stages weigh 1, 0.5 and 0.25.
    In evaluation class scores and masks are means over the stages. The published batch norms of the
    box heads were synchronised over devices: `trainer.sync_batchnorm: true`.

    The arguments are those of `FasterRCNN`.
    """

    rpn_post_nms_top_n_train: int = 2000

    def build(self, channels: Sequence[int], num_classes: int) -> RCNNLayers:
        """Return the layers for a backbone with these channels per level."""
        return CascadeLayers(self, channels, num_classes)


class CascadeLayers(RCNNLayers):
    """The layers of `CascadeMaskRCNN`: pyramid, proposals, three box heads, three mask heads."""

    has_masks: ClassVar[bool] = True
    background_last = r"box_heads\.\d\.cls_logits\..+"
    rules: Rules = (
        *RCNN_RULES,
        (r"^roi_head\.bbox_head\.(\d)\.shared_convs\.(\d)\.", r"box_heads.\1.convs.\2."),
        (r"^roi_head\.bbox_head\.(\d)\.shared_fcs\.(\d)\.", r"box_heads.\1.fcs.\2."),
        (r"^roi_head\.bbox_head\.(\d)\.fc_cls\.", r"box_heads.\1.cls_logits."),
        (r"^roi_head\.bbox_head\.(\d)\.fc_reg\.", r"box_heads.\1.bbox_pred."),
        (r"^roi_head\.mask_head\.(\d)\.convs\.(\d)\.conv\.", r"mask_heads.\1.convs.\2.0."),
        (r"^roi_head\.mask_head\.(\d)\.upsample\.", r"mask_heads.\1.upsample."),
        (r"^roi_head\.mask_head\.(\d)\.conv_logits\.", r"mask_heads.\1.mask_logits."),
    )

    def __init__(self, config: CascadeMaskRCNN, channels: Sequence[int], num_classes: int) -> None:
        super().__init__(config, channels, smooth_l1_beta=RPN_BETA, drop_outside=True)
        width = config.out_channels
        self.box_heads = nn.ModuleList(
            BoxHead(width, config.fc_dim, num_classes, BOX_CONVS) for _ in POSITIVE_IOUS
        )
        self.mask_heads = nn.ModuleList(MaskHead(width, num_classes) for _ in POSITIVE_IOUS)

    def cost_forward(self, features: Sequence[Tensor]) -> None:
        """Run pyramid and proposals, each box head on 1000 regions, each mask head on 100."""
        levels = self.neck(features)
        self.rpn(levels)
        for head in self.box_heads:
            head(self._regions(levels[0], COUNTED_PROPOSALS, BOX_SIZE))
        for head in self.mask_heads:
            head(self._regions(levels[0], COUNTED_DETECTIONS, MASK_SIZE))

    def losses(
        self,
        features: Sequence[Tensor],
        sizes: Sequence[Size],
        targets: Sequence[Mapping[str, Any]],
    ) -> Losses:
        """Return the proposals' losses and `class`, `box` and `mask` of stages 1, 2 and 3."""
        levels = self.neck(features)
        predicted = self.rpn(levels)
        losses = self.rpn.losses(predicted, sizes, targets)
        boxes = self.rpn.proposals(predicted, sizes)
        stages = zip(STAGE_WEIGHTS, POSITIVE_IOUS, STAGE_STDS, strict=True)
        for i, (weight, positive_iou, stds) in enumerate(stages):
            sampled = [
                sample_rois(
                    b,
                    t,
                    positive_iou=positive_iou,
                    low_quality=False,
                    count=self.config.box_batch_size_per_image,
                )
                for b, t in zip(boxes, targets, strict=True)
            ]
            pooled = pool_rois(levels, [s.boxes for s in sampled], BOX_SIZE)
            logits, deltas = self.box_heads[i](pooled)
            labels = torch.cat([s.labels for s in sampled])
            losses[f"class_{i + 1}"] = weight * class_loss(logits, labels)
            losses[f"box_{i + 1}"] = weight * giou_loss(deltas, sampled, targets, stds)
            mask_head: Any = self.mask_heads[i]
            losses[f"mask_{i + 1}"] = weight * mask_loss(mask_head, levels, sampled, targets)
            if i + 1 < len(STAGE_WEIGHTS):
                boxes = refine(sampled, logits, deltas, stds, sizes)
        return losses

    def detect(self, features: Sequence[Tensor], sizes: Sequence[Size]) -> list[Detections]:
        """Return the detections of each image.

        Every stage moves the boxes by their best foreground class; scores are the mean of the three
        stages' probabilities, boxes the last stage's for each class.
        """
        levels = self.neck(features)
        boxes = self.rpn.proposals(self.rpn(levels), sizes)
        counts = [len(b) for b in boxes]
        scores = []
        for i, stds in enumerate(STAGE_STDS):
            logits, deltas = self.box_heads[i](pool_rois(levels, boxes, BOX_SIZE))
            scores.append(logits.softmax(-1))
            if i + 1 < len(STAGE_STDS):
                labels = logits[:, 1:].argmax(-1) + 1
                moves = torch.split(own_deltas(deltas, labels), counts)
                boxes = [
                    decode(d, b, stds, size) for d, b, size in zip(moves, boxes, sizes, strict=True)
                ]
        mean = torch.split(torch.stack(scores).mean(0), counts)
        parts = zip(boxes, mean, torch.split(deltas, counts), sizes, strict=True)
        detections = [self._select(b, s, d, STAGE_STDS[-1], size) for b, s, d, size in parts]
        mask_heads: Any = list(self.mask_heads)
        return add_masks(mask_heads, levels, detections)


def giou_loss(
    deltas: Float[Tensor, "n k 4"],
    sampled: Sequence[Sampled],
    targets: Sequence[Mapping[str, Any]],
    stds: Sequence[float],
) -> Tensor:
    """Return 10 × the GIoU losses of the positive boxes over the number of sampled ones.

    Args:
        deltas: Of all sampled boxes, for each class.
        sampled: The boxes of each image.
        targets: The objects of each image.
        stds: What the deltas were divided by.
    """
    labels = torch.cat([s.labels for s in sampled])
    boxes = torch.cat([s.boxes for s in sampled])
    positive = labels > 0
    objects = [t["boxes"][s.matched_idxs] for s, t in zip(sampled, targets, strict=True)]
    moved = decode(own_deltas(deltas[positive], labels[positive]), boxes[positive], stds)
    total: Tensor = generalized_box_iou_loss(
        moved, torch.cat(objects), reduction="sum", eps=GIOU_EPS
    )
    share = mean_over_devices(len(labels), like=deltas)
    return GIOU_WEIGHT * total / share + deltas.sum() * 0


@torch.no_grad()
def refine(
    sampled: Sequence[Sampled],
    logits: Float[Tensor, "n labels"],
    deltas: Float[Tensor, "n k 4"],
    stds: Sequence[float],
    sizes: Sequence[Size],
) -> list[Tensor]:
    """Return the proposals of the next stage: the sampled boxes, moved.

    Positive boxes move by their object's class, background by its best foreground class. The
    objects' own boxes are left out: the next stage adds them anew.
    """
    counts = [len(s.boxes) for s in sampled]
    refined = []
    for s, scores, moves, size in zip(
        sampled, torch.split(logits, counts), torch.split(deltas, counts), sizes, strict=True
    ):
        labels = torch.where(s.labels > 0, s.labels, scores[:, 1:].argmax(-1) + 1)
        boxes = decode(own_deltas(moves, labels), s.boxes, stds, size)[~s.is_object]
        refined.append(boxes[has_area(boxes)])
    return refined
