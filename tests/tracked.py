"""A short run that is tracked, for tests that only read what a run leaves behind."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import NamedTuple

import pytest

from spanet_lightning import app
from spanet_lightning.tracking.browse import RunView, Store
from tests.helpers import DIGITS

# Two epochs of three batches, with pictures of the last.
OPTIONS = (
    "--trainer.max_epochs=2",
    "--trainer.limit_train_batches=3",
    "--trainer.limit_val_batches=2",
    "--trainer.limit_test_batches=1",
    "--trainer.log_every_n_steps=2",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--tracking.log_images_every_n_epochs=2",
    "--tracking.predictions=4",
    "--tracking.system_metrics=true",
)


class Recorded(NamedTuple):
    """A run that ended.

    Attributes:
        folder: Working directory that it ran in, with `mlflow.db`.
        uri: Its store.
        run: What the store says of it.
    """

    folder: Path
    uri: str
    run: RunView

    @property
    def store(self) -> Store:
        """The store, opened."""
        return Store(self.uri)


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Train, test and track the digits once for all tests of a process; to be read alone."""
    folder = tmp_path_factory.mktemp("recorded")
    uri = f"sqlite:///{folder}/mlflow.db"
    with contextlib.chdir(folder):
        app.main(["demo", "-c", DIGITS, *OPTIONS, f"--trainer.logger.tracking_uri={uri}"])
    return Recorded(folder, uri, Store(uri).find("digits-spanetv2"))
