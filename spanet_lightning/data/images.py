"""Reading images from files: the pixels, or one line that names the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from spanet_lightning.data.decode import opened, rgb
from spanet_lightning.data.faults import UnreadableImageError
from spanet_lightning.data.listing import images_to_predict as images_to_predict
from spanet_lightning.data.orientation import meant
from spanet_lightning.errors import SpanetError


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
        raise unreadable("image", path, index, error) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def unreadable(
    what: str, path: str | Path, index: int | None, error: Exception
) -> UnreadableImageError:
    """Return the error of a file that can't be decoded.

    Args:
        what: "image" or "mask".
        path: The file.
        index: Its number in the data set; None where unknown.
        error: What a decoder raised.
    """
    where = f"{what} {path}" if index is None else f"{what} {path} (index {index})"
    if isinstance(error, FileNotFoundError):
        return UnreadableImageError(f"{where}: there is no such file")
    reason = " ".join(str(error).split()) or type(error).__name__
    return UnreadableImageError(f"{where}: {reason}; expected an image that Pillow decodes")
