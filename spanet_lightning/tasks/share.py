"""How the images of a step are shared out, and where in an epoch a run is once that has changed.

A checkpoint counts batches. Resumed on other devices, or with another batch on each, a run goes on
with the image that it would have come to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from lightning.pytorch import Trainer


class Share(NamedTuple):
    """What a batch is.

    Attributes:
        images: Of one batch, on all processes together.
        accumulated: Batches of one update of the weights.
    """

    images: int
    accumulated: int


def of(trainer: Trainer) -> Share | None:
    """Return what a batch of a run is; None where the data does not tell its `batch_size`.

    Args:
        trainer: With the data that it trains on.
    """
    images = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
    if not isinstance(images, int) or images < 1:
        return None
    return Share(images * trainer.world_size, trainer.accumulate_grad_batches)


def place(count: int, then: Mapping[str, int] | None, now: Share | None) -> tuple[int, bool]:
    """Return how many batches hold the images that were trained on, and whether they do exactly.

    Where they do not, the place is that of the last update: its images, or as many of them as
    whole batches hold.

    Args:
        count: Batches of the epoch that were trained on.
        then: The `Share` of those; None of a checkpoint that does not say it.
        now: That of the batches to come.
    """
    if then is None or now is None or then["images"] == now.images:
        return count, True
    seen = count * then["images"]
    if seen % now.images == 0:
        return seen // now.images, True
    updated = count // then["accumulated"] * then["accumulated"] * then["images"]
    return updated // now.images, False
