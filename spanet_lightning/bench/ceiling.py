"""What the machine can do at most: its measured rates of matrix products and of copies."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional as F

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
        macs_per_second: Multiply-accumulates of the fastest square matrix product, by torch's
            `mm` or as a 1×1 convolution: they go to different libraries (on a CPU to MKL and
            oneDNN), and either can be twice as fast.
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
        # The same product: `a` as the pixels of 8 images with `side` channels, in their last place.
        pixels = a.view(8, side // 8, 1, side).permute(0, 3, 1, 2)
        weight = b.view(side, side, 1, 1).to(memory_format=torch.channels_last)
        convolve = torch.inference_mode()(partial(F.conv2d, pixels, weight))
        rates.append(side**3 / shortest(convolve, seconds))
    source = torch.ones(_COPIED_BYTES[kind], dtype=torch.uint8, device=device)
    copying = shortest(partial(torch.empty_like(source).copy_, source), seconds)
    return Ceiling(max(rates), 2 * source.nbytes / copying)
