"""The definitions of the analyses written down literally: loops, dense matrices, no shortcuts.

Independent of the package: nothing here is imported from it.
"""

from __future__ import annotations

import cmath
import math

import numpy as np
import torch
from torch.nn import functional as F


def adjacency(height, width, window, boundary, self_loops):
    """Each pair of tokens, asked one by one; a `window` of None joins all."""
    n = height * width
    matrix = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            if i == j and not self_loops:
                continue
            dy, dx = abs(i // width - j // width), abs(i % width - j % width)
            if boundary == "torus":
                dy, dx = min(dy, height - dy), min(dx, width - dx)
            if window is None or max(dy, dx) <= window // 2:
                matrix[i, j] = 1
    return matrix


def laplacian(matrix):
    """I - D^(-1/2) A D^(-1/2), entry by entry."""
    n = len(matrix)
    degree = [sum(row) for row in matrix]
    out = np.eye(n)
    for i in range(n):
        for j in range(n):
            if matrix[i, j]:
                out[i, j] -= matrix[i, j] / math.sqrt(degree[i] * degree[j])
    return out


def dft(kernel, height, width):
    """DFT of a centred kernel on a torus, as the eigenvalue of its convolution's wave (u, v)."""
    k, m = kernel.shape
    out = np.zeros((height, width), dtype=complex)
    for u in range(height):
        for v in range(width):
            for a in range(k):
                for b in range(m):
                    phase = u * (a - k // 2) / height + v * (b - m // 2) / width
                    out[u, v] += kernel[a, b] * cmath.exp(2j * math.pi * phase)
    return out


def relative_log_amplitude(features):
    """RECIPES' quantity from (B, C, H, W): mean of logs, centred, main diagonal, less the first."""
    amplitude = np.abs(np.fft.fft2(features.astype(np.float64), axes=(2, 3)))
    logs = np.log(amplitude + 1e-6).mean((0, 1))
    height, width = logs.shape
    logs = np.roll(logs, (height // 2, width // 2), (0, 1))
    diagonal = [logs[height // 2 + i, width // 2 + i] for i in range(height - height // 2)]
    return np.array(diagonal) - diagonal[0]


def score_cam(model, image, maps, target):
    """One map at a time: up-sample, min-max, score; then the weighted sum, as in the demo."""
    scores = []
    for k in range(maps.shape[1]):
        mask = F.interpolate(
            maps[:, k : k + 1], size=image.shape[-2:], mode="bilinear", align_corners=True
        )
        mask = (mask - mask.min()) / (mask.max() - mask.min() + 1e-8)
        scores.append(model(image * mask)[0, target])
    weights = torch.stack(scores).softmax(0)
    return sum(w * maps[0, k] for k, w in enumerate(weights)).relu()
