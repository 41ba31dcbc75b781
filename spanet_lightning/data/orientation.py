"""EXIF-rotated images: stored as the sensor had them, with the orientation in their EXIF data.

Viewers and OpenCV, with which mmdetection reads, rotate such an image upright; Pillow, and with it
torchvision, does not. Annotation tools do either, so the size that the annotations state decides.
"""

from __future__ import annotations

from typing import Literal

from PIL import Image
from PIL.ExifTags import Base

Meaning = Literal["plain", "upright", "stored", "unclear", "neither"]

Size = tuple[int, int]
"""Width and height in pixels."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each orientation that EXIF knows (tag 274), but for 1, which is upright."""
_SIDEWAYS = 5  # from here on, width and height change places


def orientation(image: Image.Image) -> int:
    """Return the orientation that an image's EXIF names, 1 to 8; 1 where it names none.

    Args:
        image: Loaded: Pillow turns a TIFF by itself as it loads it.
    """
    try:
        found = image.getexif().get(Base.Orientation, 1)
    except Exception:  # a broken EXIF raises anything, and viewers show the image all the same
        return 1
    return found if found in _UPRIGHT else 1


def meaning(orientation: int, stored: Size, stated: Size | None) -> Meaning:
    """Tell how an image is meant by whoever annotated it.

    Args:
        orientation: What `orientation` returned.
        stored: Its size as stored.
        stated: The size that the annotations give it; None if there are none.

    Returns:
        "plain": it is not turned; "upright": its size is that of the upright image; "stored": that
        of the stored one; "unclear": of both, or nothing states one; "neither": of none.
    """
    if orientation == 1:
        return "plain" if stated in (None, stored) else "neither"
    upright = stored[::-1] if orientation >= _SIDEWAYS else stored
    if stated is None or stated == upright == stored:
        return "unclear"
    if stated == upright:
        return "upright"
    return "stored" if stated == stored else "neither"


def meant(image: Image.Image, stated: Size | None) -> Image.Image:
    """Return an image as whoever annotated it saw it: upright wherever that may be.

    Args:
        image: Loaded.
        stated: The size that the annotations give it; None if there are none.

    Returns:
        The image as stored if its annotations are of that, else upright, as viewers show it.
    """
    found = orientation(image)
    if found == 1 or meaning(found, image.size, stated) == "stored":
        return image
    return image.transpose(_UPRIGHT[found])
