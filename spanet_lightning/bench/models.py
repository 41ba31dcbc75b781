"""Whole models: time, memory and share of the machine's ceiling, in evaluation and in training.

A training step is the forward pass, cross-entropy, the backward pass and one step of AdamW (fused),
on one batch that stays on the device: no loading, no augmentation, no clipping. With float16 it
includes the loss's scaling.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW

from spanet_lightning.bench.ceiling import Ceiling
from spanet_lightning.bench.memory import Memory, memory, tensors_of
from spanet_lightning.bench.settings import Settings
from spanet_lightning.bench.subjects import Subject, build_all
from spanet_lightning.bench.timing import Say, alternate, speedups, spread, timed
from spanet_lightning.cost import ModelCost, model_cost

MODES = ("eval", "train")
WARM_UP_CALLS = 3  # the last two after compilation, and after the optimizer made its state
# Products of a training step over those of its forward pass: by the inputs, by the weights.
_TRAIN_PASSES = 3

Pairs = Sequence[tuple[Subject, Subject]]
Row = dict[str, Any]


def measure_models(
    subjects: Sequence[Subject],
    pairs: Pairs,
    modes: Sequence[str],
    settings: Settings,
    ceiling: Ceiling,
    say: Say,
    *,
    others_eager: bool = False,
) -> tuple[list[Row], list[Row]]:
    """Measure models in alternation.

    Args:
        subjects: What to measure; what `pairs` compares with is added.
        pairs: Which to compare.
        modes: "eval", "train" or both.
        settings: How.
        ceiling: The machine's rates.
        say: Is told how far it is.
        others_eager: Compile `subjects` alone, not what they are compared with.

    Returns:
        The `results` and `ratios` of the JSON document.
    """
    everyone = dict.fromkeys([*subjects, *(other for _, other in pairs)])
    models = build_all(list(everyone), settings.size, settings.seed)
    costs = {subject: _cost(model, settings.size) for subject, model in models.items()}
    models = {subject: settings.place(model) for subject, model in models.items()}
    differences = _differences(models, pairs, settings)
    results, ratios = [], []
    for mode in (mode for mode in MODES if mode in modes):
        with settings.compiling(frozen=mode == "eval"):
            eager = set(models) - set(subjects) if others_eager else set()
            seconds, memories, graphs = _measure(models, mode, settings, say, eager)
        for subject, cost in costs.items():
            row = _row(subject, mode, seconds[subject], cost, settings, ceiling)
            found = memories[subject]
            row["memory"] = None if found is None else asdict(found)
            row["compiled"] = graphs[subject]
            results.append(row)
        for subject, other in pairs:
            ours, theirs = memories[subject], memories[other]
            ratios.append(
                {
                    **ratio(subject.label, other.label, mode, seconds[subject], seconds[other]),
                    "memory": ours.peak / theirs.peak if ours and theirs else None,
                    "difference": differences.get((subject, other)),
                }
            )
    return results, ratios


def ratio(
    subject: str, against: str, mode: str, ours: Sequence[float], theirs: Sequence[float]
) -> Row:
    """Return an entry of `ratios`, from the seconds of both in each round."""
    rounds = speedups(ours, theirs)
    speedup = {"rounds": rounds, **asdict(spread(rounds))}
    return {"subject": subject, "against": against, "mode": mode, "speedup": speedup}


def eval_call(model: nn.Module, images: Tensor, settings: Settings) -> Callable[[], Tensor]:
    """Return what computes the logits of a batch."""

    def call() -> Tensor:
        with torch.inference_mode(), settings.autocast():
            logits: Tensor = model(images)
        return logits

    return call


def train_call(
    model: nn.Module, images: Tensor, labels: Tensor, optimizer: AdamW, settings: Settings
) -> Callable[[], None]:
    """Return what takes a training step, and leaves no gradients behind."""
    scaler = torch.amp.GradScaler(settings.torch_device.type, enabled=settings.dtype == "float16")

    def call() -> None:
        with settings.autocast():
            loss = F.cross_entropy(model(images).float(), labels)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return call


def _measure(
    models: Mapping[Subject, nn.Module],
    mode: str,
    settings: Settings,
    say: Say,
    eager: Collection[Subject],
) -> tuple[
    dict[Subject, list[float]], dict[Subject, Memory | None], dict[Subject, dict[str, int] | None]
]:
    """Return seconds a call of each round, memory, and what was compiled, of each subject."""
    images = settings.images()
    labels = settings.place(torch.arange(settings.batch) % 2)
    memories: dict[Subject, Memory | None] = {}
    graphs: dict[Subject, dict[str, int] | None] = {}
    turns = {}
    for subject, model in models.items():
        model.train(mode == "train")
        optimizer = AdamW(model.parameters(), lr=1e-5, fused=True) if mode == "train" else None
        runnable = model if subject in eager else settings.compiled(model)
        call: Callable[[], Any] = (
            eval_call(runnable, images, settings)
            if optimizer is None
            else train_call(runnable, images, labels, optimizer, settings)
        )
        say(f"{mode}: warm-up of {subject.label}")
        with _counted(settings) as graphs[subject]:
            for _ in range(WARM_UP_CALLS):
                call()
        # CUDA graphs keep their memory in pools that the allocator does not count as in use.
        pooled = settings.on_cuda and settings.compile == "max-autotune"
        standing = [*tensors_of(model, optimizer), images, labels]
        memories[subject] = None if pooled else memory(call, standing, settings.torch_device)
        turns[subject] = timed(call, settings.seconds)
    seconds = alternate(turns, settings.rounds, lambda line: say(f"{mode}: {line}"))
    return seconds, memories, graphs


@contextmanager
def _counted(settings: Settings) -> Iterator[dict[str, int] | None]:
    """Count graphs and graph breaks of what is compiled within."""
    if settings.compile == "none":
        yield None
        return
    from torch._dynamo.utils import counters

    counters.clear()
    found: dict[str, int] = {}
    yield found
    found["graphs"] = counters["stats"]["unique_graphs"]
    found["graph_breaks"] = sum(counters["graph_break"].values())


def _cost(model: nn.Module, size: int) -> ModelCost | None:
    """Return the cost of a model; None for other code's that can't run without values."""
    try:
        return model_cost(model, size)
    except (RuntimeError, NotImplementedError):
        return None


def _row(
    subject: Subject,
    mode: str,
    seconds: Sequence[float],
    cost: ModelCost | None,
    settings: Settings,
    ceiling: Ceiling,
) -> Row:
    rate = settings.batch / spread(seconds).median
    passes = _TRAIN_PASSES if mode == "train" else 1
    share = None if cost is None else passes * cost.macs * rate / ceiling.macs_per_second
    return {
        "subject": subject.label,
        "mode": mode,
        "seconds": list(seconds),
        "images_per_second": rate,
        "ms_per_image": 1e3 / rate,
        "parameters": None if cost is None else cost.parameters,
        "macs": None if cost is None else cost.macs,
        "spectral_macs": None if cost is None else cost.spectral_macs,
        "ceiling_share": share,
    }


@torch.inference_mode()
def _differences(
    models: Mapping[Subject, nn.Module], pairs: Pairs, settings: Settings
) -> dict[tuple[Subject, Subject], float]:
    """Compare the logits of pairs that share their weights: they have to be the same function."""
    images = settings.images(batch=min(settings.batch, 2))
    logits: dict[Subject, Tensor] = {}
    found = {}
    for pair in pairs:
        if pair[0].name == pair[1].name:
            for subject in pair:
                if subject not in logits:
                    logits[subject] = models[subject].eval()(images)
            ours, theirs = (logits[subject] for subject in pair)
            found[pair] = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    return found
