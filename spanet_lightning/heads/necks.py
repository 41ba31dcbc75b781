"""Feature pyramid network (arXiv:1612.03144), in the three forms that the published heads use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from spanet_lightning.heads.layers import init_xavier

Extra = Literal["none", "pool", "conv"]
"""Levels beyond the last stage: none, one by sub-sampling (P6), two by convolutions (P6, P7)."""


class FPN(nn.Module):
    """Feature pyramid: every level sees the coarser ones (arXiv:1612.03144, Fig. 3).

    1×1 laterals, nearest up-sampling to the exact size of the finer level and a sum, then a 3×3
    convolution; biases, no norm, no activation.

    - `extra="pool"`: P6 is every second pixel of P5 (Mask R-CNN; for its proposals alone).
    - `extra="conv"`: P6 is a 3×3 convolution of stride 2 on the backbone's last level, P7 the same
      on P6, **without** a ReLU between them (as published; torchvision has one).

    Args:
        channels: Channels of the backbone's levels that are read, finest first.
        width: Channels out, on every level.
        extra: The coarser levels that are added.
    """

    def __init__(self, channels: Sequence[int], width: int = 256, extra: Extra = "none") -> None:
        super().__init__()
        self.extra: Extra = extra
        self.laterals = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.outputs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)
        first = [channels[-1], width] if extra == "conv" else []
        self.extras = nn.ModuleList(nn.Conv2d(c, width, 3, 2, 1) for c in first)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                init_xavier(layer)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return the pyramid's levels, finest first, each (B, width, H_l, W_l).

        Args:
            features: The backbone's levels, as many as `channels`.
        """
        merged = [lateral(x) for lateral, x in zip(self.laterals, features, strict=True)]
        for i in range(len(merged) - 1, 0, -1):
            size = merged[i - 1].shape[-2:]
            merged[i - 1] = merged[i - 1] + F.interpolate(merged[i], size=size, mode="nearest")
        levels = [output(x) for output, x in zip(self.outputs, merged, strict=True)]
        if self.extra == "pool":
            levels.append(levels[-1][:, :, ::2, ::2])
        x = features[-1]
        for extra in self.extras:
            x = extra(x)
            levels.append(x)
        return levels
