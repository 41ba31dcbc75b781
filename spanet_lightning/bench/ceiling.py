"""What the machine can do at most: its measured rates of matrix products and of copies."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from spanet_lightning.bench.settings import Settings
from spanet_lightning.bench.timing import shortest

# Sides of square products. Small ones do not fill a device, large ones may not fit its caches.
_SIDES = {"cpu": (512, 1024, 2048), "cuda": (2048, 4096, 8192)}
# Far beyond the last cache.
_COPIED_BYTES = {"cpu": 1 << 28, "cuda": 1 << 30}


@dataclass(frozen=True)
class Ceiling:
    """Rates that nothing on this machine exceeds at this precision.

    Attributes:
        macs_per_second: Multiply-accumulates of the fastest square matrix product.
        bytes_per_second: Bytes read and bytes written by a copy, together.
    """

    macs_per_second: float
    bytes_per_second: float


def measure_ceiling(settings: Settings) -> Ceiling:
    """Measure both rates, by the shortest time of many calls.

    Args:
        settings: Device, precision and threads; each size takes twice its `seconds`.
    """
    device, kind = settings.torch_device, settings.torch_device.type
    generator = torch.Generator().manual_seed(settings.seed)

    seconds = 2 * settings.seconds
    rates = []
    for side in _SIDES[kind]:
        a, b = torch.randn(2, side, side, generator=generator).to(device, settings.product_dtype)
        rates.append(side**3 / shortest(partial(torch.mm, a, b, out=a + b), seconds))
    source = torch.ones(_COPIED_BYTES[kind], dtype=torch.uint8, device=device)
    copying = shortest(partial(torch.empty_like(source).copy_, source), seconds)
    return Ceiling(max(rates), 2 * source.nbytes / copying)
