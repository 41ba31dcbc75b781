"""Whole models: time, memory and share of the machine's ceiling, in evaluation and in training.

A training step is the forward pass, cross-entropy, the backward pass and one step of AdamW (fused),
on one batch that stays on the device: no loading, augmentation or clipping. With float16 it
includes loss scaling.

Models go by their name in timm (`spanet_s`, `timm:convnext_tiny`), or by `python:MODULE:FUNCTION`:
whatever the function returns, such as the model of another code base.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW

from spanet_lightning.bench.memory import Memory, measure_memory, tensors_of
from spanet_lightning.bench.settings import Settings
from spanet_lightning.bench.timing import Ceiling, Progress, Row, alternate, ratio, spread
from spanet_lightning.cost import model_cost
from spanet_lightning.errors import ConfigError, did_you_mean, invalid

DEFAULTS = ("spanet_s", "spanetv2_s18_pure", "spanetv2_s18_hybrid")
MODES = ("eval", "train")
WARM_UP_CALLS = 3  # the last two after compilation, and after the optimizer created its state
# Products of a training step over those of its forward pass: by the inputs and by the weights.
_TRAIN_PASSES = 3


def resolve_name(text: str, key: str = "MODEL") -> str:
    """Return the name of a model without timm's prefix.

    Args:
        text: A name as above.
        key: Argument that holds it, for the message.

    Raises:
        ConfigError: If there is no such model.
    """
    if text.startswith("python:"):
        if text.count(":") != 2:
            raise invalid(key, text, "python:MODULE:FUNCTION")
        return text
    name = text.removeprefix("timm:")
    base = name.partition(".")[0]  # without the tag of pretrained weights
    if not timm.is_model(base):
        accepted = "a model that timm knows, or python:MODULE:FUNCTION"
        raise invalid(key, text, accepted, did_you_mean(base, timm.list_models()))
    return name


def build_model(name: str, size: int, seed: int) -> nn.Module:
    """Build a model with random weights.

    Args:
        name: As `resolve_name` returns it.
        size: Side of its images, in pixels, for models that have to know.
        seed: Seed of its weights.

    Raises:
        ConfigError: If `python:MODULE:FUNCTION` can't be called, or returns no model.
    """
    torch.manual_seed(seed)
    if name.startswith("python:"):
        return _call_function(name, size)
    entrypoint: Any = timm.model_entrypoint(name.partition(".")[0])
    pretrained_cfg = timm.get_pretrained_cfg(name)
    sized = entrypoint.__module__.startswith("spanet_lightning.") or (
        pretrained_cfg is not None and pretrained_cfg.fixed_input_size
    )
    options: dict[str, Any] = {"img_size": size} if sized else {}
    return timm.create_model(name, **options)


def _call_function(name: str, size: int) -> nn.Module:
    _, module, attribute = name.split(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
        sized = "img_size" in inspect.signature(function).parameters
        model = function(**({"img_size": size} if sized else {}))
    except (ImportError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{name}: {reason}; expected a function that returns a model") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{name}: returned {type(model).__name__}, expected a torch.nn.Module")
    return model


def measure_models(
    names: Sequence[str],
    against: Sequence[str],
    settings: Settings,
    ceiling: Ceiling,
    progress: Progress,
    *,
    modes: Sequence[str] = MODES,
    against_eager: bool = False,
) -> tuple[list[Row], list[Row]]:
    """Measure models in alternation.

    Args:
        names: Models to measure.
        against: Models that each of them is compared with.
        settings: How to measure.
        ceiling: The machine's rates.
        progress: Is told what is measured next.
        modes: "eval", "train" or both.
        against_eager: Do not compile `against`.

    Returns:
        The `results` and `ratios` of the JSON document. Ratios also have `memory` (peak of the
        subject over that of `against`) and, where both have the same parameters, `difference`: the
        largest difference of their logits over the largest magnitude, in float32.
    """
    everyone = list(dict.fromkeys([*names, *against]))
    models = {name: build_model(name, settings.size, settings.seed) for name in everyone}
    pairs = [(name, other) for name in names for other in against if name != other]
    results: list[Row] = []
    ratios: list[Row] = []
    costs = {name: _cost(model, settings) for name, model in models.items()}
    models = {name: settings.place(model) for name, model in models.items()}
    differences = {(a, b): _difference(models[a], models[b], settings) for a, b in pairs}
    eager = set(everyone) - set(names) if against_eager else set()
    for mode in (mode for mode in MODES if mode in modes):
        with settings.compiling(evaluation=mode == "eval"):
            seconds, memories = _measure(models, mode, settings, progress, eager)
        for name in everyone:
            row = throughput_row(name, mode, seconds[name], settings, costs[name], memories[name])
            passes = _TRAIN_PASSES if mode == "train" else 1
            macs_per_second = passes * costs[name].get("macs", 0) * row["images_per_second"]
            row["ceiling_share"] = macs_per_second / ceiling.macs_per_second or None
            results.append(row)
        for name, other in pairs:
            row = ratio(name, other, mode, seconds[name], seconds[other])
            ours, theirs = memories[name], memories[other]
            row["memory"] = ours.peak / theirs.peak if ours and theirs else None
            row["difference"] = differences[name, other]
            ratios.append(row)
    return results, ratios


def throughput_row(
    subject: str,
    mode: str,
    seconds: Sequence[float],
    settings: Settings,
    cost: Mapping[str, int],
    memory: Memory | None,
) -> Row:
    """Return an entry of `results` for a model.

    Args:
        subject: Its name.
        mode: "eval" or "train".
        seconds: Per batch, in each round.
        settings: How it was measured.
        cost: `parameters`, and `macs` and `spectral_macs` per image, where known.
        memory: Memory of a call, where known.
    """
    rate = settings.batch / spread(seconds).median
    return {
        "subject": subject,
        "mode": mode,
        "seconds": list(seconds),
        "images_per_second": rate,
        "ms_per_image": 1e3 / rate,
        "parameters": cost.get("parameters"),
        "macs": cost.get("macs"),
        "spectral_macs": cost.get("spectral_macs"),
        "memory": None if memory is None else asdict(memory),
    }


def eval_call(model: nn.Module, images: Tensor, settings: Settings) -> Callable[[], Any]:
    """Return the forward pass of a batch without gradients."""

    def call() -> Any:
        with torch.inference_mode(), settings.autocast():
            return model(images)

    return call


def train_call(
    loss: Callable[[], Tensor], optimizer: AdamW, settings: Settings
) -> Callable[[], None]:
    """Return a training step on a loss, which leaves no gradients behind."""
    scaler = torch.amp.GradScaler(settings.torch_device.type, enabled=settings.dtype == "float16")

    def call() -> None:
        with settings.autocast():
            value = loss()
        scaler.scale(value).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return call


def adamw(model: nn.Module) -> AdamW:
    """Return the optimizer of a training step."""
    return AdamW(model.parameters(), lr=1e-5, fused=True)


def _measure(
    models: Mapping[str, nn.Module],
    mode: str,
    settings: Settings,
    progress: Progress,
    eager: Collection[str],
) -> tuple[dict[str, list[float]], dict[str, Memory | None]]:
    """Return seconds per call in each round, and the memory of a call, of each model."""
    images = settings.images()
    labels = settings.place(torch.arange(settings.batch) % 2)
    calls: dict[str, Callable[[], Any]] = {}
    memories: dict[str, Memory | None] = {}
    for name, model in models.items():
        progress(f"{mode}: warm-up of {name}")
        model.train(mode == "train")
        runnable = model if name in eager else settings.compiled(model)
        optimizer = adamw(model) if mode == "train" else None
        call = eval_call(runnable, images, settings)
        if optimizer is not None:

            def loss(runnable: nn.Module = runnable) -> Tensor:
                return F.cross_entropy(runnable(images).float(), labels)

            call = train_call(loss, optimizer, settings)
        for _ in range(WARM_UP_CALLS):
            call()
        # CUDA graphs keep their memory in pools that the allocator does not count as in use.
        pooled = settings.on_cuda and settings.compile == "max-autotune"
        standing = [*tensors_of(model, optimizer), images, labels]
        memories[name] = None if pooled else measure_memory(call, standing, settings.torch_device)
        calls[name] = call
    seconds = alternate(
        calls, settings.rounds, settings.seconds, lambda line: progress(f"{mode}: {line}")
    )
    return seconds, memories


def _cost(model: nn.Module, settings: Settings) -> dict[str, int]:
    """Return a model's cost; only its parameters where an operator can't be counted."""
    try:
        return asdict(model_cost(model, settings.size))
    except (RuntimeError, NotImplementedError):
        return {"parameters": sum(p.numel() for p in model.parameters())}


@torch.inference_mode()
def _difference(model: nn.Module, other: nn.Module, settings: Settings) -> float | None:
    """Compare the logits of models with the same parameters; `other` gets those of `model`."""
    state, theirs = model.state_dict(), other.state_dict()
    if {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in theirs.items()}:
        return None
    other.load_state_dict(state)
    images = settings.images()[:2]
    ours, logits = (m.eval()(images) for m in (model, other))
    return float((ours - logits).abs().max() / logits.abs().max())
