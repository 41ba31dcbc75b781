"""RetinaNet (arXiv:1708.02002): dense classification and regression of anchors, focal loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou, sigmoid_focal_loss

from spanet_lightning.backbones.official import Rules
from spanet_lightning.backbones.validate import fraction, positive, positive_int
from spanet_lightning.heads.base import (
    DetectionHead,
    DetectionLayers,
    Detections,
    Losses,
    Size,
)
from spanet_lightning.heads.boxes import (
    IGNORED,
    assign,
    decode,
    encode,
    per_anchor,
    pyramid_anchors,
    select,
)
from spanet_lightning.heads.layers import (
    FPN,
    FPN_RULES,
    conv_relu,
    init_normal,
    mean_over_devices,
)

STRIDES = (8, 16, 32, 64, 128)
OCTAVES = 3
RATIOS = (0.5, 1.0, 2.0)
ANCHORS = OCTAVES * len(RATIOS)
PUBLISHED_CHANNELS = 256
PRIOR = 0.01  # probability that the untrained classifier gives every class of every anchor
POSITIVE_IOU, NEGATIVE_IOU = 0.5, 0.4
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0


@dataclass(frozen=True)
class RetinaNet(DetectionHead):
    """RetinaNet as SPANet trained it (arXiv:1708.02002; the official configuration).

    Unlike in torchvision, anchors are not rounded, P7 sees P6 without a ReLU, and losses are
    divided by the positive anchors of the whole batch, on all devices.

    Args:
        out_channels: Channels of the pyramid and of both towers.
        anchor_scale: Side of a level's smallest square anchor over its stride. The published 4
            gives 32 to 512 pixels; small images need smaller ones.
        score_threshold: Score that a detection must exceed.
        topk_candidates: Maximum number of detections per level before NMS.
        box_nms_thresh: IoU above which the lower-scoring of two boxes of one class is dropped.
        detections_per_img: Maximum number of detections per image.

    Raises:
        ConfigError: If a value is out of its range.
    """

    out_channels: int = 256
    anchor_scale: float = 4.0
    score_threshold: float = 0.05
    topk_candidates: int = 1000
    box_nms_thresh: float = 0.5
    detections_per_img: int = 100

    def __post_init__(self) -> None:
        for key in ("out_channels", "topk_candidates", "detections_per_img"):
            positive_int(key, getattr(self, key))
        positive("anchor_scale", self.anchor_scale)
        for key in ("score_threshold", "box_nms_thresh"):
            fraction(key, getattr(self, key))

    def build(self, channels: Sequence[int], num_classes: int) -> RetinaNetLayers:
        """Return the layers for a backbone with these channels per level."""
        return RetinaNetLayers(self, channels, num_classes)


class RetinaNetLayers(DetectionLayers):
    """The layers of `RetinaNet`: a pyramid of the last three stages, two towers, two predictors."""

    first_level: ClassVar[int] = 1
    rules: Rules = (
        (r"^neck\.(fpn_convs\.3\.conv|extras\.0)\.", "neck.extra_blocks.p6."),
        (r"^neck\.(fpn_convs\.4\.conv|extras\.1)\.", "neck.extra_blocks.p7."),
        *FPN_RULES,
        (r"^bbox_head\.cls_convs\.(\d)\.conv\.", r"cls_conv.\1.0."),
        (r"^bbox_head\.reg_convs\.(\d)\.conv\.", r"bbox_conv.\1.0."),
        (r"^class_tower\.", "cls_conv."),
        (r"^box_tower\.", "bbox_conv."),
        (r"^(bbox_head\.retina_cls|classes)\.", "cls_logits."),
        (r"^(bbox_head\.retina_reg|deltas)\.", "bbox_pred."),
    )

    def __init__(self, config: RetinaNet, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        width = config.out_channels
        # The published 0.01 at its 256 channels. With it the signal of a narrow tower would fade to
        # nothing in four layers, and its weights would not move.
        init = init_normal(0.01 * math.sqrt(PUBLISHED_CHANNELS / width))
        self.neck = FPN(channels[self.first_level :], width, extra="conv")
        self.cls_conv = nn.Sequential(*(conv_relu(width, width, init) for _ in range(4)))
        self.bbox_conv = nn.Sequential(*(conv_relu(width, width, init) for _ in range(4)))
        self.cls_logits = nn.Conv2d(width, ANCHORS * num_classes, 3, padding=1)
        self.bbox_pred = nn.Conv2d(width, ANCHORS * 4, 3, padding=1)
        init_normal(0.01, bias=-math.log((1 - PRIOR) / PRIOR))(self.cls_logits)
        init(self.bbox_pred)

    def predict(
        self, features: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return each level's logits (B, N_l, K), deltas (B, N_l, 4) and anchors (N_l, 4)."""
        levels = self.neck(features[self.first_level :])
        logits = [per_anchor(self.cls_logits(self.cls_conv(x)), self.num_classes) for x in levels]
        deltas = [per_anchor(self.bbox_pred(self.bbox_conv(x)), 4) for x in levels]
        scale = self.config.anchor_scale
        return logits, deltas, pyramid_anchors(levels, STRIDES, scale, OCTAVES, RATIOS)

    def cost_forward(self, features: Sequence[Tensor]) -> None:
        """Run towers and predictors on every level."""
        self.predict(features)

    def losses(
        self,
        features: Sequence[Tensor],
        sizes: Sequence[Size],  # noqa: ARG002 - every anchor counts, also those over padding
        targets: Sequence[Mapping[str, Any]],
    ) -> Losses:
        """Return `class` (focal loss) and `box` (L1 of the deltas).

        Both are summed and divided by the positive anchors of the batch, over all devices; an image
        without any counts as one.
        """
        level_logits, level_deltas, level_anchors = self.predict(features)
        anchors = torch.cat(level_anchors)
        logits = torch.cat(level_logits, dim=1).float()
        deltas = torch.cat(level_deltas, dim=1).float()
        classes = deltas.new_zeros(())
        box = deltas.sum() * 0  # keeps every layer in the graph where no anchor is positive
        count = 0
        for i, target in enumerate(targets):
            objects = target["boxes"]
            iou = box_iou(objects, anchors)
            matched_idxs = assign(iou, POSITIVE_IOU, NEGATIVE_IOU, low_quality=0.0)
            foreground = matched_idxs >= 0
            matched = matched_idxs[foreground]
            one_hot = torch.zeros_like(logits[i])
            one_hot[foreground, target["labels"][matched] - 1] = 1
            valid = matched_idxs != IGNORED
            classes = classes + sigmoid_focal_loss(
                logits[i][valid], one_hot[valid], FOCAL_ALPHA, FOCAL_GAMMA, reduction="sum"
            )
            regression_targets = encode(objects[matched], anchors[foreground])
            box = box + F.l1_loss(deltas[i][foreground], regression_targets, reduction="sum")
            count += max(int(foreground.sum()), 1)
        share = mean_over_devices(count, like=box)
        return {"class": classes / share, "box": box / share}

    def detect(self, features: Sequence[Tensor], sizes: Sequence[Size]) -> list[Detections]:
        """Return the detections of each image: the best of each level, then NMS by class."""
        level_logits, level_deltas, anchors = self.predict(features)
        config = self.config
        detections = []
        for i, size in enumerate(sizes):
            boxes, scores, labels = [], [], []
            for logits, deltas, level in zip(level_logits, level_deltas, anchors, strict=True):
                probs = logits[i].float().sigmoid().flatten()
                above = (probs > config.score_threshold).nonzero()[:, 0]
                best = probs[above].topk(min(config.topk_candidates, len(above)))
                index = above[best.indices]
                anchor, label = index // self.num_classes, index % self.num_classes
                boxes.append(decode(deltas[i][anchor], level[anchor], size=size))
                scores.append(best.values)
                labels.append(label + 1)
            detections.append(
                select(
                    torch.cat(boxes),
                    torch.cat(scores),
                    torch.cat(labels),
                    config.box_nms_thresh,
                    config.detections_per_img,
                )
            )
        return detections
