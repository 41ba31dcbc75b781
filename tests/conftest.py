"""What every test shares: checked shapes, one thread, and a working directory of its own."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

# Models this small lose time to threads, and results must not depend on how many cores there are.
# Before torch is imported, and in the environment, so that subprocesses do the same.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Seconds that the end of a run waits for its tracker: tests look at once at what it holds.
os.environ.setdefault("SPANET_TRACKING_WAIT", "300")

import pytest
from jaxtyping import install_import_hook

from tests import shapes

# Shapes in annotations are checked whenever a test calls a function of the package. This comes
# before the package is imported. The wrappers break the graphs of torch.compile, so tests of that
# start a process of their own (`python -c`), which has no hook.
install_import_hook("spanet_lightning", f"{shapes.__name__}.{shapes.checked.__name__}")

# Its loggers write to the stderr of their import: not to that which a test captures.
import lightning.pytorch  # noqa: E402, F401


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run each test in an empty folder: `runs/`, `mlflow.db` and `mlruns/` land there.

    Also undoes what a run leaves in the process: its seed, and filters that a command installs.
    """
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "PL_GLOBAL_SEED"):
        monkeypatch.delenv(name, raising=False)
    with warnings.catch_warnings():
        yield
    # Lightning's seed_everything sets it; monkeypatch only restores what it changed itself.
    os.environ.pop("PL_GLOBAL_SEED", None)
