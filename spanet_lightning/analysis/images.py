"""Photographs as a model takes them, a batch at a time: memory does not grow with their number."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from spanet_lightning.analysis.models import Subject
from spanet_lightning.data.decode import opened, rgb
from spanet_lightning.errors import DataError, invalid, invalid_choice

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")
Fit = Literal["stretch", "crop", "aspect"]
"""How an image gets its size. "stretch": resized straight to a square, as the analyses of SPANetV2
do. "crop": its shorter side resized to size / crop_pct, then the middle, as evaluation does.
"aspect": its shorter side resized to size, nothing cut: no square."""

SAMPLE = "sample"
"""Stands for the two photographs that scikit-learn comes with."""


def list_images(places: Sequence[str | Path], limit: int | None = None) -> list[Path | Image.Image]:
    """List images: files, all of folders in the order of their names, or `SAMPLE`.

    Args:
        places: Files, folders, or "sample".
        limit: Take this many, evenly spread over what was found.

    Raises:
        DataError: If one is not there, or there is no image.
        ConfigError: If the limit is below 1.
    """
    found: list[Path | Image.Image] = []
    for place in places:
        path = Path(place)
        if str(place) == SAMPLE and not path.exists():
            found += sample()
        elif path.is_dir():
            inside = [p for p in sorted(path.rglob("*")) if p.suffix.lower() in SUFFIXES]
            if not inside:
                raise DataError(f"--images: no image below {path} ({', '.join(SUFFIXES)})")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(
                f"--images: got {str(place)!r}, which does not exist; expected image files, "
                f"folders of them, or {SAMPLE!r} for two photographs"
            )
    if not found:
        raise DataError("--images: got none, expected image files or folders")
    if limit is None or limit >= len(found):
        return found
    if limit < 1:
        raise invalid("--limit", limit, "an integer of at least 1")
    return [found[i * len(found) // limit] for i in range(limit)]


def sample() -> list[Image.Image]:
    """Return scikit-learn's two photographs: a temple in China and a flower, 640×427 px."""
    from sklearn.datasets import load_sample_images

    return [Image.fromarray(image) for image in load_sample_images().images]


def open_image(image: Path | Image.Image) -> Image.Image:
    """Return an image upright, in RGB.

    Raises:
        DataError: If the file is no image, or broken.
    """
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    try:
        with opened(image) as found:
            return rgb(ImageOps.exif_transpose(found))
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{image}: not a readable image ({error})") from None


def square(
    image: Image.Image, size: int, fit: Fit = "stretch", crop_pct: float = 1.0
) -> Image.Image:
    """Return an image at its size, bicubically resized: a square but for "aspect".

    Raises:
        ConfigError: If the size is below 32, or `fit` is none.
    """
    if fit not in get_args(Fit):
        raise invalid_choice("--fit", fit, get_args(Fit))
    if size < 32:
        raise invalid("--size", size, "at least 32 pixels")
    if fit == "stretch":
        return image.resize((size, size), Image.Resampling.BICUBIC)
    target = math.floor(size / crop_pct) if fit == "crop" else size
    scale = target / min(image.size)
    wide, high = (max(target, round(side * scale)) for side in image.size)
    image = image.resize((wide, high), Image.Resampling.BICUBIC)
    if fit == "aspect":
        return image
    left, top = (wide - size) // 2, (high - size) // 2
    return image.crop((left, top, left + size, top + size))


def as_tensor(image: Image.Image) -> Float[Tensor, "3 h w"]:
    """Return an image as numbers in [0, 1]."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1).contiguous()


def normalised(images: Float[Tensor, "b 3 h w"], subject: Subject) -> Float[Tensor, "b 3 h w"]:
    """Return images in [0, 1] as a model takes them."""
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (subject.mean, subject.std))
    result: Float[Tensor, "b 3 h w"] = (images - mean.to(images)) / std.to(images)
    return result


def batches(
    images: Sequence[Path | Image.Image],
    size: int,
    batch: int = 8,
    fit: Fit = "stretch",
    crop_pct: float = 1.0,
) -> Iterator[Float[Tensor, "b 3 {size} {size}"]]:
    """Yield images in [0, 1], a batch at a time, in their order."""
    if batch < 1:
        raise invalid("--batch", batch, "an integer of at least 1")
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        yield torch.stack([as_tensor(square(open_image(i), size, fit, crop_pct)) for i in part])


def labelled(root: Path, limit: int | None = None) -> tuple[list[tuple[Path, int]], list[str]]:
    """List the images of a folder with a folder for each class.

    Args:
        root: Such as `val` of an ImageFolder data set.
        limit: Take this many, evenly spread over what was found.

    Returns:
        Files with the index of their class, and the classes' names in alphabetical order; no name
        where the folder has no folders.

    Raises:
        DataError: If there is no image in one of them.
    """
    classes = sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    found: list[tuple[Path, int]] = []
    for index, folder in enumerate(classes):
        own = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in SUFFIXES]
        if not own:
            raise DataError(f"--images: no image below {folder}")
        found += [(path, index) for path in own]
    if limit is not None and limit < len(found):
        if limit < 1:
            raise invalid("--limit", limit, "an integer of at least 1")
        found = [found[i * len(found) // limit] for i in range(limit)]
    return found, [folder.name for folder in classes]
