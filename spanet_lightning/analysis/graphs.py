"""Window graphs on a grid of tokens, and their frequencies.

A token mixer with a k×k window connects each of the N = H·W tokens to those in its window. The
normalised Laplacian L = I - D^(-1/2) A D^(-1/2) = U Λ Uᵀ of that graph has eigenvalues from 0
(constant over tokens, up to their degree) to at most 2 (alternating between neighbours): the
graph's frequencies (SPANetV2, arXiv:2503.23947, Fig. 1). The graph of attention is complete: all
its modes but the constant one have the same frequency.

With self-loops the adjacency of a k×k window is the Kronecker product of those of a row and of a
column, and so are its modes: no N×N eigenproblem has to be solved. On a torus, self-loops leave the
modes as they are and shift the frequencies.

Shape letters: N tokens, H×W the grid, L distinct eigenvalues.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from spanet_lightning.errors import invalid, invalid_choice

Connectivity = Literal["zero", "torus", "zero_no_loops", "torus_no_loops"]
"""Which tokens are neighbours at the border, and whether each is its own neighbour.

"zero": nothing is beyond the border. "torus": the opposite side is. "…_no_loops": the same, and a
token is not in its own window.
"""

LARGEST_DENSE = 2500
"""Tokens up to which a graph without product structure is decomposed as a dense matrix."""

_SAME = 1e-9  # closer eigenvalues are equal: rounding errors are about 1e-14


@dataclass(frozen=True)
class GraphSpectrum:
    """The frequencies and modes of a graph of H×W tokens.

    Attributes:
        eigenvalues: (N,) in ascending order.
        modes: (N, N), orthonormal columns, tokens in row-major order.
        first: (L,) where each eigenspace starts: modes of one eigenvalue are adjacent.
    """

    eigenvalues: Float[np.ndarray, " n"]
    modes: Float[np.ndarray, "n n"]
    first: Int[np.ndarray, " l"]

    @property
    def frequencies(self) -> Float[np.ndarray, " l"]:
        """The distinct eigenvalues."""
        distinct: Float[np.ndarray, " l"] = self.eigenvalues[self.first]
        return distinct

    @property
    def multiplicities(self) -> Int[np.ndarray, " l"]:
        """Dimension of each eigenspace."""
        return np.diff(np.append(self.first, len(self.eigenvalues)))

    def average(self, values: Float[np.ndarray, "*b n"]) -> Float[np.ndarray, "*b l"]:
        """Average values of modes over each eigenspace, which no choice of basis changes."""
        sums = np.add.reduceat(values, self.first, axis=-1)
        averaged: Float[np.ndarray, "*b l"] = sums / self.multiplicities
        return averaged


def window_adjacency(
    height: int, width: int, window: int | None, connectivity: Connectivity = "zero"
) -> Float[np.ndarray, "n n"]:
    """Return the adjacency matrix A of a window graph.

    Args:
        height: Rows of tokens.
        width: Columns of tokens.
        window: Side k of the window, odd; `None` is the complete graph.
        connectivity: Border and self-loops.

    Raises:
        ConfigError: If the window is even, or the connectivity unknown.
    """
    rows = _line_adjacency(height, window, connectivity)
    adjacency = np.kron(rows, _line_adjacency(width, window, connectivity))
    if connectivity.endswith("_no_loops"):
        np.fill_diagonal(adjacency, 0)
    return adjacency


def _line_adjacency(n: int, window: int | None, connectivity: str) -> Float[np.ndarray, "n n"]:
    """Return the adjacency of n tokens in a line, with self-loops."""
    if connectivity not in get_args(Connectivity):
        raise invalid_choice("connectivity", connectivity, get_args(Connectivity))
    if window is None:
        return np.ones((n, n))
    if window < 1 or window % 2 == 0:
        raise invalid("window", window, "an odd number of tokens, or None for the complete graph")
    i = np.arange(n)
    distance = np.abs(i[:, None] - i[None, :])
    if connectivity.startswith("torus"):
        distance = np.minimum(distance, n - distance)
    near: Float[np.ndarray, "n n"] = (distance <= window // 2).astype(np.float64)
    return near


def laplacian(adjacency: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """Return I - D^(-1/2) A D^(-1/2); a token without neighbours has 1 on the diagonal."""
    degree = adjacency.sum(1)
    scale = np.divide(1, np.sqrt(degree), out=np.zeros_like(degree), where=degree > 0)
    normalised: Float[np.ndarray, "n n"] = (
        np.eye(len(adjacency)) - scale[:, None] * adjacency * scale[None, :]
    )
    return normalised


@lru_cache(maxsize=16)
def window_spectrum(
    height: int, width: int, window: int | None, connectivity: Connectivity = "zero"
) -> GraphSpectrum:
    """Return the frequencies and modes of a window graph.

    Args:
        height: Rows of tokens.
        width: Columns of tokens.
        window: Side k of the window, odd; `None` is the complete graph.
        connectivity: Border and self-loops.

    Raises:
        ConfigError: If the window is even, or a graph without self-loops too large.
    """
    regular = connectivity.startswith("torus") or window is None
    loops = not connectivity.endswith("_no_loops")
    if not loops and not regular:
        if height * width > LARGEST_DENSE:
            accepted = f"self-loops for more than {LARGEST_DENSE} tokens"
            raise invalid("connectivity", connectivity, accepted)
        dense = laplacian(window_adjacency(height, width, window, connectivity))
        return _sorted(*np.linalg.eigh(dense))
    lines = [_line_adjacency(n, window, connectivity) for n in (height, width)]
    (u, rows), (v, columns) = (np.linalg.eigh(np.eye(len(a)) - laplacian(a)) for a in lines)
    smooth = np.kron(u, v)  # eigenvalues of D^(-1/2) A D^(-1/2)
    if not loops:
        # All degrees are d: taking I from A takes 1 from its eigenvalues, d·smooth.
        degree = lines[0][0].sum() * lines[1][0].sum()
        smooth = (degree * smooth - 1) / (degree - 1) if degree > 1 else np.zeros_like(smooth)
    return _sorted(1 - smooth, np.kron(rows, columns))


def _sorted(values: np.ndarray, modes: np.ndarray) -> GraphSpectrum:
    order = np.argsort(values, kind="stable")
    values = values[order]
    first = np.flatnonzero(np.diff(values, prepend=-np.inf) > _SAME)
    return GraphSpectrum(values, modes[:, order], first)
