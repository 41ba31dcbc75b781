"""The images that a classifier is most wrong and most right about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from PIL import Image
from torch import Tensor

from spanet_lightning.data.normalize import MEAN, STD
from spanet_lightning.tracking.pictures import canvas, series

_TILE = 112  # pixels of an image
_COLUMNS = 6


@dataclass(frozen=True)
class Shown:
    """An image with what was made of it.

    Attributes:
        image: As the network saw it, values in [0, 1], shape (3 or 1, H, W).
        loss: Cross-entropy, in nats.
        truth: Its class.
        found: The most probable class.
        probability: That class's.
    """

    image: Float[Tensor, "c h w"]
    loss: float
    truth: int
    found: int
    probability: float


class PredictionPicture(Callback):
    """Draws the images of highest and of lowest loss; of several processes, the first one's.

    Args:
        every: Epochs between pictures.
        count: Images in each picture.
    """

    def __init__(self, every: int, count: int = 12) -> None:
        self.every = every
        self.count = count
        self._kept: dict[str, list[Shown]] | None = None

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to look, where a picture is due."""
        due = trainer.is_global_zero and series.is_due(trainer, self.every)
        self._kept = {"worst": [], "best": []} if due else None

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the images of a batch that are among the worst or the best so far."""
        if self._kept is None or not outputs:
            return
        mean, std = statistics(trainer.datamodule)  # type: ignore[attr-defined]
        for which, largest in (("worst", True), ("best", False)):
            kept = self._kept[which]
            losses = outputs["losses"]
            top = losses.topk(min(self.count, len(losses)), largest=largest)
            for loss, i in zip(top.values.tolist(), top.indices.tolist(), strict=True):
                limit = kept[-1].loss if len(kept) == self.count else None
                if limit is not None and (loss <= limit if largest else loss >= limit):
                    break
                kept.append(_shown(batch, outputs["logits"], i, loss, mean, std))
                kept.sort(key=lambda one: one.loss, reverse=largest)
                del kept[self.count :]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw both."""
        kept, self._kept = self._kept, None
        data = trainer.datamodule  # type: ignore[attr-defined]
        names = getattr(data, "class_names", None)
        for which, images in (kept or {}).items():
            if images:
                title = f"{which.capitalize()} predictions, {series.split(trainer)}"
                picture = draw(images, names, f"{title}, {series.when(trainer)}")
                series.log(trainer, picture, f"{which} {series.split(trainer)}")

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end


def statistics(data: Any) -> tuple[Any, Any]:
    """Return mean and standard deviation that images of a data module were normalised by."""
    mean, std = getattr(data, "mean", None), getattr(data, "std", None)
    return (MEAN, STD) if mean is None or std is None else (mean, std)


def draw(images: Sequence[Shown], names: Sequence[str] | None, title: str) -> Image.Image:
    """Return images with what they are, what they were taken for, and how surely.

    Args:
        images: The images, in order.
        names: Names of the classes; None gives their numbers.
        title: What is above.
    """
    columns = min(_COLUMNS, len(images))
    rows = -(-len(images) // columns)
    step_x, step_y = _TILE + 14, _TILE + 46
    width = max(14 + columns * step_x, 480)
    image, pen = canvas.blank(width, 58 + rows * step_y)
    pen.text((12, 8), title, fill=canvas.INK, font=canvas.font(17))
    pen.text((12, 33), "frame: blue is right, ", fill=canvas.BLUE, font=canvas.font(12))
    start = 12 + int(canvas.font(12).getlength("frame: blue is right, "))
    pen.text((start, 33), "dashed orange is wrong", fill=canvas.ORANGE, font=canvas.font(12))
    for number, one in enumerate(images):
        x, y = 12 + number % columns * step_x, 56 + number // columns * step_y
        right = one.truth == one.found
        tile = _tile(one.image)
        image.paste(tile, (x + (_TILE - tile.width) // 2, y + (_TILE - tile.height) // 2))
        _frame(pen, (x - 2, y - 2, x + _TILE + 1, y + _TILE + 1), right=right)
        truth, found = (
            canvas.shorten(str(c) if names is None else str(names[c]), 15)
            for c in (one.truth, one.found)
        )
        ink = canvas.BLUE if right else canvas.ORANGE
        small = canvas.font(12)
        pen.text((x, y + _TILE + 4), f"is {truth}", fill=canvas.INK, font=small)
        text = f"found {found} ({one.probability:.0%})"
        pen.text((x, y + _TILE + 19), text, fill=ink, font=small)
    return image


def _shown(batch: Any, logits: Tensor, i: int, loss: float, mean: Any, std: Any) -> Shown:
    probabilities = logits[i].float().softmax(dim=0)
    best = int(probabilities.argmax())
    image = batch[0][i].detach().float().cpu()
    scale, shift = (torch.tensor(value).reshape(-1, 1, 1) for value in (std, mean))
    return Shown(
        image=(image * scale + shift).clamp(0, 1),
        loss=loss,
        truth=int(batch[1][i]),
        found=best,
        probability=float(probabilities[best]),
    )


def _tile(image: Tensor) -> Image.Image:
    pixels = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    picture = Image.fromarray(np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels)
    scale = _TILE / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    # Small images are shown by their pixels; photographs are scaled down.
    way = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC
    return picture.resize((width, height), way)


def _frame(pen: Any, box: tuple[int, int, int, int], *, right: bool) -> None:
    if right:
        pen.rectangle(box, outline=canvas.BLUE, width=2)
        return
    x0, y0, x1, y1 = box
    for start in range(x0, x1, 10):  # not by colour alone
        for y in (y0, y1):
            pen.line((start, y, min(start + 6, x1), y), fill=canvas.ORANGE, width=2)
    for start in range(y0, y1, 10):
        for x in (x0, x1):
            pen.line((x, start, x, min(start + 6, y1)), fill=canvas.ORANGE, width=2)
