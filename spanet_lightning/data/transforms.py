"""The published augmentation of detection and of semantic segmentation.

torchvision's v2 transforms do the work on its typed tensors. What is here is where mmdetection and
mmsegmentation, which the published models were trained with, differ from torchvision: sides of
resized images are rounded to the nearest pixel, images are resized bilinearly *without*
antialiasing (OpenCV's `INTER_LINEAR`), and colours are distorted in HSV.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from spanet_lightning.data.batches import DetectionTarget

IGNORED = 255
"""Label of pixels that count neither in the loss nor in a metric."""

Augmentation = Literal["none", "flip", "multi_scale_crop"]
Image = UInt8[Tensor, "3 _ _"]
# SPANetV2's runs, at short sides up to 800: short sides before the crop, range of the crop's sides.
_CROP_SHORT_SIDES = (400, 500, 600)
_CROP_RANGE = (384, 600)
_CROP_TRIES = 10
_MAX_CLASS_SHARE = 0.75  # of a crop's labelled pixels
_BRIGHTNESS = 32.0  # of 255
_CONTRAST = _SATURATION = (0.5, 1.5)
_HUE = 18.0  # of 180, a full turn


def fit(height: int, width: int, long: int, short: int) -> tuple[int, int]:
    """Return the largest size of the same aspect ratio whose sides fit two limits, in pixels.

    Args:
        height: Of the image.
        width: Of the image.
        long: Limit of the longer side.
        short: Limit of the shorter side.
    """
    factor = min(long / max(height, width), short / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


class Fit(v2.Transform):  # type: ignore[misc]  # torchvision ships no types
    """Resize to the largest size that fits, keeping the aspect ratio.

    Args:
        long: Limit of the longer side, in pixels.
        shorts: Limits of the shorter side, in pixels; one is drawn at random for each image.
    """

    def __init__(self, long: int, shorts: Sequence[int]) -> None:
        super().__init__()
        self.long = long
        self.shorts = tuple(shorts)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw a size."""
        height, width = F.get_size(flat_inputs[0])
        short = self.shorts[int(torch.randint(len(self.shorts), ()))]
        return {"size": fit(height, width, self.long, short)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize an image bilinearly, masks to their nearest pixels, or boxes."""
        size = list(params["size"])
        if isinstance(inpt, tv_tensors.Mask) and not inpt.shape[0]:
            return tv_tensors.Mask(inpt.new_zeros((0, *size)))
        return self._call_kernel(F.resize, inpt, size=size, antialias=False)


class CropBetween(v2.Transform):  # type: ignore[misc]
    """Crop a random part whose height and width are drawn independently.

    Args:
        min_side: Least height and width, in pixels; an image's own side where that is less.
        max_side: Largest height and width, in pixels, likewise.
    """

    def __init__(self, min_side: int, max_side: int) -> None:
        super().__init__()
        self.min_side = min_side
        self.max_side = max_side

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw a part."""
        height, width = F.get_size(flat_inputs[0])
        crop_h, crop_w = (
            int(torch.randint(min(side, self.min_side), min(side, self.max_side) + 1, ()))
            for side in (height, width)
        )
        top = int(torch.randint(height - crop_h + 1, ()))
        left = int(torch.randint(width - crop_w + 1, ()))
        return {"top": top, "left": left, "height": crop_h, "width": crop_w}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Crop an image or masks; shift boxes and clip them."""
        if isinstance(inpt, tv_tensors.Mask) and not inpt.shape[0]:
            return tv_tensors.Mask(inpt.new_zeros((0, params["height"], params["width"])))
        return self._call_kernel(F.crop, inpt, **params)


def detection_training(
    augmentation: Augmentation, long: int, short: int, short_sides: Sequence[int], hflip: float
) -> v2.Transform:
    """Return the training transform of detection.

    Args:
        augmentation: "flip" is SPANet's published one, "multi_scale_crop" SPANetV2's.
        long: Limit of the longer side, in pixels.
        short: Limit of the shorter side, for the augmentations of one scale.
        short_sides: Limits to draw from, for that of many scales. Sides of its crop are in the
            published proportion to the largest of them: 384 to 600 px where that is 800.
        hflip: Probability of a horizontal flip.
    """
    flip = v2.RandomHorizontalFlip(hflip)
    if augmentation == "none":
        return Fit(long, [short])
    if augmentation == "flip":
        return v2.Compose([Fit(long, [short]), flip])
    share = max(short_sides) / 800
    min_side, max_side, *before = (round(share * s) for s in (*_CROP_RANGE, *_CROP_SHORT_SIDES))
    scales = Fit(long, short_sides)
    crop = v2.Compose([Fit(long, before), CropBetween(min_side, max_side), scales])
    return v2.Compose([flip, v2.RandomChoice([scales, crop])])


def transform_detection(
    transform: v2.Transform, image: Image, target: DetectionTarget
) -> tuple[Image, DetectionTarget]:
    """Return an image and its annotations under a transform.

    Boxes are clipped to what is left of the image, not recomputed from what is left of the masks;
    annotations whose box is gone are dropped with their mask.

    Args:
        transform: Of torchvision's v2 kind.
        image: Shape (3, H, W), uint8.
        target: Its annotations, at its size.
    """
    size = (image.shape[-2], image.shape[-1])
    inputs: dict[str, Any] = dict(target) | {
        "boxes": tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=size)
    }
    if "masks" in target:
        # The same bytes: resizing takes no bool, and masks outweigh their image many times.
        inputs["masks"] = tv_tensors.Mask(target["masks"].view(torch.uint8))
    rest = {key: inputs.pop(key) for key in ("labels", "iscrowd", "area", "image_id")}
    out, moved = transform(tv_tensors.Image(image), inputs)
    height, width = out.shape[-2:]
    limits = torch.tensor([width, height, width, height], dtype=torch.float32)
    boxes = moved["boxes"].as_subclass(Tensor).float().clamp(min=0).minimum(limits)
    # A hundredth of a pixel: less may vanish in the rounding of float32 later.
    valid = ((boxes[:, 2:] - boxes[:, :2]) > 0.01).all(dim=1)
    result = DetectionTarget(
        boxes=boxes[valid],
        labels=rest["labels"][valid],
        iscrowd=rest["iscrowd"][valid],
        area=rest["area"][valid],
        image_id=rest["image_id"],
    )
    if "masks" in moved:
        masks = moved["masks"].as_subclass(Tensor).view(torch.bool)
        result["masks"] = masks if valid.all() else masks[valid]
    return out.as_subclass(Tensor), result


def uniform(low: float, high: float) -> float:
    """Draw a number from a range."""
    return float(torch.empty(()).uniform_(low, high))


def coin(probability: float = 0.5) -> bool:
    """Draw true with a probability."""
    return float(torch.rand(())) < probability


class SegmentationAugmentation:
    """Random resize, crop, flip and colours, as in the published ADE20K runs.

    Args:
        crop: Height and width of the output, in pixels; the mask is padded to it.
        long: Limit of an image's longer side before the random factor, in pixels.
        short: Limit of its shorter side.
        scale: Range of the random factor of both limits.
        hflip: Probability of a horizontal flip.
        photometric: Whether to distort brightness, contrast, saturation and hue.
    """

    def __init__(
        self,
        crop: int,
        long: int,
        short: int,
        scale: tuple[float, float],
        hflip: float,
        photometric: bool,
    ) -> None:
        self.crop = crop
        self.long = long
        self.short = short
        self.scale = scale
        self.hflip = hflip
        self.photometric = photometric

    def __call__(
        self, image: UInt8[Tensor, "3 h w"], mask: Int64[Tensor, "h w"]
    ) -> tuple[UInt8[Tensor, "3 i j"], Int64[Tensor, "c c"]]:
        """Return an augmented image, at most as large as the crop, and a mask of its size."""
        factor = uniform(*self.scale)
        height, width = image.shape[1:]
        size = list(fit(height, width, int(self.long * factor), int(self.short * factor)))
        image = F.resize(image, size, antialias=False)
        labels = F.resize(tv_tensors.Mask(mask[None]), size).as_subclass(Tensor)[0]
        top, left, bottom, right = random_crop(labels, self.crop)
        image, labels = image[:, top:bottom, left:right], labels[top:bottom, left:right]
        if coin(self.hflip):
            image, labels = F.horizontal_flip(image), labels.flip(-1)
        if self.photometric:
            image = distort(image)
        padded = labels.new_full((self.crop, self.crop), IGNORED)
        padded[: labels.shape[0], : labels.shape[1]] = labels
        return image, padded


def random_crop(mask: Int64[Tensor, "h w"], side: int) -> tuple[int, int, int, int]:
    """Draw a part of at most side×side px: top, left, bottom, right.

    It is drawn again, ten times at most, while one class has 75 % or more of the labelled pixels.
    """
    height, width = mask.shape
    for attempt in range(_CROP_TRIES + 1):
        top = int(torch.randint(max(height - side, 0) + 1, ()))
        left = int(torch.randint(max(width - side, 0) + 1, ()))
        bottom, right = min(top + side, height), min(left + side, width)
        if attempt == _CROP_TRIES or not is_dominated(mask[top:bottom, left:right]):
            break
    return top, left, bottom, right


def is_dominated(mask: Int64[Tensor, "h w"]) -> bool:
    """Whether one class has 75 % or more of the labelled pixels, or there are none."""
    counts = torch.bincount(mask.reshape(-1), minlength=IGNORED + 1)
    counts[IGNORED] = 0
    total = int(counts.sum())
    return total == 0 or int(counts.max()) >= _MAX_CLASS_SHARE * total


def distort(image: UInt8[Tensor, "3 h w"]) -> UInt8[Tensor, "3 h w"]:
    """Return an image with random brightness, contrast, saturation and hue, each with p = 0.5.

    Contrast comes before saturation and hue, or after them, with equal probability. Values are
    clipped to 0 and 255 after each. Brightness is added and saturation is HSV's, where
    torchvision's `RandomPhotometricDistort` multiplies and blends with grey.
    """
    steps: list[Callable[[Image], Image]] = []
    if coin():
        shift = uniform(-_BRIGHTNESS, _BRIGHTNESS)
        steps.append(lambda x: _to_uint8(x.float() + shift))
    contrast_first = coin()
    contrast = [uniform(*_CONTRAST)] if coin() else []
    scale_contrast: list[Callable[[Image], Image]] = [
        lambda x: _to_uint8(x.float() * contrast[0]) for _ in contrast
    ]
    steps += scale_contrast if contrast_first else []
    if coin():
        factor = uniform(*_SATURATION)
        steps.append(lambda x: scale_saturation(x, factor))
    if coin():
        turn = uniform(-_HUE, _HUE) / 180
        steps.append(lambda x: F.adjust_hue(x, turn))
    steps += [] if contrast_first else scale_contrast
    for step in steps:
        image = step(image)
    return image


def scale_saturation(image: UInt8[Tensor, "3 h w"], factor: float) -> UInt8[Tensor, "3 h w"]:
    """Return an image with HSV's saturation multiplied, hue and value unchanged.

    With value V, the largest channel, and saturation S = 1 - (smallest channel)/V, channels at the
    same hue and value are V - t(V - c) for a saturation of t·S, which is 1 at most.
    """
    channels = image.float()
    value, least = channels.amax(dim=0, keepdim=True), channels.amin(dim=0, keepdim=True)
    # 1/S; where the image is grey or black there is nothing to multiply.
    limit = value / (value - least).clamp(min=1e-6)
    return _to_uint8(value - limit.clamp(max=factor) * (value - channels))


def _to_uint8(image: Tensor) -> Image:
    return image.round_().clamp_(0, 255).to(torch.uint8)
