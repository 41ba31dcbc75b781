"""If one of these fails, a detector's losses or selection are not the published ones."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from spanet_lightning.heads.necks import FPN
from torchvision.ops import box_iou

from spanet_lightning import (
    CascadeMaskRCNN,
    FasterRCNN,
    MaskRCNN,
    RetinaNet,
    SPANet,
    SPANetV2,
)
from spanet_lightning.errors import ConfigError
from spanet_lightning.heads import DenseModel
from spanet_lightning.heads.boxes import decode
from spanet_lightning.heads.cascade import giou_losses, refine
from spanet_lightning.heads.rcnn import Sampled, sample_rois
from spanet_lightning.heads.rpn import RPN, Predicted

SIZES = [(90, 120), (96, 100)]
SMALL = {
    "width": 16,
    "hidden": 32,
    "anchor_scale": 4.0,
    "train_proposals": 60,
    "test_proposals": 30,
    "samples": 32,
}
HEADS = {
    "retinanet": lambda: RetinaNet(width=16, anchor_scale=3.0),
    "faster": lambda: FasterRCNN(**SMALL),
    "mask": lambda: MaskRCNN(**SMALL),
    "cascade": lambda: CascadeMaskRCNN(**SMALL),
}


def target(*boxes: list[float]) -> dict:
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    masks = torch.zeros(len(corners), 96, 128, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, corners.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = True
    return {"boxes": corners, "labels": torch.arange(len(corners)) % 3 + 1, "masks": masks}


TARGETS = [target([10, 10, 50, 50], [60, 20, 100, 80.5]), target()]


def model(name: str, v1: bool = False) -> DenseModel:
    torch.manual_seed(0)
    backbone = SPANet("test", num_classes=0) if v1 else SPANetV2("test", num_classes=0)
    return DenseModel(backbone, HEADS[name](), 3)


def images() -> torch.Tensor:
    return torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))


def test_retinanet_loss_is_the_literal_one() -> None:
    """Focal loss by its formula, anchors matched one by one, both over the batch's positives."""
    dense = model("retinanet").train()
    features = dense.features(images())
    losses = dense.head.losses(features, SIZES, TARGETS)
    logits, deltas, anchors = dense.head.predict(features)
    all_logits, all_deltas, boxes = torch.cat(logits, 1), torch.cat(deltas, 1), torch.cat(anchors)
    focal, box, positives = 0.0, 0.0, 0
    for i, t in enumerate(TARGETS):
        iou = box_iou(t["boxes"], boxes)
        label = torch.zeros(len(boxes), dtype=torch.long)
        if len(t["boxes"]):
            best, which = iou.max(0)
            label[(best >= 0.4) & (best < 0.5)] = -1
            label[best >= 0.5] = which[best >= 0.5] + 1
            for g in range(len(iou)):
                label[iou[g] == iou[g].max()] = g + 1
        for n in (label > 0).nonzero()[:, 0].tolist():
            x1, y1, x2, y2 = t["boxes"][label[n] - 1].tolist()
            a1, b1, a2, b2 = boxes[n].tolist()
            w, h = a2 - a1, b2 - b1
            goal = [((x1 + x2) - (a1 + a2)) / 2 / w, ((y1 + y2) - (b1 + b2)) / 2 / h]
            goal += [math.log((x2 - x1) / w), math.log((y2 - y1) / h)]
            box += (all_deltas[i, n] - torch.tensor(goal)).abs().sum().item()
        p = all_logits[i].sigmoid().double()
        hot = torch.zeros_like(p)
        for n in (label > 0).nonzero()[:, 0].tolist():
            hot[n, t["labels"][label[n] - 1] - 1] = 1
        terms = -0.25 * (1 - p) ** 2 * p.log() * hot - 0.75 * p**2 * (1 - p).log() * (1 - hot)
        focal += terms[label >= 0].sum().item()
        positives += max(int((label > 0).sum()), 1)
    assert positives > 4
    assert losses["class"].item() == pytest.approx(focal / positives, rel=1e-4)
    assert losses["box"].item() == pytest.approx(box / positives, rel=1e-4)


@pytest.mark.parametrize("beta", [0.0, 1 / 9])
def test_rpn_losses_are_over_sampled_anchors(beta: float) -> None:
    rpn = RPN(8, smooth_l1_beta=beta)
    anchors = torch.tensor([[0.0, 0, 20, 20], [40, 40, 60, 60], [0, 0, 18, 20], [70, 0, 90, 20]])
    deltas = torch.tensor([[[0.05, 0.3, 0, 0], [9, 9, 9, 9], [0.3, 0, 0, 0], [1, 1, 1, 1]]])
    logits = torch.tensor([[2.0, -1.0, 0.5, 0.0]])
    t = {"boxes": torch.tensor([[0.0, 0, 20, 20]])}
    losses = rpn.losses(Predicted([logits], [deltas], [anchors]), [(100, 100)], [t])
    wanted = torch.tensor([1.0, 0, 1, 0])
    assert losses["rpn_class"].item() == pytest.approx(
        F.binary_cross_entropy_with_logits(logits[0], wanted).item()
    )
    # Anchor 2 has IoU 0.9: its goal is the shift and stretch to the object.
    goals = [[0, 0, 0, 0], [1 / 18, 0, math.log(20 / 18), 0]]
    apart = (deltas[0, [0, 2]] - torch.tensor(goals)).abs().flatten().tolist()
    each = [d - beta / 2 if d >= beta else d * d / 2 / beta for d in apart]
    assert losses["rpn_box"].item() == pytest.approx(sum(each) / 4, rel=1e-4)


def test_cascade_drops_anchors_that_cross_the_border_and_mask_rcnn_keeps_them() -> None:
    anchors = torch.tensor([[-5.0, 0, 20, 20], [40, 40, 60, 60]])
    t = {"boxes": torch.tensor([[0.0, 0, 20, 20]])}
    for drop, samples in ((True, 1), (False, 2)):
        rpn = RPN(8, drop_outside=drop)
        zeros = Predicted([torch.tensor([[3.0, -2.0]])], [torch.zeros(1, 2, 4)], [anchors])
        loss = rpn.losses(zeros, [(100, 100)], [t])["rpn_class"].item()
        terms = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(-3))][:samples]
        assert loss == pytest.approx(sum(terms) / samples, rel=1e-4)


def test_objects_own_boxes_are_among_the_samples_and_leave_before_the_next_stage() -> None:
    t = target([10, 10, 50, 50], [60, 20, 100, 80])
    proposals = torch.tensor([[11.0, 10, 50, 50], [0, 60, 20, 90], [60, 30, 100, 80]])
    s = sample_rois(proposals, t, positive_iou=0.5, low_quality=False, count=16)
    assert s.is_object.sum() == 2
    assert s.labels.tolist() == [1, 2, 1, 2, 0]
    logits = torch.zeros(5, 4)
    logits[4, 3] = 5  # the background box looks most like class 3
    deltas = torch.zeros(5, 3, 4)
    deltas[:, 2, 0] = 1.0
    deltas[:, 0, 1] = 1.0
    stds = (0.1, 0.1, 0.2, 0.2)
    boxes = refine([s], logits, deltas, stds, [(96, 128)])[0]
    expected = torch.tensor([[11.0, 14, 50, 54], [60, 30, 100, 80], [2, 60, 22, 90]])
    torch.testing.assert_close(boxes, expected)


def test_giou_loss_is_ten_times_the_literal_one_over_all_samples() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [50, 50, 70, 70], [0, 0, 5, 5]])
    s = Sampled(boxes, torch.tensor([2, 1, 0]), torch.tensor([0, 1]), torch.zeros(3).bool())
    t = {"boxes": torch.tensor([[0.0, 0, 10, 20], [80, 50, 90, 60]])}
    deltas = torch.zeros(3, 2, 4)
    deltas[0, 1] = torch.tensor([1.0, 0, 0, 0])
    stds = (0.1, 0.1, 0.2, 0.2)
    total = 0.0
    moved = decode(torch.stack([deltas[0, 1], deltas[1, 0]]), boxes[:2], stds).tolist()
    for (a, b, c, d), (e, f, g, h) in zip(moved, t["boxes"].tolist(), strict=True):
        inter = max(min(c, g) - max(a, e), 0) * max(min(d, h) - max(b, f), 0)
        union = (c - a) * (d - b) + (g - e) * (h - f) - inter
        hull = (max(c, g) - min(a, e)) * (max(d, h) - min(b, f))
        total += 1 - (inter / union - (hull - union) / hull)
    assert giou_losses(deltas, [s], [t], stds).item() == pytest.approx(10 * total / 3, rel=1e-5)


def test_stages_of_the_cascade_weigh_1_half_and_a_quarter() -> None:
    dense = model("cascade").train()
    for head in dense.head.box_heads:
        for layer in (head.classes, head.deltas):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    losses = dense.head.losses(dense.features(images()), SIZES, TARGETS)
    # Whatever is sampled, zero logits of 4 labels cost log 4.
    found = [losses[f"class_{i}"].item() for i in (1, 2, 3)]
    assert found == pytest.approx([w * math.log(4) for w in (1, 0.5, 0.25)])


def test_p7_sees_p6_without_a_relu_and_p6_the_last_stage() -> None:
    neck = FPN((4, 4), 8, extra="conv")
    features = [torch.randn(1, 4, 9, 13), torch.randn(1, 4, 5, 7)]
    levels = neck(features)
    torch.testing.assert_close(levels[2], neck.extras[0](features[1]))
    torch.testing.assert_close(levels[3], neck.extras[1](levels[2]))
    assert (levels[2] < 0).any()
    pooled = FPN((4, 4), 8, extra="pool")(features)
    torch.testing.assert_close(pooled[2], F.max_pool2d(pooled[1], 1, stride=2))


@pytest.mark.parametrize("name", HEADS)
def test_a_few_steps_lower_the_loss_and_reach_every_parameter(name: str) -> None:
    dense = model(name, v1=name == "retinanet").train()
    trained = [(n, p) for n, p in dense.named_parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW([p for _, p in trained], 2e-3)
    history = []
    for step in range(15):
        losses = dense.head.losses(dense.features(images()), SIZES, TARGETS)
        loss = sum(losses.values())
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            assert [n for n, p in trained if p.grad is None] == []
        optimizer.step()
        history.append(loss.item())
    assert sum(history[-3:]) < 0.9 * sum(history[:3])


@pytest.mark.parametrize("name", HEADS)
def test_a_batch_without_objects_uses_every_parameter(name: str) -> None:
    """Or processes that see one would wait for others for ever."""
    dense = model(name).train()
    losses = dense.head.losses(dense.features(images()), SIZES, [target(), target()])
    loss = sum(losses.values())
    loss.backward()
    assert math.isfinite(loss.item())
    unused = [n for n, p in dense.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []


@pytest.mark.parametrize("name", HEADS)
def test_detections_lie_in_the_image_and_are_at_most_a_hundred(name: str) -> None:
    dense = model(name).eval()
    dense.head.config.score_threshold = 0.0
    with torch.no_grad():
        found = dense.head.detect(dense.features(images()), SIZES)
    assert len(found) == 2
    for d, (height, width) in zip(found, SIZES, strict=True):
        assert 0 < len(d["boxes"]) <= 100
        assert (d["boxes"] >= 0).all()
        assert (d["boxes"] <= torch.tensor([width, height, width, height])).all()
        assert (d["scores"].diff() <= 0).all()
        assert set(d["labels"].tolist()) <= {1, 2, 3}
        if name in ("mask", "cascade"):
            assert d["mask_probs"].shape == (len(d["boxes"]), 28, 28)


def test_frozen_stages_and_the_level_that_retinanet_skips_are_not_trained() -> None:
    dense = DenseModel(
        SPANetV2("test", num_classes=0, drop_path_rate=0.5), HEADS["retinanet"](), 3, 2
    )
    frozen = {
        n.split(".")[0] + "." + n.split(".")[1] + "." + n.split(".")[2]
        for n, p in dense.named_parameters()
        if not p.requires_grad
    }
    assert {"backbone.stem.conv", "backbone.stages.0", "backbone.stages.1"} <= frozen
    assert not any(n.startswith("backbone.stages.2") for n in frozen)
    assert not dense.output_norms[0].weight.requires_grad
    dense.train()
    assert not dense.backbone.stages[1].training
    assert dense.backbone.stages[2].training


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RetinaNet(width=0), r"width: got 0, expected an integer of at least 1"),
        (lambda: MaskRCNN(nms_iou=1.5), r"nms_iou: got 1.5, expected a number in \[0, 1\]"),
        (lambda: CascadeMaskRCNN(norm="sinc"), r"norm: got 'sinc'.*did you mean 'sync'"),
        (
            lambda: DenseModel(SPANet("test"), RetinaNet(), 0),
            r"num_classes: got 0, expected an integer of at least 1",
        ),
        (
            lambda: DenseModel(SPANet("test"), RetinaNet(), 3, 5),
            r"frozen_stages: got 5, expected an integer from 0",
        ),
    ],
)
def test_bad_arguments_are_named(build, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()
