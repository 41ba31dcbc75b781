"""Reading images and label masks from files: the pixels, or one line that names the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from spanet_lightning.data.checks import SampleError, UnreadableImageError
from spanet_lightning.data.faults import refuse
from spanet_lightning.data.links import links_out
from spanet_lightning.data.orientation import meant
from spanet_lightning.decode import opened, rgb
from spanet_lightning.errors import DataError, SpanetError, did_you_mean

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
"""Names of files that are taken for images."""

# One number a pixel: grey levels of 8 or 16 bits, indices of a palette, or bits.
_MASK_MODES = ("L", "P", "1", "I;16", "I;16B", "I")


def list_images(folder: Path) -> list[Path]:
    """Return the image files of a folder and those below it, sorted; hidden ones are left out."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return sorted(path for path in found if not path.name.startswith(".") and path.is_file())


def check_folder(folder: Path, key: str) -> None:
    """Refuse a folder of images that is not there.

    Args:
        folder: The folder.
        key: Argument that named it, for the message.

    Raises:
        DataError: With a name that is near, where there is one.
    """
    if not folder.is_dir():
        parent = folder.parent
        names = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
        raise DataError(
            f"{key}: found no folder at {folder}, expected one of images"
            f"{did_you_mean(folder.name, names)}"
        )


def images_to_predict(folder: Path) -> list[Path]:
    """Return the images of a folder, of which there has to be one.

    Raises:
        DataError: If there is none.
    """
    check_folder(folder, "predict_root")
    refuse(links_out(folder, folder), f"spanet data check {folder}")
    paths = list_images(folder)
    if not paths:
        raise DataError(f"predict_root: found no images in {folder}, expected a folder of some")
    return paths


def read_image(
    path: str | Path, size: tuple[int, int] | None = None, index: int | None = None
) -> UInt8[Tensor, "3 h w"]:
    """Read an image as RGB, upright where its EXIF tells how it is turned; see `orientation`.

    Not torchvision's decoder: it fills what a truncated JPEG lacks with grey, and says nothing.
    What is refused, and how other pixels become RGB, is in `spanet_lightning.decode`.

    Args:
        path: The file.
        size: Height and width in pixels that annotations state. An image that has this size only as
            it is stored is left so.
        index: Its number in the data set, for the message.

    Returns:
        Values 0 to 255. The layout in memory is the file's, channels last, which resizes faster.

    Raises:
        UnreadableImageError: If it is missing or can't be decoded to its end.
    """
    try:
        with opened(path) as image:
            image.load()
            pixels = np.array(rgb(meant(image, size and size[::-1])))
    except SpanetError:
        raise
    except Exception as error:  # a decoder of broken bytes raises anything, SyntaxError included
        raise _unreadable("image", path, index, error) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def read_mask(path: str | Path, index: int | None = None) -> Int64[Tensor, "h w"]:
    """Read a mask of labels as it is stored: grey levels, or the indices of a palette.

    Never turned: what wrote the labels wrote no EXIF.

    Args:
        path: The file.
        index: Its number in the data set, for the message.

    Raises:
        UnreadableImageError: If it is missing or can't be decoded.
        SampleError: If its pixels are colours, not numbers.
    """
    try:
        with opened(path) as image:
            mode = image.mode
            values = np.array(image) if mode in _MASK_MODES else None
    except SpanetError:
        raise
    except Exception as error:
        raise _unreadable("mask", path, index, error) from error
    if values is None:
        raise SampleError(
            f"mask {path}{_at(index)}: got pixels of mode {mode}, expected one integer a pixel: "
            "the class (grey levels or a palette)"
        )
    return torch.from_numpy(values.astype(np.int64))


def _unreadable(
    what: str, path: str | Path, index: int | None, error: Exception
) -> UnreadableImageError:
    if isinstance(error, FileNotFoundError):
        return UnreadableImageError(f"{what} {path}{_at(index)}: there is no such file")
    reason = " ".join(str(error).split()) or type(error).__name__
    return UnreadableImageError(
        f"{what} {path}{_at(index)}: {reason}; expected an image that Pillow decodes"
    )


def _at(index: int | None) -> str:
    return "" if index is None else f" (index {index})"
