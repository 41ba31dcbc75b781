"""Visualised predictions beside the ground truth: classes, boxes, masks, names, a legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from spanet_lightning.data.class_lists import Colour
from spanet_lightning.data.transforms import IGNORED

LEAST_SCORE = 0.3
"""Boxes of lower scores are not drawn: a hundred of them would hide the image."""

_LINE = 18  # pixels of a line of text
_GAP = 4
_CAPTION_WIDTH = 192  # pixels


def stored(
    image: Float[Tensor, "c h w"],
    size: tuple[int, int],
    original_size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
) -> UInt8[Tensor, "3 i j"]:
    """Return an image of a batch as it was before normalisation and padding, at its stored size.

    Args:
        image: Normalised, padded at the right and the bottom.
        size: Height and width in pixels without padding.
        original_size: Height and width in pixels as stored.
        mean: What was subtracted from each channel, of values in [0, 1].
        std: What was divided by.
    """
    cut = image[:, : size[0], : size[1]].detach().float().cpu()
    rgb = cut * torch.tensor(std).reshape(-1, 1, 1) + torch.tensor(mean).reshape(-1, 1, 1)
    rgb = rgb.expand(3, -1, -1)  # of one channel, grey
    rgb = F.interpolate(rgb[None], size=original_size, mode="bilinear", antialias=True)[0]
    return (rgb * 255).round().clamp(0, 255).to(torch.uint8)


def with_objects(
    image: UInt8[Tensor, "3 h w"],
    objects: Mapping[str, Tensor],
    names: Sequence[str],
    colours: Sequence[Colour],
) -> UInt8[Tensor, "3 h w"]:
    """Return an image with boxes around its objects, their names and scores, and their masks.

    Args:
        image: At its stored size.
        objects: `boxes`, `labels` from 1, and, where known, `scores` and `masks`.
        names: Name of each class, the first for label 1.
        colours: Colour of each class.
    """
    boxes, labels = objects["boxes"].cpu(), objects["labels"].cpu()
    scores = objects["scores"].cpu() if "scores" in objects else torch.ones(len(boxes))
    shown = scores >= LEAST_SCORE
    if not shown.any():
        return image
    classes = [int(label) - 1 for label in labels[shown]]
    ink = [colours[c % len(colours)] for c in classes]
    if "masks" in objects:
        masks = objects["masks"].cpu().bool()[shown]
        image = draw_segmentation_masks(image, masks, alpha=0.5, colors=ink)
    texts = [names[c] if c < len(names) else str(c + 1) for c in classes]
    if "scores" in objects:
        values = scores[shown].tolist()
        texts = [f"{text} {value:.2f}" for text, value in zip(texts, values, strict=True)]
    # torchvision refuses corners that rounding has put in the wrong order.
    corners = boxes[shown].round()
    corners[:, 2:] = torch.maximum(corners[:, 2:], corners[:, :2])
    drawn: Tensor = draw_bounding_boxes(image, corners, labels=texts, colors=ink, width=2)
    return drawn


def with_labels(
    image: UInt8[Tensor, "3 h w"], labels: Int64[Tensor, "h w"], colours: Sequence[Colour]
) -> UInt8[Tensor, "3 h w"]:
    """Return an image half covered by the colours of its pixels' classes; ignored ones stay.

    Args:
        image: At the size of the labels.
        labels: Class of each pixel, from 0; 255 is ignored.
        colours: Colour of each class.
    """
    labels = labels.cpu()
    table = torch.tensor(list(colours), dtype=torch.float32)
    known = labels < len(colours)
    painted = table[labels.clamp(0, len(colours) - 1)].permute(2, 0, 1)
    mixed = (0.4 * image.float() + 0.6 * painted).round().to(torch.uint8)
    return torch.where(known & (labels != IGNORED), mixed, image)


def beside(
    panels: Mapping[str, UInt8[Tensor, "3 _ _"]], legend: Mapping[str, Colour]
) -> Image.Image:
    """Return pictures side by side, a title over each, and the names of colours below.

    Args:
        panels: Pictures of one height by their titles.
        legend: Colours by name.
    """
    images = [Image.fromarray(panel.permute(1, 2, 0).numpy()) for panel in panels.values()]
    width = sum(image.width for image in images) + _GAP * (len(images) - 1)
    entries = _places(legend, width)
    lines = entries[-1][1] + 1 if entries else 0
    height = max(image.height for image in images)
    canvas = Image.new("RGB", (width, _LINE + height + lines * _LINE), "white")
    pen = ImageDraw.Draw(canvas)
    x = 0
    for title, image in zip(panels, images, strict=True):
        pen.text((x + 2, 2), title, fill="black")
        canvas.paste(image, (x, _LINE))
        x += image.width + _GAP
    for (name, colour), (left, line) in zip(legend.items(), entries, strict=True):
        top = _LINE + height + line * _LINE
        pen.rectangle((left + 2, top + 3, left + 13, top + 14), fill=colour, outline="black")
        pen.text((left + 18, top + 2), name, fill="black")
    return canvas


def captioned(image: UInt8[Tensor, "3 h w"], lines: Mapping[str, str]) -> Image.Image:
    """Return an image with lines of text below it, enlarged so that they have room.

    Args:
        image: The image; a small one is enlarged by whole pixels.
        lines: Text → colour.
    """
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    factor = max(1, -(-_CAPTION_WIDTH // picture.width))
    picture = picture.resize(
        (picture.width * factor, picture.height * factor), Image.Resampling.NEAREST
    )
    pen = ImageDraw.Draw(picture)
    width = max(picture.width, *(int(pen.textlength(line)) + 4 for line in lines))
    canvas = Image.new("RGB", (width, picture.height + len(lines) * _LINE), "white")
    canvas.paste(picture, ((width - picture.width) // 2, 0))
    pen = ImageDraw.Draw(canvas)
    for i, (line, colour) in enumerate(lines.items()):
        pen.text((2, picture.height + i * _LINE + 2), line, fill=colour)
    return canvas


def _places(legend: Mapping[str, Colour], width: int) -> list[tuple[int, int]]:
    """Return the left edge and the line of each entry of a legend."""
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    places, left, line = [], 0, 0
    for name in legend:
        wide = 24 + int(pen.textlength(name))
        if left and left + wide > width:
            left, line = 0, line + 1
        places.append((left, line))
        left += wide
    return places
