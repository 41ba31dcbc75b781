"""From predictions in pixels of the network's input to pixels of the stored image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from spanet_lightning.heads.base import Size

MASK_THRESHOLD = 0.5


def rescale(boxes: Float[Tensor, "n 4"], size: Size, original: Size) -> Float[Tensor, "n 4"]:
    """Return boxes of an image of `size` (height, width) in pixels of the same image stored."""
    y, x = original[0] / size[0], original[1] / size[1]
    return boxes * boxes.new_tensor([x, y, x, y])


def paste_masks(
    probs: Float[Tensor, "n q q"], boxes: Float[Tensor, "n 4"], size: Size
) -> Bool[Tensor, "n h w"]:
    """Return masks of the whole image from the probabilities inside each box.

    A pixel belongs to the object where the probability, interpolated bilinearly at its centre,
    reaches one half; outside the box none does. (mmdetection's way: torchvision rounds boxes.)

    Args:
        probs: Probabilities on a grid over each box.
        boxes: In pixels of the image.
        size: Height and width of the image.
    """
    height, width = size
    masks = torch.zeros((len(probs), height, width), dtype=torch.bool, device=probs.device)
    for mask, prob, box in zip(masks, probs.float(), boxes.tolist(), strict=True):
        x1, y1, x2, y2 = box
        left, top = max(int(x1) - 1, 0), max(int(y1) - 1, 0)
        right, bottom = min(int(x2) + 2, width), min(int(y2) + 2, height)
        if right <= left or bottom <= top or x2 <= x1 or y2 <= y1:
            continue
        x = (torch.arange(left, right, device=prob.device) + 0.5 - x1) / (x2 - x1) * 2 - 1
        y = (torch.arange(top, bottom, device=prob.device) + 0.5 - y1) / (y2 - y1) * 2 - 1
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        values = F.grid_sample(prob[None, None], grid[None], align_corners=False)[0, 0]
        mask[top:bottom, left:right] = values >= MASK_THRESHOLD
    return masks
