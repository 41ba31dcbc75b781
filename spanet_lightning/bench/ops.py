"""The token mixers alone, at the shapes that they meet in a model, beside their floor.

The floor of a mixer is what the machine needs for its multiply-accumulates at the measured rate of
products, and for reading its input and writing its output once at the measured rate of copies. A
forward pass can't be faster than the larger of both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spanet_lightning.backbones import spanet, spanetv2
from spanet_lightning.bench.ceiling import Ceiling
from spanet_lightning.bench.models import WARM_UP_CALLS, Row, ratio
from spanet_lightning.bench.settings import Settings
from spanet_lightning.bench.subjects import Subject, build_all
from spanet_lightning.bench.timing import Say, alternate, spread, timed
from spanet_lightning.cost import model_cost

DIRECTIONS = ("forward", "forward+backward")


@dataclass(frozen=True)
class Site:
    """Where a mixer stands.

    Attributes:
        kind: "SPAM V1", "SPAM V2", "mixed attention" or "attention".
        stage: From 1 to 4.
        shape: (C, H, W) of what it gets.
        mixers: `spectral_impl` → mixer, all of the same weights; "-" for one without spectra.
    """

    kind: str
    stage: int
    shape: tuple[int, int, int]
    mixers: dict[str, nn.Module]

    @property
    def label(self) -> str:
        """What tables and records call it."""
        return f"{self.kind}, stage {self.stage}"


def measure_ops(
    subjects: Sequence[Subject],
    impls: Sequence[str],
    settings: Settings,
    ceiling: Ceiling,
    say: Say,
) -> tuple[list[Row], list[Row]]:
    """Measure the first mixer of each stage, all its implementations in alternation.

    Args:
        subjects: Our models; mixers that they share are measured once.
        impls: Values of `spectral_impl`; the first is compared with the others.
        settings: How.
        ceiling: The machine's rates.
        say: Is told how far it is.

    Returns:
        The `results` and `ratios` of the JSON document.
    """
    results, ratios = [], []
    for site in sites(subjects, impls, settings):
        say(site.label)
        channels, height, width = site.shape
        reference = next(iter(site.mixers.values()))
        macs = settings.batch * model_cost(reference, (height, width), channels).macs
        moved = 2 * settings.batch * channels * height * width * settings.product_dtype.itemsize
        floor = {
            "products": 1e3 * macs / ceiling.macs_per_second,
            "copy": 1e3 * moved / ceiling.bytes_per_second,
        }
        with settings.compiling(frozen=False):
            calls = {
                (impl, direction): _call(mixer, site, direction, settings)
                for impl, mixer in site.mixers.items()
                for direction in DIRECTIONS
            }
            for call in calls.values():
                for _ in range(WARM_UP_CALLS):
                    call()
            turns = {key: timed(call, settings.seconds) for key, call in calls.items()}
            seconds = alternate(turns, settings.rounds)
        for (impl, direction), values in seconds.items():
            results.append(
                {
                    "subject": site.label,
                    "mode": direction,
                    "seconds": values,
                    "kind": site.kind,
                    "stage": site.stage,
                    "shape": [settings.batch, *site.shape],
                    "impl": impl,
                    "ms": 1e3 * spread(values).median,
                    "macs": macs,
                    "floor_ms": floor if direction == "forward" else None,
                }
            )
        first, *others = site.mixers
        ratios += [
            ratio(
                f"{site.label}:{first}",
                f"{site.label}:{other}",
                direction,
                seconds[first, direction],
                seconds[other, direction],
            )
            for other in others
            for direction in DIRECTIONS
        ]
    return results, ratios


def sites(subjects: Sequence[Subject], impls: Sequence[str], settings: Settings) -> list[Site]:
    """Find the first mixer of each stage of some models, each kind and shape once.

    Args:
        subjects: Our models; a `spectral_impl` of theirs is not looked at.
        impls: The implementations to build.
        settings: Size and seed.
    """
    found: dict[tuple[str, tuple[int, int, int]], Site] = {}
    for subject in subjects:
        variants = [Subject(subject.name, impl) for impl in impls]
        models = build_all(variants, settings.size, settings.seed)
        models = {variant: settings.place(model) for variant, model in models.items()}
        first = models[variants[0]]
        per_impl = {str(v.impl): _first_mixers(model.eval()) for v, model in models.items()}
        shapes = _shapes(first, per_impl[impls[0]], settings.images(batch=1))
        for stage, (mixer, shape) in enumerate(zip(per_impl[impls[0]], shapes, strict=True)):
            kind = _kind(mixer)
            spectral = not isinstance(mixer, spanetv2.Attention)
            mixers = {i: m[stage] for i, m in per_impl.items()}
            if (kind, shape) not in found:
                found[kind, shape] = Site(
                    kind, stage + 1, shape, mixers if spectral else {"-": mixers[impls[0]]}
                )
    return list(found.values())


def _first_mixers(model: Any) -> list[nn.Module]:
    return [stage.blocks[0].mixer for stage in model.stages]


@torch.inference_mode()
def _shapes(
    model: nn.Module, mixers: Sequence[nn.Module], images: Tensor
) -> list[tuple[int, int, int]]:
    """Return the (C, H, W) that each mixer gets for an image."""
    shapes: list[tuple[int, int, int]] = []

    def look(_module: nn.Module, args: tuple[Tensor]) -> None:
        _, channels, height, width = args[0].shape
        shapes.append((channels, height, width))

    hooks = [mixer.register_forward_pre_hook(look) for mixer in mixers]
    model(images)
    for hook in hooks:
        hook.remove()
    return shapes


def _kind(mixer: nn.Module) -> str:
    if isinstance(mixer, spanet.SPAM):
        return "SPAM V1"
    if isinstance(mixer, spanetv2.Attention):
        return "attention" if mixer.local is None else "mixed attention"
    return "SPAM V2"


def _call(mixer: nn.Module, site: Site, direction: str, settings: Settings) -> Callable[[], Any]:
    """Return what runs a mixer once; the backward pass gives all gradients, and keeps none."""
    channels, height, width = site.shape
    generator = torch.Generator().manual_seed(settings.seed)
    shape = (settings.batch, channels, height, width)
    x = settings.place(torch.randn(shape, generator=generator))
    if isinstance(mixer, spanet.SPAM) and mixer.gates.impl == "fft":
        x = x.contiguous()  # what the official network gives it
    runnable = settings.compiled(mixer)
    if direction == "forward":

        def forward() -> Tensor:
            with torch.inference_mode(), settings.autocast():
                y: Tensor = runnable(x)
            return y

        return forward

    x.requires_grad_()
    wanted = [x, *mixer.parameters()]

    def both() -> tuple[Tensor, ...]:
        with settings.autocast():
            y: Tensor = runnable(x)
        return torch.autograd.grad(y, wanted, y.detach())

    return both
