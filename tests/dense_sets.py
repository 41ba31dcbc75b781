"""Small data sets in COCO's and ADE20K's layout, written from the embedded scenes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from spanet_lightning.data import digits, rle
from spanet_lightning.data.digit_scenes import Scene, make_scene

CATEGORY_IDS = tuple(range(3, 33, 3))  # neither from 1 nor without gaps


def scene(number: int, size: int = 96) -> Scene:
    images, labels = digits.load()
    return make_scene([7, number], images, labels, size, 4)


def save(pixels: torch.Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.numpy()).save(path)


def coco(root: Path, train: int = 6, val: int = 3) -> Path:
    """Write `train/`, `val/` and their annotations; images of even number are wide."""
    number = 0
    for split, count in (("train", train), ("val", val)):
        document: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
        document["categories"] = [
            {"id": id_, "name": f"digit {i}"} for i, id_ in enumerate(CATEGORY_IDS)
        ]
        for i in range(count):
            number += 1
            drawn = scene(number)
            # Cut, so that there are wide and tall ones; what it hits keeps its visible part.
            cut = (slice(0, 80), slice(None)) if i % 2 == 0 else (slice(None), slice(0, 80))
            image = drawn.image[:, *cut]
            save(image.permute(1, 2, 0), root / split / f"{number:03}.jpg")
            height, width = image.shape[1:]
            record = {"id": 10 * number, "file_name": f"{number:03}.jpg"}
            document["images"].append({**record, "height": height, "width": width})
            for mask, label in zip(drawn.masks, drawn.labels.tolist(), strict=True):
                part = mask[cut]
                if part.sum() < 16:
                    continue
                rows, columns = (part.any(dim=axis).nonzero().reshape(-1) for axis in (1, 0))
                x, y = int(columns[0]), int(rows[0])
                box = [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]
                document["annotations"].append(
                    {
                        "id": 100 * number + len(document["annotations"]),
                        "image_id": 10 * number,
                        "category_id": CATEGORY_IDS[label],
                        "bbox": [float(value) for value in box],
                        "area": float(part.sum()),
                        "iscrowd": 0,
                        "segmentation": rle.encode(part),
                    }
                )
        file = root / "annotations" / f"instances_{split}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(document))
    return root


COCO_FOLDERS: dict[str, Any] = {
    "train_images": "train",
    "train_annotations": "annotations/instances_train.json",
    "val_images": "val",
    "val_annotations": "annotations/instances_val.json",
    "num_workers": 0,
}


def edit(root: Path, split: str, change: Any) -> None:
    """Change an annotation file by a function of its contents."""
    file = root / "annotations" / f"instances_{split}.json"
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def masks(root: Path, train: int = 4, val: int = 2, listed: bool = True) -> Path:
    """Write `images/` and `annotations/`; 0 is the ground, which does not count, 1 to 10 digits."""
    number = 0
    for split, count in (("training", train), ("validation", val)):
        for _ in range(count):
            number += 1
            drawn = scene(number)
            image, mask = drawn.image[:, :80], drawn.semantic[:80].to(torch.uint8)
            save(image.permute(1, 2, 0), root / "images" / split / f"{number}.jpg")
            save(mask, root / "annotations" / split / f"{number}.png")
    if listed:
        lines = ["id,name,r,g,b", "0,void,0,0,0"]
        lines += [f"{i + 1},digit {i},{20 * i},0,9" for i in range(10)]
        (root / "classes.csv").write_text("\n".join(lines))
    return root


def as_array(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)
