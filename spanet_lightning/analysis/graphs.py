"""Window graphs on a grid of tokens, and the frequencies they define.

A token mixer with a k×k window joins each of the N = H·W tokens to those in its window. The
normalised Laplacian L = I - D^(-1/2) A D^(-1/2) = U Λ Uᵀ of that graph has eigenvalues from 0 (what
all tokens share, up to their degree) to at most 2 (what changes from each token to the next): the
graph's frequencies (SPANetV2, arXiv:2503.23947, Fig. 1). Attention's graph is complete: every mode
but the constant one has the same frequency.

With self-loops the adjacency of a k×k window is the Kronecker product of those of a row and of a
column, and so are its modes: no N×N eigenproblem is solved. Self-loops leave a torus's modes as
they are and move its frequencies, so there too nothing is solved.

Shape letters: N tokens, H×W the grid, L distinct eigenvalues.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from spanet_lightning.errors import invalid, invalid_choice

Boundary = Literal["zero", "torus"]
"""What lies beyond the grid's border: nothing ("zero"), or its other side ("torus")."""

LARGEST_DENSE = 2500
"""Tokens up to which a graph without product structure is decomposed as a dense matrix."""

_SAME = 1e-9  # eigenvalues nearer than this are one: products of rounded ones differ by about 1e-15


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


def check_boundary(boundary: str) -> None:
    """Raise where `boundary` is none.

    Raises:
        ConfigError: If it is not one of `Boundary`.
    """
    if boundary not in get_args(Boundary):
        raise invalid_choice("boundary", boundary, get_args(Boundary))


def check_window(window: int | None) -> None:
    """Raise where a window has no middle.

    Raises:
        ConfigError: If it is neither `None` nor odd and positive.
    """
    if window is not None and (window < 1 or window % 2 == 0):
        raise invalid("window", window, "an odd number of tokens, or None for the complete graph")


def line_adjacency(n: int, window: int | None, boundary: Boundary) -> Float[np.ndarray, "n n"]:
    """Return which of n tokens in a line are in each other's window, each in its own.

    Args:
        n: Number of tokens.
        window: Its side, odd; `None` joins all.
        boundary: Whether the line's ends meet.
    """
    check_window(window)
    check_boundary(boundary)
    if window is None:
        return np.ones((n, n))
    i = np.arange(n)
    distance = np.abs(i[:, None] - i[None, :])
    if boundary == "torus":
        distance = np.minimum(distance, n - distance)
    near: Float[np.ndarray, "n n"] = (distance <= window // 2).astype(np.float64)
    return near


def window_adjacency(
    height: int,
    width: int,
    window: int | None,
    boundary: Boundary = "zero",
    *,
    self_loops: bool = True,
) -> Float[np.ndarray, "n n"]:
    """Return the adjacency matrix A of a window graph.

    Args:
        height: Rows of tokens.
        width: Columns of tokens.
        window: Side k of the window, odd; `None` is the complete graph.
        boundary: What lies beyond the border.
        self_loops: Whether each token is its own neighbour, as it is in a mixer's window.
    """
    rows = line_adjacency(height, window, boundary)
    adjacency = np.kron(rows, line_adjacency(width, window, boundary))
    if not self_loops:
        np.fill_diagonal(adjacency, 0)
    return adjacency


def laplacian(adjacency: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """Return I - D^(-1/2) A D^(-1/2); a token without neighbours keeps its 1."""
    degree = adjacency.sum(1)
    scale = np.divide(1, np.sqrt(degree), out=np.zeros_like(degree), where=degree > 0)
    normalised: Float[np.ndarray, "n n"] = (
        np.eye(len(adjacency)) - scale[:, None] * adjacency * (scale[None, :])
    )
    return normalised


def _line_modes(n: int, window: int | None, boundary: Boundary) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvalues and modes of D^(-1/2) A D^(-1/2) of a line with self-loops."""
    values, modes = np.linalg.eigh(np.eye(n) - laplacian(line_adjacency(n, window, boundary)))
    return values, modes


@lru_cache(maxsize=16)
def window_spectrum(
    height: int,
    width: int,
    window: int | None,
    boundary: Boundary = "zero",
    *,
    self_loops: bool = True,
) -> GraphSpectrum:
    """Return the frequencies and modes of a window graph.

    Args:
        height: Rows of tokens.
        width: Columns of tokens.
        window: Side k of the window, odd; `None` is the complete graph.
        boundary: What lies beyond the border.
        self_loops: Whether each token is its own neighbour.

    Raises:
        ConfigError: If the window is even, or the graph has neither self-loops nor a torus's
            symmetry and too many tokens to be decomposed.
    """
    product = self_loops or boundary == "torus" or window is None
    if not product:
        if height * width > LARGEST_DENSE:
            raise invalid(
                "self_loops", self_loops, f"true for more than {LARGEST_DENSE} tokens on this grid"
            )
        dense = laplacian(window_adjacency(height, width, window, boundary, self_loops=False))
        return _sorted(*np.linalg.eigh(dense))
    row_values, row_modes = _line_modes(height, window, boundary)
    column_values, column_modes = _line_modes(width, window, boundary)
    smooth = np.kron(row_values, column_values)  # eigenvalues of D^(-1/2) A D^(-1/2)
    if not self_loops:
        # Every token has the same degree d: taking I from A takes 1 from its eigenvalues, d·smooth.
        rows, columns = (line_adjacency(n, window, boundary)[0].sum() for n in (height, width))
        degree = rows * columns
        smooth = (degree * smooth - 1) / (degree - 1) if degree > 1 else np.zeros_like(smooth)
    return _sorted(1 - smooth, np.kron(row_modes, column_modes))


def _sorted(values: np.ndarray, modes: np.ndarray) -> GraphSpectrum:
    order = np.argsort(values, kind="stable")
    values = values[order]
    first = np.flatnonzero(np.diff(values, prepend=-np.inf) > _SAME)
    return GraphSpectrum(values, modes[:, order], first)
