"""Lists of tensors and of run-length masks, from all processes to all, as plain numbers.

`torch.distributed.all_gather_object` pickles, and what unpickles runs what it is told to.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

Masks = tuple[tuple[tuple[int, int], bytes], ...]
"""The masks of an image as pycocotools encodes them: height and width, and the runs."""
Lists = dict[str, list[Any]]


def gather(own: Mapping[str, Sequence[Any]], device: torch.device, group: Any = None) -> Lists:
    """Return the lists of all processes one after the other, tensors on the CPU.

    Args:
        own: By name, lists of tensors that agree in all dimensions but the first, or of `Masks`;
            each process has as many items as it likes.
        device: A device that the processes' backend sends from.
        group: The processes; None for all.
    """
    data = torch.frombuffer(bytearray(encode(own)), dtype=torch.uint8).to(device)
    count = dist.get_world_size(group)
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(count)]
    dist.all_gather(sizes, torch.tensor([len(data)], device=device), group=group)
    longest = int(max(sizes))
    parts = [torch.zeros(longest, dtype=torch.uint8, device=device) for _ in range(count)]
    padded = torch.nn.functional.pad(data, (0, longest - len(data)))
    dist.all_gather(parts, padded, group=group)
    found: Lists = {name: [] for name in own}
    for part, size in zip(parts, sizes, strict=True):
        for name, items in decode(part[: int(size)].cpu().numpy().tobytes()).items():
            found[name] += items
    return found


def encode(lists: Mapping[str, Sequence[Any]]) -> bytes:
    """Return lists as numpy's archive of arrays."""
    arrays: dict[str, np.ndarray] = {}
    for name, items in lists.items():
        if not items:
            continue
        arrays[f"{name}.lengths"] = np.array([len(item) for item in items])
        if isinstance(items[0], Tensor):
            arrays[f"{name}.values"] = torch.cat([item.detach().cpu() for item in items]).numpy()
            continue
        masks = [mask for item in items for mask in item]
        arrays[f"{name}.sizes"] = np.array([size for size, _ in masks], np.int64).reshape(-1, 2)
        arrays[f"{name}.ends"] = np.cumsum([len(runs) for _, runs in masks], dtype=np.int64)
        arrays[f"{name}.runs"] = np.frombuffer(b"".join(runs for _, runs in masks), np.uint8)
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]  # numpy's stub takes them for options
    return stream.getvalue()


def decode(data: bytes) -> Lists:
    """Return what `encode` was given; lists without an item are left out."""
    found: Lists = {}
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        for key in arrays.files:
            name, _, what = key.rpartition(".")
            if what != "lengths":
                continue
            lengths = arrays[key].tolist()
            if f"{name}.values" in arrays.files:
                found[name] = list(torch.split(torch.from_numpy(arrays[f"{name}.values"]), lengths))
                continue
            runs, ends = arrays[f"{name}.runs"].tobytes(), arrays[f"{name}.ends"].tolist()
            sizes = arrays[f"{name}.sizes"].tolist()
            starts = [0, *ends[:-1]]
            masks = [
                ((height, width), runs[start:end])
                for (height, width), start, end in zip(sizes, starts, ends, strict=False)
            ]
            last = np.cumsum(lengths).tolist()
            pairs = zip(lengths, last, strict=True)
            found[name] = [tuple(masks[end - length : end]) for length, end in pairs]
    return found
