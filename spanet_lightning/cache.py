"""The folder of what can be made again at any time: downloaded weights, lists of bad samples."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "SPANET_CACHE"
"""Environment variable: the folder."""


def cache_folder() -> Path:
    """Return the folder, which need not exist: by default the user's cache."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "spanet_lightning"
