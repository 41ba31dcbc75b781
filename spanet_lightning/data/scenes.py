"""Scenes of real handwritten digits on textured ground, drawn by seed: boxes and masks are known.

Each scene is a function of its seed, the digits to pick from, and its size, so that a data set
needs neither a download nor a disk.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

LEAST_DIGIT, MOST_DIGIT = 24, 64
"""Pixels of a digit's height."""
_TRIES = 12  # places that are tried for a digit before it is left out
_MOST_OVERLAP = 0.15  # of the smaller box, so that every digit stays legible


class Scene(NamedTuple):
    """A scene with N digits.

    Attributes:
        image: Shape (3, H, W), uint8.
        labels: The class of each digit, 0 to 9, shape (N,).
        masks: What is to be seen of each, shape (N, H, W), no pixel in two of them.
    """

    image: UInt8[Tensor, "3 h w"]
    labels: Int64[Tensor, " n"]
    masks: Bool[Tensor, "n h w"]

    @property
    def boxes(self) -> Float[Tensor, "n 4"]:
        """Corners x1, y1, x2, y2 around each mask in pixels, the far edges included."""
        boxes = torch.zeros(len(self.masks), 4)
        for box, mask in zip(boxes, self.masks, strict=True):
            rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
            ends = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            box.copy_(torch.stack(ends))
        return boxes

    @property
    def semantic(self) -> Int64[Tensor, "h w"]:
        """The class of each pixel: 0 is ground, 1 to 10 are the digits 0 to 9."""
        found = self.masks.long() * (self.labels + 1).reshape(-1, 1, 1)
        return found.sum(dim=0)


def draw(
    seed: list[int], digits: Float[Tensor, "k 1 8 8"], labels: Tensor, size: int, count: int
) -> Scene:
    """Draw a scene.

    Args:
        seed: Numbers that name the scene.
        digits: Grey values in [0, 1] of the digits to pick from; 0 is paper.
        labels: Their classes, shape (k,).
        size: Height and width of the scene, in pixels.
        count: Digits that are placed, at most; at least half as many are tried.
    """
    rng = np.random.default_rng(seed)
    dark = bool(rng.integers(2))
    image = _ground(rng, size, dark)
    masks = torch.zeros(0, size, size, dtype=torch.bool)
    chosen: list[int] = []
    spots: list[tuple[int, int, int, int]] = []
    for _ in range(int(rng.integers((count + 1) // 2, count + 1))):
        which = int(rng.integers(len(digits)))
        alpha = _ink(rng, digits[which], size)
        height, width = alpha.shape
        # Always as many numbers: whether a place is free must not move what comes after.
        places = rng.random((_TRIES, 2))
        colour = torch.from_numpy(rng.random(3)).float() * 0.35
        colour = 1 - colour if dark else colour
        for y, x in places:
            top, left = int(y * (size - height + 1)), int(x * (size - width + 1))
            spot = (top, left, top + height, left + width)
            if all(_overlap(spot, other) <= _MOST_OVERLAP for other in spots):
                break
        else:
            continue
        part = image[:, spot[0] : spot[2], spot[1] : spot[3]]
        part += alpha * (colour.reshape(3, 1, 1) - part)
        mask = torch.zeros(1, size, size, dtype=torch.bool)
        mask[0, spot[0] : spot[2], spot[1] : spot[3]] = alpha > 0.5
        masks = torch.cat([masks & ~mask, mask])  # the later one lies on top
        chosen.append(which)
        spots.append(spot)
    # Not one may be hidden to the last pixels: overlaps are of boxes, and ink is thin.
    seen = masks.flatten(1).sum(dim=1) >= 16
    pixels = (image * 255).round().clamp(0, 255).to(torch.uint8)
    return Scene(pixels, labels[chosen][seen], masks[seen])


def _ink(
    rng: np.random.Generator, digit: Float[Tensor, "1 8 8"], size: int
) -> Float[Tensor, "h w"]:
    """Return how much of each pixel a digit covers, at a random size and slant."""
    height = int(rng.integers(LEAST_DIGIT, min(MOST_DIGIT, size) + 1))
    width = max(8, round(height * float(rng.uniform(0.7, 1.0))))
    grey = F.interpolate(digit.unsqueeze(0), size=(height, width), mode="bicubic")[0, 0]
    slant = float(rng.uniform(-0.2, 0.2))
    theta = torch.tensor([[[1.0, slant, 0.0], [0.0, 1.0, 0.0]]])
    grid = F.affine_grid(theta, [1, 1, height, width], align_corners=False)
    grey = F.grid_sample(grey[None, None], grid, align_corners=False)[0, 0]
    # Ink with an edge of a pixel or two, where enlarging made it fade over many.
    alpha = ((grey - 0.3) / 0.3).clamp(0, 1)
    rows, columns = (alpha > 0.5).any(dim=1).nonzero(), (alpha > 0.5).any(dim=0).nonzero()
    top, bottom = int(rows.min()), int(rows.max()) + 1
    return alpha[top:bottom, int(columns.min()) : int(columns.max()) + 1]


def _ground(rng: np.random.Generator, size: int, dark: bool) -> Float[Tensor, "3 h w"]:
    """Return coloured noise of three scales, darker or lighter than the ink will be."""
    ground = torch.from_numpy(rng.random((3, 1, 1))).float() * 0.3
    for cells, strength in ((3, 0.2), (11, 0.12), (size // 4, 0.1)):
        noise = torch.from_numpy(rng.random((1, 3, cells, cells))).float()
        ground = ground + strength * F.interpolate(noise, size=(size, size), mode="bilinear")[0]
    ground = ground.clamp(0, 1)
    return ground if dark else 1 - ground


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Return the shared area of two boxes as a share of the smaller one."""
    height = min(a[2], b[2]) - max(a[0], b[0])
    width = min(a[3], b[3]) - max(a[1], b[1])
    if height <= 0 or width <= 0:
        return 0.0
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return height * width / smaller
