"""Class activation maps: Score-CAM as the official demos draw it, and Grad-CAM.

Both are short, and the official settings are not those of the library that has them, which would
bring OpenCV along; so they are here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from spanet_lightning.analysis import taps
from spanet_lightning.analysis.images import normalised
from spanet_lightning.analysis.models import Subject
from spanet_lightning.errors import ConfigError, invalid, invalid_choice

Method = Literal["score", "grad"]


@dataclass(frozen=True)
class ClassMap:
    """Where a class is seen in an image.

    Attributes:
        model: Label of the model.
        target: Index of the class.
        probability: What the model gives it, after the softmax.
        heat: (H, W) of the image, from 0 to 1.
    """

    model: str
    target: int
    probability: float
    heat: Float[np.ndarray, "h w"]


def class_map(
    subject: Subject,
    image: Float[Tensor, "1 3 h w"],
    method: str = "score",
    target: int | None = None,
    batch: int = 32,
    channels: int | None = None,
) -> ClassMap:
    """Return the map of a class on an image.

    Args:
        subject: A classifier.
        image: In [0, 1].
        method: "score" (Score-CAM, one forward pass a channel) or "grad" (Grad-CAM).
        target: The class; default: the most probable.
        batch: Masked images at once.
        channels: Score-CAM over the channels of the largest activations alone, for speed; default:
            all, as published.

    Raises:
        ConfigError: If the model has no logits, or a value is out of range.
    """
    if method not in get_args(Method):
        raise invalid_choice("--method", method, get_args(Method))
    if channels is not None and channels < 1:
        raise invalid("--channels", channels, "an integer of at least 1")
    x = normalised(image, subject)
    name = layer_of(subject.model)
    with torch.set_grad_enabled(method == "grad"):
        logits, kept = _features(subject, x, name, grad=method == "grad")
    if target is None:
        target = int(logits[0].argmax())
    elif not 0 <= target < logits.shape[1]:
        raise invalid("--target", target, f"a class from 0 to {logits.shape[1] - 1}")
    size = (image.shape[-2], image.shape[-1])
    if method == "grad":
        heat = _grad(subject, logits, kept, target, size)
    else:
        maps = taps.as_grid(subject.model, kept, size).detach()
        heat = score_cam(lambda part: subject.model(part), x, maps, target, batch, channels)
    probability = float(logits[0].detach().double().softmax(0)[target])
    return ClassMap(subject.label, target, probability, finish(heat, size).numpy())


def layer_of(model: nn.Module) -> str:
    """Return the name of the last module with features on a grid: the last stage, or block.

    Where a class token alone is classified, the patches of the last block's output lead nowhere:
    there it is the norm before that block's attention.
    """
    info = getattr(model, "feature_info", None)
    if isinstance(info, list) and info and "module" in info[-1]:
        name = str(info[-1]["module"])
    else:
        name = taps.find_taps(model)[-1].name
    token = getattr(model, "num_prefix_tokens", 0) and getattr(model, "global_pool", "") == "token"
    return f"{name}.norm1" if token else name


def _features(subject: Subject, x: Tensor, name: str, *, grad: bool) -> tuple[Tensor, Tensor]:
    module = dict(subject.model.named_modules())[name]
    kept: list[Tensor] = []

    def hook(_: nn.Module, __: object, output: Tensor) -> Tensor | None:
        if not grad:
            kept.append(output)
            return None
        # The weights need no gradient: it starts here.
        leaf = output.detach().requires_grad_()
        kept.append(leaf)
        return leaf

    handle = module.register_forward_hook(hook)
    try:
        logits = subject.logits(x)
    finally:
        handle.remove()
    if not kept:
        raise ConfigError(f"{subject.label}: {name} is never called, so it has no features")
    return logits, kept[0]


def score_cam(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "1 3 h w"],
    maps: Float[Tensor, "1 c i j"],
    target: int,
    batch: int = 32,
    channels: int | None = None,
) -> Float[Tensor, "i j"]:
    """Return ReLU(Σ_k w_k A_k): w the softmax over k of the target's logit under mask k.

    Args:
        model: Returns logits.
        x: The normalised image.
        maps: A, features of the layer.
        target: The class.
        batch: Masked images at once.
        channels: Over those of the largest activations alone.
    """
    if channels is not None and channels < maps.shape[1]:
        strongest = maps[0].abs().mean((1, 2)).topk(channels).indices.sort().values
        maps = maps[:, strongest]
    masks = F.interpolate(maps, size=x.shape[-2:], mode="bilinear", align_corners=True)[0]
    low, high = masks.amin((1, 2), keepdim=True), masks.amax((1, 2), keepdim=True)
    masks = (masks - low) / (high - low + 1e-8)
    with torch.no_grad():
        scores = [model(x * part.unsqueeze(1))[:, target] for part in torch.split(masks, batch)]
    weights = torch.cat(scores).softmax(0)
    cam: Float[Tensor, "i j"] = (weights[:, None, None] * maps[0]).sum(0).relu()
    return cam


def _grad(
    subject: Subject, logits: Tensor, kept: Tensor, target: int, size: tuple[int, int]
) -> Float[Tensor, "i j"]:
    (gradient,) = torch.autograd.grad(logits[0, target], kept)
    maps = taps.as_grid(subject.model, kept.detach(), size)[0]
    weights = taps.as_grid(subject.model, gradient, size)[0].mean((1, 2))
    cam: Float[Tensor, "i j"] = (weights[:, None, None] * maps).sum(0).relu()
    return cam


def finish(cam: Float[Tensor, "i j"], size: tuple[int, int]) -> Float[Tensor, "h w"]:
    """Return a map from 0 to 1 at an image's size: min-max, resized, min-max."""
    cam = _stretched(cam)
    resized = F.interpolate(cam[None, None], size=size, mode="bilinear", align_corners=False)
    return _stretched(resized[0, 0])


def _stretched(cam: Float[Tensor, "i j"]) -> Float[Tensor, "i j"]:
    low = cam - cam.min()
    return low / (low.max() + 1e-7)
