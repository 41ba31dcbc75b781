"""Where the features of a model come by, as grids (B, C, H, W), whatever the layout inside.

Blocks and down-sampling layers are found by what timm's models, and ours, call them. Tokens
(B, N, C) become a grid of the image's proportions, without what is no patch (a class token);
(B, H, W, C) is transposed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spanet_lightning.errors import ConfigError

Kind = Literal["block", "down", "mixer"]

_MIXERS = ("token_mixer", "mixer", "conv_dw", "attn")
_BLOCKS = ("Block", "Bottleneck", "InvertedResidual", "EdgeResidual", "DepthwiseSeparableConv")
_STEMS = ("stem", "patch_embed")


@dataclass(frozen=True)
class Tap:
    """A place in a model.

    Attributes:
        name: Of the module, as in `named_modules`.
        kind: "block", "down" (a stem or down-sampling layer) or "mixer".
        stage: From 1, counted by down-sampling layers.
        block: Of a block or mixer, from 1 over the whole model; 0 of a down-sampling layer.
    """

    name: str
    kind: Kind
    stage: int
    block: int


def find_taps(model: nn.Module, mixers: bool = False) -> list[Tap]:
    """List the down-sampling layers and blocks of a model in the order they are defined.

    Args:
        model: One of ours or timm's.
        mixers: The blocks' token mixers instead of the blocks.

    Raises:
        ConfigError: If no block is found.
    """
    taps: list[Tap] = []
    inside: str | None = None
    stage = block = 0
    for name, module in model.named_modules():
        if inside is not None and name.startswith(inside):
            continue
        last = name.rpartition(".")[2]
        if name in _STEMS or (last == "downsample" and not isinstance(module, nn.Identity)):
            stage += 1
            taps.append(Tap(name, "down", stage, 0))
            inside = f"{name}."
        elif _is_block(module):
            block += 1
            inside = f"{name}."
            if not mixers:
                taps.append(Tap(name, "block", max(stage, 1), block))
                continue
            mixer = mixer_name(module)
            if mixer is not None:
                taps.append(Tap(f"{name}.{mixer}", "mixer", max(stage, 1), block))
    wanted = "mixer" if mixers else "block"
    if not any(tap.kind == wanted for tap in taps):
        names = f"with {', '.join(_MIXERS)}" if mixers else f"modules named …{', …'.join(_BLOCKS)}"
        raise ConfigError(
            f"{type(model).__name__}: no {wanted}s found; this analysis needs a model of blocks "
            f"({names})"
        )
    return taps


def mixer_name(block: nn.Module) -> str | None:
    """Return the name of a block's token mixer within it, or `None` where it has none."""
    # Swin's attention sees windows; what comes out of them, put together, passes its drop-path.
    if hasattr(block, "_attn") and hasattr(block, "drop_path1"):
        return "drop_path1"
    return next(
        (name for name in _MIXERS if isinstance(getattr(block, name, None), nn.Module)), None
    )


def _is_block(module: nn.Module) -> bool:
    name = type(module).__name__
    if name.startswith("Parallel"):
        return False
    return name.endswith(_BLOCKS) or name.startswith("MetaBlock")  # MetaBlock1d, of EfficientFormer


@contextmanager
def tapped(
    model: nn.Module, taps: Sequence[Tap], receive: Callable[[int, Tensor], None]
) -> Iterator[None]:
    """Hand the output of each tap to `receive(index, output)` while the model runs."""
    modules = dict(model.named_modules())

    def hook(index: int) -> Callable[[nn.Module, object, object], None]:
        def received(_: nn.Module, __: object, output: object) -> None:
            value = output[0] if isinstance(output, tuple) else output
            if isinstance(value, Tensor):
                receive(index, value)

        return received

    handles = [modules[tap.name].register_forward_hook(hook(i)) for i, tap in enumerate(taps)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def as_grid(model: nn.Module, features: Tensor, image: tuple[int, int]) -> Float[Tensor, "b c h w"]:
    """Return features as (B, C, H, W).

    Args:
        model: Where they come from.
        features: (B, C, H, W), (B, H, W, C) or tokens (B, N, C).
        image: Height and width of the image, in pixels.

    Raises:
        ConfigError: If tokens don't fill a grid.
    """
    if features.ndim == 4:
        return features.permute(0, 3, 1, 2) if _channels_last(model, features) else features
    if features.ndim != 3:
        raise ConfigError(
            f"{type(model).__name__}: features of shape {tuple(features.shape)} are no grid of "
            "tokens; this analysis does not apply"
        )
    prefix = int(getattr(model, "num_prefix_tokens", 0) or 0)
    number = features.shape[1]
    for skip in dict.fromkeys((0, prefix)):
        grid = _grid(number - skip, image)
        if grid is not None:
            tokens = features[:, skip:].transpose(1, 2)
            return tokens.reshape(len(features), -1, *grid)
    raise ConfigError(
        f"{type(model).__name__}: {number} tokens do not fill a grid of an image of "
        f"{image[0]}×{image[1]} px"
    )


def _grid(tokens: int, image: tuple[int, int]) -> tuple[int, int] | None:
    """Return rows and columns of a number of tokens with about the image's proportions."""
    if tokens < 1:
        return None
    height = (tokens * image[0] / image[1]) ** 0.5
    for rows in sorted(range(1, tokens + 1), key=lambda r: abs(r - height))[:3]:
        columns = tokens // rows
        if rows * columns == tokens and abs(rows / columns - image[0] / image[1]) < 0.26:
            return rows, columns
    return None


def _channels_last(model: nn.Module, features: Tensor) -> bool:
    fmt = getattr(model, "output_fmt", None)
    if fmt is not None:
        return str(getattr(fmt, "value", fmt)) == "NHWC"
    info = getattr(model, "feature_info", None)
    widths = {entry["num_chs"] for entry in info} if isinstance(info, list) else set()
    return features.shape[-1] in widths and features.shape[1] not in widths


@torch.no_grad()
def run(model: nn.Module, images: Tensor) -> None:
    """Run a model's features, without its classifier where it has one apart."""
    forward = getattr(model, "forward_features", model)
    forward(images)
