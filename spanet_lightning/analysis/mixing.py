"""Mixing matrices: what convolutions and self-attention do to N = H·W tokens, as N×N matrices.

y = C x, tokens in row-major order. Random ones stand for mixers at initialisation.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from spanet_lightning.analysis.graphs import Boundary, check_boundary, check_window
from spanet_lightning.errors import invalid, invalid_choice

Weights = Literal["uniform", "softmax", "normal", "fan_in"]
"""How a kernel's k² weights are drawn.

"uniform": U(0, 1). "softmax": the softmax of k² normal logits, as attention's weights are. Both are
positive, and so average. "normal": N(0, 1). "fan_in": U(-1/k, 1/k), torch's default of a depthwise
convolution. Both change sign.
"""

Rows = Literal["stochastic", "kernel", "none"]
"""What is normalised to 1.

"stochastic": every row of C, so that a token at the border averages over fewer. "kernel": the sum
of the kernel's weights, so that at a border of zeros something is lost. "none": nothing.
"""

Scores = Literal["qk", "iid"]
"""Attention's logits: "qk", scaled products of random projections of random tokens; "iid", normal
and independent."""


def draw_kernel(
    rng: np.random.Generator, size: int, weights: Weights = "uniform"
) -> Float[np.ndarray, "k k"]:
    """Draw a k×k kernel.

    Args:
        rng: Source of the numbers.
        size: Its side k.
        weights: Their distribution.
    """
    check_window(size)
    if weights not in get_args(Weights):
        raise invalid_choice("weights", weights, get_args(Weights))
    if weights == "uniform":
        return rng.random((size, size))
    if weights == "fan_in":
        return rng.uniform(-1 / size, 1 / size, (size, size))
    kernel = rng.standard_normal((size, size))
    return _softmax(kernel.reshape(1, -1)).reshape(size, size) if weights == "softmax" else kernel


def convolution(
    kernel: Float[np.ndarray, "k l"],
    height: int,
    width: int,
    boundary: Boundary = "zero",
    rows: Rows = "none",
) -> Float[np.ndarray, "n n"]:
    """Return the matrix of a convolution (cross-correlation, as in torch) on H×W tokens.

    Args:
        kernel: Its weights, sides odd. On a torus a kernel wider than the grid wraps around.
        height: Rows of tokens.
        width: Columns of tokens.
        boundary: What lies beyond the border.
        rows: What is normalised.

    Raises:
        ConfigError: If sums of weights that change sign are to be normalised, or a choice is none.
    """
    check_boundary(boundary)
    if rows not in get_args(Rows):
        raise invalid_choice("rows", rows, get_args(Rows))
    if rows != "none" and (kernel < 0).any():
        raise invalid("rows", rows, "'none' for weights that change sign: their sum may be near 0")
    if rows == "kernel":
        kernel = kernel / kernel.sum()
    k, m = kernel.shape
    matrix = np.zeros((height, width, height, width))
    y, x = np.arange(height)[:, None], np.arange(width)[None, :]
    for a in range(k):
        for b in range(m):
            to_y, to_x = np.broadcast_arrays(y + a - k // 2, x + b - m // 2)
            from_y, from_x = np.broadcast_arrays(y, x)
            if boundary == "torus":
                to_y, to_x = to_y % height, to_x % width
            inside = (to_y >= 0) & (to_y < height) & (to_x >= 0) & (to_x < width)
            places = (from_y[inside], from_x[inside], to_y[inside], to_x[inside])
            np.add.at(matrix, places, kernel[a, b])
    flat = matrix.reshape(height * width, height * width)
    return flat / flat.sum(1, keepdims=True) if rows == "stochastic" else flat


def draw_attention(
    rng: np.random.Generator, tokens: int, dim: int = 32, scores: Scores = "qk"
) -> Float[np.ndarray, "n n"]:
    """Draw the matrix of a self-attention head at initialisation: rows are probabilities.

    Args:
        rng: Source of the numbers.
        tokens: Their number N.
        dim: Channels of the head.
        scores: What the softmax is of. "qk": X W_q (X W_k)ᵀ / √dim with X of N(0, 1) and weights of
            variance 1/dim.
    """
    if scores not in get_args(Scores):
        raise invalid_choice("scores", scores, get_args(Scores))
    if scores == "iid":
        return _softmax(rng.standard_normal((tokens, tokens)))
    x = rng.standard_normal((tokens, dim))
    query, key = (x @ rng.standard_normal((dim, dim)) / np.sqrt(dim) for _ in range(2))
    return _softmax(query @ key.T / np.sqrt(dim))


def _softmax(logits: Float[np.ndarray, "n m"]) -> Float[np.ndarray, "n m"]:
    weights = np.exp(logits - logits.max(1, keepdims=True))
    shares: Float[np.ndarray, "n m"] = weights / weights.sum(1, keepdims=True)
    return shares
