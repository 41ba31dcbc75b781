"""What the machine can do at most: its measured rates of matrix products and of copies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.benchmark import Timer

from spanet_lightning.bench.settings import Settings

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
    """Measure both rates: the shortest time of many, as anything longer was disturbed.

    Args:
        settings: Device, precision and threads; each size takes twice its `seconds`.
    """
    device, kind = settings.torch_device, settings.torch_device.type
    generator = torch.Generator().manual_seed(settings.seed)

    def shortest(statement: str, **names: object) -> float:
        timer = Timer(statement, globals=names, num_threads=torch.get_num_threads())
        return min(timer.blocked_autorange(min_run_time=2 * settings.seconds).times)

    rates = []
    for side in _SIDES[kind]:
        a, b = torch.randn(2, side, side, generator=generator).to(device, settings.product_dtype)
        rates.append(side**3 / shortest("mm(a, b, out=out)", mm=torch.mm, a=a, b=b, out=a + b))
    source = torch.ones(_COPIED_BYTES[kind], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copying = shortest("target.copy_(source)", target=target, source=source)
    return Ceiling(max(rates), 2 * source.nbytes / copying)
