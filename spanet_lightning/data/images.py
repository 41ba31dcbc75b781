"""Reading images and label masks from files: the pixels, or one line that names the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from spanet_lightning.data.decode import opened, rgb
from spanet_lightning.data.faults import SampleError, UnreadableImageError
from spanet_lightning.data.listing import images_to_predict as images_to_predict
from spanet_lightning.data.orientation import meant
from spanet_lightning.errors import SpanetError

# One number a pixel: grey levels of 8 or 16 bits, indices of a palette, or bits.
_MASK_MODES = ("L", "P", "1", "I;16", "I;16B", "I")


def read_image(
    path: str | Path, size: tuple[int, int] | None = None, index: int | None = None
) -> UInt8[Tensor, "3 h w"]:
    """Read an image as RGB, upright where its EXIF tells how it is turned; see `orientation`.

    Not torchvision's decoder: it fills what a truncated JPEG lacks with grey, and says nothing.
    What is refused, and how other pixels become RGB, is in `spanet_lightning.data.decode`.

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
