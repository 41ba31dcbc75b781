"""A folder of made-up photographs, for measurements of loading where there is no data set.

What decoding costs depends on the number of pixels and on the detail in them. These are of the size
and weight that is typical of ImageNet: 500×375 px, about 110 kB of JPEG.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SHAPE = (375, 500)  # height, width
QUALITY = 90
_CLASSES = 4
# Sides, in pixels, of the patches of random colour whose sum is an image, and their contrasts:
# like photographs, the coarser the stronger.
_PATCHES = {96: 60.0, 24: 30.0, 6: 25.0, 2: 40.0}


def make_photos(root: Path, images: int, seed: int = 0) -> None:
    """Write `root/train` and `root/val`, each with `images` photographs in four classes.

    Args:
        root: An existing folder.
        images: Number of photographs in each split.
        seed: Of their content.
    """
    generator = np.random.default_rng(seed)
    for split in ("train", "val"):
        for i in range(images):
            folder = root / split / f"class_{i % _CLASSES}"
            folder.mkdir(parents=True, exist_ok=True)
            photo(generator).save(folder / f"{i:05d}.jpg", quality=QUALITY)


def photo(generator: np.random.Generator) -> Image.Image:
    """Return one photograph."""
    height, width = SHAPE
    total = np.full((height, width, 3), 128.0, np.float32)
    for side, contrast in _PATCHES.items():
        patches = generator.normal(0, contrast, (height // side + 2, width // side + 2, 3))
        layers = [
            Image.fromarray(patches[..., c].astype(np.float32)).resize(
                (width, height), Image.Resampling.BICUBIC
            )
            for c in range(3)
        ]
        total += np.stack([np.asarray(layer) for layer in layers], axis=-1)
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))
