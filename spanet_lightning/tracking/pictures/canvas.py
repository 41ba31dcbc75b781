"""Drawing with Pillow alone: text, coloured arrays, tiles. No colour needs red told from green."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

BLUE, ORANGE, INK, GREY = (0, 90, 181), (220, 90, 0), (25, 25, 25), (120, 120, 120)
"""Right, wrong, text, remarks. Blue and orange differ in lightness too, and for all eyes."""

# White to dark blue; blue, white, orange: the ends of ColorBrewer's Blues and PuOr.
_SEQUENTIAL = np.array([(255, 255, 255), (158, 202, 225), (49, 130, 189), (8, 48, 107)], float)
_DIVERGING = np.array(
    [(5, 48, 97), (67, 147, 195), (247, 247, 247), (224, 130, 20), (127, 59, 8)], float
)


@lru_cache
def font(size: int = 13) -> Any:
    """Return Pillow's own font; without FreeType its small bitmap one, whatever the size."""
    return ImageFont.load_default(size)


def sequential(values: Any) -> np.ndarray:
    """Return the colours of values in [0, 1]: white to dark blue; uint8, shape (…, 3)."""
    return _between(values, _SEQUENTIAL)


def diverging(values: Any) -> np.ndarray:
    """Return the colours of values in [0, 1], 0.5 white: blue below, orange above; (…, 3)."""
    return _between(values, _DIVERGING)


def _between(values: Any, stops: np.ndarray) -> np.ndarray:
    place = np.clip(np.asarray(values, float), 0, 1) * (len(stops) - 1)
    low = np.minimum(place.astype(int), len(stops) - 2)
    part = (place - low)[..., None]
    mixed: np.ndarray = stops[low] * (1 - part) + stops[low + 1] * part
    return mixed.round().astype(np.uint8)


def enlarged(colours: np.ndarray, side: int) -> Image.Image:
    """Return coloured cells as a picture whose longer side is about `side` pixels, cells sharp."""
    image = Image.fromarray(colours)
    longest = max(image.size)
    if longest >= side:
        return image.resize(
            (round(image.width * side / longest), round(image.height * side / longest)),
            Image.Resampling.BOX,
        )
    width, height = (max(1, round(side * n / longest)) for n in image.size)
    return image.resize((width, height), Image.Resampling.NEAREST)


def blank(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Return a white picture and its pen."""
    image = Image.new("RGB", (width, height), "white")
    return image, ImageDraw.Draw(image)


def shorten(text: str, longest: int) -> str:
    """Return a text of at most so many characters."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def bar(colours: Any, low: str, high: str, width: int = 260) -> Image.Image:
    """Return a scale of colours with what its ends mean.

    Args:
        colours: `sequential` or `diverging`.
        low: What the left end means.
        high: What the right end means.
        width: Pixels of the scale without its texts.
    """
    left = int(font().getlength(low)) + 8
    right = int(font().getlength(high)) + 8
    image, pen = blank(left + width + right, 20)
    strip = np.repeat(colours(np.linspace(0, 1, width))[None], 14, axis=0)
    image.paste(Image.fromarray(strip), (left, 3))
    pen.rectangle((left, 3, left + width - 1, 16), outline=GREY)
    pen.text((2, 2), low, fill=INK, font=font())
    pen.text((left + width + 6, 2), high, fill=INK, font=font())
    return image
