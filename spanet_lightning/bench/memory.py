"""Peak memory of a call: what stands before it, and what it adds at its highest.

**Standing** memory are the tensors that live on between calls: weights, buffers, the optimizer's
state, the batch. **Transient** memory is the most that a call holds on top: activations, gradients
(which are dropped before the call), work space.

On a CUDA device the allocator tells the peak (`torch.cuda.max_memory_allocated`). On a CPU, torch's
profiler reports every block that torch's allocator hands out and takes back, within operators and
compiled code too, and the peak is that of their running sum. Not seen: blocks of libraries with
an allocator of their own (MKL's packing buffers), a frozen graph's copy of the weights, and what
the heap holds beyond what is in use; so a process's resident size is larger.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class Memory:
    """Memory of a call, in bytes.

    Attributes:
        standing: Held before and after it.
        transient: The most that it adds.
        peak: Their sum.
    """

    standing: int
    transient: int
    peak: int


def memory(call: Callable[[], Any], standing: Iterable[Tensor], device: torch.device) -> Memory:
    """Measure the memory of one call.

    Args:
        call: What to measure; called before at least once, so that caches are filled.
        standing: The tensors that stand: each block of memory counts once.
        device: Where it runs.
    """
    held = distinct_bytes(standing)
    gc.collect()
    transient = _peak_on_cuda(call, device) if device.type == "cuda" else _peak_on_cpu(call)
    return Memory(held, transient, held + transient)


def tensors_of(model: nn.Module, optimizer: Optimizer | None = None) -> list[Tensor]:
    """Return parameters, buffers and the optimizer's state."""
    state = [] if optimizer is None else [v for s in optimizer.state.values() for v in s.values()]
    return [*model.parameters(), *model.buffers(), *(v for v in state if isinstance(v, Tensor))]


def distinct_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the blocks of memory behind some tensors."""
    blocks = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(blocks.values())


def _peak_on_cuda(call: Callable[[], Any], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _peak_on_cpu(call: Callable[[], Any]) -> int:
    with (
        _quiet_profiler(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as run,
    ):
        call()
    recorded: Any = run.profiler
    events = [e for e in recorded.kineto_results.events() if e.name() == "[memory]"]
    sizes: list[int] = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return max(accumulate(sizes, initial=0))


@contextlib.contextmanager
def _quiet_profiler() -> Iterator[None]:
    """Keep the profiler from announcing itself on stderr."""
    before = os.environ.get("KINETO_LOG_LEVEL")
    os.environ["KINETO_LOG_LEVEL"] = before or "99"
    try:
        yield
    finally:
        if before is None:
            del os.environ["KINETO_LOG_LEVEL"]
