"""The confusion matrix of a classifier: which classes are taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from PIL import Image
from torch import Tensor

from spanet_lightning.tracking.pictures import canvas, series

_MOST_NUMBERS = 25  # classes up to which cells have numbers and names
_SIDE = 640  # pixels of the matrix
_WORST = 5  # pairs that are named below it


class ConfusionPicture(Callback):
    """Draws the confusion matrix of the validation and the test set.

    Args:
        every: Epochs between pictures.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._counts: Tensor | None = None

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count, where a picture is due."""
        backbone: Any = pl_module.backbone
        classes = int(backbone.num_classes)
        due = series.is_due(trainer, self.every)
        shape = (classes, classes)
        self._counts = (
            torch.zeros(shape, dtype=torch.long, device=pl_module.device) if due else None
        )

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a batch, on its device."""
        if self._counts is None or not outputs:
            return
        classes = len(self._counts)
        pairs = batch[1] * classes + outputs["logits"].argmax(dim=1)
        self._counts += torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what was counted in all processes."""
        if self._counts is None:
            return
        counts = self._counts
        if trainer.world_size > 1:
            summed: Any = trainer.strategy.reduce(counts, reduce_op="sum")
            counts = summed
        self._counts = None
        if not trainer.is_global_zero or not int(counts.sum()):
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        names = getattr(data, "class_names", None) or map(str, range(len(counts)))
        title = f"{series.split(trainer)}, {series.when(trainer)}"
        picture = draw(counts.cpu(), tuple(names), title)
        series.log(trainer, picture, f"confusion {series.split(trainer)}")

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end


def draw(counts: Int64[Tensor, "k k"], names: Sequence[str], title: str) -> Image.Image:
    """Return the picture of a confusion matrix.

    Rows are true classes, columns predicted ones; a cell's colour is its share of the row. With few
    classes, cells hold their numbers. The pairs most often confused are named below.

    Args:
        counts: Images of each true class (first axis) that were taken for each class.
        names: Names of the classes.
        title: Which images, and when.
    """
    table = counts.numpy()
    classes = len(table)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    cell = max(1, _SIDE // classes)
    side = cell * classes if classes <= _SIDE else _SIDE
    numbered = classes <= _MOST_NUMBERS
    labels = [canvas.shorten(str(name), 16) for name in names]
    small = canvas.font(12 if cell >= 32 else 10)
    margin = 40 + (max(int(small.getlength(text)) for text in labels) if numbered else 0)
    top, pairs = 94, _pairs(table, labels)
    column_names = numbered and max(small.getlength(text) for text in labels) > cell - 2
    turned = max(int(small.getlength(text)) for text in labels) if column_names else 0
    width, below = max(margin + side + 20, 560), 46 + 19 * max(1, len(pairs))
    image, pen = canvas.blank(width, top + turned + side + below)
    right = int(np.trace(table))
    pen.text((12, 8), f"Confusion matrix, {title}", fill=canvas.INK, font=canvas.font(17))
    text = f"{right:,} of {int(table.sum()):,} images right: top-1 {right / table.sum():.4f}"
    pen.text((12, 31), text, fill=canvas.INK, font=canvas.font())
    top += turned
    image.paste(canvas.enlarged(canvas.sequential(shares), side), (margin, top))
    pen.rectangle((margin - 1, top - 1, margin + side, top + side), outline=canvas.GREY)
    if numbered:
        for i, label in enumerate(labels):
            middle = top + i * cell + cell // 2
            pen.text((margin - 6, middle), label, fill=canvas.INK, font=small, anchor="rm")
            centre = margin + i * cell + cell // 2
            if column_names:
                _upright(image, label, centre, top - 4, small)
            else:
                pen.text((centre, top - 4), label, fill=canvas.INK, font=small, anchor="mb")
            for j in range(classes):
                if table[i, j]:
                    ink = "white" if shares[i, j] > 0.5 else canvas.INK
                    place = (margin + j * cell + cell // 2, middle)
                    pen.text(place, str(table[i, j]), fill=ink, font=small, anchor="mm")
    pen.text((margin, top - turned - 38), "columns: predicted class", fill=canvas.GREY, font=small)
    _upright(image, "rows: true class", 14, top + side, small, canvas.GREY)
    y = top + side + 8
    image.paste(canvas.bar(canvas.sequential, "0", "all of a row's images"), (margin, y))
    for i, line in enumerate(pairs or ["Nothing is confused."]):
        pen.text((margin, y + 26 + 19 * i), line, fill=canvas.INK, font=canvas.font())
    return image


def _pairs(table: np.ndarray, labels: Sequence[str]) -> list[str]:
    """Return lines for the pairs that are confused most."""
    wrong = table * (1 - np.eye(len(table), dtype=table.dtype))
    order = np.argsort(wrong, axis=None)[::-1][:_WORST]
    lines = []
    for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True):
        if wrong[i, j]:
            total = int(table[i].sum())
            lines.append(f"{labels[i]} taken for {labels[j]}: {wrong[i, j]} of {total}")
    return lines


def _upright(
    image: Image.Image, text: str, x: int, bottom: int, font: Any, ink: Any = canvas.INK
) -> None:
    """Write from the bottom to the top, centred at `x`."""
    label, pen = canvas.blank(int(font.getlength(text)) + 2, 16)
    pen.text((0, 1), text, fill=ink, font=font)
    turned = label.transpose(Image.Transpose.ROTATE_90)
    image.paste(turned, (x - 8, bottom - turned.height))
