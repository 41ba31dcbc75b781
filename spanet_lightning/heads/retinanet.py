"""RetinaNet (arXiv:1708.02002): dense classification and regression of anchors, focal loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou, sigmoid_focal_loss

from spanet_lightning.backbones.validate import fraction, positive, positive_int
from spanet_lightning.heads.base import (
    DetectionHead,
    DetectionLayers,
    Detections,
    Losses,
    Rules,
    Size,
)
from spanet_lightning.heads.boxes import IGNORED, assign, decode, encode
from spanet_lightning.heads.layers import conv_relu, init_normal, mean_over_devices
from spanet_lightning.heads.levels import per_anchor, pyramid_anchors, select
from spanet_lightning.heads.necks import FPN

STRIDES = (8, 16, 32, 64, 128)
OCTAVES = 3
RATIOS = (0.5, 1.0, 2.0)
ANCHORS = OCTAVES * len(RATIOS)
PUBLISHED_WIDTH = 256
PRIOR = 0.01  # what the classifier believes of every anchor before training
POSITIVE_IOU, NEGATIVE_IOU = 0.5, 0.4
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0


class RetinaNet(DetectionHead):
    """RetinaNet as SPANet trained it (arXiv:1708.02002; the official configuration).

    Beside torchvision's: anchors are not rounded, P7 sees P6 without a ReLU, and losses are divided
    by the positive anchors of the whole batch, on all devices.

    Args:
        width: Channels of the pyramid and of both towers.
        anchor_scale: Side of a level's smallest square anchor over its stride. The published 4
            gives 32 to 512 pixels; small images need smaller ones.
        score_threshold: Score that a detection must exceed.
        per_level: Most detections of a level before NMS.
        nms_iou: Overlap above which the lesser of two boxes of one class is dropped.
        max_detections: Most detections of an image.

    Raises:
        ConfigError: If a value is out of its range.
    """

    def __init__(
        self,
        width: int = 256,
        anchor_scale: float = 4.0,
        score_threshold: float = 0.05,
        per_level: int = 1000,
        nms_iou: float = 0.5,
        max_detections: int = 100,
    ) -> None:
        self.width = positive_int("width", width)
        self.anchor_scale = positive("anchor_scale", anchor_scale)
        self.score_threshold = fraction("score_threshold", score_threshold)
        self.per_level = positive_int("per_level", per_level)
        self.nms_iou = fraction("nms_iou", nms_iou)
        self.max_detections = positive_int("max_detections", max_detections)

    def build(self, channels: Sequence[int], num_classes: int) -> RetinaNetLayers:
        """Return the layers for a backbone with these channels a level."""
        return RetinaNetLayers(self, channels, num_classes)


class RetinaNetLayers(DetectionLayers):
    """The layers of `RetinaNet`: a pyramid of the last three stages, two towers, two predictors."""

    first_level: ClassVar[int] = 1
    official_rules: Rules = (
        (r"neck\.lateral_convs\.(\d)\.conv\.(.+)", r"neck.laterals.\1.\2"),
        (r"neck\.fpn_convs\.([012])\.conv\.(.+)", r"neck.outputs.\1.\2"),
        (r"neck\.fpn_convs\.3\.conv\.(.+)", r"neck.extras.0.\1"),
        (r"neck\.fpn_convs\.4\.conv\.(.+)", r"neck.extras.1.\1"),
        (r"bbox_head\.cls_convs\.(\d)\.conv\.(.+)", r"class_tower.\1.0.\2"),
        (r"bbox_head\.reg_convs\.(\d)\.conv\.(.+)", r"box_tower.\1.0.\2"),
        (r"bbox_head\.retina_cls\.(.+)", r"classes.\1"),
        (r"bbox_head\.retina_reg\.(.+)", r"deltas.\1"),
    )

    def __init__(self, config: RetinaNet, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        width = config.width
        # The published 0.01 at its width of 256. With it a narrow tower's signal would fade to
        # nothing in four layers, and its weights would not move.
        init = init_normal(0.01 * math.sqrt(PUBLISHED_WIDTH / width))
        self.neck = FPN(channels[self.first_level :], width, extra="conv")
        self.class_tower = nn.Sequential(*(conv_relu(width, width, init) for _ in range(4)))
        self.box_tower = nn.Sequential(*(conv_relu(width, width, init) for _ in range(4)))
        self.classes = nn.Conv2d(width, ANCHORS * num_classes, 3, padding=1)
        self.deltas = nn.Conv2d(width, ANCHORS * 4, 3, padding=1)
        init_normal(0.01, bias=-math.log((1 - PRIOR) / PRIOR))(self.classes)
        init(self.deltas)

    def predict(
        self, features: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return each level's logits (B, N_l, K), deltas (B, N_l, 4) and anchors (N_l, 4)."""
        levels = self.neck(features[self.first_level :])
        logits = [per_anchor(self.classes(self.class_tower(x)), self.num_classes) for x in levels]
        deltas = [per_anchor(self.deltas(self.box_tower(x)), 4) for x in levels]
        scale = self.config.anchor_scale
        return logits, deltas, pyramid_anchors(levels, STRIDES, scale, OCTAVES, RATIOS)

    def work(self, features: Sequence[Tensor]) -> None:
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
            taken = assign(box_iou(objects, anchors), POSITIVE_IOU, NEGATIVE_IOU, low_quality=0.0)
            positive = taken >= 0
            matched = taken[positive]
            wanted = torch.zeros_like(logits[i])
            wanted[positive, target["labels"][matched] - 1] = 1
            used = taken != IGNORED
            classes = classes + sigmoid_focal_loss(
                logits[i][used], wanted[used], FOCAL_ALPHA, FOCAL_GAMMA, reduction="sum"
            )
            goal = encode(objects[matched], anchors[positive])
            box = box + F.l1_loss(deltas[i][positive], goal, reduction="sum")
            count += max(int(positive.sum()), 1)
        share = mean_over_devices(count, like=box)
        return {"class": classes / share, "box": box / share}

    def detect(self, features: Sequence[Tensor], sizes: Sequence[Size]) -> list[Detections]:
        """Return what is found in each image: the best of each level, then NMS by class."""
        level_logits, level_deltas, anchors = self.predict(features)
        config = self.config
        found = []
        for i, size in enumerate(sizes):
            boxes, scores, labels = [], [], []
            for logits, deltas, level in zip(level_logits, level_deltas, anchors, strict=True):
                probability = logits[i].float().sigmoid().flatten()
                above = (probability > config.score_threshold).nonzero()[:, 0]
                best = probability[above].topk(min(config.per_level, len(above)))
                index = above[best.indices]
                place, label = index // self.num_classes, index % self.num_classes
                boxes.append(decode(deltas[i][place], level[place], size=size))
                scores.append(best.values)
                labels.append(label + 1)
            all_boxes = torch.cat(boxes)
            all_scores, all_labels = torch.cat(scores), torch.cat(labels)
            found.append(
                select(all_boxes, all_scores, all_labels, config.nms_iou, config.max_detections)
            )
        return found
