"""What the tests of the command lines share: short runs, small images, and how errors must look."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spanet_lightning import cli

CONFIGS = Path(__file__).parent.parent / "configs"
DIGITS = str(CONFIGS / "digits" / "spanetv2.yaml")
# One epoch of two batches, and no tracker: what most tests of a run need.
SHORT = (
    "--config",
    DIGITS,
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=2",
    "--trainer.limit_val_batches=1",
    "--trainer.limit_test_batches=1",
    "--trainer.log_every_n_steps=1",
)
UNTRACKED = (*SHORT, "--trainer.logger=false")


def files() -> set[str]:
    """Return every file and folder below the working directory."""
    return {path.as_posix() for path in Path().rglob("*")}


def refused(args: list[str], capsys: pytest.CaptureFixture[str], main=cli.main) -> str:
    """Run a command line that must be refused; return its error.

    Exit code 2, one line on stderr, nothing on disk.
    """
    before = files()
    with pytest.raises(SystemExit) as exit_info:
        main(args)
    error = capsys.readouterr().err
    assert exit_info.value.code == 2, error
    assert error.startswith("error: "), error
    assert error.count("\n") == 1, error
    assert files() == before
    return error


def images(root: Path, per_class: int = 4, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """Write noise as a folder for each split and class."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in classes:
            (root / split / label).mkdir(parents=True)
            for i in range(per_class):
                noise = rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)
                Image.fromarray(noise).save(root / split / label / f"{i}.png")
    return root
