"""Memory of one call: what stands before it, and the most that it adds.

On a CUDA device the allocator counts. On a CPU the profiler records every allocation and release of
torch's allocator, inside operators and compiled code too, and the peak is that of their running
sum. Blocks of libraries with their own allocators (packing buffers of a BLAS) and a frozen graph's
copy of the weights are not seen, so a process's resident size is larger.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class Memory:
    """Memory of a call, in bytes.

    Attributes:
        standing: Held before and after the call.
        transient: The most that the call adds.
        peak: Their sum.
    """

    standing: int
    transient: int
    peak: int


def measure_memory(
    call: Callable[[], Any], standing: Iterable[Tensor], device: torch.device
) -> Memory:
    """Measure the memory of one call, which should have run before.

    Args:
        call: What to measure.
        standing: Tensors that exist before the call; shared storage counts once.
        device: Where it runs.
    """
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in standing}
    held = sum(storages.values())
    gc.collect()
    transient = _peak_on_cuda(call, device) if device.type == "cuda" else _peak_on_cpu(call)
    return Memory(held, transient, held + transient)


def tensors_of(model: nn.Module, optimizer: Optimizer | None = None) -> list[Tensor]:
    """Return parameters, buffers and the optimizer's state."""
    state = [] if optimizer is None else [v for s in optimizer.state.values() for v in s.values()]
    return [*model.parameters(), *model.buffers(), *(v for v in state if isinstance(v, Tensor))]


def _peak_on_cuda(call: Callable[[], Any], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _peak_on_cpu(call: Callable[[], Any]) -> int:
    # The profiler would announce itself on stderr.
    quiet = {"KINETO_LOG_LEVEL": os.environ.get("KINETO_LOG_LEVEL", "99")}
    activities = [ProfilerActivity.CPU]
    with (
        patch.dict(os.environ, quiet),
        profile(activities=activities, profile_memory=True, acc_events=True) as run,
    ):
        call()
    recorded: Any = run.profiler
    events = [e for e in recorded.kineto_results.events() if e.name() == "[memory]"]
    sizes: list[int] = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return max(accumulate(sizes, initial=0))
