"""Faster R-CNN (arXiv:1506.01497) and Mask R-CNN (arXiv:1703.06870)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torchvision.ops import box_iou

from spanet_lightning.backbones.official import Rules
from spanet_lightning.backbones.validate import fraction, positive, positive_int
from spanet_lightning.heads.base import (
    DetectionHead,
    DetectionLayers,
    Detections,
    Losses,
    Size,
)
from spanet_lightning.heads.boxes import assign, decode, encode, sample, select
from spanet_lightning.heads.layers import (
    FPN,
    FPN_RULES,
    mean_over_devices,
)
from spanet_lightning.heads.roi import (
    BOX_SIZE,
    MASK_SIZE,
    BoxHead,
    MaskHead,
    mask_targets,
    pool_rois,
)
from spanet_lightning.heads.rpn import RPN

BOX_STDS = (0.1, 0.1, 0.2, 0.2)
POSITIVE_IOU = 0.5
POSITIVE_FRACTION = 0.25
# Regions per image that published costs of two-stage detectors are counted with.
COUNTED_PROPOSALS, COUNTED_DETECTIONS = 1000, 100

RCNN_RULES: Rules = (
    *FPN_RULES,
    (r"^rpn_head\.rpn_conv\.", "rpn.conv."),
    (r"^(rpn_head\.rpn_cls|rpn\.objectness)\.", "rpn.cls_logits."),
    (r"^(rpn_head\.rpn_reg|rpn\.deltas)\.", "rpn.bbox_pred."),
    (r"^(box_heads?(?:\.\d)?)\.classes\.", r"\1.cls_logits."),
    (r"^(box_heads?(?:\.\d)?)\.deltas\.", r"\1.bbox_pred."),
    (r"^(box_heads\.\d\.convs\.\d)\.norm\.", r"\1.bn."),
    (r"^(mask_heads?(?:\.\d)?)\.classes\.", r"\1.mask_logits."),
)


@dataclass(frozen=True)
class FasterRCNN(DetectionHead):
    """Faster R-CNN with a feature pyramid: `MaskRCNN` without the masks.

    Args:
        out_channels: Channels of the pyramid and the heads.
        fc_dim: Width of the box head's fully connected layers.
        anchor_scale: Side of a level's square anchor over its stride. The published 8 gives 32 to
            512 pixels; small images need smaller ones.
        rpn_post_nms_top_n_train: Proposals per image in training.
        rpn_post_nms_top_n_test: Proposals per image in evaluation.
        box_batch_size_per_image: Boxes per image that the box head learns from.
        score_threshold: Score that a detection must exceed.
        box_nms_thresh: IoU above which the lower-scoring of two boxes of one class is dropped.
        detections_per_img: Maximum number of detections per image.

    Raises:
        ConfigError: If a value is out of its range.
    """

    out_channels: int = 256
    fc_dim: int = 1024
    anchor_scale: float = 8.0
    rpn_post_nms_top_n_train: int = 1000
    rpn_post_nms_top_n_test: int = 1000
    box_batch_size_per_image: int = 512
    score_threshold: float = 0.05
    box_nms_thresh: float = 0.5
    detections_per_img: int = 100

    def __post_init__(self) -> None:
        for key in (
            "out_channels",
            "fc_dim",
            "rpn_post_nms_top_n_train",
            "rpn_post_nms_top_n_test",
            "detections_per_img",
        ):
            positive_int(key, getattr(self, key))
        positive_int("box_batch_size_per_image", self.box_batch_size_per_image, 4)
        positive("anchor_scale", self.anchor_scale)
        for key in ("score_threshold", "box_nms_thresh"):
            fraction(key, getattr(self, key))

    def build(self, channels: Sequence[int], num_classes: int) -> RCNNLayers:
        """Return the layers for a backbone with these channels per level."""
        return FasterRCNNLayers(self, channels, num_classes)


@dataclass(frozen=True)
class MaskRCNN(FasterRCNN):
    """Mask R-CNN as both papers trained it (arXiv:1703.06870; the official configurations).

    Unlike in torchvision, anchors are not rounded, RoIAlign is aligned and takes as many samples as
    a cell has pixels, box losses are plain L1, and boxes have no minimum size.

    The arguments are those of `FasterRCNN`.
    """

    has_masks: ClassVar[bool] = True

    def build(self, channels: Sequence[int], num_classes: int) -> RCNNLayers:
        """Return the layers for a backbone with these channels per level."""
        return MaskRCNNLayers(self, channels, num_classes)


class Sampled(NamedTuple):
    """The boxes of one image that a stage learns from, positives first.

    Attributes:
        boxes: (n, 4), in pixels.
        labels: Class of each, 0 for background, (n,).
        matched_idxs: The object of each positive box, (p,).
        is_object: Whether a box is an object's own, added to the proposals, (n,).
    """

    boxes: Tensor
    labels: Tensor
    matched_idxs: Tensor
    is_object: Tensor

    @property
    def positive_boxes(self) -> Tensor:
        """The boxes that are matched to objects, (p, 4)."""
        return self.boxes[: len(self.matched_idxs)]

    @property
    def positive_labels(self) -> Tensor:
        """Their labels, (p,)."""
        return self.labels[: len(self.matched_idxs)]


def sample_rois(
    proposals: Float[Tensor, "n 4"],
    target: Mapping[str, Any],
    *,
    positive_iou: float,
    low_quality: bool,
    count: int,
) -> Sampled:
    """Sample the boxes of one image to learn from; the objects' own boxes take part.

    Args:
        proposals: Proposed boxes in pixels.
        target: `boxes` and `labels` of the image.
        positive_iou: IoU from which a proposal is positive; below, it is background.
        low_quality: Whether an object's best proposal is its own if it reaches `positive_iou`,
            whatever else it overlaps more.
        count: Boxes to sample, a quarter of them positive at most.
    """
    objects, labels = target["boxes"], target["labels"]
    matched_idxs = assign(
        box_iou(objects, proposals),
        positive_iou,
        positive_iou,
        positive_iou if low_quality else None,
    )
    own = torch.arange(len(objects), device=matched_idxs.device)
    matched_idxs = torch.cat([own, matched_idxs])
    boxes = torch.cat([objects, proposals])
    positive, negative = sample(matched_idxs, count, POSITIVE_FRACTION)
    sampled = torch.cat([positive, negative])
    matched = matched_idxs[positive]
    background = labels.new_zeros(len(negative))
    return Sampled(
        boxes[sampled], torch.cat([labels[matched], background]), matched, sampled < len(objects)
    )


class RCNNLayers(DetectionLayers):
    """What the two-stage detectors share: pyramid and proposals.

    Args:
        config: The head's settings.
        channels: Channels of the backbone's levels.
        smooth_l1_beta: Of the RPN's box loss.
        drop_outside: Whether the RPN ignores anchors that cross the border.
    """

    def __init__(
        self,
        config: FasterRCNN,
        channels: Sequence[int],
        smooth_l1_beta: float = 0.0,
        drop_outside: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.neck = FPN(channels, config.out_channels, extra="pool")
        self.rpn = RPN(
            config.out_channels,
            config.anchor_scale,
            smooth_l1_beta=smooth_l1_beta,
            drop_outside=drop_outside,
            post_nms_top_n_train=config.rpn_post_nms_top_n_train,
            post_nms_top_n_test=config.rpn_post_nms_top_n_test,
        )

    def _regions(self, like: Tensor, count: int, size: int) -> Tensor:
        """Return an empty tensor as pooling gives it for `count` regions, for counting."""
        return like.new_empty(count, self.config.out_channels, size, size)

    def _select(
        self,
        boxes: Float[Tensor, "n 4"],
        scores: Float[Tensor, "n labels"],
        deltas: Float[Tensor, "n k 4"],
        stds: Sequence[float],
        size: Size,
    ) -> Detections:
        """Return the detections of one image from its regions: threshold, refinement, NMS.

        Args:
            boxes: The regions in pixels.
            scores: Probability of each label, background first.
            deltas: Refinement of each region for each class.
            stds: What the deltas were divided by.
            size: Height and width of the image in pixels.
        """
        config = self.config
        region, label = (scores[:, 1:] > config.score_threshold).nonzero(as_tuple=True)
        refined = decode(deltas[region, label], boxes[region], stds, size)
        return select(
            refined,
            scores[region, label + 1],
            label + 1,
            config.box_nms_thresh,
            config.detections_per_img,
        )


class FasterRCNNLayers(RCNNLayers):
    """The layers of `FasterRCNN`: pyramid, proposals, box head."""

    background_last = r"box_head\.cls_logits\..+"
    rules: Rules = (
        *RCNN_RULES,
        (r"^roi_head\.bbox_head\.shared_fcs\.(\d)\.", r"box_head.fcs.\1."),
        (r"^roi_head\.bbox_head\.fc_cls\.", "box_head.cls_logits."),
        (r"^roi_head\.bbox_head\.fc_reg\.", "box_head.bbox_pred."),
    )

    def __init__(self, config: FasterRCNN, channels: Sequence[int], num_classes: int) -> None:
        super().__init__(config, channels)
        self.box_head = BoxHead(config.out_channels, config.fc_dim, num_classes)

    def cost_forward(self, features: Sequence[Tensor]) -> None:
        """Run pyramid and proposals, and the box head on 1000 regions."""
        levels = self.neck(features)
        self.rpn(levels)
        self.box_head(self._regions(levels[0], COUNTED_PROPOSALS, BOX_SIZE))

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
        sampled = [
            sample_rois(
                boxes,
                target,
                positive_iou=POSITIVE_IOU,
                low_quality=True,
                count=self.config.box_batch_size_per_image,
            )
            for boxes, target in zip(self.rpn.proposals(predicted, sizes), targets, strict=True)
        ]
        logits, deltas = self.box_head(pool_rois(levels, [s.boxes for s in sampled], BOX_SIZE))
        labels = torch.cat([s.labels for s in sampled])
        positive = labels > 0
        regression_targets = [
            encode(t["boxes"][s.matched_idxs], s.positive_boxes, BOX_STDS)
            for s, t in zip(sampled, targets, strict=True)
        ]
        own = own_deltas(deltas[positive], labels[positive])
        box = F.l1_loss(own, torch.cat(regression_targets), reduction="sum") + deltas.sum() * 0
        share = mean_over_devices(len(labels), like=box)
        losses |= {"class": class_loss(logits, labels), "box": box / share}
        return losses | self._mask_losses(levels, sampled, targets)

    def _mask_losses(
        self,
        levels: Sequence[Tensor],  # noqa: ARG002 - of heads with masks
        sampled: Sequence[Sampled],  # noqa: ARG002
        targets: Sequence[Any],  # noqa: ARG002
    ) -> Losses:
        return {}

    def detect(self, features: Sequence[Tensor], sizes: Sequence[Size]) -> list[Detections]:
        """Return the detections of each image: NMS by class over the refined proposals."""
        levels = self.neck(features)
        proposals = self.rpn.proposals(self.rpn(levels), sizes)
        logits, deltas = self.box_head(pool_rois(levels, proposals, BOX_SIZE))
        counts = [len(boxes) for boxes in proposals]
        parts = zip(
            proposals,
            torch.split(logits.softmax(-1), counts),
            torch.split(deltas, counts),
            sizes,
            strict=True,
        )
        detections = [self._select(b, s, d, BOX_STDS, size) for b, s, d, size in parts]
        return self._add_masks(levels, detections)

    def _add_masks(
        self,
        levels: Sequence[Tensor],  # noqa: ARG002 - of heads with masks
        detections: list[Detections],
    ) -> list[Detections]:
        return detections


class MaskRCNNLayers(FasterRCNNLayers):
    """The layers of `MaskRCNN`: those of Faster R-CNN and a mask head."""

    has_masks: ClassVar[bool] = True
    rules: Rules = (
        *FasterRCNNLayers.rules,
        (r"^roi_head\.mask_head\.convs\.(\d)\.conv\.", r"mask_head.convs.\1.0."),
        (r"^roi_head\.mask_head\.upsample\.", "mask_head.upsample."),
        (r"^roi_head\.mask_head\.conv_logits\.", "mask_head.mask_logits."),
    )

    def __init__(self, config: MaskRCNN, channels: Sequence[int], num_classes: int) -> None:
        super().__init__(config, channels, num_classes)
        self.mask_head = MaskHead(config.out_channels, num_classes)

    def cost_forward(self, features: Sequence[Tensor]) -> None:
        """Run pyramid, proposals, box head on 1000 regions and mask head on 100."""
        super().cost_forward(features)
        self.mask_head(self._regions(features[0], COUNTED_DETECTIONS, MASK_SIZE))

    def _mask_losses(
        self, levels: Sequence[Tensor], sampled: Sequence[Sampled], targets: Sequence[Any]
    ) -> Losses:
        return {"mask": mask_loss(self.mask_head, levels, sampled, targets)}

    def _add_masks(
        self, levels: Sequence[Tensor], detections: list[Detections]
    ) -> list[Detections]:
        return add_masks([self.mask_head], levels, detections)


def class_loss(logits: Float[Tensor, "n labels"], labels: Tensor) -> Tensor:
    """Return the cross-entropy summed over boxes and divided by their number, on all devices."""
    total = F.cross_entropy(logits, labels, reduction="sum")
    return total / mean_over_devices(len(labels), like=logits)


def own_deltas(deltas: Float[Tensor, "n k 4"], labels: Tensor) -> Float[Tensor, "n 4"]:
    """Return each box's deltas of its class; labels from 1 on."""
    return deltas[torch.arange(len(deltas), device=deltas.device), labels - 1]


def mask_loss(
    head: MaskHead,
    levels: Sequence[Tensor],
    sampled: Sequence[Sampled],
    targets: Sequence[Mapping[str, Any]],
) -> Tensor:
    """Return the mean binary cross-entropy of the masks of all positive boxes, on all devices."""
    boxes = [s.positive_boxes for s in sampled]
    labels = torch.cat([s.positive_labels for s in sampled])
    share = mean_over_devices(len(labels), like=levels[0])
    if len(labels) == 0:
        # All processes have to use the same layers: one box that counts for nothing.
        boxes[0] = boxes[0].new_tensor([[0.0, 0.0, 1.0, 1.0]])
        zero: Tensor = head(pool_rois(levels, boxes, MASK_SIZE)).sum() * 0
        return zero
    wanted = [
        mask_targets(t["masks"], s.matched_idxs, b)
        for t, s, b in zip(targets, sampled, boxes, strict=True)
    ]
    logits = head.of_labels(pool_rois(levels, boxes, MASK_SIZE), labels)
    mean = F.binary_cross_entropy_with_logits(logits, torch.cat(wanted))
    return mean * (len(labels) / share)


def add_masks(
    heads: Sequence[MaskHead], levels: Sequence[Tensor], detections: list[Detections]
) -> list[Detections]:
    """Return detections with the probabilities of their masks, the mean over `heads`."""
    labels = torch.cat([d["labels"] for d in detections])
    pooled = pool_rois(levels, [d["boxes"] for d in detections], MASK_SIZE)
    probs = torch.stack([head.of_labels(pooled, labels).sigmoid() for head in heads]).mean(0)
    parts = torch.split(probs, [len(d["labels"]) for d in detections])
    for one, part in zip(detections, parts, strict=True):
        one["mask_probs"] = part
    return detections
