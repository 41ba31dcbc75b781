"""If one of these fails, detectors learn from other boxes than the published ones."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.ops import box_iou

from spanet_lightning.heads.boxes import (
    IGNORED,
    NEGATIVE,
    assign,
    base_anchors,
    decode,
    encode,
    grid_anchors,
    inside,
    rescale,
    sample,
)
from spanet_lightning.heads.roi import paste_masks, roi_level


def test_anchors_are_not_rounded_and_centred_on_the_corner_of_each_cell() -> None:
    base = base_anchors(8, 4, 3, (0.5, 1.0, 2.0))
    assert base.shape == (9, 4)
    expected = []
    for ratio in (0.5, 1.0, 2.0):
        for octave in range(3):
            side = 32 * 2 ** (octave / 3)
            w, h = side / math.sqrt(ratio), side * math.sqrt(ratio)
            expected.append([-w / 2, -h / 2, w / 2, h / 2])
    torch.testing.assert_close(base, torch.tensor(expected))
    grid = grid_anchors(base, 8, 2, 3)
    assert grid.shape == (2 * 3 * 9, 4)
    torch.testing.assert_close(grid[(1 * 3 + 2) * 9 + 4], base[4] + torch.tensor([16.0, 8, 16, 8]))


def test_coder_is_its_own_inverse_and_clamps_both_ways() -> None:
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(50, 2, generator=generator) * 100
    boxes = torch.cat([corner, corner + 1 + torch.rand(50, 2, generator=generator) * 50], 1)
    anchors = boxes.flip(0)
    stds = (0.1, 0.1, 0.2, 0.2)
    torch.testing.assert_close(decode(encode(boxes, anchors, stds), anchors, stds), boxes)
    square = torch.tensor([[0.0, 0, 16, 16]])
    for sign in (1, -1):
        found = decode(torch.tensor([[0, 0, sign * 99.0, 0]]), square)
        assert found[0, 2] - found[0, 0] == pytest.approx(16 * (1000 / 16) ** sign, rel=1e-5)
    assert decode(torch.tensor([[9.0, -9, 0, 0]]), square, size=(20, 30))[0].tolist() == [
        30,
        0,
        30,
        0,
    ]


def literal_assign(iou, positive, negative, low_quality):
    """Walk through boxes and objects one by one, as the published assigner is described."""
    objects, count = iou.shape
    taken = []
    for n in range(count):
        best = max(range(objects), key=lambda g: iou[g, n])
        value = iou[best, n]
        taken.append(best if value >= positive else NEGATIVE if value < negative else IGNORED)
    if low_quality is not None:
        for g in range(objects):
            top = iou[g].max()
            if top >= low_quality:
                for n in range(count):
                    if iou[g, n] == top:
                        taken[n] = g
    return taken


@pytest.mark.parametrize(
    "rule", [(0.5, 0.4, 0.0), (0.7, 0.3, 0.3), (0.5, 0.5, 0.5), (0.6, 0.6, None)]
)
def test_assignment_agrees_with_a_literal_loop(rule) -> None:
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        corner = (torch.rand(60, 2, generator=generator) * 40).round()
        boxes = torch.cat(
            [corner, corner + 5 + (torch.rand(60, 2, generator=generator) * 30).round()], 1
        )
        iou = box_iou(boxes[:5], boxes[5:])
        assert assign(iou, *rule).tolist() == literal_assign(iou, *rule)


def test_without_objects_all_is_background() -> None:
    assert assign(torch.zeros(0, 3), 0.5, 0.4, 0.0).tolist() == [NEGATIVE] * 3


def test_sampling_caps_positives_and_fills_with_negatives() -> None:
    taken = torch.tensor([0] * 40 + [NEGATIVE] * 30 + [IGNORED] * 30)
    positive, negative = sample(taken, 64, 0.25)
    assert (len(positive), len(negative)) == (16, 30)
    assert (taken[positive] >= 0).all()
    assert (taken[negative] == NEGATIVE).all()
    positive, negative = sample(taken[38:], 8, 0.5)
    assert (len(positive), len(negative)) == (2, 6)


def test_anchors_that_touch_the_far_border_cross_it() -> None:
    boxes = torch.tensor([[0.0, 0, 9, 9], [-1, 0, 5, 5], [0, 0, 10, 5], [0, 0, 5, 20]])
    assert inside(boxes, (20, 10)).tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("side", "level"),
    [(1, 0), (55, 0), (111, 0), (112, 1), (223, 1), (224, 2), (448, 3), (2000, 3)],
)
def test_roi_levels(side: float, level: int) -> None:
    assert roi_level(torch.tensor([[0.0, 0, side, side]])).item() == level
    assert level == min(max(math.floor(math.log2(side / 56 + 1e-6)), 0), 3)


def test_boxes_and_masks_return_to_the_stored_size() -> None:
    boxes = rescale(torch.tensor([[10.0, 20, 30, 40]]), (100, 50), (200, 150))
    assert boxes.tolist() == [[30, 40, 90, 80]]
    mask = paste_masks(torch.ones(1, 28, 28), boxes, (200, 150))[0]
    assert mask[40:80, 30:90].all()
    assert mask.sum() == 40 * 60
    half = torch.zeros(1, 28, 28)
    half[:, :, :14] = 1
    assert paste_masks(half, boxes, (200, 150))[0].sum() == 40 * 30
    outside = paste_masks(
        torch.ones(2, 28, 28), torch.tensor([[-10.0, -10, 5, 5], [9, 9, 9, 9]]), (8, 8)
    )
    assert outside.sum(dim=(1, 2)).tolist() == [25, 0]
