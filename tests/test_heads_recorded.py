"""Every head gives what the first version gave: losses, gradients, detections, logits.

The first version's tensors go in under their names of then, so that its checkpoints load as well.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spanet_lightning import heads
from spanet_lightning.heads.base import DenseLayers, DetectionLayers
from spanet_lightning.heads.segmentation import segmentation_loss

RECORDED = json.loads((Path(__file__).parent / "fixtures" / "heads.json").read_text())
CHANNELS = (8, 16, 24, 32)
SIZES = [(90, 120), (96, 100)]
RCNN: dict[str, Any] = {
    "out_channels": 16,
    "fc_dim": 32,
    "anchor_scale": 4.0,
    "rpn_post_nms_top_n_train": 60,
    "rpn_post_nms_top_n_test": 30,
    "box_batch_size_per_image": 32,
}
HEADS: dict[str, Any] = {
    "RetinaNet": heads.RetinaNet(out_channels=16, anchor_scale=3.0),
    "FasterRCNN": heads.FasterRCNN(**RCNN),
    "MaskRCNN": heads.MaskRCNN(**RCNN),
    "CascadeMaskRCNN": heads.CascadeMaskRCNN(**RCNN),
    "SemanticFPN": heads.SemanticFPN(16, 8, 0.0),
    "UPerNet": heads.UPerNet(16, 0.4, 8, 0.0),
}


def fill(name: str, shape: list[int]) -> Tensor:
    """Return the recorded tensor of a name: it is a function of it."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if name.endswith("running_var"):
        return x.abs() + 0.5
    if name.endswith("norm.weight"):
        return 1 + 0.1 * x
    return x * (1 / x[0].numel()) ** 0.5 if x.ndim > 1 else 0.1 * x


def features() -> list[Tensor]:
    """Return the four levels of two images of 96×128 px."""
    draw = torch.Generator().manual_seed(5)
    levels = zip(CHANNELS, (4, 8, 16, 32), strict=True)
    return [torch.randn(2, c, 96 // s, 128 // s, generator=draw) for c, s in levels]


def target(*boxes: list[float]) -> dict[str, Tensor]:
    """Return objects that fill their boxes."""
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    masks = torch.zeros(len(corners), 96, 128, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, corners.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = True
    return {"boxes": corners, "labels": torch.arange(len(corners)) % 3 + 1, "masks": masks}


TARGETS = [target([10, 10, 50, 50], [60, 20, 100, 80.5]), target()]


def loaded(name: str) -> DenseLayers:
    """Return a head with the first version's weights."""
    layers: DenseLayers = HEADS[name].build(CHANNELS, 3)
    layers.load_state_dict(
        {key: fill(key, shape) for key, shape in RECORDED[name]["state"].items()}
    )
    return layers


@pytest.mark.parametrize("name", HEADS)
def test_losses_and_gradients_are_the_recorded_ones(name: str) -> None:
    layers = loaded(name).train()
    torch.manual_seed(1)
    if isinstance(layers, DetectionLayers):
        losses = layers.losses(features(), SIZES, TARGETS)
    else:
        draw = torch.Generator().manual_seed(3)
        masks = torch.randint(0, 3, (2, 96, 128), generator=draw)
        masks[0, :9] = 255
        logits = layers(features())
        losses = {
            "decode": segmentation_loss(logits, masks),
            "mean": segmentation_loss(logits, masks, over_all=False),
        }
        auxiliary = layers.auxiliary(features())
        if auxiliary is not None:
            losses["auxiliary"] = auxiliary[1] * segmentation_loss(auxiliary[0], masks)
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(
        RECORDED[name]["losses"], rel=1e-4
    )
    torch.stack(list(losses.values())).sum().backward()
    norm = torch.stack([p.grad.norm() for p in layers.parameters()]).norm()
    assert norm.item() == pytest.approx(RECORDED[name]["gradient_norm"], rel=1e-4)


@pytest.mark.parametrize("name", HEADS)
def test_detections_and_logits_are_the_recorded_ones(name: str) -> None:
    layers, recorded = loaded(name).eval(), RECORDED[name]
    with torch.no_grad():
        if not isinstance(layers, DetectionLayers):
            logits = layers(features())
            assert list(logits.shape) == recorded["shape"]
            expected = torch.tensor(recorded["logits"])
            torch.testing.assert_close(logits[:, :, ::5, ::7].flatten(), expected)
            return
        found = layers.detect(features(), SIZES)
    for one, expected in zip(found, recorded["detections"], strict=True):
        assert len(one["labels"]) == expected["count"]
        assert one["labels"][:12].tolist() == expected["labels"]
        for key in ("boxes", "scores"):
            values = torch.tensor(expected[key])
            torch.testing.assert_close(one[key][:12].flatten(), values, rtol=1e-4, atol=1e-4)
        sides = one["boxes"][:, 2:] - one["boxes"][:, :2]
        assert (sides > 0).all()  # RetinaNet kept boxes without area among its 100
        if "mask_probs" in one:
            means = one["mask_probs"].mean((1, 2))[:12]
            torch.testing.assert_close(means, torch.tensor(expected["masks"]), rtol=1e-4, atol=1e-4)
