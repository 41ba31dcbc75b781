"""Pictures of the first images: with the predictions, and with the tracker in validation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from PIL.Image import Image
from torch import Tensor

from spanet_lightning import pictures, tracking
from spanet_lightning.callbacks.run_record import RunRecord
from spanet_lightning.cli.predictions import OutputNames, PredictionWriter, colours_of
from spanet_lightning.data.info import DataInfo
from spanet_lightning.data.normalize import MEAN, STD
from spanet_lightning.errors import invalid
from spanet_lightning.tasks import ClassificationTask, DetectionTask, SegmentationTask
from spanet_lightning.tracking.pictures import is_due

_RIGHT, _WRONG = "#005ab5", "#dc5a00"


class Overlays(Callback):
    """Draws what is found in the first images, beside what is there.

    In prediction the pictures are files beside the predictions; in validation and test they go to
    MLflow, and without it into the run's folder. Each process draws its own share.

    Args:
        count: How many, for each validation.
        record: Knows the folder of the run.
        writer: Knows the folder of the predictions, where there are any.
        every: Epochs of training between pictures; the last one has them too.
    """

    def __init__(
        self,
        count: int,
        record: RunRecord,
        writer: PredictionWriter | None = None,
        every: int = 1,
    ) -> None:
        self.count = count
        self.record = record
        self.writer = writer
        self.every = every
        self._drawn = 0
        self._names = OutputNames("-")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse tasks that predict nothing that can be drawn."""
        if not isinstance(pl_module, ClassificationTask | DetectionTask | SegmentationTask):
            accepted = f"0 for {type(pl_module).__name__}: classes, boxes and masks are drawn"
            raise invalid("num_visualizations", self.count, accepted)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        self._drawn = 0

    on_test_epoch_start = on_validation_epoch_start
    on_predict_epoch_start = on_validation_epoch_start

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Predict once more what is to be drawn, and hand it to the tracker."""
        if self._drawn >= self.count or not is_due(trainer, self.every):
            return
        found = pl_module.predict_step(batch)
        loggers = [lg for lg in trainer.loggers if isinstance(lg, tracking.MLflowLogger)]
        place = f"pictures/step-{trainer.global_step:07d}"
        for name, picture in self._pictures(trainer, batch, found):
            for logger in loggers:
                logger.log_image(picture, f"{place}/{name}.png")
            if not loggers:
                self._save(picture, Path(place) / f"{name}.png")

    on_test_batch_end = on_validation_batch_end

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw what was found."""
        for name, picture in self._pictures(trainer, batch, outputs):
            self._save(picture, Path("pictures") / f"{name}.png")

    def _save(self, picture: Image, path: Path) -> None:
        folder = self.record.folder if self.writer is None else self.writer.folder
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        picture.save(target)

    def _pictures(self, trainer: Trainer, batch: Any, found: Any) -> Iterator[tuple[str, Image]]:
        """Yield pictures with their names, until there are as many as were asked for."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        for i in range(len(batch[0]) if isinstance(found, Mapping) else len(found)):
            if self._drawn >= self.count:
                return
            # Processes take turns: images of this one are that far apart.
            number = self._drawn * trainer.world_size + trainer.global_rank
            self._drawn += 1
            if isinstance(found, Mapping):
                paths = getattr(dataset_of(trainer), "paths", ())
                path = str(paths[number]) if number < len(paths) else f"{number:05d}"
                drawn = classified(batch, i, found, data)
            else:
                path = batch.paths[i]
                drawn = picture(batch, i, found[i], data)
            yield self._names(path, trainer), drawn


def dataset_of(trainer: Trainer) -> Any:
    """Return the data set that is read; None of several."""
    loader: Any = trainer.val_dataloaders
    if trainer.testing or trainer.predicting:
        loader = trainer.test_dataloaders if trainer.testing else trainer.predict_dataloaders
    return getattr(loader, "dataset", None)


def classified(batch: Any, i: int, found: Mapping[str, Tensor], data: Any) -> Image:
    """Return an image of a batch above its most probable classes, and its label where known.

    Args:
        batch: Images and labels, or images alone.
        i: Which image.
        found: What `predict_step` returned for the batch.
        data: The data module: knows names and normalisation.
    """
    names = getattr(data, "class_names", None) or range(found["probabilities"].shape[-1])
    image = batch[0][i]
    norm = getattr(data, "info", None) or DataInfo((), mean=MEAN, std=STD)
    size = (int(image.shape[-2]), int(image.shape[-1]))
    best = [int(c) for c in found["top_classes"][i][:3]]
    values = found["top_probabilities"][i][:3].tolist()
    known = len(batch) > 1 and getattr(data, "predict_root", None) is None
    label = int(batch[1][i]) if known else None
    lines = {} if label is None else {f"label: {names[label]}": "black"}
    for c, value in zip(best, values, strict=True):
        colour = "black" if label is None or c != best[0] else _RIGHT if c == label else _WRONG
        lines[f"{names[c]} {value:.1%}"] = colour
    return pictures.captioned(pictures.stored(image, size, size, norm.mean, norm.std), lines)


def picture(batch: Any, i: int, found: Any, data: Any) -> Image:
    """Return what was found in an image of a batch, beside what is there, where that is known.

    Args:
        batch: A batch of detection or segmentation, as evaluation has it.
        i: Which image.
        found: What `predict_step` returned for it.
        data: The data module: knows names, colours and normalisation.
    """
    colours, names = colours_of(data), data.class_names
    norm = getattr(data, "info", None) or DataInfo((), mean=MEAN, std=STD)
    mean, std = norm.mean or MEAN, norm.std or STD
    known = getattr(data, "predict_root", None) is None
    detection = "boxes" in found
    truth: Any = batch.targets[i] if detection else batch.masks[i]
    size = batch.original_sizes[i] if detection else tuple(truth.shape)
    image = pictures.stored(batch.images[i], batch.sizes[i], size, mean, std)
    if detection:
        left = pictures.with_objects(image, truth, names, colours)
        right = pictures.with_objects(image, found, names, colours)
        shown = found["labels"][found["scores"] >= pictures.LEAST_SCORE].cpu()
        classes = set((torch.cat([shown, truth["labels"].cpu()]) - 1).tolist())
    else:
        left = pictures.with_labels(image, truth, colours)
        right = pictures.with_labels(image, found["labels"], colours)
        classes = {c for labels in (truth, found["labels"]) for c in _values(labels)}
    panels = {"ground truth": left} if known else {"image": image}
    panels["prediction"] = right
    legend = {names[c]: colours[c] for c in sorted(classes) if c < len(names)}
    return pictures.beside(panels, legend)


def _values(labels: Tensor) -> list[int]:
    """Return the values of a map of labels, each once."""
    return torch.bincount(labels.cpu().reshape(-1)).nonzero().reshape(-1).tolist()
