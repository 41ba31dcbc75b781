"""Layers of a model, found by kind or by name, and their feature maps as (B, C, H, W).

Blocks, token mixers and down-sampling layers are found by the names that timm, and we, give them;
any module can be chosen by its name in `named_modules`, or by a pattern such as `stages.*.mixer`.
Feature maps come in three layouts: (B, C, H, W), (B, H, W, C) and tokens (B, N, C), of which those
that are no patches (a class token) are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spanet_lightning.errors import ConfigError, did_you_mean

Kind = Literal["block", "down", "mixer", "layer"]

_MIXERS = ("token_mixer", "mixer", "conv_dw", "attn")
_BLOCKS = ("Block", "Bottleneck", "InvertedResidual", "EdgeResidual", "DepthwiseSeparableConv")
_STEMS = ("stem", "patch_embed")


@dataclass(frozen=True)
class Layer:
    """A module whose output is measured.

    Attributes:
        name: As in `named_modules`.
        kind: "block", "mixer", "down" (a stem or down-sampling layer) or "layer" (chosen by name).
        number: Of the block or layer, from 1 over the whole model; 0 of a down-sampling layer.
    """

    name: str
    kind: Kind
    number: int


def find_blocks(model: nn.Module, *, mixers: bool = False) -> list[Layer]:
    """List the blocks and down-sampling layers of a model, in the order of their definition.

    Args:
        model: One of ours or timm's.
        mixers: The token mixers of the blocks instead of the blocks.

    Raises:
        ConfigError: If there is no block, or none has a mixer.
    """
    found: list[Layer] = []
    inside: str | None = None
    number = 0
    for name, module in model.named_modules():
        if inside is not None and name.startswith(inside):
            continue
        last = name.rpartition(".")[2]
        if name in _STEMS or (last == "downsample" and not isinstance(module, nn.Identity)):
            found.append(Layer(name, "down", 0))
            inside = f"{name}."
        elif _is_block(module):
            number += 1
            inside = f"{name}."
            mixer = mixer_name(module)
            if not mixers:
                found.append(Layer(name, "block", number))
            elif mixer is not None:
                found.append(Layer(f"{name}.{mixer}", "mixer", number))
    if all(layer.kind == "down" for layer in found):
        wanted = "token mixers" if mixers else "blocks"
        names = ", ".join(_MIXERS) if mixers else f"…{', …'.join(_BLOCKS)}"
        raise ConfigError(
            f"{type(model).__name__}: has no {wanted} (modules named {names}); choose its layers "
            "by name: --layer PATTERN"
        )
    return found


def find_layers(model: nn.Module, patterns: Sequence[str]) -> list[Layer]:
    """List the modules that match any of some patterns, in the order of their definition.

    Args:
        model: Any model.
        patterns: Names, or patterns with `*`, `?` and `[…]`; `*` matches dots too.

    Raises:
        ConfigError: If a pattern matches nothing.
    """
    names = [name for name, _ in model.named_modules() if name]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(
                f"--layer: got {pattern!r}, which matches none of the {len(names)} layers of "
                f"{type(model).__name__} (such as {names[0]!r}, {names[-1]!r})"
                f"{did_you_mean(pattern, names)}"
            )
    chosen = [name for name in names if any(fnmatchcase(name, one) for one in patterns)]
    return [Layer(name, "layer", i) for i, name in enumerate(chosen, 1)]


def mixer_name(block: nn.Module) -> str | None:
    """Return the name of a block's token mixer within it, or `None` where it has none."""
    # Swin's attention sees windows; its output, put together, passes the drop path.
    if hasattr(block, "_attn") and hasattr(block, "drop_path1"):
        return "drop_path1"
    return next((n for n in _MIXERS if isinstance(getattr(block, n, None), nn.Module)), None)


def _is_block(module: nn.Module) -> bool:
    name = type(module).__name__
    if name.startswith("Parallel"):
        return False
    return name.endswith(_BLOCKS) or name.startswith("MetaBlock")  # MetaBlock1d, of EfficientFormer


@contextmanager
def hooked(
    model: nn.Module, layers: Sequence[Layer], receive: Callable[[int, Tensor], None]
) -> Iterator[None]:
    """Call `receive(index, output)` with the output of each layer while the model runs."""
    modules = dict(model.named_modules())

    def make_hook(index: int) -> Callable[[nn.Module, object, object], None]:
        def hook(_: nn.Module, __: object, output: object) -> None:
            value = output[0] if isinstance(output, tuple) else output
            if isinstance(value, Tensor):
                receive(index, value)

        return hook

    handles = [modules[x.name].register_forward_hook(make_hook(i)) for i, x in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def as_grid(model: nn.Module, features: Tensor, image: tuple[int, int]) -> Float[Tensor, "b c h w"]:
    """Return feature maps as (B, C, H, W).

    Args:
        model: Where they come from.
        features: (B, C, H, W), (B, H, W, C) or tokens (B, N, C).
        image: Height and width of the image, in pixels.

    Raises:
        ConfigError: If they form no grid.
    """
    if features.ndim == 4:
        return features.permute(0, 3, 1, 2) if _channels_last(model, features, image) else features
    if features.ndim != 3:
        raise ConfigError(
            f"{type(model).__name__}: features of shape {tuple(features.shape)} form no grid; this "
            "analysis does not apply"
        )
    prefix = int(getattr(model, "num_prefix_tokens", 0) or 0)
    number = features.shape[1]
    for skip in dict.fromkeys((0, prefix)):
        grid = _grid_of(number - skip, image)
        if grid is not None:
            tokens = features[:, skip:].transpose(1, 2)
            return tokens.reshape(len(features), -1, *grid)
    raise ConfigError(
        f"{type(model).__name__}: {number} tokens do not fill a grid of an image of "
        f"{image[0]}×{image[1]} px"
    )


def _grid_of(tokens: int, image: tuple[int, int]) -> tuple[int, int] | None:
    """Return rows and columns of a number of tokens with about the image's proportions."""
    if tokens < 1:
        return None
    height = (tokens * image[0] / image[1]) ** 0.5
    for rows in sorted(range(1, tokens + 1), key=lambda r: abs(r - height))[:3]:
        columns = tokens // rows
        if rows * columns == tokens and abs(rows / columns - image[0] / image[1]) < 0.26:
            return rows, columns
    return None


def _channels_last(model: nn.Module, features: Tensor, image: tuple[int, int]) -> bool:
    def fits(height: int, width: int) -> bool:
        """Whether these can be the image's sides, divided by one stride and rounded."""
        return abs(height / image[0] - width / image[1]) <= 1.01 / min(image)

    _, first, second, last = features.shape
    before, after = fits(second, last), fits(first, second)
    if before != after:
        return after
    layout = getattr(model, "output_fmt", None)
    if layout is not None:
        return str(getattr(layout, "value", layout)) == "NHWC"
    info = getattr(model, "feature_info", None)
    widths = {entry["num_chs"] for entry in info} if isinstance(info, list) else set()
    return last in widths and first not in widths


@torch.no_grad()
def run_features(model: nn.Module, images: Tensor) -> None:
    """Run a model up to its classifier, or all of it where that is one function."""
    getattr(model, "forward_features", model)(images)
