"""Token mixers alone, at the shapes they meet in a model, beside their floor.

The floor of a mixer is what the machine needs for its multiply-accumulates at the measured rate of
products, and for reading its input and writing its output once at the measured rate of copies. A
forward pass can't be faster than the larger of the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spanet_lightning.bench.models import WARM_UP_CALLS, build_model
from spanet_lightning.bench.settings import Settings
from spanet_lightning.bench.timing import Ceiling, Progress, Row, alternate, ratio, spread
from spanet_lightning.cost import model_cost
from spanet_lightning.errors import ConfigError

DIRECTIONS = ("forward", "forward+backward")


def measure_ops(
    names: Sequence[str],
    against: Sequence[str],
    settings: Settings,
    ceiling: Ceiling,
    progress: Progress,
) -> tuple[list[Row], list[Row]]:
    """Measure the first mixer of each stage of some models, stage by stage in alternation.

    Args:
        names: Models in MetaFormer form: ours, timm's MetaFormers, or `python:MODULE:FUNCTION`.
        against: Models whose mixers those of `names` are compared with, at the same stage.
        settings: How to measure.
        ceiling: The machine's rates.
        progress: Is told what is measured next.

    Returns:
        The `results` and `ratios` of the JSON document.

    Raises:
        ConfigError: If the mixers of a model can't be found.
    """
    everyone = list(dict.fromkeys([*names, *against]))
    stages = {name: _first_mixers(name, settings) for name in everyone}
    results: list[Row] = []
    ratios: list[Row] = []
    for index in range(max(map(len, stages.values()))):
        here = {name: mixers[index] for name, mixers in stages.items() if index < len(mixers)}
        progress(f"stage {index + 1}")
        with settings.compiling(evaluation=False):
            calls = {
                (name, direction): _call(mixer, settings.noise(*shape), direction, settings)
                for name, (mixer, shape) in here.items()
                for direction in DIRECTIONS
            }
            for call in calls.values():
                for _ in range(WARM_UP_CALLS):
                    call()
            seconds = alternate(calls, settings.rounds, settings.seconds)
        for (name, direction), values in seconds.items():
            mixer, shape = here[name]
            macs = _macs(mixer, shape)
            results.append(
                {
                    "subject": _label(name, index, mixer),
                    "mode": direction,
                    "seconds": values,
                    "stage": index + 1,
                    "shape": list(shape),
                    "ms": 1e3 * spread(values).median,
                    "macs": macs,
                    "floor_ms": _floor(macs, shape, settings, ceiling),
                }
            )
        for name, other in ((n, o) for n in names for o in against if n != o):
            if name in here and other in here:
                ours, theirs = (_label(n, index, here[n][0]) for n in (name, other))
                for direction in DIRECTIONS:
                    times = seconds[name, direction], seconds[other, direction]
                    ratios.append(ratio(ours, theirs, direction, *times))
    return results, ratios


def _label(name: str, index: int, mixer: nn.Module) -> str:
    return f"{name}, stage {index + 1}: {type(mixer).__name__}"


def _macs(mixer: nn.Module, shape: Sequence[int]) -> int | None:
    if len(shape) != 4:  # attention over tokens (B, N, C)
        return None
    batch, channels, height, width = shape
    try:
        return batch * model_cost(mixer, (height, width), channels).macs
    except (RuntimeError, NotImplementedError):
        return None


def _floor(
    macs: int | None, shape: Sequence[int], settings: Settings, ceiling: Ceiling
) -> Row | None:
    if macs is None:
        return None
    moved = 2 * torch.Size(shape).numel() * settings.matmul_dtype.itemsize
    return {
        "products": 1e3 * macs / ceiling.macs_per_second,
        "copy": 1e3 * moved / ceiling.bytes_per_second,
    }


@torch.no_grad()
def _first_mixers(name: str, settings: Settings) -> list[tuple[nn.Module, tuple[int, ...]]]:
    """Return the first mixer of each stage with the shape of its input, (B, C, H, W)."""
    model: Any = settings.place(build_model(name, settings.size, settings.seed)).eval()
    try:
        blocks = [stage.blocks[0] for stage in model.stages]
        mixers = [getattr(block, "mixer", None) or block.token_mixer for block in blocks]
    except (AttributeError, TypeError, IndexError):
        accepted = "a model whose stages[i].blocks[0] has a `mixer` or `token_mixer`"
        raise ConfigError(f"{name}: its token mixers can't be found; expected {accepted}") from None
    shapes: list[tuple[int, ...]] = []

    def note_shape(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        shapes.append((settings.batch, *args[0].shape[1:]))

    hooks = [mixer.register_forward_pre_hook(note_shape) for mixer in mixers]
    model(settings.images()[:1])
    for hook in hooks:
        hook.remove()
    return list(zip(mixers, shapes, strict=True))


def _call(mixer: nn.Module, x: Tensor, direction: str, settings: Settings) -> Callable[[], Any]:
    """Return one run of a mixer; the backward pass computes all gradients and keeps none."""
    runnable = settings.compiled(mixer)
    if direction == "forward":

        def forward() -> Tensor:
            with torch.inference_mode(), settings.autocast():
                y: Tensor = runnable(x)
            return y

        return forward

    x.requires_grad_()
    inputs = [x, *(p for p in mixer.parameters() if p.requires_grad)]

    def forward_and_backward() -> tuple[Tensor, ...]:
        with settings.autocast():
            y: Tensor = runnable(x)
        return torch.autograd.grad(y, inputs, y.detach())

    return forward_and_backward
