"""The published augmentation of detection, on images, boxes and masks together.

torchvision's v2 transforms do the work on its typed tensors; what is here decides on sizes. Sides
of resized images are rounded to the nearest pixel, as in the published runs, where torchvision's
own Resize cuts off.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from spanet_lightning.data.batches import DetectionTarget

Augmentation = Literal["none", "flip", "multi_scale_crop"]
# The published V2 runs: short sides before the crop, and the range of the crop's sides.
CROP_SHORT_SIDES = (400, 500, 600)
CROP_RANGE = (384, 600)


def fitted(height: int, width: int, long: int, short: int) -> tuple[int, int]:
    """Return the largest size of the same shape whose sides fit into two limits.

    Args:
        height: In pixels.
        width: In pixels.
        long: Limit of the longer side, in pixels.
        short: Limit of the shorter side, in pixels.
    """
    factor = min(long / max(height, width), short / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def _pick(choices: Sequence[int]) -> int:
    return choices[int(torch.randint(len(choices), ()))]


class FitWithin(v2.Transform):  # type: ignore[misc]  # torchvision ships no types
    """Resize, keeping the shape, to the largest size that fits.

    Args:
        long: Limit of the longer side, in pixels.
        shorts: Limits of the shorter side, in pixels; one is picked at random for each image.
    """

    def __init__(self, long: int, shorts: Sequence[int]) -> None:
        super().__init__()
        self.long = long
        self.shorts = tuple(shorts)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Pick a size."""
        height, width = F.get_size(flat_inputs[0])
        return {"size": fitted(height, width, self.long, _pick(self.shorts))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize an image bilinearly with antialiasing, a mask to its nearest pixels, or boxes."""
        size = params["size"]
        if isinstance(inpt, tv_tensors.Mask) and not inpt.shape[0]:
            return tv_tensors.Mask(inpt.new_zeros((0, *size)))
        # A v2 resize returns its input where the size stays; boxes then keep theirs as well.
        return self._call_kernel(F.resize, inpt, size=list(size), antialias=True)


class CropBetween(v2.Transform):  # type: ignore[misc]
    """Crop a random part whose height and width are drawn one by one.

    Args:
        least: Least height and width, in pixels; an image's own side where that is less.
        most: Largest height and width, in pixels, likewise.
    """

    def __init__(self, least: int, most: int) -> None:
        super().__init__()
        self.least = least
        self.most = most

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Pick a part."""
        height, width = F.get_size(flat_inputs[0])
        crop_h, crop_w = (
            int(torch.randint(min(side, self.least), min(side, self.most) + 1, ()))
            for side in (height, width)
        )
        top = int(torch.randint(height - crop_h + 1, ()))
        left = int(torch.randint(width - crop_w + 1, ()))
        return {"top": top, "left": left, "height": crop_h, "width": crop_w}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Crop an image or a mask; shift boxes and clip them."""
        if isinstance(inpt, tv_tensors.Mask) and not inpt.shape[0]:
            return tv_tensors.Mask(inpt.new_zeros((0, params["height"], params["width"])))
        return self._call_kernel(F.crop, inpt, **params)


def evaluation(long: int, short: int) -> v2.Transform:
    """Return the transform of evaluation: resize to fit, nothing random."""
    return FitWithin(long, [short])


def training(
    augmentation: Augmentation, long: int, short: int, short_sides: Sequence[int], hflip: float
) -> v2.Transform:
    """Return a transform for training.

    Args:
        augmentation: "flip" is the published one of SPANet, "multi_scale_crop" that of SPANetV2.
        long: Limit of the longer side, in pixels.
        short: Limit of the shorter side, for the augmentations of one scale.
        short_sides: Limits to pick from, for that of many scales. Sides of its crop are in the
            published proportion to the largest of them: 384 to 600 px where that is 800.
        hflip: Probability of a horizontal flip.
    """
    if augmentation == "none":
        return evaluation(long, short)
    flip = v2.RandomHorizontalFlip(hflip)
    if augmentation == "flip":
        return v2.Compose([FitWithin(long, [short]), flip])
    share = max(short_sides) / 800
    least, most, *befores = (round(share * side) for side in (*CROP_RANGE, *CROP_SHORT_SIDES))
    many = FitWithin(long, short_sides)
    crop = v2.Compose([FitWithin(long, befores), CropBetween(least, most), many])
    return v2.Compose([flip, v2.RandomChoice([many, crop])])


def apply(
    transform: v2.Transform, image: Tensor, target: DetectionTarget
) -> tuple[Tensor, DetectionTarget]:
    """Return an image and its annotations under a transform.

    Boxes are clipped to what is left of the image, not drawn anew around what is left of the
    masks; annotations whose box is gone are left out.

    Args:
        transform: Of torchvision's v2 kind.
        image: Shape (3, H, W), uint8.
        target: Its annotations, at its size.
    """
    height, width = image.shape[-2:]
    given: dict[str, Any] = {
        "image": tv_tensors.Image(image),
        "boxes": tv_tensors.BoundingBoxes(
            target["boxes"],
            format=tv_tensors.BoundingBoxFormat.XYXY,
            canvas_size=(height, width),
        ),
    }
    if "masks" in target:
        # The same bytes, as resizing takes no bool: masks outweigh their image many times.
        given["masks"] = tv_tensors.Mask(target["masks"].view(torch.uint8))
    moved = transform(given)
    out = moved["image"].as_subclass(Tensor)
    h, w = out.shape[-2:]
    limits = torch.tensor([w, h, w, h], dtype=torch.float32)
    boxes = moved["boxes"].as_subclass(Tensor).float().clamp(min=0).minimum(limits)
    # A hundredth of a pixel: what is less may vanish in the rounding of float32 later.
    kept = ((boxes[:, 2:] - boxes[:, :2]) > 0.01).all(dim=1)
    result = DetectionTarget(
        boxes=boxes[kept],
        labels=target["labels"][kept],
        iscrowd=target["iscrowd"][kept],
        area=target["area"][kept],
        image_id=target["image_id"],
    )
    if "masks" in moved:
        masks = moved["masks"].as_subclass(Tensor).view(torch.bool)
        result["masks"] = masks if kept.all() else masks[kept]
    return out, result
