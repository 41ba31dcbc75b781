"""Faster R-CNN (arXiv:1506.01497) and Mask R-CNN (arXiv:1703.06870)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torchvision.ops import box_iou

from spanet_lightning.backbones.validate import fraction, positive, positive_int
from spanet_lightning.heads.base import (
    DetectionHead,
    DetectionLayers,
    Detections,
    Losses,
    Rules,
    Size,
)
from spanet_lightning.heads.boxes import assign, decode, encode, sample
from spanet_lightning.heads.layers import mean_over_devices
from spanet_lightning.heads.levels import select
from spanet_lightning.heads.necks import FPN
from spanet_lightning.heads.roi import (
    BOX_CELLS,
    MASK_CELLS,
    BoxHead,
    MaskHead,
    mask_loss,
    mask_targets,
    pool_rois,
)
from spanet_lightning.heads.rpn import RPN

BOX_STDS = (0.1, 0.1, 0.2, 0.2)
POSITIVE_IOU = 0.5
POSITIVE_SHARE = 0.25
# What published costs of two-stage detectors are counted with.
COUNTED_PROPOSALS, COUNTED_DETECTIONS = 1000, 100

FPN_RULES: Rules = (
    (r"neck\.lateral_convs\.(\d)\.conv\.(.+)", r"neck.laterals.\1.\2"),
    (r"neck\.fpn_convs\.(\d)\.conv\.(.+)", r"neck.outputs.\1.\2"),
)
RPN_RULES: Rules = (
    (r"rpn_head\.rpn_conv\.(.+)", r"rpn.conv.\1"),
    (r"rpn_head\.rpn_cls\.(.+)", r"rpn.objectness.\1"),
    (r"rpn_head\.rpn_reg\.(.+)", r"rpn.deltas.\1"),
)


class Sampled(NamedTuple):
    """The boxes of one image that a stage learns from, positives first.

    Attributes:
        boxes: (n, 4), in pixels.
        labels: Class of each, 0 for background, (n,).
        objects: Which object each positive box belongs to, (p,).
        is_object: Whether a box is an object's own, added to the proposals, (n,).
    """

    boxes: Tensor
    labels: Tensor
    objects: Tensor
    is_object: Tensor


def sample_rois(
    proposals: Float[Tensor, "n 4"],
    target: Mapping[str, Any],
    *,
    positive_iou: float,
    low_quality: bool,
    count: int,
) -> Sampled:
    """Choose the boxes of one image to learn from; the objects' own boxes take part.

    Args:
        proposals: Proposed boxes in pixels.
        target: `boxes` and `labels` of the image.
        positive_iou: IoU from which a proposal is positive; below, it is background.
        low_quality: Whether an object's best proposal is its own if it reaches `positive_iou`,
            whatever else it overlaps more.
        count: Boxes to draw, a quarter of them positive at most.
    """
    objects, labels = target["boxes"], target["labels"]
    taken = assign(
        box_iou(objects, proposals),
        positive_iou,
        positive_iou,
        positive_iou if low_quality else None,
    )
    own = torch.arange(len(objects), device=taken.device)
    taken = torch.cat([own, taken])
    boxes = torch.cat([objects, proposals])
    positive, negative = sample(taken, count, POSITIVE_SHARE)
    chosen = torch.cat([positive, negative])
    matched = taken[positive]
    background = labels.new_zeros(len(negative))
    return Sampled(
        boxes[chosen], torch.cat([labels[matched], background]), matched, chosen < len(objects)
    )


def class_loss(logits: Float[Tensor, "n labels"], labels: Tensor) -> Tensor:
    """Return the cross-entropy summed over boxes and divided by their number, on all devices."""
    total = F.cross_entropy(logits, labels, reduction="sum")
    return total / mean_over_devices(len(labels), like=logits)


def own_deltas(deltas: Float[Tensor, "n k 4"], labels: Tensor) -> Float[Tensor, "n 4"]:
    """Return each box's deltas of its class; labels from 1 on."""
    return deltas[torch.arange(len(deltas), device=deltas.device), labels - 1]


class FasterRCNN(DetectionHead):
    """Faster R-CNN with a feature pyramid, as Mask R-CNN below without the masks.

    Args:
        width: Channels of the pyramid and the heads.
        hidden: Width of the box head's two fully connected layers.
        anchor_scale: Side of a level's square anchor over its stride. The published 8 gives 32 to
            512 pixels; small images need smaller ones.
        train_proposals: Proposals of an image in training.
        test_proposals: Proposals of an image in evaluation.
        samples: Boxes of an image that the box head learns from.
        score_threshold: Score that a detection must exceed.
        nms_iou: Overlap above which the lesser of two boxes of one class is dropped.
        max_detections: Most detections of an image.

    Raises:
        ConfigError: If a value is out of its range.
    """

    def __init__(
        self,
        width: int = 256,
        hidden: int = 1024,
        anchor_scale: float = 8.0,
        train_proposals: int = 1000,
        test_proposals: int = 1000,
        samples: int = 512,
        score_threshold: float = 0.05,
        nms_iou: float = 0.5,
        max_detections: int = 100,
    ) -> None:
        self.width = positive_int("width", width)
        self.hidden = positive_int("hidden", hidden)
        self.anchor_scale = positive("anchor_scale", anchor_scale)
        self.train_proposals = positive_int("train_proposals", train_proposals)
        self.test_proposals = positive_int("test_proposals", test_proposals)
        self.samples = positive_int("samples", samples, 4)
        self.score_threshold = fraction("score_threshold", score_threshold)
        self.nms_iou = fraction("nms_iou", nms_iou)
        self.max_detections = positive_int("max_detections", max_detections)

    def build(self, channels: Sequence[int], num_classes: int) -> FasterRCNNLayers:
        """Return the layers for a backbone with these channels a level."""
        return FasterRCNNLayers(self, channels, num_classes)


class MaskRCNN(FasterRCNN):
    """Mask R-CNN as both papers trained it (arXiv:1703.06870; the official configurations).

    Beside torchvision's: unrounded anchors, aligned RoIAlign with as many samples as a cell has
    pixels, plain L1 losses, and no least size of a box. The arguments are those of `FasterRCNN`.
    """

    has_masks: ClassVar[bool] = True

    def build(self, channels: Sequence[int], num_classes: int) -> MaskRCNNLayers:
        """Return the layers for a backbone with these channels a level."""
        return MaskRCNNLayers(self, channels, num_classes)


class FasterRCNNLayers(DetectionLayers):
    """The layers of `FasterRCNN`: pyramid, proposals, box head."""

    background_last = r"box_head\.classes\..+"
    official_rules: Rules = (
        *FPN_RULES,
        *RPN_RULES,
        (r"roi_head\.bbox_head\.shared_fcs\.(\d)\.(.+)", r"box_head.fcs.\1.\2"),
        (r"roi_head\.bbox_head\.fc_cls\.(.+)", r"box_head.classes.\1"),
        (r"roi_head\.bbox_head\.fc_reg\.(.+)", r"box_head.deltas.\1"),
    )

    def __init__(self, config: FasterRCNN, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.neck = FPN(channels, config.width, extra="pool")
        self.rpn = RPN(
            config.width,
            config.anchor_scale,
            train_proposals=config.train_proposals,
            test_proposals=config.test_proposals,
        )
        self.box_head = BoxHead(config.width, config.hidden, num_classes)

    def work(self, features: Sequence[Tensor]) -> None:
        """Run pyramid and proposals, and the box head on 1000 regions."""
        levels = self.neck(features)
        self.rpn(levels)
        self.box_head(regions(levels[0], COUNTED_PROPOSALS, self.config.width, BOX_CELLS))

    def losses(
        self,
        features: Sequence[Tensor],
        sizes: Sequence[Size],
        targets: Sequence[Mapping[str, Any]],
    ) -> Losses:
        """Return the proposals' losses, `class` (cross-entropy) and `box` (L1 of the deltas).

        `class` and `box` are summed and divided by the sampled boxes of the batch.
        """
        levels = self.neck(features)
        predicted = self.rpn(levels)
        losses = self.rpn.losses(predicted, sizes, targets)
        proposals = self.rpn.proposals(predicted, sizes)
        sampled = [
            sample_rois(
                boxes,
                target,
                positive_iou=POSITIVE_IOU,
                low_quality=True,
                count=self.config.samples,
            )
            for boxes, target in zip(proposals, targets, strict=True)
        ]
        pooled = pool_rois(levels, [s.boxes for s in sampled], BOX_CELLS)
        logits, deltas = self.box_head(pooled)
        labels = torch.cat([s.labels for s in sampled])
        positive = labels > 0
        goals = [
            encode(t["boxes"][s.objects], s.boxes[: len(s.objects)], BOX_STDS)
            for s, t in zip(sampled, targets, strict=True)
        ]
        ours = own_deltas(deltas[positive], labels[positive])
        box = F.l1_loss(ours, torch.cat(goals), reduction="sum") + deltas.sum() * 0
        share = mean_over_devices(len(labels), like=box)
        losses |= {"class": class_loss(logits, labels), "box": box / share}
        return losses | self._mask_losses(levels, sampled, targets)

    def _mask_losses(
        self, levels: Sequence[Tensor], sampled: Sequence[Sampled], targets: Sequence[Any]
    ) -> Losses:
        del levels, sampled, targets
        return {}

    def detect(self, features: Sequence[Tensor], sizes: Sequence[Size]) -> list[Detections]:
        """Return what is found in each image: NMS by class over the refined proposals."""
        levels = self.neck(features)
        proposals = self.rpn.proposals(self.rpn(levels), sizes)
        logits, deltas = self.box_head(pool_rois(levels, proposals, BOX_CELLS))
        counts = [len(boxes) for boxes in proposals]
        found = [
            select_by_class(boxes, scores, moves, BOX_STDS, size, self.config)
            for boxes, scores, moves, size in zip(
                proposals,
                torch.split(logits.softmax(-1), counts),
                torch.split(deltas, counts),
                sizes,
                strict=True,
            )
        ]
        return self._add_masks(levels, found)

    def _add_masks(self, levels: Sequence[Tensor], found: list[Detections]) -> list[Detections]:
        del levels
        return found


class MaskRCNNLayers(FasterRCNNLayers):
    """The layers of `MaskRCNN`: those of Faster R-CNN and a mask head."""

    has_masks: ClassVar[bool] = True
    official_rules: Rules = (
        *FasterRCNNLayers.official_rules,
        (r"roi_head\.mask_head\.convs\.(\d)\.conv\.(.+)", r"mask_head.convs.\1.0.\2"),
        (r"roi_head\.mask_head\.upsample\.(.+)", r"mask_head.upsample.\1"),
        (r"roi_head\.mask_head\.conv_logits\.(.+)", r"mask_head.classes.\1"),
    )

    def __init__(self, config: MaskRCNN, channels: Sequence[int], num_classes: int) -> None:
        super().__init__(config, channels, num_classes)
        self.mask_head = MaskHead(config.width, num_classes)

    def work(self, features: Sequence[Tensor]) -> None:
        """Run pyramid, proposals, box head on 1000 regions and mask head on 100."""
        super().work(features)
        self.mask_head(regions(features[0], COUNTED_DETECTIONS, self.config.width, MASK_CELLS))

    def _mask_losses(
        self, levels: Sequence[Tensor], sampled: Sequence[Sampled], targets: Sequence[Any]
    ) -> Losses:
        return {"mask": mask_losses(self.mask_head, levels, sampled, targets)}

    def _add_masks(self, levels: Sequence[Tensor], found: list[Detections]) -> list[Detections]:
        return add_masks([self.mask_head], levels, found)


def mask_losses(
    head: MaskHead,
    levels: Sequence[Tensor],
    sampled: Sequence[Sampled],
    targets: Sequence[Mapping[str, Any]],
) -> Tensor:
    """Return the loss of the masks of all positive boxes of a batch, the mean over all devices."""
    boxes = [s.boxes[: len(s.objects)] for s in sampled]
    labels = torch.cat([s.labels[: len(s.objects)] for s in sampled])
    wanted = torch.cat(
        [
            mask_targets(t["masks"], s.objects, b) if len(b) else b.new_zeros((0, 28, 28))
            for t, s, b in zip(targets, sampled, boxes, strict=True)
        ]
    )
    share = mean_over_devices(len(labels), like=levels[0])
    if len(labels) == 0:
        # All processes have to use the same layers: one box that counts for nothing.
        boxes[0] = boxes[0].new_tensor([[0.0, 0.0, 1.0, 1.0]])
        nothing: Tensor = head(pool_rois(levels, boxes, MASK_CELLS)).sum() * 0
        return nothing
    mean = mask_loss(head.of_labels(pool_rois(levels, boxes, MASK_CELLS), labels), wanted)
    return mean * (len(labels) / share)


def add_masks(
    heads: Sequence[MaskHead], levels: Sequence[Tensor], found: list[Detections]
) -> list[Detections]:
    """Return detections with the probabilities of their masks, the mean over `heads`."""
    labels = torch.cat([d["labels"] for d in found])
    pooled = pool_rois(levels, [d["boxes"] for d in found], MASK_CELLS)
    probs = torch.stack([head.of_labels(pooled, labels).sigmoid() for head in heads]).mean(0)
    parts = torch.split(probs, [len(d["labels"]) for d in found])
    for detections, part in zip(found, parts, strict=True):
        detections["mask_probs"] = part
    return found


def select_by_class(
    boxes: Float[Tensor, "n 4"],
    scores: Float[Tensor, "n labels"],
    deltas: Float[Tensor, "n k 4"],
    stds: Sequence[float],
    size: Size,
    config: FasterRCNN,
) -> Detections:
    """Return the detections of one image from its regions.

    Args:
        boxes: The regions in pixels.
        scores: Probability of each label, background first.
        deltas: How each class would move a region.
        stds: What the deltas were divided by.
        size: Height and width of the image in pixels.
        config: Thresholds.
    """
    region, label = (scores[:, 1:] > config.score_threshold).nonzero(as_tuple=True)
    moved = decode(deltas[region, label], boxes[region], stds, size)
    return select(
        moved, scores[region, label + 1], label + 1, config.nms_iou, config.max_detections
    )


def regions(like: Tensor, count: int, width: int, cells: int) -> Tensor:
    """Return an empty tensor as pooling gives it for `count` regions, for counting.

    Args:
        like: Gives type and device.
        count: Regions.
        width: Channels of the pyramid.
        cells: Height and width of a pooled region.
    """
    return like.new_empty(count, width, cells, cells)
