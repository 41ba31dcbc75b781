"""Segmentation of images larger than the network was trained on: whole, or window by window."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from jaxtyping import Float
from torch import Tensor

from spanet_lightning.heads.segmentation import resize

Predict = Callable[[Tensor], Tensor]
"""From images (B, C, H, W) to logits (B, K, H, W) of the same size."""


def windows(length: int, window: int, stride: int) -> Iterator[tuple[int, int]]:
    """Yield the (start, end) of windows that cover `length` pixels.

    All are `window` long, the last one ends at the border; where `length` is shorter, so is the one
    window.
    """
    for i in range(max(length - window + stride - 1, 0) // stride + 1):
        end = min(i * stride + window, length)
        yield max(end - window, 0), end


def slide(
    predict: Predict, images: Float[Tensor, "b c h w"], window: int, stride: int
) -> Float[Tensor, "b k h w"]:
    """Return the mean of the logits of all windows that see a pixel.

    Args:
        predict: The network, up-sampling included.
        images: Images of at least 32 pixels a side.
        window: Side of a window in pixels.
        stride: Pixels from one window to the next.
    """
    height, width = images.shape[-2:]
    total: Tensor | None = None
    count = images.new_zeros((1, 1, height, width))
    for top, bottom in windows(height, window, stride):
        for left, right in windows(width, window, stride):
            logits = predict(images[:, :, top:bottom, left:right])
            if total is None:
                total = logits.new_zeros((*logits.shape[:2], height, width))
            total[:, :, top:bottom, left:right] += logits
            count[:, :, top:bottom, left:right] += 1
    assert total is not None  # noqa: S101 - there is always one window
    return total / count


def augmented(
    predict: Predict,
    images: Float[Tensor, "b c h w"],
    size: Sequence[int],
    scales: Sequence[float],
    *,
    flip: bool,
) -> Float[Tensor, "b k i j"]:
    """Return the mean class probabilities over scales, and over mirrored images with `flip`.

    Args:
        predict: The network, up-sampling included.
        images: Images at scale 1.
        size: Height and width in pixels of the result.
        scales: Factors of the images' sides; no side falls below 32 pixels.
        flip: Whether to average with the mirror image's mirrored result.
    """
    total: Tensor | None = None
    for scale in scales:
        sides = [max(round(side * scale), 32) for side in images.shape[-2:]]
        scaled = images if sides == list(images.shape[-2:]) else resize(images, sides)
        for mirrored in (False, True) if flip else (False,):
            seen = scaled.flip(-1) if mirrored else scaled
            logits = predict(seen)
            logits = logits.flip(-1) if mirrored else logits
            probs = resize(logits, size).softmax(dim=1)
            total = probs if total is None else total + probs
    assert total is not None  # noqa: S101 - there is always one scale
    return total / (len(scales) * (2 if flip else 1))
