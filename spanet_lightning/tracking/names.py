"""Names that a store takes, and that stay inside their root."""

from __future__ import annotations

import re
from pathlib import PurePosixPath


def key(name: str) -> str:
    """Return the name of a parameter, metric or tag in the characters that MLflow takes.

    Args:
        name: As it is called here.
    """
    return re.sub(r"[^\w./ :-]", "_", name)


def inside(file: str) -> str:
    """Return the path of an artifact as one below the root of the artifacts.

    `..`, a root and the letter of a drive are left out: names may come from data, such as those of
    classes, and are no reason to end a training.

    Args:
        file: The wanted path.
    """
    parts = PurePosixPath(re.sub(r"[\x00-\x1f:]", "_", file.replace("\\", "/"))).parts
    kept = [part for part in parts if part not in ("/", "//", "..", ".")]
    return "/".join(kept) or "unnamed"
