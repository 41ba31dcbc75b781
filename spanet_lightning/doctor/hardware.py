"""The machine: devices, processors, memory, and room for what a run writes."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from spanet_lightning.doctor.finding import Finding

_GIB = 1 << 30
_LITTLE_DISK, _NO_DISK = 10 * _GIB, 1 * _GIB  # a checkpoint with its optimizer is 0.3 to 1.3 GiB
_LITTLE_MEMORY = 4 * _GIB
_LITTLE_SHARED = 1 * _GIB  # containers give 64 MiB, which a few workers' batches fill
_DRIVER = Path("/proc/driver/nvidia/version")
_SHARED = Path("/dev/shm")  # noqa: S108 - where worker processes pass batches on


def cuda() -> Iterator[Finding]:
    """Yield a line for each CUDA device, or one that tells why there is none."""
    import torch

    build = torch.version.cuda
    driver = _DRIVER.is_file() or shutil.which("nvidia-smi") is not None
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            name = torch.cuda.get_device_name(index)
            try:
                free, total = torch.cuda.mem_get_info(index)
            except RuntimeError as error:
                reason = " ".join(str(error).split())[:200]
                advice = "see whether another process holds it (nvidia-smi)"
                yield Finding("fault", f"CUDA device {index}", f"{name}: {reason}", advice)
                continue
            found = f"{name}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free, CUDA {build}"
            if free < total / 2:
                advice = "another process uses it; choose one by CUDA_VISIBLE_DEVICES"
                yield Finding("warning", f"CUDA device {index}", found, advice)
            else:
                yield Finding("ok", f"CUDA device {index}", found)
    elif build is None and driver:
        found = f"none: torch {torch.__version__} is a build without CUDA, but there is a driver"
        yield Finding("warning", "CUDA", found, "install torch and torchvision built for CUDA")
    elif driver:
        found = f"none that torch can use (built for CUDA {build})"
        advice = "update the driver, or install torch for its CUDA; see CUDA_VISIBLE_DEVICES"
        yield Finding("warning", "CUDA", found, advice)
    else:
        yield Finding("ok", "CUDA", "no device: runs use the processor")


def processor() -> Iterator[Finding]:
    """Yield lines for processors with their threads, and for memory."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = f"{cores} cores for this process, torch uses {torch.get_num_threads()} threads"
    if torch.get_num_threads() > (cores or 1):
        yield Finding("warning", "processor", found, f"set OMP_NUM_THREADS={cores}")
    else:
        yield Finding("ok", "processor", found)
    free, total = memory()
    if total:
        found = f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB available"
        if free < _LITTLE_MEMORY:
            advice = "lower data.batch_size and data.num_workers, or free some"
            yield Finding("warning", "memory", found, advice)
        else:
            yield Finding("ok", "memory", found)
    if _SHARED.is_dir():
        size = shutil.disk_usage(_SHARED).total
        if size < _LITTLE_SHARED:
            advice = "data.num_workers=0, or a larger one: docker run --shm-size=8g"
            found = f"{size / _GIB:.2f} GiB, by which worker processes pass batches on"
            yield Finding("warning", "shared memory", found, advice)


def memory() -> tuple[int, int]:
    """Return the bytes of memory that are available, and of all; 0 where the system is silent."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        values = {line.partition(":")[0]: int(line.split()[1]) << 10 for line in lines}
        return values["MemAvailable"], values["MemTotal"]
    except (OSError, KeyError, ValueError, IndexError):
        return 0, 0


def disk(folder: Path) -> Finding:
    """Look whether a run can write its folder, and has room there.

    Args:
        folder: Where runs go; need not exist.
    """
    what = f"disk of {folder}"
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        return Finding("fault", what, f"{there} is a file", "give trainer.default_root_dir")
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        advice = "give a folder that can be written: trainer.default_root_dir"
        return Finding("fault", what, f"can't be written: {error.strerror}", advice)
    free = shutil.disk_usage(there).free
    found = f"{free / _GIB:.1f} GiB free"
    if free < _NO_DISK:
        return Finding("fault", what, found, "free some: checkpoints would fill it")
    if free < _LITTLE_DISK:
        return Finding("warning", what, found, "free some: a large model's checkpoint is 1.3 GiB")
    return Finding("ok", what, found)
