"""Pictures of a run over its epochs: what is confused, what is wrong, what the filters learn."""

from __future__ import annotations

from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback

from spanet_lightning.tasks import ClassificationTask
from spanet_lightning.tracking.options import TrackingOptions
from spanet_lightning.tracking.pictures.confusion import ConfusionPicture
from spanet_lightning.tracking.pictures.filters import FilterPicture
from spanet_lightning.tracking.pictures.predictions import PredictionPicture
from spanet_lightning.tracking.pictures.spectrum import SpectrumPicture

__all__ = [
    "ConfusionPicture",
    "FilterPicture",
    "PredictionPicture",
    "SpectrumPicture",
    "picture_callbacks",
]


def picture_callbacks(options: TrackingOptions, model: LightningModule) -> list[Callback]:
    """Return the callbacks that draw what suits a task.

    Args:
        options: How often, and how much.
        model: The task.
    """
    every = options.log_images_every_n_epochs
    if not every:
        return []
    found: list[Callback] = []
    if isinstance(model, ClassificationTask):
        found = [ConfusionPicture(every), PredictionPicture(every, options.predictions)]
    if options.spectrum:
        found.append(SpectrumPicture(every, options.spectrum))
    return [*found, FilterPicture(every)]
