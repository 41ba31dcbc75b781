"""Class maps of images: whole or window by window, at several scales, in bounded memory.

Scores of all classes at the size of a stored image can take gigabytes (255 classes of 5,707 ×
3,805 px: 22 GB). They are computed from the network's output, which has a sixteenth of the pixels,
for a few classes at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spanet_lightning.heads.base import resize

Predict = Callable[[Tensor], Tensor]
"""From images (B, C, H, W) to logits (B, K, h, w) at any stride."""

MAX_SCORES = 2**25
"""Scores, of classes times pixels, that are held at once, per image: 128 MB."""


@dataclass(frozen=True)
class View:
    """The network's output for an image, or for a scaled or mirrored version of it.

    Attributes:
        size: Height and width of the version in pixels.
        windows: Top, bottom, left and right of each window, with its logits (B, K, h, w).
        flipped: Whether the version is mirrored.
    """

    size: tuple[int, int]
    windows: Sequence[tuple[tuple[int, int, int, int], Tensor]]
    flipped: bool = False

    def logits(self, classes: slice, size: Sequence[int]) -> Float[Tensor, "b k i j"]:
        """Return the logits of some classes at `size`, not mirrored: the mean of all windows."""
        (_, first), *others = self.windows
        if not others:
            full = resize(first[:, classes].float(), self.size)
        else:
            full = first.new_zeros((*first[:, classes].shape[:2], *self.size), dtype=torch.float32)
            count = full.new_zeros((1, 1, *self.size))
            for (top, bottom, left, right), logits in self.windows:
                inside = resize(logits[:, classes].float(), (bottom - top, right - left))
                full[:, :, top:bottom, left:right] += inside
                count[:, :, top:bottom, left:right] += 1
            full = full / count
        full = full.flip(-1) if self.flipped else full
        return resize(full, size)


def window_starts(length: int, window: int, stride: int) -> Iterator[tuple[int, int]]:
    """Yield the (start, end) of windows that cover `length` pixels.

    All are `window` long, the last one ends at the border; where `length` is shorter, so is the one
    window.
    """
    for i in range(max(length - window + stride - 1, 0) // stride + 1):
        end = min(i * stride + window, length)
        yield max(end - window, 0), end


def view(
    predict: Predict,
    images: Float[Tensor, "b c h w"],
    window: tuple[int, int] | None = None,
    *,
    flipped: bool = False,
) -> View:
    """Run the network on images as a whole, or window by window.

    Args:
        predict: The network.
        images: Images of at least 32 pixels a side.
        window: Side of a window and the step to the next one, in pixels; None for the whole image.
        flipped: Whether to mirror the images.
    """
    images = images.flip(-1) if flipped else images
    height, width = images.shape[-2:]
    side, stride = window or (max(height, width), 1)
    windows = []
    for top, bottom in window_starts(height, side, stride):
        for left, right in window_starts(width, side, stride):
            logits = predict(images[:, :, top:bottom, left:right])
            windows.append(((top, bottom, left, right), logits))
    return View((height, width), windows, flipped)


def views(
    predict: Predict,
    images: Float[Tensor, "b c h w"],
    window: tuple[int, int] | None,
    scales: Sequence[float],
    *,
    flip: bool,
) -> list[View]:
    """Run the network on images at each of `scales`, and on their mirror images with `flip`.

    No side falls below 32 pixels.
    """
    found = []
    for scale in scales:
        sides = [max(round(side * scale), 32) for side in images.shape[-2:]]
        scaled = images if sides == list(images.shape[-2:]) else resize(images, sides)
        mirrored = (False, True) if flip else (False,)
        found += [view(predict, scaled, window, flipped=flipped) for flipped in mirrored]
    return found


def class_maps(found: Sequence[View], size: Sequence[int]) -> Int[Tensor, "b i j"]:
    """Return the most probable class of each pixel at `size`.

    Of several views, the mean of the class probabilities decides. Scores of at most `MAX_SCORES`
    classes times pixels are held at once.
    """
    batch, num_classes = found[0].windows[0][1].shape[:2]
    step = max(MAX_SCORES // (batch * size[0] * size[1] * len(found)), 1)
    chunks = [slice(k, min(k + step, num_classes)) for k in range(0, num_classes, step)]
    norms = [_log_sum_exp(one, chunks, size) for one in found] if len(found) > 1 else []
    best: Tensor | None = None
    labels = torch.zeros((batch, *size), dtype=torch.int64, device=found[0].windows[0][1].device)
    for chunk in chunks:
        scores = found[0].logits(chunk, size)
        if norms:
            scores = (scores - norms[0]).exp()
            for one, norm in zip(found[1:], norms[1:], strict=True):
                scores = scores + (one.logits(chunk, size) - norm).exp()
        top = scores.max(dim=1)
        if best is None:
            best, labels = top.values, top.indices
        else:
            better = top.values > best
            labels = torch.where(better, top.indices + chunk.start, labels)
            best = torch.maximum(best, top.values)
    return labels


def _log_sum_exp(one: View, chunks: Sequence[slice], size: Sequence[int]) -> Tensor:
    """Return the logarithm of the sum over all classes of exp(logit), (B, 1, H, W)."""
    parts = (one.logits(chunk, size).logsumexp(dim=1, keepdim=True) for chunk in chunks)
    total = next(parts)
    for part in parts:
        total = torch.logaddexp(total, part)
    return total
