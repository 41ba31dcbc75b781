"""Made-up photographs, for measurements of loading where there is no data set.

What decoding costs depends on the number of pixels and on the detail in them. These are of the size
and weight that is typical of ImageNet, 500×375 px and about 110 kB of JPEG, and of COCO, 640×480 px
and about 170 kB.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SHAPE = (375, 500)  # height, width
COCO_SHAPE = (480, 640)
QUALITY = 90
_CLASSES = 4
_OBJECTS = 7
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


def make_coco(root: Path, images: int, seed: int = 0) -> None:
    """Write a data set in COCO's layout: `train2017`, `val2017` and their annotations.

    A third of the images is tall. Each has seven objects, the mean of COCO's, whose outlines are
    polygons of 24 points.

    Args:
        root: An existing folder.
        images: Number of photographs in each split.
        seed: Of their content.
    """
    generator = np.random.default_rng(seed)
    (root / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        (root / split).mkdir()
        records: list[dict[str, Any]] = []
        objects: list[dict[str, Any]] = []
        for i in range(1, images + 1):
            height, width = COCO_SHAPE if i % 3 else COCO_SHAPE[::-1]
            name = f"{i:012d}.jpg"
            photo(generator, (height, width)).save(root / split / name, quality=QUALITY)
            records.append({"id": i, "file_name": name, "height": height, "width": width})
            for _ in range(_OBJECTS):
                outline = _outline(generator, height, width)
                corner, far = outline.min(axis=0), outline.max(axis=0)
                objects.append(
                    {
                        "id": len(objects) + 1,
                        "image_id": i,
                        "category_id": int(generator.integers(1, _CLASSES + 1)),
                        "bbox": [*corner.tolist(), *(far - corner).tolist()],
                        "area": float((far - corner).prod()) * np.pi / 4,
                        "iscrowd": 0,
                        "segmentation": [outline.reshape(-1).tolist()],
                    }
                )
        classes = [{"id": i, "name": f"class {i}"} for i in range(1, _CLASSES + 1)]
        document = {"images": records, "annotations": objects, "categories": classes}
        file = root / "annotations" / f"instances_{split}.json"
        file.write_text(json.dumps(document), encoding="utf-8")


def _outline(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return the points of an ellipse within an image, x and y in pixels; shape (24, 2)."""
    sides = np.array([width, height])
    radius = generator.uniform(0.02, 0.25, 2) * sides
    centre = generator.uniform(radius, sides - radius)
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)[:, None]
    points: np.ndarray = centre + radius * np.hstack([np.cos(angle), np.sin(angle)])
    return points.round(2)


def photo(generator: np.random.Generator, shape: tuple[int, int] = SHAPE) -> Image.Image:
    """Return one photograph of a height and a width, in pixels."""
    height, width = shape
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
