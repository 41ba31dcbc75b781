"""If one of these fails, a head trains, selects or sees other things than the published ones.

That losses, detections and logits are the first version's is tested in `test_heads_recorded`.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spanet_lightning import (
    CascadeMaskRCNN,
    MaskRCNN,
    RetinaNet,
    SemanticFPN,
    SPANet,
    SPANetV2,
    UPerNet,
)
from spanet_lightning.errors import ConfigError
from spanet_lightning.heads import DenseModel, inference
from spanet_lightning.heads.base import DetectionLayers, resize
from spanet_lightning.heads.inference import class_maps, view, views, window_starts
from spanet_lightning.heads.layers import FPN
from spanet_lightning.heads.rcnn import sample_rois
from spanet_lightning.heads.rpn import RPN, Predicted
from spanet_lightning.heads.segmentation import segmentation_loss
from tests.test_heads_recorded import CHANNELS, HEADS, SIZES, features, target

DETECTORS = [name for name in HEADS if name not in ("SemanticFPN", "UPerNet")]


@pytest.mark.parametrize("drop_outside", [True, False])
def test_rpn_of_the_cascade_ignores_anchors_across_the_border(drop_outside: bool) -> None:
    anchors = torch.tensor([[-5.0, 0, 20, 20], [40, 40, 60, 60]])
    zeros = Predicted([torch.tensor([[3.0, -2.0]])], [torch.zeros(1, 2, 4)], [anchors])
    objects = {"boxes": torch.tensor([[0.0, 0, 20, 20]])}
    loss = RPN(8, drop_outside=drop_outside).losses(zeros, [(100, 100)], [objects])["rpn_class"]
    terms = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(-3))][: 1 if drop_outside else 2]
    assert loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-4)


def test_objects_own_boxes_are_among_the_samples() -> None:
    objects = target([10, 10, 50, 50], [60, 20, 100, 80])
    proposals = torch.tensor([[11.0, 10, 50, 50], [0, 60, 20, 90], [60, 30, 100, 80]])
    sampled = sample_rois(proposals, objects, positive_iou=0.5, low_quality=False, count=16)
    assert sampled.is_object.sum() == 2
    assert sampled.labels.tolist() == [1, 2, 1, 2, 0]


def test_p7_sees_p6_without_a_relu_and_p6_the_last_stage() -> None:
    neck = FPN((4, 4), 8, extra="conv")
    maps = [torch.randn(1, 4, 9, 13), torch.randn(1, 4, 5, 7)]
    levels = neck(maps)
    torch.testing.assert_close(levels[2], neck.extra_blocks.p6(maps[1]))
    torch.testing.assert_close(levels[3], neck.extra_blocks.p7(levels[2]))
    pooled = FPN((4, 4), 8, extra="pool")(maps)
    torch.testing.assert_close(pooled[2], F.max_pool2d(pooled[1], 1, stride=2))


@pytest.mark.parametrize("name", DETECTORS)
def test_a_batch_without_objects_uses_every_parameter(name: str) -> None:
    """Or processes that have one would wait for others for ever."""
    layers: DetectionLayers = HEADS[name].build(CHANNELS, 3)
    loss = torch.stack(list(layers.losses(features(), SIZES, [target(), target()]).values())).sum()
    loss.backward()
    assert math.isfinite(loss.item())
    assert [n for n, p in layers.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", DETECTORS)
def test_a_model_returns_the_detections_of_its_images(name: str) -> None:
    torch.manual_seed(0)
    model = DenseModel(SPANetV2("test"), HEADS[name], 3).eval()
    with torch.no_grad():
        (found,) = model(torch.randn(1, 3, 64, 96))
    assert len(found["boxes"]) <= 100
    assert (found["boxes"] >= 0).all()
    assert (found["boxes"] <= torch.tensor([96, 64, 96, 64])).all()
    assert (found["scores"].diff() <= 0).all()


def test_a_model_returns_the_logits_of_each_pixel() -> None:
    model = DenseModel(SPANet("test"), UPerNet(8, auxiliary_channels=8), 3).eval()
    assert model(torch.randn(2, 3, 64, 90)).shape == (2, 3, 64, 90)


def test_frozen_stages_and_the_level_that_retinanet_skips_are_not_trained() -> None:
    backbone = SPANetV2("test", drop_path_rate=0.5)
    model = DenseModel(backbone, HEADS["RetinaNet"], 3, frozen_stages=2).train()
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    for part in ("backbone.stem.", "backbone.stages.0.", "backbone.stages.1.", "output_norms.0."):
        assert any(n.startswith(part) for n in frozen)
    assert not any(n.startswith(("backbone.stages.2", "head.")) for n in frozen)
    assert not model.backbone.stages[1].training
    assert model.backbone.stages[2].training


def test_loss_divides_by_all_pixels_or_by_those_with_a_class() -> None:
    logits = torch.randn(2, 3, 4, 5)
    masks = torch.randint(0, 3, (2, 8, 10))
    masks[:, :3] = 255
    log_probs = resize(logits, (8, 10)).log_softmax(1)
    labels = masks.clamp(max=2)[:, None]
    total = -log_probs.gather(1, labels)[:, 0][masks != 255].sum()
    torch.testing.assert_close(segmentation_loss(logits, masks), total / 160)
    counted = segmentation_loss(logits, masks, over_all=False)
    torch.testing.assert_close(counted, total / (masks != 255).sum())
    empty = segmentation_loss(logits, torch.full((2, 8, 10), 255), over_all=False)
    assert empty.item() == 0


# Inference


def strided(x: Tensor) -> Tensor:
    """A network at stride 2 whose answer depends on where in its window a pixel lies."""
    height, width = (side // 2 for side in x.shape[-2:])
    where = torch.arange(height * width, dtype=torch.float32).reshape(1, 1, height, width)
    small = F.avg_pool2d(x, 2)
    return torch.cat([small[:, :1] + where.cos(), small[:, 1:2] * where.sin(), small], dim=1)


@pytest.mark.parametrize(
    ("size", "window", "stride"), [((50, 70), 32, 22), ((32, 100), 32, 32), ((40, 40), 64, 44)]
)
def test_sliding_is_the_mean_over_windows(size: tuple[int, int], window: int, stride: int) -> None:
    height, width = size
    images = torch.randn(1, 2, height, width)
    total, count = torch.zeros(1, 4, height, width), torch.zeros(height, width)
    for i in range(max(math.ceil((height - window) / stride), 0) + 1):
        for j in range(max(math.ceil((width - window) / stride), 0) + 1):
            bottom, right = min(i * stride + window, height), min(j * stride + window, width)
            top, left = max(bottom - window, 0), max(right - window, 0)
            part = strided(images[:, :, top:bottom, left:right])
            total[:, :, top:bottom, left:right] += resize(part, (bottom - top, right - left))
            count[top:bottom, left:right] += 1
    found = view(strided, images, (window, stride)).logits(slice(None), size)
    torch.testing.assert_close(found, total / count)


def test_published_windows() -> None:
    assert list(window_starts(683, 512, 341)) == [(0, 512), (171, 683)]
    assert list(window_starts(2048, 512, 341))[-1] == (1536, 2048)
    assert list(window_starts(300, 512, 341)) == [(0, 300)]


@pytest.mark.parametrize("window", [None, (32, 20)])
@pytest.mark.parametrize(("scales", "flip"), [((1.0,), False), ((1.0, 1.5), True)])
def test_class_maps_in_bounded_memory_are_those_of_all_scores(
    window: Any, scales: tuple[float, ...], flip: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few classes at a time, and the mean of the probabilities where there are several views."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 9, 3, padding=1, stride=2)
    images = torch.randn(1, 3, 40, 48)
    with torch.no_grad():
        found = views(conv, images, window, scales, flip=flip)
        logits = [one.logits(slice(None), (50, 70)) for one in found]
        scores = logits[0] if len(logits) == 1 else sum(x.softmax(1) for x in logits)
        monkeypatch.setattr(inference, "MAX_SCORES", 2 * 50 * 70 * len(found))
        assert torch.equal(class_maps(found, (50, 70)), scores.argmax(1))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RetinaNet(out_channels=0), r"out_channels: got 0, expected an integer of at leas"),
        (lambda: MaskRCNN(box_nms_thresh=1.5), r"box_nms_thresh: got 1.5, expected a number in"),
        (lambda: CascadeMaskRCNN(box_batch_size_per_image=3), r"box_batch_size_per_image: got 3"),
        (lambda: UPerNet(auxiliary_loss_weight=-1.0), r"auxiliary_loss_weight: got -1.0"),
        (lambda: SemanticFPN(dropout_ratio=1.0), r"dropout_ratio: got 1.0, expected a number in"),
        (lambda: DenseModel(SPANet("test"), RetinaNet(), 0), r"num_classes: got 0"),
        (lambda: DenseModel(SPANet("test"), RetinaNet(), 3, 5), r"frozen_stages: got 5"),
    ],
)
def test_bad_arguments_are_named(build, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()
