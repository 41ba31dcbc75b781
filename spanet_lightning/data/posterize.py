"""Keep timm's posterization working with Pillow 13, which refuses to keep no bit of a channel.

`rand-m9-mstd0.5-inc1`, the published policy, draws magnitudes around 9. Those that reach 10, one in
45, keep 0 bits. Earlier versions of Pillow then returned a black image, and so do we; Pillow 13
raises an error in the middle of an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from PIL import Image, ImageOps


def repair_posterize(transform: Any) -> None:
    """Replace the posterization in the RandAugment or AutoAugment of a timm transform, in place.

    Args:
        transform: What `timm.data.create_transform` returned.
    """
    for op in _operations(transform):
        if op.name.startswith("Posterize"):
            op.aug_fn = posterize


def posterize(image: Image.Image, bits: int, **_unused: object) -> Image.Image:
    """Return an image that keeps the highest `bits` of each channel; none of them is black.

    Args:
        image: An image of 8 bits a channel.
        bits: From 0 to 8.
        _unused: Options that timm passes to each operation, as for a rotation.
    """
    if bits >= 8:
        return image
    if bits < 1:
        return image.point(lambda _value: 0)
    return ImageOps.posterize(image, bits)


def _operations(transform: Any) -> Iterator[Any]:
    for step in transform.transforms:
        yield from getattr(step, "ops", ())  # RandAugment
        for pair in getattr(step, "policy", ()):  # AutoAugment
            yield from pair
