"""If one fails, results no longer tell what code they came from, and nothing else would notice."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from spanet_lightning import machine

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(
    not (ROOT / ".git").exists() or shutil.which("git") is None,
    reason="these files are no checkout of git's, so there is no commit to name",
)
def test_the_commit_is_that_of_the_checkout():
    head = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    )
    found = machine.commit()
    assert found is not None
    assert found["id"] == head.stdout.strip()
