"""Means over an epoch of what each training step gives."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class EpochMean(Metric):
    """The mean of a value over the images of an epoch, on all processes.

    Lightning takes such means of what is logged by itself, but forgets them in a checkpoint: of a
    run resumed in the middle, they would cover the rest of the epoch.
    """

    full_state_update = False
    total: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, value: Tensor, images: int) -> None:
        """Add the mean of a batch, a scalar, and the number of images that it is of."""
        self.total = self.total + value.detach().float() * images
        self.images = self.images + images

    def compute(self) -> Tensor:
        """Return the mean, a scalar."""
        return self.total / self.images
