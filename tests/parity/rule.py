"""The rule by which the recorded official models got their weights and inputs.

Every tensor has its own generator, seeded by its official name, so names and shapes are enough to
make the weights again: the recordings need no weights beside them.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor


def weights(schema: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Draw official weights: factors around 1, biases and vectors small, the rest by fan-in."""
    return {key: _draw(key, tuple(shape)) for key, shape in schema.items() if ".sps." not in key}


def _draw(key: str, shape: tuple[int, ...]) -> Tensor:
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
    if _starts_at_one(key, shape):
        return noise * 0.1 + 1.0
    if len(shape) <= 1:
        return noise * 0.1
    if "token_mixer.filter" in key:
        return noise
    fan_in = noise.numel() / shape[0]
    return noise * fan_in**-0.5


def _starts_at_one(key: str, shape: tuple[int, ...]) -> bool:
    norm = "norm" in key or ".proj.1." in key
    return (norm and key.endswith(".weight") and len(shape) == 1) or key.endswith(
        (".scale", ".alpha")
    )


def images(height: int, width: int) -> Tensor:
    """Draw the two images that all recordings were made with."""
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
