"""Random convolutions of growing kernels beside random attention, as in SPANetV2's Fig. 1.

The figure's caption (arXiv:2503.23947): random weights, 16×16 patches; as the kernel grows the
cut-off frequency moves towards one, more like a low-pass filter, akin to self-attention. It leaves
much open. `Choices` names each thing, its default and the alternatives; `claim` tells under each
whether the cut-off of k = 3, 7, 11, 15 does increase towards attention's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from spanet_lightning.analysis.graphs import Boundary, window_spectrum
from spanet_lightning.analysis.mixing import (
    Rows,
    Scores,
    Weights,
    convolution,
    draw_attention,
    draw_kernel,
)
from spanet_lightning.analysis.response import (
    HALF_POWER,
    MINUS_3_DB,
    CutOff,
    Measure,
    Reference,
    Response,
    full_response,
    response,
)
from spanet_lightning.errors import ConfigError, invalid, invalid_choice

KERNELS = (3, 7, 11, 15)
SIDE = 16
DRAWS = 64

Graph = Literal["own", "grid"]
"""Whose frequencies a response is drawn over: those of the mixer's own window ("own"), or, for all
mixers, those of the 3×3 window ("grid")."""


@dataclass(frozen=True)
class Choices:
    """What the caption leaves open. The defaults make a convolution what attention is: an average.

    Attributes:
        boundary: "zero" (patches at the border have fewer neighbours) or "torus".
        self_loops: Whether a token is in its own window: it is, in both mixers.
        graph: Whose frequencies.
        weights: How kernels are drawn.
        rows: What is normalised; weights that change sign can't be.
        scores: What attention's softmax is of.
        channels: Kernels (and heads) over which one draw is averaged: a depthwise convolution has
            one a channel.
        measure: "diagonal", its magnitude; or "gain".
        average: Over eigenspaces; else over the basis that was found.
        rule: Which frequency is the cut-off.
        reference: What its level is a share of.
    """

    boundary: Boundary = "zero"
    self_loops: bool = True
    graph: Graph = "own"
    weights: Weights = "uniform"
    rows: Rows = "stochastic"
    scores: Scores = "qk"
    channels: int = 1
    measure: Measure = "diagonal"
    average: bool = True
    rule: CutOff = "first"
    reference: Reference = "dc"

    def __post_init__(self) -> None:
        """Refuse what is none of the choices."""
        kinds: dict[str, Any] = {
            "boundary": Boundary,
            "graph": Graph,
            "weights": Weights,
            "rows": Rows,
            "scores": Scores,
            "measure": Measure,
            "rule": CutOff,
            "reference": Reference,
        }
        for key, kind in kinds.items():
            if getattr(self, key) not in get_args(kind):
                raise invalid_choice(key, getattr(self, key), get_args(kind))
        if self.channels < 1:
            raise invalid("channels", self.channels, "an integer of at least 1")
        if self.weights in ("normal", "fan_in") and self.rows != "none":
            raise invalid("rows", self.rows, f"'none' with weights {self.weights!r}")


ALTERNATIVES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "torus": {"boundary": "torus"},
    "kernel's sum is 1, zeros beyond the border": {"rows": "kernel"},
    "no self-loops": {"self_loops": False},
    "torus, no self-loops": {"boundary": "torus", "self_loops": False},
    "softmax weights": {"weights": "softmax"},
    "normal weights": {"weights": "normal", "rows": "none"},
    "normal weights, torus": {"weights": "normal", "rows": "none", "boundary": "torus"},
    "torch's default weights": {"weights": "fan_in", "rows": "none"},
    "normal weights, 64 channels averaged": {"weights": "normal", "rows": "none", "channels": 64},
    "normal weights, gain": {"weights": "normal", "rows": "none", "measure": "gain"},
    "8 channels averaged": {"channels": 8},
    "gain instead of diagonal": {"measure": "gain"},
    "gain, torus": {"measure": "gain", "boundary": "torus"},
    "no average over eigenspaces": {"average": False},
    "no average over eigenspaces, torus": {"average": False, "boundary": "torus"},
    "share of the largest response": {"reference": "largest"},
    "cut-off interpolated": {"rule": "interpolated"},
    "cut-off interpolated, torus": {"rule": "interpolated", "boundary": "torus"},
    "last cut-off": {"rule": "last"},
    "independent attention scores": {"scores": "iid"},
    "one grid's frequencies for all": {"graph": "grid"},
}
"""What of `Choices` differs from the defaults in each row of the table."""


def draw_responses(
    kernels: Sequence[int] = KERNELS,
    side: int = SIDE,
    draws: int = DRAWS,
    choices: Choices | None = None,
    seed: int = 0,
) -> list[Response]:
    """Draw convolutions of each kernel size, and attention, and return their responses.

    Args:
        kernels: Odd sides, in ascending order.
        side: Rows and columns of tokens.
        draws: Random draws of each mixer.
        choices: What the caption leaves open; default: `Choices()`.
        seed: Of all draws.

    Returns:
        One response a kernel size, then attention's.

    Raises:
        ConfigError: If an argument is outside what is stated here.
    """
    check(kernels, side, draws)
    choices = choices or Choices()
    found = []
    for kernel in (*kernels, None):
        spectrum = _spectrum(kernel, side, choices)
        rng = np.random.default_rng((seed, 0 if kernel is None else kernel))
        rows = [
            np.mean(
                [
                    response(one, spectrum, choices.measure, average=choices.average)
                    for one in _mixers(rng, kernel, side, choices)
                ],
                axis=0,
            )
            for _ in range(draws)
        ]
        whole = choices.average
        frequencies = spectrum.frequencies if whole else spectrum.eigenvalues
        counts = spectrum.multiplicities if whole else np.ones(len(frequencies))
        found.append(Response(name(kernel), frequencies, counts.astype(float), np.stack(rows)))
    return found


def mean_full_response(
    kernel: int | None, side: int, draws: int, choices: Choices, seed: int = 0
) -> np.ndarray:
    """Return the mean over draws of |Uᵀ C U|, (N, N), of a kernel size or of attention (`None`)."""
    spectrum = _spectrum(kernel, side, choices)
    rng = np.random.default_rng((seed, 0 if kernel is None else kernel))
    total = np.zeros((side * side, side * side))
    for _ in range(draws):
        for one in _mixers(rng, kernel, side, choices):
            total += np.abs(full_response(one, spectrum))
    mean: np.ndarray = total / (draws * choices.channels)
    return mean


@dataclass(frozen=True)
class Claim:
    """Whether the caption's claim holds under some choices.

    Attributes:
        label: Of the choices.
        changes: What differs from the defaults.
        cut_offs: Median cut-off frequency at half power of each mixer, attention last.
        cut_offs_3db: The same at -3 dB.
        high_over_low: Median ratio of energies of each mixer.
        increasing: Whether the cut-off grows with the kernel, strictly.
        towards_attention: Whether, besides, no kernel's is beyond attention's.
    """

    label: str
    changes: dict[str, Any]
    cut_offs: tuple[float, ...]
    cut_offs_3db: tuple[float, ...]
    high_over_low: tuple[float, ...]
    increasing: bool
    towards_attention: bool


def claim(label: str, changes: dict[str, Any], found: Sequence[Response]) -> Claim:
    """Judge the claim by the responses of growing kernels and, last, of attention."""
    choices = replace(Choices(), **changes)
    rule = choices.rule, choices.reference
    cuts = [float(np.median(one.cut_offs(HALF_POWER, *rule))) for one in found]
    cuts_3db = [float(np.median(one.cut_offs(MINUS_3_DB, *rule))) for one in found]
    ratios = [float(np.median(one.high_over_low())) for one in found]
    increasing = all(a < b for a, b in itertools.pairwise(cuts[:-1]))
    reached = cuts[-1] + 1e-9
    return Claim(
        label,
        dict(changes),
        tuple(cuts),
        tuple(cuts_3db),
        tuple(ratios),
        increasing,
        increasing and all(cut <= reached for cut in cuts[:-1]),
    )


def claims(
    alternatives: dict[str, dict[str, Any]] | None = None,
    kernels: Sequence[int] = KERNELS,
    side: int = SIDE,
    draws: int = DRAWS,
    seed: int = 0,
) -> Iterator[Claim]:
    """Yield the claim under each of some alternatives (default: `ALTERNATIVES`)."""
    for label, changes in (ALTERNATIVES if alternatives is None else alternatives).items():
        choices = replace(Choices(), **changes)
        yield claim(label, changes, draw_responses(kernels, side, draws, choices, seed))


def as_row(one: Claim) -> dict[str, Any]:
    """Return a claim as a row of a table."""
    row = asdict(one)
    row["changes"] = ", ".join(f"{k}={v}" for k, v in one.changes.items())
    return row


def name(kernel: int | None) -> str:
    """Name a mixer by its kernel size."""
    return "self-attention" if kernel is None else f"convolution {kernel}×{kernel}"


def check(kernels: Sequence[int], side: int, draws: int) -> None:
    """Raise where nothing could be drawn.

    Raises:
        ConfigError: If a kernel is not odd, they don't ascend, or a number is too small.
    """
    if not 2 <= side <= 40:
        raise invalid("side", side, "from 2 to 40 tokens: matrices have side⁴ values")
    if draws < 1:
        raise invalid("draws", draws, "an integer of at least 1")
    if not kernels or list(kernels) != sorted(set(kernels)):
        raise invalid("kernels", list(kernels), "different sizes in ascending order")
    for kernel in kernels:
        if kernel < 1 or kernel % 2 == 0:
            raise invalid("kernels", kernel, "odd sizes")
        if kernel > 2 * side - 1:
            raise ConfigError(
                f"kernels: {kernel} is wider than what {side} tokens can fill; "
                f"at most {2 * side - 1}"
            )


def _spectrum(kernel: int | None, side: int, choices: Choices) -> Any:
    window = 3 if choices.graph == "grid" else kernel
    return window_spectrum(side, side, window, choices.boundary, self_loops=choices.self_loops)


def _mixers(
    rng: np.random.Generator, kernel: int | None, side: int, choices: Choices
) -> Iterator[np.ndarray]:
    """Yield the matrices over which one draw is averaged."""
    for _ in range(choices.channels):
        if kernel is None:
            yield draw_attention(rng, side * side, scores=choices.scores)
        else:
            weights = draw_kernel(rng, kernel, choices.weights)
            yield convolution(weights, side, side, choices.boundary, choices.rows)
