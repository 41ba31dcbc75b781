"""Cascade Mask R-CNN (arXiv:1906.09756): three box heads, each refining what the last one found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss

from spanet_lightning.heads.base import DetectionLayers, Detections, Losses, Rules, Size
from spanet_lightning.heads.boxes import decode, proper
from spanet_lightning.heads.layers import HeadNorm, batch_norm, mean_over_devices
from spanet_lightning.heads.necks import FPN
from spanet_lightning.heads.rcnn import (
    COUNTED_DETECTIONS,
    COUNTED_PROPOSALS,
    FPN_RULES,
    RPN_RULES,
    MaskRCNN,
    Sampled,
    add_masks,
    class_loss,
    mask_losses,
    own_deltas,
    regions,
    sample_rois,
    select_by_class,
)
from spanet_lightning.heads.roi import BOX_CELLS, MASK_CELLS, BoxHead, MaskHead, pool_rois
from spanet_lightning.heads.rpn import RPN

POSITIVE_IOUS = (0.5, 0.6, 0.7)
STAGE_STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
STAGE_WEIGHTS = (1.0, 0.5, 0.25)
GIOU_WEIGHT = 10.0
GIOU_EPS = 1e-6
RPN_BETA = 1 / 9


class CascadeMaskRCNN(MaskRCNN):
    """Cascade Mask R-CNN as SPANetV2 trained it (arXiv:1906.09756; the official configuration).

    Three stages learn from boxes of IoU 0.5, 0.6 and 0.7, each from what the one before refined.
    Box losses are GIoU ×10 on decoded boxes; box and mask losses of the stages weigh 1, 0.5 and
    0.25. In evaluation class scores and masks are means over the stages.

    Args:
        width: Channels of the pyramid and the heads.
        hidden: Width of the box heads' fully connected layer.
        anchor_scale: Side of a level's square anchor over its stride. The published 8 gives 32 to
            512 pixels; small images need smaller ones.
        train_proposals: Proposals of an image in training.
        test_proposals: Proposals of an image in evaluation.
        samples: Boxes of an image that each stage learns from.
        score_threshold: Score that a detection must exceed.
        nms_iou: Overlap above which the lesser of two boxes of one class is dropped.
        max_detections: Most detections of an image.
        norm: Batch norm of the box heads: of each device's own boxes, or, as published, of those of
            all devices.

    Raises:
        ConfigError: If a value is out of its range.
    """

    def __init__(
        self,
        width: int = 256,
        hidden: int = 1024,
        anchor_scale: float = 8.0,
        train_proposals: int = 2000,
        test_proposals: int = 1000,
        samples: int = 512,
        score_threshold: float = 0.05,
        nms_iou: float = 0.5,
        max_detections: int = 100,
        norm: HeadNorm = "sync",
    ) -> None:
        super().__init__(
            width,
            hidden,
            anchor_scale,
            train_proposals,
            test_proposals,
            samples,
            score_threshold,
            nms_iou,
            max_detections,
        )
        batch_norm(norm, 1)  # refuses what is no norm before anything is built
        self.norm: HeadNorm = norm

    def build(self, channels: Sequence[int], num_classes: int) -> CascadeLayers:  # type: ignore[override]  # layers of their own
        """Return the layers for a backbone with these channels a level."""
        return CascadeLayers(self, channels, num_classes)


class CascadeLayers(DetectionLayers):
    """The layers of `CascadeMaskRCNN`: pyramid, proposals, three box heads, three mask heads."""

    has_masks: ClassVar[bool] = True
    background_last = r"box_heads\.\d\.classes\..+"
    official_rules: Rules = (
        *FPN_RULES,
        *RPN_RULES,
        (
            r"roi_head\.bbox_head\.(\d)\.shared_convs\.(\d)\.conv\.(.+)",
            r"box_heads.\1.convs.\2.conv.\3",
        ),
        (
            r"roi_head\.bbox_head\.(\d)\.shared_convs\.(\d)\.bn\.(.+)",
            r"box_heads.\1.convs.\2.norm.\3",
        ),
        (r"roi_head\.bbox_head\.(\d)\.shared_fcs\.(\d)\.(.+)", r"box_heads.\1.fcs.\2.\3"),
        (r"roi_head\.bbox_head\.(\d)\.fc_cls\.(.+)", r"box_heads.\1.classes.\2"),
        (r"roi_head\.bbox_head\.(\d)\.fc_reg\.(.+)", r"box_heads.\1.deltas.\2"),
        (r"roi_head\.mask_head\.(\d)\.convs\.(\d)\.conv\.(.+)", r"mask_heads.\1.convs.\2.0.\3"),
        (r"roi_head\.mask_head\.(\d)\.upsample\.(.+)", r"mask_heads.\1.upsample.\2"),
        (r"roi_head\.mask_head\.(\d)\.conv_logits\.(.+)", r"mask_heads.\1.classes.\2"),
    )

    def __init__(self, config: CascadeMaskRCNN, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.neck = FPN(channels, width, extra="pool")
        self.rpn = RPN(
            width,
            config.anchor_scale,
            smooth_l1_beta=RPN_BETA,
            drop_outside=True,
            train_proposals=config.train_proposals,
            test_proposals=config.test_proposals,
        )
        self.box_heads = nn.ModuleList(
            BoxHead(width, config.hidden, num_classes, config.norm) for _ in POSITIVE_IOUS
        )
        self.mask_heads = nn.ModuleList(MaskHead(width, num_classes) for _ in POSITIVE_IOUS)

    def work(self, features: Sequence[Tensor]) -> None:
        """Run pyramid and proposals, each box head on 1000 regions, each mask head on 100."""
        levels = self.neck(features)
        self.rpn(levels)
        for head in self.box_heads:
            head(regions(levels[0], COUNTED_PROPOSALS, self.config.width, BOX_CELLS))
        for head in self.mask_heads:
            head(regions(levels[0], COUNTED_DETECTIONS, self.config.width, MASK_CELLS))

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
        for i, weight in enumerate(STAGE_WEIGHTS):
            sampled = [
                sample_rois(
                    b,
                    t,
                    positive_iou=POSITIVE_IOUS[i],
                    low_quality=False,
                    count=self.config.samples,
                )
                for b, t in zip(boxes, targets, strict=True)
            ]
            pooled = pool_rois(levels, [s.boxes for s in sampled], BOX_CELLS)
            logits, deltas = self.box_heads[i](pooled)
            labels = torch.cat([s.labels for s in sampled])
            losses[f"class_{i + 1}"] = weight * class_loss(logits, labels)
            losses[f"box_{i + 1}"] = weight * giou_losses(deltas, sampled, targets, STAGE_STDS[i])
            head = self.mask_heads[i]
            assert isinstance(head, MaskHead)  # noqa: S101 - for the type checker
            losses[f"mask_{i + 1}"] = weight * mask_losses(head, levels, sampled, targets)
            if i + 1 < len(STAGE_WEIGHTS):
                boxes = refine(sampled, logits, deltas, STAGE_STDS[i], sizes)
        return losses

    def detect(self, features: Sequence[Tensor], sizes: Sequence[Size]) -> list[Detections]:
        """Return what is found in each image.

        Every stage moves the boxes by their best foreground class; scores are the mean of the three
        stages' probabilities, boxes the last stage's for each class.
        """
        levels = self.neck(features)
        boxes = self.rpn.proposals(self.rpn(levels), sizes)
        counts = [len(b) for b in boxes]
        scores = []
        for i, stds in enumerate(STAGE_STDS):
            logits, deltas = self.box_heads[i](pool_rois(levels, boxes, BOX_CELLS))
            scores.append(logits.softmax(-1))
            if i + 1 < len(STAGE_STDS):
                labels = logits[:, 1:].argmax(-1) + 1
                moves = torch.split(own_deltas(deltas, labels), counts)
                boxes = [
                    decode(d, b, stds, size) for d, b, size in zip(moves, boxes, sizes, strict=True)
                ]
        mean = torch.split(torch.stack(scores).mean(0), counts)
        found = [
            select_by_class(b, s, d, STAGE_STDS[-1], size, self.config)
            for b, s, d, size in zip(boxes, mean, torch.split(deltas, counts), sizes, strict=True)
        ]
        heads = [head for head in self.mask_heads if isinstance(head, MaskHead)]
        return add_masks(heads, levels, found)


def giou_losses(
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
    goals = torch.cat([t["boxes"][s.objects] for s, t in zip(sampled, targets, strict=True)])
    moved = decode(own_deltas(deltas[positive], labels[positive]), boxes[positive], stds)
    total: Tensor = generalized_box_iou_loss(moved, goals, reduction="sum", eps=GIOU_EPS)
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

    Positive boxes move as the object's class says, background by its best foreground class. The
    objects' own boxes are left out: the next stage adds them anew.
    """
    counts = [len(s.boxes) for s in sampled]
    refined = []
    for s, scores, moves, size in zip(
        sampled, torch.split(logits, counts), torch.split(deltas, counts), sizes, strict=True
    ):
        labels = torch.where(s.labels > 0, s.labels, scores[:, 1:].argmax(-1) + 1)
        boxes = decode(own_deltas(moves, labels), s.boxes, stds, size)[~s.is_object]
        refined.append(boxes[proper(boxes)])
    return refined
