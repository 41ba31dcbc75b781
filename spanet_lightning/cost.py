"""What a model costs: parameters and multiply-accumulates (MACs) for one image.

**Counted as MACs**: convolutions, linear layers and the two products of attention, one MAC for each
multiplication with its addition. Not counted: norms, activations, element-wise products, resizing.
(The official figures come from a counter that adds five operations per normalised value: 0.4-0.8
%.)

**Spectral operators** stand apart, because no counter of others includes them. Whatever computes
them, each filtered map of n = H·W values is charged as one real FFT, one inverse and the gains:

    MACs = 2.5·n·log2(n) + n        for each channel and image

(a real FFT of n points takes about 2.5·n·log2(n) additions and multiplications, half as many MACs,
twice; the gains are real and n/2 complex values have n parts).
"""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from typing import Any

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from spanet_lightning.backbones.spectral import SpectralFilter
from spanet_lightning.published import PUBLISHED


@dataclass(frozen=True)
class ModelCost:
    """Cost of one model at one input size.

    Attributes:
        parameters: All parameters.
        trainable_parameters: Those with a gradient.
        macs: Convolutions, linear layers and attention products, for one image.
        attention_macs: The attention products among them.
        spectral_macs: Spectral operators by the formula above, not part of `macs`.
    """

    parameters: int
    trainable_parameters: int
    macs: int
    attention_macs: int
    spectral_macs: int


def spectral_macs(height: int, width: int, channels: int) -> int:
    """Return the MACs that a spectral filter of C maps of H×W values is charged with."""
    n = height * width
    return channels * round(2.5 * n * math.log2(n) + n) if n > 1 else channels


def model_cost(model: nn.Module, size: int | tuple[int, int] = 224, in_chans: int = 3) -> ModelCost:
    """Count the cost of `model` for one image, without computing anything.

    Args:
        model: Any model of images; it is not changed.
        size: Side, or (height, width), in pixels.
        in_chans: Channels of the image.
    """
    height, width = (size, size) if isinstance(size, int) else size
    spectral = 0

    def charge(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        nonlocal spectral
        channels, h, w = args[0].shape[1:]
        spectral += spectral_macs(h, w, channels)

    shadow = _on_meta(model).eval()
    for layer in shadow.modules():
        layer._forward_hooks.clear()  # what others hooked in is not to run here
        layer._forward_pre_hooks.clear()
        if isinstance(layer, SpectralFilter):
            layer.register_forward_pre_hook(charge)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        if hasattr(shadow, "cost_forward"):  # of dense models, whose detections need values
            shadow.forward = shadow.cost_forward  # type: ignore[assignment]
        shadow(torch.empty(1, in_chans, height, width, device="meta"))

    counts = counter.get_flop_counts()
    total = _macs(counts["Global"])
    root = type(shadow).__name__
    named = (f"{root}.{n}" for n, m in shadow.named_modules() if isinstance(m, SpectralFilter))
    inside = [counts[name] for name in named if name in counts]
    attention = sum(v for op, v in counts["Global"].items() if _is_batched_product(op)) // 2
    attention -= sum(v for c in inside for op, v in c.items() if _is_batched_product(op)) // 2
    return ModelCost(
        parameters=sum(p.numel() for p in model.parameters()),
        trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        macs=total - sum(map(_macs, inside)),  # those are charged by the formula
        attention_macs=attention,
        spectral_macs=spectral,
    )


def _on_meta(model: nn.Module) -> nn.Module:
    """Copy `model` without its values: the copy costs no memory and computes nothing."""
    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = (
            nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
        )
    return copy.deepcopy(model, memo)


def _macs(counts: dict[Any, int]) -> int:
    """Sum torch's FLOPs, which are two for each MAC."""
    return sum(counts.values()) // 2


def _is_batched_product(op: Any) -> bool:
    return any(name in str(op) for name in ("bmm", "attention"))


@dataclass(frozen=True)
class VariantCost:
    """A row of `spanet models`: a variant's cost at 224×224 px beside what is published.

    Attributes:
        name: timm's name.
        cost: What we count.
        published_parameters: In millions.
        published_macs: In G.
        published_top1: ImageNet-1K top-1, in percent.
        note: What to know before comparing.
    """

    name: str
    cost: ModelCost
    published_parameters: float | None
    published_macs: float | None
    published_top1: float | None
    note: str

    def as_dict(self) -> dict[str, Any]:
        """Return the row flat, for JSON."""
        row = asdict(self)
        return {"name": row.pop("name"), **row.pop("cost"), **row}


def variant_costs(pattern: str = "*") -> list[VariantCost]:
    """Count the published variants whose timm name matches `pattern`, in the papers' order.

    The name of any other model of timm gives its row, without published figures.
    """
    if pattern not in PUBLISHED and timm.is_model(pattern):
        with torch.device("meta"):
            model: nn.Module = timm.create_model(pattern)
        return [VariantCost(pattern, model_cost(model), None, None, None, "not one of ours")]
    rows = []
    for name, published in PUBLISHED.items():
        if fnmatch(name, pattern) or pattern in name:
            with torch.device("meta"):
                model = timm.create_model(name)
            rows.append(VariantCost(name, model_cost(model), *published))
    return rows
