"""When a picture is due, and how it is named so that MLflow shows a slider over the steps."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

from lightning.pytorch import Trainer
from PIL.Image import Image

from spanet_lightning.tracking import names
from spanet_lightning.tracking.logger import MLflowLogger

FOLDER = "images"
_LOGGED = "mlflow.loggedImages"  # with this tag, a run's page has a grid of images
_SMALL = 512  # pixels of the longer side of the copy that the grid shows


def is_due(trainer: Trainer, every: int) -> bool:
    """Whether the epoch that is validated is one with pictures.

    Args:
        trainer: The trainer; outside of training, pictures are always due.
        every: Epochs between pictures. The last one has them too.
    """
    if trainer.sanity_checking:
        return False
    if trainer.state.fn != "fit":
        return True
    epoch = trainer.current_epoch + 1
    return epoch % every == 0 or epoch == trainer.max_epochs


def split(trainer: Trainer) -> str:
    """Return the name of the images that are evaluated: "val" or "test"."""
    return "test" if trainer.testing else "val"


def when(trainer: Trainer) -> str:
    """Return the moment of a picture, for its title."""
    return "after training" if trainer.testing else f"epoch {trainer.current_epoch + 1}"


def log(trainer: Trainer, picture: Image, name: str) -> None:
    """Record a picture of this step with the trackers that take pictures.

    The file's name is what MLflow's own `log_image(key=…, step=…)` gives, with a small copy beside
    it, so that the run's page can step through the epochs.

    Args:
        trainer: Knows the loggers and the step.
        picture: The picture.
        name: What it shows, the same at each step: letters, digits, spaces, `-` and `_`.
    """
    step = max(trainer.global_step - 1, 0)  # that of the metrics of the epoch
    stamp = f"timestamp+{int(time.time() * 1000)}+{uuid.uuid4()}"
    stem = f"{FOLDER}/{names.encode_file(name)}+step+{step}+{stamp}"
    small = picture.copy()
    small.thumbnail((_SMALL, _SMALL))
    for logger in trainer.loggers:
        if isinstance(logger, MLflowLogger):
            logger.log_image(picture, f"{stem}.png")
            logger.log_image(small, f"{stem}+compressed.webp")
            logger.set_tags({_LOGGED: "True"})


def name_of(file: str) -> str:
    """Return what a file of `log` shows."""
    return names.decode(Path(file).name.partition("+")[0])
