"""What the spectral filters are: the learned gains of V2, the masks of V1 and their weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from PIL import Image

from spanet_lightning.backbones import Backbone
from spanet_lightning.backbones.metaformer import stage_sizes
from spanet_lightning.backbones.spectral import SpectralFilter, SpectralPooling, full_gain
from spanet_lightning.tracking.pictures import canvas, series
from spanet_lightning.tracking.telemetry import has_whole_tensors

_TILE = 104  # pixels of a spectrum
_MOST_BLOCKS = 8  # of a stage, that are drawn
_LEAST_SPAN = 0.01  # of the scale of gains, so that noise at the start does not look like a filter


class Tile(NamedTuple):
    """A spectrum in a row of a picture.

    Attributes:
        values: The spectrum, zero frequency in the middle, shape (H, W).
        text: What is written below it.
    """

    values: np.ndarray
    text: str


class FilterPicture(Callback):
    """Draws the spectral filters of the backbone, where it has any.

    Args:
        every: Epochs between pictures.
    """

    def __init__(self, every: int) -> None:
        self.every = every

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what training starts from."""
        self._log(trainer, pl_module, "before training")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw them as they are after an epoch."""
        if trainer.state.fn == "fit" and series.is_due(trainer, self.every):
            self._log(trainer, pl_module, series.when(trainer))

    def _log(self, trainer: Trainer, model: LightningModule, moment: str) -> None:
        backbone = getattr(model, "backbone", None)
        if not (trainer.is_global_zero and has_whole_tensors(trainer)):
            return
        if not isinstance(backbone, Backbone):
            return
        size = getattr(trainer.datamodule, "image_size", 224)  # type: ignore[attr-defined]
        picture = draw(backbone, moment, size if isinstance(size, int) else 224)
        if picture is not None:
            series.log(trainer, picture, "spectral filters")


def draw(backbone: Backbone, moment: str, image_size: int = 224) -> Image.Image | None:
    """Return a picture of the spectral filters; None where there are none.

    Args:
        backbone: The network.
        moment: When, for the title.
        image_size: Side in pixels of the images, for the size of V1's masks.
    """
    with torch.no_grad():
        gains = _gains(backbone, image_size)
        if gains:
            return _draw_gains(gains, moment)
        masks = _masks(backbone, image_size)
        return _draw_masks(masks, moment) if masks else None


def _stages(backbone: Backbone) -> dict[int, list[Any]]:
    """Return the spectral filters, by the stage that they are in."""
    found: dict[int, list[Any]] = {}
    for i, stage in enumerate(backbone.stages):
        filters = [module for module in stage.modules() if isinstance(module, SpectralFilter)]
        if filters:
            found[i] = filters
    return found


def _spread(count: int) -> list[int]:
    """Return which of so many blocks are drawn: first, last, and some between."""
    if count <= _MOST_BLOCKS:
        return list(range(count))
    return [round(i * (count - 1) / (_MOST_BLOCKS - 1)) for i in range(_MOST_BLOCKS)]


def _gains(backbone: Backbone, image_size: int) -> dict[str, list[Tile]]:
    rows: dict[str, list[Tile]] = {}
    for stage, filters in _stages(backbone).items():
        height, width = stage_sizes(image_size, image_size)[stage]
        for i in _spread(len(filters)):
            if isinstance(filters[i], SpectralPooling):
                continue
            gain = full_gain(filters[i].gain(height, width).detach().float().cpu(), width)
            plane = gain.mean(dim=0).numpy()
            # How much the channels of the block differ from each other.
            spread = float(gain.std(dim=0).mean()) if len(gain) > 1 else 0.0
            text = f"block {i + 1}\n{plane.mean():.3f} ± {spread:.3f}"
            rows.setdefault(f"stage {stage + 1}", []).append(Tile(plane, text))
    return rows


def _masks(backbone: Backbone, image_size: int) -> dict[str, list[Tile]]:
    rows: dict[str, list[Tile]] = {}
    for stage, filters in _stages(backbone).items():
        height, width = stage_sizes(image_size, image_size)[stage]
        first = filters[0]
        blocks: Any = backbone.stages[stage].blocks
        all_gates = [block.mixer.gates for block in blocks]
        norms = [
            [
                float(part.square().sum())
                for part in torch.split(gates.weight.detach().float(), gates.sizes, 1)
            ]
            for gates in all_gates
        ]
        shares = np.array(norms) / np.sum(norms, axis=1, keepdims=True)
        masks = torch.split(full_gain(first.gain(height, width), width), all_gates[0].sizes)
        for balance, mask, share in zip(first.balance, masks, shares.mean(axis=0), strict=True):
            # Pillow's font has no λ.
            text = f"balance {balance:.2g}, r {first.radius:g}\n{share:.1%} of weight"
            tile = Tile(mask[0].cpu().numpy(), text)
            rows.setdefault(f"stage {stage + 1}", []).append(tile)
    return rows


def _draw_gains(rows: dict[str, list[Tile]], moment: str) -> Image.Image:
    values = np.concatenate([tile.values.ravel() for row in rows.values() for tile in row])
    span = max(float(np.abs(values - 0.5).max()), _LEAST_SPAN)
    scale = canvas.bar(canvas.diverging, f"{0.5 - span:.3f}", f"{0.5 + span:.3f}")
    head = (
        f"SRF gains (SPANetV2), {moment}",
        "Mean over channels, zero frequency in the middle; white is 0.5, where learning starts.",
        "Below each: mean, and standard deviation between its channels.",
    )
    return _grid(rows, head, scale, lambda v: canvas.diverging(0.5 + (v - 0.5) / (2 * span)))


def _draw_masks(rows: dict[str, list[Tile]], moment: str) -> Image.Image:
    head = (
        f"SPF gates (SPANet), {moment}",
        "The mask of each gate, zero frequency in the middle; masks are fixed, weights learned.",
        "Below each: balance, radius, and its share of the squared weights behind the gates.",
    )
    return _grid(rows, head, canvas.bar(canvas.sequential, "0", "1"), canvas.sequential)


def _grid(
    rows: dict[str, list[Tile]], head: Sequence[str], scale: Image.Image, colours: Any
) -> Image.Image:
    columns = max(map(len, rows.values()))
    step_x, step_y, left, top = _TILE + 16, _TILE + 44, 66, 104
    image, pen = canvas.blank(max(left + columns * step_x, 600), top + len(rows) * step_y)
    pen.text((12, 8), head[0], fill=canvas.INK, font=canvas.font(17))
    for i, line in enumerate(head[1:]):
        pen.text((12, 32 + 17 * i), line, fill=canvas.GREY, font=canvas.font(12))
    image.paste(scale, (12, 74))
    for i, (stage, tiles) in enumerate(rows.items()):
        y = top + i * step_y
        pen.text((12, y + _TILE // 2), stage, fill=canvas.INK, font=canvas.font(12), anchor="lm")
        for j, tile in enumerate(tiles):
            x = left + j * step_x
            picture = canvas.enlarged(colours(tile.values), _TILE)
            image.paste(picture, (x, y))
            pen.rectangle((x - 1, y - 1, x + _TILE, y + _TILE), outline=canvas.GREY)
            pen.multiline_text(
                (x, y + _TILE + 3), tile.text, fill=canvas.INK, font=canvas.font(11), spacing=2
            )
    return image
