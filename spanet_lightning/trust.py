"""Which packages a configuration or a checkpoint may name classes of.

Naming a class imports its module, and importing runs code: a file from a stranger must not choose
which. jsonargparse refuses by the same list, also what a trusted module has imported from elsewhere
(`lightning.fabric.utilities.seed.os.system`).
"""

from __future__ import annotations

import os

from jsonargparse import set_parsing_settings

TRUSTED_VARIABLE = "SPANET_TRUSTED_PACKAGES"
"""Environment variable: packages of the user's own that a configuration may name, by commas."""

# Parts of torch, not all of it: `torch.hub` downloads and runs what it is told.
TRUSTED = (
    "spanet_lightning",
    "lightning",
    "torch.nn",
    "torch.optim",
    "torch.utils.data",
    "torchmetrics",
    "torchvision.transforms",
)
# Its data modules download from wherever they like, without a hash.
_REFUSED = ("lightning.pytorch.demos",)


def trusted_packages() -> tuple[str, ...]:
    """Return the packages that may be named."""
    own = os.environ.get(TRUSTED_VARIABLE, "")
    return TRUSTED + tuple(name.strip() for name in own.split(",") if name.strip())


def is_trusted(path: str) -> bool:
    """Whether what is at a dotted path may be named: the longest of the names decides."""
    own = [name for name in trusted_packages() if _below(path, name)]
    refused = [name for name in _REFUSED if _below(path, name)]
    return bool(own) and max(map(len, own)) >= max(map(len, refused), default=0)


def restrict_imports() -> None:
    """Make jsonargparse itself refuse to import anything else for a value."""
    trusted = trusted_packages()
    refused = [name for name in _REFUSED if name not in trusted]
    set_parsing_settings(import_path_denylist=["*", *refused], import_path_allowlist=list(trusted))


def _below(path: str, package: str) -> bool:
    return path == package or path.startswith(f"{package}.")
