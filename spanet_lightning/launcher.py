"""What to type for the `lightning` command where another package owns that name."""

from __future__ import annotations

import shutil
from pathlib import Path

MODULE = "python -m spanet_lightning"


def lightning_command() -> str:
    """Return the command that starts ours: `lightning`, or the module that always works."""
    found = shutil.which("lightning")
    return "lightning" if found is not None and _is_ours(Path(found)) else MODULE


def foreign_lightning() -> str | None:
    """Return a note where `lightning` on the PATH belongs to another package, or None."""
    found = shutil.which("lightning")
    if found is None or _is_ours(Path(found)):
        return None
    return f"Note: `lightning` is another package's command here ({found}). Use `{MODULE}` for it."


def _is_ours(script: Path) -> bool:
    """Whether a script was installed for our entry point, which pip writes into it by name."""
    try:
        return b"spanet_lightning" in script.read_bytes()
    except OSError:
        return False
