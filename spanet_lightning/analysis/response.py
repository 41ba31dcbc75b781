"""Frequency response of a mixing matrix on a graph, and the numbers that sum it up.

With the graph's modes U (`graphs`), the response of a mixing matrix C at frequency λ_i is
(Uᵀ C U)_ii: how much of mode i comes back as mode i. Off the diagonal is what leaks into others.

Modes of one eigenvalue are a basis of its eigenspace, and any other basis is as good; so the
response is averaged over each eigenspace (its trace, divided by its dimension), which no choice of
basis changes. `Measure` "gain" is the other invariant: the root of the mean of ‖C u_i‖², the energy
that comes out of a mode wherever it goes. On a torus, where a convolution is diagonal in the
Fourier basis, they are the mean real part and the root mean square of its DFT over the eigenspace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from spanet_lightning.analysis.graphs import GraphSpectrum
from spanet_lightning.errors import invalid_choice

Measure = Literal["diagonal", "gain"]
"""What of C is measured at a mode u: "diagonal", uᵀ C u; "gain", ‖C u‖."""

CutOff = Literal["first", "interpolated", "last"]
"""Where a response is cut off, as a frequency.

"first": the first eigenvalue whose response is below the level. "interpolated": where the straight
line between that one and the one before crosses the level, as if there were frequencies between
eigenvalues. "last": the first eigenvalue from which on the response stays below.
"""

Reference = Literal["dc", "largest"]
"""What a level is a share of: the response at λ = 0, or the largest."""

HALF_POWER = 0.5**0.5
"""Half of the power, as an amplitude."""

MINUS_3_DB = 10 ** (-3 / 20)
"""-3 dB as an amplitude: 0.70795, half power being -3.0103 dB."""


def response(
    matrix: Float[np.ndarray, "n n"],
    spectrum: GraphSpectrum,
    measure: Measure = "diagonal",
    *,
    average: bool = True,
) -> Float[np.ndarray, " l"]:
    """Return the response of a mixing matrix at each frequency of a graph.

    Args:
        matrix: C, tokens in row-major order.
        spectrum: The graph's frequencies and modes.
        measure: What is measured. "diagonal" keeps its sign.
        average: Over each eigenspace; else one value a mode, which depends on the basis that was
            found.

    Returns:
        One value a distinct eigenvalue, or, without averaging, one a mode.
    """
    if measure not in get_args(Measure):
        raise invalid_choice("measure", measure, get_args(Measure))
    mixed = matrix @ spectrum.modes
    if measure == "diagonal":
        values = np.einsum("ni,ni->i", spectrum.modes, mixed)
        return spectrum.average(values) if average else values
    power = np.einsum("ni,ni->i", mixed, mixed)
    gain: Float[np.ndarray, " l"] = np.sqrt(spectrum.average(power) if average else power)
    return gain


def full_response(
    matrix: Float[np.ndarray, "n n"], spectrum: GraphSpectrum
) -> Float[np.ndarray, "n n"]:
    """Return Uᵀ C U: how much of each mode (column) comes out as each other (row)."""
    whole: Float[np.ndarray, "n n"] = spectrum.modes.T @ matrix @ spectrum.modes
    return whole


def cut_off(
    frequencies: Float[np.ndarray, " l"],
    values: Float[np.ndarray, " l"],
    level: float = HALF_POWER,
    rule: CutOff = "first",
    reference: Reference = "dc",
) -> float:
    """Return the frequency at which the magnitude of a response falls below a level.

    Args:
        frequencies: In ascending order.
        values: The response; its sign does not matter.
        level: Share of the reference, as an amplitude.
        rule: Which frequency is meant.
        reference: What the level is a share of.

    Returns:
        The frequency; infinity where the response never falls below, or stays above to the end.
    """
    for key, value, kind in (("rule", rule, CutOff), ("reference", reference, Reference)):
        if value not in get_args(kind):
            raise invalid_choice(key, value, get_args(kind))
    size = np.abs(values)
    limit = level * (size[0] if reference == "dc" else size.max())
    below = size < limit
    if rule == "last":
        above = np.flatnonzero(~below)
        start = 0 if len(above) == 0 else int(above[-1]) + 1
        return float(frequencies[start]) if start < len(frequencies) else float("inf")
    # What comes before the reference's own frequency is not yet cut off.
    begin = 0 if reference == "dc" else int(size.argmax())
    found = np.flatnonzero(below[begin:])
    if len(found) == 0:
        return float("inf")
    at = begin + int(found[0])
    if rule == "first" or at == 0:
        return float(frequencies[at])
    share = (size[at - 1] - limit) / (size[at - 1] - size[at])
    return float(frequencies[at - 1] + share * (frequencies[at] - frequencies[at - 1]))


def high_over_low(
    frequencies: Float[np.ndarray, " l"],
    multiplicities: Float[np.ndarray, " l"],
    values: Float[np.ndarray, " l"],
) -> float:
    """Return the mean energy |response|² of a mode in the upper half of the band over the lower's.

    The band is [0, largest eigenvalue] of the graph itself, since a complete graph's ends at 1 and
    others' up to 2. A flat response gives 1, a low-pass filter less.
    """
    middle = frequencies[-1] / 2
    high = frequencies > middle
    energy = values**2 * multiplicities
    low = energy[~high].sum() / multiplicities[~high].sum()
    upper = energy[high].sum() / multiplicities[high].sum() if high.any() else 0.0
    return float(upper / low) if low > 0 else float("inf")


@dataclass(frozen=True)
class Response:
    """The response of one mixer over random draws, or over channels.

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

    @property
    def spread(self) -> Float[np.ndarray, " l"]:
        """Standard deviation over draws of the magnitude."""
        spread: Float[np.ndarray, " l"] = np.abs(self.draws).std(0)
        return spread

    def cut_offs(
        self, level: float = HALF_POWER, rule: CutOff = "first", reference: Reference = "dc"
    ) -> Float[np.ndarray, " d"]:
        """Return the cut-off frequency of each draw."""
        found = [cut_off(self.frequencies, one, level, rule, reference) for one in self.draws]
        return np.array(found)

    def high_over_low(self) -> Float[np.ndarray, " d"]:
        """Return the ratio of energies of each draw."""
        parts = (self.frequencies, self.multiplicities)
        return np.array([high_over_low(*parts, one) for one in self.draws])
