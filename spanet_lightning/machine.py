"""On what something was measured: hardware, versions of packages, commit of the code."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from spanet_lightning import __version__

_PACKAGES = ("torchvision", "timm", "triton", "numpy", "pillow")


def machine(device: torch.device) -> dict[str, Any]:
    """Describe the hardware and how torch uses it; names neither host nor user."""
    on_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_cuda else cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda if on_cuda else None,
        "system": f"{platform.system()} {platform.machine()}",
        # Above the number of cores, others were at work, and times are longer than they could be.
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def cpu_name() -> str:
    """Return the processor's name, as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Return the versions of Python, this project and the packages whose speed is measured."""
    found = {"python": platform.python_version(), "spanet_lightning": __version__}
    found["torch"] = torch.__version__  # tells the build, which its package's version does not
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> dict[str, Any] | None:
    """Return a checkout's commit and whether files differ from it; None for an installation."""
    root = checkout()
    if root is None:
        return None
    try:
        return {
            "id": _git(root, "rev-parse", "HEAD"),
            "dirty": bool(_git(root, "status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.CalledProcessError):
        return None


def checkout() -> Path | None:
    """Return the folder of the checkout that this code is of; None for an installation."""
    root = Path(__file__).resolve().parents[1]
    return root if (root / ".git").exists() else None


def _git(root: Path, *args: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *args], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()
