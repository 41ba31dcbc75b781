"""Images as a model takes them, a batch at a time: memory does not grow with their number."""

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

from spanet_lightning.analysis.models import LoadedModel
from spanet_lightning.data import listing
from spanet_lightning.data.decode import opened, rgb
from spanet_lightning.errors import DataError, invalid, invalid_choice

Fit = Literal["stretch", "crop", "aspect"]
"""How an image is resized. "stretch": to a square, as the analyses of SPANetV2 do. "crop": its
shorter side to size / crop_pct, then the centre is cropped, as evaluation does. "aspect": its
shorter side to size, nothing is cropped."""

SAMPLE = "sample"
"""Stands for the two photographs that scikit-learn ships."""

Source = Path | Image.Image
Batch = tuple[Float[Tensor, "b 3 h w"], Tensor | None]
"""Images in [0, 1], and their classes where they are known."""


def list_images(places: Sequence[str | Path], limit: int | None = None) -> list[Source]:
    """List image files: those given, and all of folders given.

    Args:
        places: Files, folders, or "sample".
        limit: Take this many, evenly spread.

    Raises:
        DataError: If one does not exist, or there is no image.
        ConfigError: If the limit is below 1.
    """
    found: list[Source] = []
    for place in places:
        path = Path(place)
        if str(place) == SAMPLE and not path.exists():
            found += sample()
        elif path.is_dir():
            found += listing.list_images(path, "--images").paths
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(
                f"--images: got {str(place)!r}, which does not exist; expected image files, "
                f"folders, or {SAMPLE!r} for two photographs"
            )
    if not found:
        raise DataError("--images: got none, expected image files or folders")
    return _spread(found, limit)


def list_labelled(
    root: Path, limit: int | None = None
) -> tuple[list[Source], list[int], list[str]]:
    """List the images of a folder with one folder per class.

    Args:
        root: Such as `val` of an ImageFolder data set.
        limit: Take this many, evenly spread.

    Returns:
        Files, the index of each one's class, and the names of the classes in alphabetical order;
        all empty where the folder has no folders.

    Raises:
        DataError: If a class has no image.
    """
    classes = sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    classes = [folder for folder in classes if listing.is_listed(folder.name)]
    pairs = [
        (path, index)
        for index, folder in enumerate(classes)
        for path in listing.list_images(folder, "--images", root).paths
    ]
    pairs = _spread(pairs, limit)
    return [p for p, _ in pairs], [i for _, i in pairs], [folder.name for folder in classes]


def _spread(found: list, limit: int | None) -> list:  # type: ignore[type-arg]
    if limit is None or limit >= len(found):
        return found
    if limit < 1:
        raise invalid("--limit", limit, "an integer of at least 1")
    return [found[i * len(found) // limit] for i in range(limit)]


def sample() -> list[Source]:
    """Return scikit-learn's two photographs: a temple in China and a flower, 640×427 px."""
    from sklearn.datasets import load_sample_images

    return [Image.fromarray(image) for image in load_sample_images().images]


def open_image(image: Source) -> Image.Image:
    """Return an image upright, in RGB.

    Raises:
        DataError: If the file is no readable image.
    """
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    try:
        with opened(image) as found:
            return rgb(ImageOps.exif_transpose(found))
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{image}: not a readable image ({error})") from None


def resize(
    image: Image.Image, size: int, fit: Fit = "stretch", crop_pct: float = 1.0
) -> Image.Image:
    """Return an image at its size, resized bicubically: a square, except for "aspect".

    Raises:
        ConfigError: If the size is below 32, or `fit` is unknown.
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


def read_image(
    image: Source, size: int, fit: Fit = "stretch", crop_pct: float = 1.0
) -> Float[Tensor, "3 h w"]:
    """Return an image at its size, with values in [0, 1]."""
    pixels = np.asarray(resize(open_image(image), size, fit, crop_pct), dtype=np.float32)
    return torch.from_numpy(pixels / 255).permute(2, 0, 1).contiguous()


def normalise(images: Float[Tensor, "b 3 h w"], model: LoadedModel) -> Float[Tensor, "b 3 h w"]:
    """Return images in [0, 1] as a model takes them."""
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (model.mean, model.std))
    return (images - mean.to(images)) / std.to(images)


def batches(
    images: Sequence[Source], size: int, batch: int = 8, fit: Fit = "stretch", crop_pct: float = 1.0
) -> Iterator[Float[Tensor, "b 3 {size} {size}"]]:
    """Yield images in [0, 1], a batch at a time, in their order."""
    if batch < 1:
        raise invalid("--batch", batch, "an integer of at least 1")
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        yield torch.stack([read_image(one, size, fit, crop_pct) for one in part])


def labelled_batches(
    images: Sequence[Source], labels: Sequence[int], size: int, batch: int = 8
) -> Iterator[Batch]:
    """Yield images in [0, 1] with their classes; `None` where there are no labels."""
    start = 0
    for part in batches(images, size, batch):
        known = torch.tensor(labels[start : start + len(part)]) if labels else None
        start += len(part)
        yield part, known
