"""How a time should grow with the number of pixels, and how well it does.

For n = H·W pixels of a square image, an operator's time grows as

    n           convolutions, linear layers, norms; the SPF in a real basis of fixed radius
    n·log2 n    an FFT
    n^1.5       a product with complete real bases: (H + W)·n multiplications
    n²          attention over all tokens

`fit` finds the times of these parts, none of them negative, that explain the measured ones best;
`Fit.held_out_error` is the harder test: the largest size, predicted from all smaller ones. What a
call costs whatever is in it has no part of its own: batches shrink as images grow, so its share for
each image grows as n, too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from spanet_lightning.backbones import SPANet, SPANetV2, spanetv2
from spanet_lightning.bench.subjects import Subject
from spanet_lightning.cost import model_cost

TERMS: dict[str, Callable[[float], float]] = {
    "n": lambda n: n,
    "n log n": lambda n: n * math.log2(n),
    "n^1.5": lambda n: n**1.5,
    "n²": lambda n: n**2,
}


@dataclass(frozen=True)
class Point:
    """A measurement.

    Attributes:
        pixels: n of an image.
        seconds: For one image.
    """

    pixels: int
    seconds: float


@dataclass(frozen=True)
class Fit:
    """Times of the predicted parts.

    Attributes:
        terms: Name of a part → seconds for one unit of it.
        largest_error: Of any measurement, relative.
        held_out_error: Of the largest size, predicted from the others, relative; `None` where they
            are too few.
    """

    terms: dict[str, float]
    largest_error: float
    held_out_error: float | None

    def seconds(self, pixels: float) -> float:
        """Return the predicted time of an image."""
        return sum(c * TERMS[name](pixels) for name, c in self.terms.items())

    def shares(self, pixels: float) -> dict[str, float]:
        """Return the share of each part of the predicted time of an image."""
        whole = self.seconds(pixels)
        return {name: c * TERMS[name](pixels) / whole for name, c in self.terms.items()}


def predicted_terms(model: nn.Module, subject: Subject) -> tuple[str, ...]:
    """Return the parts that a model's time should have.

    Args:
        model: The model.
        subject: Tells how its spectra are computed.
    """
    terms = ["n"]
    impl = subject.impl or "auto"
    if isinstance(model, SPANet):  # "auto" is the basis at every radius that is published
        terms += ["n log n"] if impl in ("fft", "rfft") else []
    elif isinstance(model, SPANetV2) and any(isinstance(m, spanetv2.SPAM) for m in model.modules()):
        terms += ["n log n"] if impl in ("fft", "rfft", "auto") else []
        terms += ["n^1.5"] if impl in ("real", "auto") else []  # "auto" changes with the size
    if model_cost(model).attention_macs:
        terms.append("n²")
    return tuple(terms)


def fit(points: Sequence[Point], names: Sequence[str]) -> Fit:
    """Fit the predicted parts to measurements, relative errors squared.

    Args:
        points: The measurements, at least as many as parts.
        names: Which parts, of `TERMS`.
    """
    terms = _non_negative(points, names)
    found = Fit(terms, 0.0, None)
    held_out = None
    if len(points) > len(names) + 1:
        last = max(points, key=lambda p: p.pixels)
        rest = _non_negative([p for p in points if p is not last], names)
        held_out = _error(Fit(rest, 0.0, None), last)
    return Fit(terms, max(abs(_error(found, p)) for p in points), held_out)


def _error(found: Fit, point: Point) -> float:
    return found.seconds(point.pixels) / point.seconds - 1


def _non_negative(points: Sequence[Point], names: Sequence[str]) -> dict[str, float]:
    """Least squares with no negative part: the best of all subsets of parts, which are few."""
    best, best_terms = math.inf, dict.fromkeys(names, 0.0)
    for count in range(1, min(len(names), len(points)) + 1):
        for subset in itertools.combinations(names, count):
            rows = [[TERMS[name](p.pixels) / p.seconds for name in subset] for p in points]
            matrix = torch.tensor(rows, dtype=torch.float64)
            scale = matrix.norm(dim=0)  # columns differ by many orders of magnitude
            ones = torch.ones(len(points), 1, dtype=torch.float64)
            scaled = torch.linalg.lstsq(matrix / scale, ones, driver="gelsd").solution
            error = (matrix / scale @ scaled - ones).square().sum().item()
            if (scaled >= 0).all() and error < best:
                coefficients = (scaled.squeeze(1) / scale).tolist()
                best = error
                best_terms = {
                    **dict.fromkeys(names, 0.0),
                    **dict(zip(subset, coefficients, strict=True)),
                }
    return best_terms
