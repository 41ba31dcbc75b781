"""Frequency response of random convolutions beside random attention, as in SPANetV2's Fig. 1.

A mixer on N = H·W tokens is a matrix C, y = C x. With the modes U of a graph (`graphs`), its
response at frequency λ_i is (Uᵀ C U)_ii: how much of mode i comes back as mode i; what is off the
diagonal leaks into other modes. Modes of one eigenvalue are an arbitrary basis of its eigenspace,
so the response is averaged over each eigenspace, which no choice of basis changes.

The figure's caption (arXiv:2503.23947): random weights, 16×16 patches; as the kernel grows, the
cut-off frequency moves towards one, more like a low-pass filter, akin to self-attention. It leaves
open which kernels are drawn (`Operator`), whose frequencies are meant (`Window`), and how tokens at
the border are connected (`Connectivity`). `READINGS` lists the combinations that matter, and
`test_claim` tests the caption under each.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float

from spanet_lightning.analysis.figures import Curve, Figure, Panel, in_rows
from spanet_lightning.analysis.graphs import Connectivity, GraphSpectrum, window_spectrum
from spanet_lightning.errors import ConfigError, invalid, invalid_choice

KERNELS = (3, 7, 11, 15)

HALF_POWER = 0.5**0.5
"""Half of the power, as an amplitude."""

Operator = Literal["average", "kernel", "signed"]
"""How a k×k convolution is drawn.

"average": weights of U(0, 1); every row of C sums to 1, as in attention, so that a token at the
border averages over fewer. "kernel": the same, but the kernel sums to 1, and zeros are beyond the
border. "signed": weights of N(0, 1), not normalised: no average, as most trained kernels.
"""

Window = Literal["own", "grid"]
"""Whose frequencies: those of the graph of the mixer's own window ("own"), or, for all mixers,
those of the 3×3 window ("grid")."""


@dataclass(frozen=True)
class Reading:
    """One reading of the caption.

    Attributes:
        operator: How kernels are drawn.
        window: Whose frequencies.
        connectivity: How tokens are connected.
    """

    operator: Operator = "average"
    window: Window = "own"
    connectivity: Connectivity = "zero"

    def __post_init__(self) -> None:
        """Reject unknown values."""
        kinds = (("operator", Operator), ("window", Window), ("connectivity", Connectivity))
        for key, kind in kinds:
            if getattr(self, key) not in get_args(kind):
                raise invalid_choice(key, getattr(self, key), get_args(kind))


READINGS: Mapping[str, Reading] = {
    "default": Reading(),
    "torus": Reading(connectivity="torus"),
    "no self-loops": Reading(connectivity="zero_no_loops"),
    "torus, no self-loops": Reading(connectivity="torus_no_loops"),
    "kernel sums to 1": Reading("kernel"),
    "signed weights": Reading("signed"),
    "signed weights, torus": Reading("signed", connectivity="torus"),
    "frequencies of the 3×3 grid": Reading(window="grid"),
}


@dataclass(frozen=True)
class Response:
    """The response of one mixer over random draws, or over images.

    Attributes:
        name: Of the mixer.
        frequencies: (L,) distinct eigenvalues of its graph.
        multiplicities: (L,) dimension of each eigenspace.
        draws: (D, L) the response of each draw.
    """

    name: str
    frequencies: Float[np.ndarray, " l"]
    multiplicities: Float[np.ndarray, " l"]
    draws: Float[np.ndarray, "d l"]

    @property
    def mean(self) -> Float[np.ndarray, " l"]:
        """Mean over draws of the magnitude."""
        mean: Float[np.ndarray, " l"] = np.abs(self.draws).mean(0)
        return mean

    def cut_offs(self, *, interpolate: bool = False) -> Float[np.ndarray, " d"]:
        """Return the cut-off frequency of each draw."""
        found = [cut_off(self.frequencies, draw, interpolate=interpolate) for draw in self.draws]
        return np.array(found)

    def high_over_low(self) -> Float[np.ndarray, " d"]:
        """Return the ratio of energies of each draw."""
        parts = (self.frequencies, self.multiplicities)
        return np.array([high_over_low(*parts, draw) for draw in self.draws])


def diagonal_response(
    matrix: Float[np.ndarray, "n n"], spectrum: GraphSpectrum
) -> Float[np.ndarray, " l"]:
    """Return the response of a mixing matrix at each distinct frequency of a graph."""
    return spectrum.average(np.einsum("ni,ni->i", spectrum.modes, matrix @ spectrum.modes))


def full_response(
    matrix: Float[np.ndarray, "n n"], spectrum: GraphSpectrum
) -> Float[np.ndarray, "n n"]:
    """Return Uᵀ C U: how much of each mode (column) comes out as each other (row)."""
    whole: Float[np.ndarray, "n n"] = spectrum.modes.T @ matrix @ spectrum.modes
    return whole


def cut_off(
    frequencies: Float[np.ndarray, " l"],
    values: Float[np.ndarray, " l"],
    *,
    interpolate: bool = False,
) -> float:
    """Return the frequency at which a response falls below half of its power at frequency 0.

    Args:
        frequencies: In ascending order.
        values: The response; its sign does not matter.
        interpolate: Return where the line between two eigenvalues crosses half power, instead of
            the first eigenvalue below it.

    Returns:
        The frequency; infinity where the response never falls so low.
    """
    size = np.abs(values)
    limit = HALF_POWER * size[0]
    below = np.flatnonzero(size < limit)
    if len(below) == 0:
        return float("inf")
    i = int(below[0])
    if not interpolate:
        return float(frequencies[i])
    share = (size[i - 1] - limit) / (size[i - 1] - size[i])
    return float(frequencies[i - 1] + share * (frequencies[i] - frequencies[i - 1]))


def high_over_low(
    frequencies: Float[np.ndarray, " l"],
    multiplicities: Float[np.ndarray, " l"],
    values: Float[np.ndarray, " l"],
) -> float:
    """Return the mean energy |response|² of a mode in the upper half of the band over the lower's.

    The band is [0, largest eigenvalue] of the graph itself, since a complete graph's ends at 1 and
    others' at up to 2. A flat response gives 1, a low-pass filter less.
    """
    high = frequencies > frequencies[-1] / 2
    energy = values**2 * multiplicities
    low = energy[~high].sum() / multiplicities[~high].sum()
    upper = energy[high].sum() / multiplicities[high].sum() if high.any() else 0.0
    return float(upper / low) if low > 0 else float("inf")


def convolution_matrix(
    kernel: Float[np.ndarray, "k l"],
    height: int,
    width: int,
    connectivity: Connectivity = "zero",
    operator: Operator = "signed",
) -> Float[np.ndarray, "n n"]:
    """Return the matrix of a convolution (cross-correlation, as in torch) on H×W tokens.

    Args:
        kernel: Its weights, sides odd. On a torus a kernel wider than the grid wraps around.
        height: Rows of tokens.
        width: Columns of tokens.
        connectivity: What is beyond the border.
        operator: What is normalised; "signed" is nothing.
    """
    if operator == "kernel":
        kernel = kernel / kernel.sum()
    k, m = kernel.shape
    matrix = np.zeros((height, width, height, width))
    y, x = np.arange(height)[:, None], np.arange(width)[None, :]
    for a, b in itertools.product(range(k), range(m)):
        to_y, to_x = np.broadcast_arrays(y + a - k // 2, x + b - m // 2)
        from_y, from_x = np.broadcast_arrays(y, x)
        if connectivity.startswith("torus"):
            to_y, to_x = to_y % height, to_x % width
        inside = (to_y >= 0) & (to_y < height) & (to_x >= 0) & (to_x < width)
        at = (from_y[inside], from_x[inside], to_y[inside], to_x[inside])
        np.add.at(matrix, at, kernel[a, b])
    flat = matrix.reshape(height * width, height * width)
    return flat / flat.sum(1, keepdims=True) if operator == "average" else flat


def draw_attention(
    rng: np.random.Generator, tokens: int, dim: int = 32
) -> Float[np.ndarray, "n n"]:
    """Draw the matrix of a self-attention head at initialisation: rows are probabilities.

    The logits are X W_q (X W_k)ᵀ / √dim, with X of N(0, 1) and weights of variance 1/dim.
    """
    x = rng.standard_normal((tokens, dim))
    query, key = (x @ rng.standard_normal((dim, dim)) / np.sqrt(dim) for _ in range(2))
    logits = query @ key.T / np.sqrt(dim)
    weights = np.exp(logits - logits.max(1, keepdims=True))
    shares: Float[np.ndarray, "n n"] = weights / weights.sum(1, keepdims=True)
    return shares


def draw_responses(
    kernels: Sequence[int] = KERNELS,
    side: int = 16,
    draws: int = 64,
    reading: Reading | None = None,
    seed: int = 0,
) -> list[Response]:
    """Draw convolutions of each kernel size, and attention, and return their responses.

    Args:
        kernels: Odd sides, in ascending order.
        side: Rows and columns of tokens.
        draws: Random draws of each mixer.
        reading: Of the caption; default: `Reading()`.
        seed: Of all draws.

    Returns:
        One response per kernel size, then that of attention.

    Raises:
        ConfigError: If an argument is out of range.
    """
    _check(kernels, side, draws)
    reading = reading or Reading()
    found = []
    for kernel in (*kernels, None):
        spectrum = _spectrum(kernel, side, reading)
        rows = [diagonal_response(c, spectrum) for c in _draw(kernel, side, draws, reading, seed)]
        counts = spectrum.multiplicities.astype(float)
        found.append(Response(_name(kernel), spectrum.frequencies, counts, np.stack(rows)))
    return found


def mean_full_response(
    kernel: int | None, side: int, draws: int, reading: Reading, seed: int = 0
) -> np.ndarray:
    """Return the mean over draws of |Uᵀ C U|, (N, N), of a kernel size or of attention (`None`)."""
    spectrum = _spectrum(kernel, side, reading)
    matrices = _draw(kernel, side, draws, reading, seed)
    total: np.ndarray = sum(np.abs(full_response(c, spectrum)) for c in matrices)
    return total / draws


def test_claim(label: str, found: Sequence[Response]) -> dict[str, Any]:
    """Test the caption by the responses of growing kernels and, last, of attention.

    Returns:
        A row: the median cut-off frequency at half power of each mixer, whether it grows strictly
        with the kernel up to at most that of attention; and the same for interpolated cut-offs,
        which tell a growing cut-off from a growing gap between eigenvalues.
    """
    row: dict[str, Any] = {"reading": label}
    for suffix, interpolate in (("", False), (" interpolated", True)):
        cuts = [float(np.median(one.cut_offs(interpolate=interpolate))) for one in found]
        names = [one.name.removeprefix("convolution ").removeprefix("self-") for one in found]
        row |= {f"{name}{suffix}": cut for name, cut in zip(names, cuts, strict=True)}
        growing = all(a < b for a, b in itertools.pairwise(cuts[:-1]))
        holds = growing and max(cuts[:-1]) <= cuts[-1] + 1e-9
        row[f"holds{suffix}"] = "yes" if holds else "no"
    return row


test_claim.__test__ = False  # type: ignore[attr-defined]  # not one of pytest's


def _name(kernel: int | None) -> str:
    return "self-attention" if kernel is None else f"convolution {kernel}×{kernel}"


def _check(kernels: Sequence[int], side: int, draws: int) -> None:
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


def _spectrum(kernel: int | None, side: int, reading: Reading) -> GraphSpectrum:
    window = 3 if reading.window == "grid" else kernel
    return window_spectrum(side, side, window, reading.connectivity)


def _draw(
    kernel: int | None, side: int, draws: int, reading: Reading, seed: int
) -> Iterator[np.ndarray]:
    """Yield random matrices of a kernel size, or of attention; each has its own random numbers."""
    rng = np.random.default_rng((seed, 0 if kernel is None else kernel))
    for _ in range(draws):
        if kernel is None:
            yield draw_attention(rng, side * side)
            continue
        size = (kernel, kernel)
        signed = reading.operator == "signed"
        weights = rng.standard_normal(size) if signed else rng.random(size)
        yield convolution_matrix(weights, side, side, reading.connectivity, reading.operator)


# Figures


def response_figure(found: Sequence[Response], title: str) -> Figure:
    """Return the responses of random mixers, a panel each, and their cut-off frequencies."""
    peak = max(one.mean.max() for one in found)
    panels: list[Panel] = []
    rows: list[dict[str, Any]] = []
    for one in found:
        half = one.cut_offs()
        mean, spread = one.mean, np.abs(one.draws).std(0)
        cut = float(np.median(half))
        known = bool(np.isfinite(cut))
        panels.append(
            Panel(
                one.name,
                (
                    Curve(
                        one.frequencies, mean, low=np.maximum(mean - spread, 0), high=mean + spread
                    ),
                ),
                xlabel="frequency (eigenvalue λ)",
                ylabel="" if len(panels) % 3 else "|response|",
                xlim=(-0.04, 1.5),
                ylim=(0, 1.08 * peak),
                vlines=((cut, 1),) if known else (),
                note=f"cut-off {cut:.3f}" if known else "",
            )
        )
        rows.append(
            {
                "mixer": one.name,
                "draws": len(one.draws),
                "cut_off_half_power_median": cut,
                "cut_off_half_power_q1": float(np.percentile(half, 25, method="nearest")),
                "cut_off_half_power_q3": float(np.percentile(half, 75, method="nearest")),
                "high_over_low_median": float(np.median(one.high_over_low())),
            }
        )
    shown = [(i, row) for i, row in enumerate(rows) if np.isfinite(row["cut_off_half_power_q3"])]
    x = np.array([i for i, _ in shown])
    median, low, high = (
        np.array([row[f"cut_off_half_power_{key}"] for _, row in shown])
        for key in ("median", "q1", "q3")
    )
    names = [one.name.removeprefix("convolution ").removeprefix("self-") for one in found]
    ticks = tuple((float(i), name) for i, name in enumerate(names))
    summary = Curve(x, median, series=1, low=low, high=high, style="bars")
    top = 1.1 * max(1.0, peak, *median)
    panels.append(Panel("median cut-off λ", (summary,), xticks=ticks, ylim=(0, top)))
    return Figure(title, in_rows(panels), letters=True, table=rows)


def matrix_figure(matrices: Sequence[np.ndarray], names: Sequence[str], title: str) -> Figure:
    """Return |Uᵀ C U| of several mixers, in decibels."""
    panels = tuple(
        Panel(
            name,
            image=(20 * np.log10(np.maximum(matrix, 1e-4))).astype(np.float32),
            xlabel="mode in",
            ylabel="" if i else "mode out",
        )
        for i, (name, matrix) in enumerate(zip(names, matrices, strict=True))
    )
    return Figure(title, (panels,), colorbar="|UᵀCU|, dB", limits=(-60, 0), panel_size=(2.2, 2.3))


def claims_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Return the cut-off frequencies of each reading by kernel size, from rows of `test_claim`."""
    keys = [key for key in rows[0] if not key.startswith(("reading", "holds"))]
    plain = [key for key in keys if not key.endswith(" interpolated")]
    ticks = tuple((float(i), key) for i, key in enumerate(plain))
    panels = []
    for suffix, title in (
        ("", "first eigenvalue below half power"),
        (" interpolated", "interpolated"),
    ):
        curves = []
        for i, row in enumerate(rows):
            y = np.array([row[f"{key}{suffix}"] for key in plain])
            curves.append(Curve(np.arange(len(y), dtype=float), y, row["reading"], i))
        panels.append(Panel(title, tuple(curves), ylabel="cut-off λ", xticks=ticks))
    title = "Cut-off frequency by reading of the caption"
    size = (4.2, 2.9)
    return Figure(title, (tuple(panels),), legend="reading", panel_size=size, table=rows)
