"""Class activation maps, Score-CAM and Grad-CAM, and their faithfulness by ROAD.

Score-CAM has the settings of the official demos, which are not those of the usual library, and that
would depend on OpenCV.

ROAD, remove and debias (Rong et al., ICML 2022, arXiv:2202.00449): the most (or least) relevant
share of the pixels is replaced by noisy linear imputation, and the probability of the class is
measured. A faithful map loses the class sooner when the most relevant pixels go first. Its score is
half of the probability with the least relevant pixels removed first less that with the most
relevant, averaged over shares (as pytorch-grad-cam's ROADCombined): above 0 is better than chance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from spanet_lightning.analysis import layers
from spanet_lightning.analysis.figures import Curve, Figure, Panel, in_rows
from spanet_lightning.analysis.images import normalise
from spanet_lightning.analysis.models import LoadedModel
from spanet_lightning.errors import ConfigError, invalid, invalid_choice

Method = Literal["score", "grad"]
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)

# Weights of a pixel's neighbours: direct ones count twice as much as diagonal ones.
_NEIGHBOURS = [(0, 1, 1 / 6), (0, -1, 1 / 6), (1, 0, 1 / 6), (-1, 0, 1 / 6)]
_NEIGHBOURS += [(1, 1, 1 / 12), (1, -1, 1 / 12), (-1, 1, 1 / 12), (-1, -1, 1 / 12)]


@dataclass(frozen=True)
class ClassMap:
    """Where a class is seen in an image.

    Attributes:
        model: Label of the model.
        target: Index of the class.
        probability: Of the class, after the softmax.
        heat: (H, W) of the image, from 0 to 1.
    """

    model: str
    target: int
    probability: float
    heat: Float[np.ndarray, "h w"]


def class_map(
    model: LoadedModel,
    image: Float[Tensor, "1 3 h w"],
    method: str = "score",
    target: int | None = None,
    batch: int = 32,
    channels: int | None = None,
) -> ClassMap:
    """Return the map of a class on an image.

    Args:
        model: A classifier.
        image: In [0, 1].
        method: "score" (Score-CAM, one forward pass per channel) or "grad" (Grad-CAM).
        target: The class; default: the most probable.
        batch: Masked images at once.
        channels: Score-CAM over the channels with the largest activations alone, for speed;
            default: all, as published.

    Raises:
        ConfigError: If the model has no logits, or a value is out of range.
    """
    if method not in get_args(Method):
        raise invalid_choice("--method", method, get_args(Method))
    if channels is not None and channels < 1:
        raise invalid("--channels", channels, "an integer of at least 1")
    x = normalise(image, model)
    with torch.set_grad_enabled(method == "grad"):
        logits, features = _features(model, x, target_layer(model.model), grad=method == "grad")
    if target is None:
        target = int(logits[0].argmax())
    elif not 0 <= target < logits.shape[1]:
        raise invalid("--target", target, f"a class from 0 to {logits.shape[1] - 1}")
    size = (image.shape[-2], image.shape[-1])
    if method == "grad":
        (gradient,) = torch.autograd.grad(logits[0, target], features)
        maps = layers.as_grid(model.model, features.detach(), size)[0]
        weights = layers.as_grid(model.model, gradient, size)[0].mean((1, 2))
        cam = (weights[:, None, None] * maps).sum(0).relu()
    else:
        maps = layers.as_grid(model.model, features, size).detach()
        cam = score_cam(lambda part: model.model(part), x, maps, target, batch, channels)
    probability = float(logits[0].detach().double().softmax(0)[target])
    return ClassMap(model.label, target, probability, normalise_map(cam, size).numpy())


def target_layer(model: nn.Module) -> str:
    """Return the name of the last module with feature maps: the last stage, or block.

    Where only the class token is classified, the patches of the last block's output reach nothing:
    there it is the norm before that block's attention.
    """
    info = getattr(model, "feature_info", None)
    if isinstance(info, list) and info and "module" in info[-1]:
        name = str(info[-1]["module"])
    else:
        name = layers.find_blocks(model)[-1].name
    token = getattr(model, "num_prefix_tokens", 0) and getattr(model, "global_pool", "") == "token"
    return f"{name}.norm1" if token else name


def _features(model: LoadedModel, x: Tensor, name: str, *, grad: bool) -> tuple[Tensor, Tensor]:
    """Return logits, and a layer's output; with `grad` the logits depend on it."""
    module = dict(model.model.named_modules())[name]
    found: list[Tensor] = []

    def hook(_: nn.Module, __: object, output: Tensor) -> Tensor:
        # The weights need no gradient: it begins here.
        found.append(output.detach().requires_grad_() if grad else output)
        return found[-1]

    handle = module.register_forward_hook(hook)
    try:
        logits = model.logits(x)
    finally:
        handle.remove()
    if not found:
        raise ConfigError(f"{model.label}: {name} is never called, so it has no features")
    return logits, found[0]


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
        channels: Only those with the largest activations.
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


def normalise_map(cam: Float[Tensor, "i j"], size: tuple[int, int]) -> Float[Tensor, "h w"]:
    """Return a map from 0 to 1 at an image's size: min-max, resized, min-max."""

    def stretch(values: Tensor) -> Tensor:
        low = values - values.min()
        return low / (low.max() + 1e-7)

    resized = F.interpolate(
        stretch(cam)[None, None], size=size, mode="bilinear", align_corners=False
    )
    return stretch(resized[0, 0])


# Faithfulness


def impute(
    image: Float[Tensor, "c h w"],
    removed: Bool[np.ndarray, "h w"],
    noise: float = 0.01,
    seed: int = 0,
) -> Float[Tensor, "c h w"]:
    """Replace pixels by the weighted mean of their neighbours, all at once, and add noise.

    The means are a sparse linear system, since neighbours may be removed too; beyond the border the
    weights are renormalised.

    Args:
        image: Any values.
        removed: Which pixels.
        noise: Standard deviation of the noise added to them.
        seed: Of the noise.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.linalg import spsolve

    height, width = removed.shape
    number = np.full(removed.shape, -1)
    number[removed] = np.arange(removed.sum())
    pixels = image.double().permute(1, 2, 0).numpy()
    y, x = np.nonzero(removed)
    total = np.zeros(len(y))
    right = np.zeros((len(y), len(image)))
    rows, columns, values = [], [], []
    for dy, dx, weight in _NEIGHBOURS:
        inside = (y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width)
        at = np.flatnonzero(inside)
        to_y, to_x = y[at] + dy, x[at] + dx
        total[at] += weight
        unknown = removed[to_y, to_x]
        rows.append(at[unknown])
        columns.append(number[to_y, to_x][unknown])
        values.append(np.full(int(unknown.sum()), -weight))
        right[at[~unknown]] += weight * pixels[to_y, to_x][~unknown]
    rows, columns = [*rows, np.arange(len(y))], [*columns, np.arange(len(y))]
    data = np.concatenate([*values, total])
    system = csr_matrix((data, (np.concatenate(rows), np.concatenate(columns))))
    filled = spsolve(system, right).reshape(right.shape)
    filled += noise * np.random.default_rng(seed).standard_normal(filled.shape)
    result = pixels.copy()
    result[removed] = filled
    return torch.from_numpy(result).permute(2, 0, 1).to(image)


@torch.no_grad()
def road(
    model: LoadedModel,
    image: Float[Tensor, "1 3 h w"],
    found: ClassMap,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
) -> dict[str, Float[np.ndarray, " p"]]:
    """Return the class's probability when shares of the pixels are removed.

    Args:
        model: The classifier.
        image: In [0, 1].
        found: Its map.
        shares: Of the pixels, between 0 and 1.
        seed: Of the noise.

    Returns:
        "most" and "least": by which pixels go first.
    """
    order = np.argsort(found.heat.ravel(), kind="stable")
    curves: dict[str, np.ndarray] = {}
    for first, ranked in (("most", order[::-1]), ("least", order)):
        values = []
        for share in shares:
            removed = np.zeros(found.heat.size, dtype=bool)
            removed[ranked[: round(share * found.heat.size)]] = True
            changed = impute(image[0], removed.reshape(found.heat.shape), seed=seed)
            logits = model.logits(normalise(changed[None], model))
            values.append(float(logits[0].double().softmax(0)[found.target]))
        curves[first] = np.array(values)
    return curves


def road_score(curves: dict[str, Float[np.ndarray, " p"]]) -> float:
    """Return half of the mean difference of both curves."""
    return float((curves["least"] - curves["most"]).mean() / 2)


# Figures


def cam_figure(
    images: Sequence[Float[Tensor, "3 h w"]], found: Sequence[Sequence[ClassMap]], title: str
) -> Figure:
    """Return maps over their images: a row per image, a panel per model."""
    import matplotlib as mpl

    rows: list[tuple[Panel, ...]] = []
    table: list[dict[str, Any]] = []
    for i, (image, maps) in enumerate(zip(images, found, strict=True)):
        pixels = image.permute(1, 2, 0).numpy()
        panels = [Panel("image" if i == 0 else "", image=pixels)]
        for one in maps:
            mixed = 0.5 * pixels + 0.5 * mpl.colormaps["inferno"](one.heat)[..., :3]
            below = f"class {one.target}, {100 * one.probability:.1f} %"
            title_above = one.model if i == 0 else ""
            panels.append(Panel(title_above, image=mixed / mixed.max(), xlabel=below))
            row = {"image": i, "model": one.model, "class": one.target}
            table.append({**row, "probability": one.probability})
        rows.append(tuple(panels))
    return Figure(title, tuple(rows), table=table)


def road_figure(
    found: dict[str, list[dict[str, np.ndarray]]], title: str, shares: Sequence[float] = SHARES
) -> Figure:
    """Return the probability by the share of removed pixels, a panel per model.

    Args:
        found: By the model's label, the curves of each image.
        title: Of the figure.
        shares: Of the pixels.
    """
    panels: list[Panel] = []
    rows: list[dict[str, Any]] = []
    for model, curves in found.items():
        score = float(np.mean([road_score(one) for one in curves]))
        lines = []
        for i, first in enumerate(("most", "least")):
            mean = np.mean([one[first] for one in curves], axis=0)
            lines.append(Curve(np.array(shares), mean, f"{first} relevant first", i))
            rows += [
                {"model": model, "first": first, "share": s, "probability": p, "road": score}
                for s, p in zip(shares, mean.tolist(), strict=True)
            ]
        ylabel = "" if len(panels) % 4 else "probability of the class"
        panels.append(
            Panel(
                f"{model}: {score:+.4f}",
                tuple(lines),
                xlabel="share of pixels removed",
                ylabel=ylabel,
            )
        )
    return Figure(title, in_rows(panels, 4), legend="-", table=rows)
