"""Boxes: anchors, their encoding as deltas, matching with ground truth, sampling, NMS.

torchvision's own anchors, coder and matcher differ from the published configuration: they round
anchors to whole pixels, clamp deltas on one side alone, and give an object's best box back to
whatever that box overlaps most. Boxes are (x1, y1, x2, y2) in pixels throughout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image

from spanet_lightning.heads.base import Detections, Size

Boxes = Float[Tensor, "n 4"]

NEGATIVE = -1
IGNORED = -2
LOG_RATIO = math.log(1000 / 16)  # a box grows or shrinks at most by this factor's exponential


def base_anchors(
    stride: int, scale: float, octaves: int, ratios: Sequence[float]
) -> Float[Tensor, "a 4"]:
    """Return the anchors of the cell at the origin, centred on (0, 0), ratio by ratio.

    Args:
        stride: Pixels between cells.
        scale: Side of the square anchor over the stride.
        octaves: Anchors a doubling of size: 3 gives factors 1, 2^(1/3), 2^(2/3).
        ratios: Height over width.
    """
    sides = stride * scale * 2 ** (torch.arange(octaves, dtype=torch.float32) / octaves)
    root = torch.tensor(list(ratios), dtype=torch.float32).sqrt()[:, None]
    heights, widths = (sides * root).flatten(), (sides / root).flatten()
    return torch.stack([-widths, -heights, widths, heights], dim=1) / 2


def grid_anchors(base: Float[Tensor, "a 4"], stride: int, height: int, width: int) -> Boxes:
    """Return the anchors of a level, row by row, cell by cell: (height·width·a, 4).

    Centres lie exactly at (column·stride, row·stride); nothing is rounded.
    """
    y = torch.arange(height, device=base.device, dtype=base.dtype) * stride
    x = torch.arange(width, device=base.device, dtype=base.dtype) * stride
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    shifts = torch.stack([columns, rows, columns, rows], dim=-1).reshape(-1, 1, 4)
    return (shifts + base).reshape(-1, 4)


def _centre_form(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x1, y1, x2, y2 = boxes.unbind(-1)
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1


def encode(boxes: Boxes, anchors: Boxes, stds: Sequence[float] = (1, 1, 1, 1)) -> Boxes:
    """Return the deltas (dx, dy, dw, dh) / stds that move `anchors` onto `boxes`.

    (arXiv:1311.2524, Appendix C).
    """
    x, y, w, h = _centre_form(boxes)
    ax, ay, aw, ah = _centre_form(anchors)
    deltas = torch.stack([(x - ax) / aw, (y - ay) / ah, (w / aw).log(), (h / ah).log()], dim=-1)
    return deltas / deltas.new_tensor(list(stds))


def decode(
    deltas: Boxes,
    anchors: Boxes,
    stds: Sequence[float] = (1, 1, 1, 1),
    size: Size | None = None,
) -> Boxes:
    """Return `anchors` moved by `deltas`, the inverse of `encode`.

    Sides change at most by a factor of 1000/16, either way.

    Args:
        deltas: (dx, dy, dw, dh) / stds.
        anchors: The boxes to move.
        stds: What the deltas were divided by.
        size: Height and width of the image in pixels that boxes are clipped to, if any.
    """
    dx, dy, dw, dh = (deltas.float() * deltas.new_tensor(list(stds)).float()).unbind(-1)
    ax, ay, aw, ah = _centre_form(anchors)
    x, y = ax + dx * aw, ay + dy * ah
    w = aw * dw.clamp(-LOG_RATIO, LOG_RATIO).exp()
    h = ah * dh.clamp(-LOG_RATIO, LOG_RATIO).exp()
    boxes = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=-1)
    return boxes if size is None else clip_boxes_to_image(boxes, tuple(size))


def inside(boxes: Boxes, size: Size) -> Tensor:
    """Return which boxes don't cross the borders of an image of (height, width) pixels."""
    height, width = size
    x1, y1, x2, y2 = boxes.unbind(-1)
    return (x1 >= 0) & (y1 >= 0) & (x2 < width) & (y2 < height)


def has_area(boxes: Boxes) -> Tensor:
    """Return which boxes have an area: the least size is 0, and not a pixel as in torchvision."""
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def assign(
    iou: Float[Tensor, "g n"],
    positive: float,
    negative: float,
    low_quality: float | None = None,
) -> Int[Tensor, " n"]:
    """Return for each of n boxes its ground-truth object, `NEGATIVE` or `IGNORED`.

    A box whose largest IoU is at least `positive` is matched to that object; below `negative` it is
    background; between, it is left out. With `low_quality`, an object whose best box overlaps by at
    least that much gets that box (or all boxes that share the maximum), whatever else these
    overlap; of two objects with one best box the later one wins.

    Args:
        iou: Overlaps of g objects with n boxes, in [0, 1].
        positive: Least IoU of a positive box.
        negative: IoU below which a box is background.
        low_quality: Least IoU of an object's best box, or None to leave such boxes alone.
    """
    objects, count = iou.shape
    if objects == 0 or count == 0:
        return torch.full((count,), NEGATIVE, dtype=torch.int64, device=iou.device)
    best, which = iou.max(dim=0)
    matched_idxs = torch.full_like(which, IGNORED)
    matched_idxs[best < negative] = NEGATIVE
    matched_idxs = torch.where(best >= positive, which, matched_idxs)
    if low_quality is not None:
        most = iou.max(dim=1).values
        shared = (iou == most[:, None]) & (most >= low_quality)[:, None]
        index = torch.arange(1, objects + 1, device=iou.device)[:, None]
        last = (shared * index).max(dim=0).values  # 0 where no object claims the box
        matched_idxs = torch.where(last > 0, last - 1, matched_idxs)
    return matched_idxs


def sample(
    matched_idxs: Int[Tensor, " n"], count: int, positive_share: float
) -> tuple[Int[Tensor, " p"], Int[Tensor, " q"]]:
    """Sample at most `count` boxes at random, at most a share of them positive.

    Args:
        matched_idxs: What `assign` returned.
        count: Boxes to sample.
        positive_share: Largest share of positive ones, in [0, 1].

    Returns:
        The indices of positive and of negative boxes.
    """

    def subsample(index: Tensor, wanted: int) -> Tensor:
        if len(index) <= wanted:
            return index
        return index[torch.randperm(len(index), device=index.device)[:wanted]]

    positives = subsample((matched_idxs >= 0).nonzero()[:, 0], int(count * positive_share))
    negatives = subsample((matched_idxs == NEGATIVE).nonzero()[:, 0], count - len(positives))
    return positives, negatives


def per_anchor(maps: Float[Tensor, "b c h w"], values: int) -> Float[Tensor, "b n v"]:
    """Return a level's predictions anchor by anchor: (B, H·W·A, values), from A·values channels."""
    return maps.permute(0, 2, 3, 1).reshape(len(maps), -1, values)


def pyramid_anchors(
    maps: Sequence[Tensor],
    strides: Sequence[int],
    scale: float,
    octaves: int,
    ratios: Sequence[float],
) -> list[Tensor]:
    """Return the anchors of each level in pixels, in the order of `per_anchor`."""
    anchors = []
    for level, stride in zip(maps, strides, strict=True):
        height, width = level.shape[-2:]
        # Built in float32 whatever the features' type: half precision can't tell 2049 from 2048.
        base = base_anchors(stride, scale, octaves, ratios).to(level.device)
        anchors.append(grid_anchors(base, stride, height, width))
    return anchors


def nms(boxes: Boxes, scores: Tensor, labels: Tensor, iou: float, count: int) -> Tensor:
    """Return the indices of at most `count` boxes, best first, after NMS within each label."""
    keep: Tensor = batched_nms(boxes.float(), scores.float(), labels, iou)
    return keep[:count]


def select(boxes: Boxes, scores: Tensor, labels: Tensor, iou: float, count: int) -> Detections:
    """Return at most `count` detections, best first, after NMS within each class.

    Boxes without area, such as those clipped at the image's border, are dropped.
    """
    area = has_area(boxes)
    boxes, scores, labels = boxes[area], scores[area], labels[area]
    keep = nms(boxes, scores, labels, iou, count)
    return {"boxes": boxes[keep], "scores": scores[keep], "labels": labels[keep]}


def rescale(boxes: Boxes, size: Size, original: Size) -> Boxes:
    """Return boxes of an image of `size` (height, width) in pixels of the same image stored."""
    y, x = original[0] / size[0], original[1] / size[1]
    return boxes * boxes.new_tensor([x, y, x, y])
