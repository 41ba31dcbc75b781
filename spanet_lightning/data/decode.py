"""Decoding image files of anybody's: nothing is decoded that is too large, or of an odd format.

**Formats.** Those that Pillow decodes by itself (`FORMATS`), by their contents, not their names.
The rest would run other programs (EPS runs Ghostscript) or hold no pixels.

**Size.** An image of more pixels than `max_pixels` is refused when its header has been read: a file
of a few kilobytes can decode to gigabytes (a decompression bomb). Pillow alone only warns.

**Colours.** What becomes RGB, and how, is in `rgb`. What has no 8-bit meaning is refused.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from spanet_lightning.errors import invalid

FORMATS = (
    *("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF", "JPEG2000"),
    *("BLP", "CUR", "DCX", "DDS", "DIB", "FITS", "FLI", "FTEX", "ICNS", "ICO", "IM", "MSP", "PCX"),
    *("PIXAR", "PSD", "QOI", "SGI", "SUN", "XBM", "XPM", "TGA"),
)
"""What is decoded: all that Pillow decodes by itself, the usual ones first. A JPEG of several
pictures (MPO), as telephones write it, is a JPEG here."""

PIXELS_VARIABLE = "SPANET_MAX_PIXELS"
"""Environment variable: the most pixels of an image; for satellites and microscopes."""
MAX_PIXELS = 89_478_485
"""The default: 256 MiB as RGB, from where on Pillow warns."""

# Refused here, before anything is decoded, so that the warning adds nothing.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def max_pixels() -> int:
    """Return the most pixels (width × height) of an image that is decoded.

    Raises:
        ConfigError: If the environment names no such number.
    """
    text = os.environ.get(PIXELS_VARIABLE)
    if not text:
        return MAX_PIXELS
    if not text.isdecimal() or int(text) < 1:
        raise invalid(PIXELS_VARIABLE, text, "a number of pixels, at least 1")
    # Pillow has a limit of its own, which it enforces at twice this number.
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, int(text))
    return int(text)


@contextmanager
def opened(source: str | Path | BinaryIO) -> Iterator[Image.Image]:
    """Open an image: its header is read and judged, its pixels are not decoded yet.

    Args:
        source: A path, or an open file that can be read from any place.

    Raises:
        ValueError: If it is of another format, or has too many pixels.
        OSError: If it can't be read.
    """
    most = max_pixels()
    try:
        image = Image.open(source, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ValueError(f"found {_contents(source)}, no image of a format that is read") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{error}; {_how(most)}") from error
    with image:
        width, height = image.size
        if width * height > most:
            raise ValueError(f"its header says {width}×{height} px; {_how(most)}")
        yield image


def is_image(path: str | Path) -> bool:
    """Whether a file's first bytes are those of an image, whatever it is called."""
    try:
        with Image.open(path, formats=FORMATS[:-1]):  # TGA has no mark of its own
            return True
    except Image.DecompressionBombError:
        return True
    except Exception:  # what is no image raises anything
        return False


def rgb(image: Image.Image) -> Image.Image:
    """Return a decoded image as RGB, 8 bits a channel.

    Grey of 16 bits keeps its upper 8, as colours of 16 bits do, where Pillow alone clips all above
    255 to white. An alpha channel is dropped, whatever colour is below it: so do timm and OpenCV.
    CMYK is converted by the plain formula, no colour profile is applied.

    Args:
        image: Its first frame is what counts, where there are several.

    Raises:
        ValueError: If its values have no range that is known: floats, or integers of 32 bits.
    """
    if image.mode.startswith("I;16"):
        high = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return Image.fromarray(high).convert("RGB")
    if image.mode in ("I", "F"):
        kind = "floats" if image.mode == "F" else "integers of 32 bits"
        raise ValueError(f"its pixels are {kind}, whose range nothing tells")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, Pillow warns, with the same pixels
    return image.convert("RGB")


def _how(most: int) -> str:
    return f"the limit is {most} pixels, {PIXELS_VARIABLE} sets another"


def _contents(source: str | Path | BinaryIO) -> str:
    """Describe what is no image by its first bytes."""
    if isinstance(source, str | Path):
        with Path(source).open("rb") as stream:
            start = stream.read(256)
    else:
        source.seek(0)
        start = source.read(256)
    text = start.lstrip().lower()
    if not start:
        return "an empty file"
    if not start.strip(b"\0"):
        return "zeros alone"
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return "a page of HTML (a download that failed?)"
    return f"other contents (first bytes {start[:8]!r})"
