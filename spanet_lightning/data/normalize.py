"""From the uint8 of a loader to what a network takes, a whole batch at once, on its device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from lightning import LightningDataModule
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from spanet_lightning.errors import invalid

Channels = tuple[float, float, float]
MEAN: Channels = IMAGENET_DEFAULT_MEAN  # 123.675, 116.28, 103.53 of 255
STD: Channels = IMAGENET_DEFAULT_STD  # 58.395, 57.12, 57.375 of 255


def channel_statistics(
    in_chans: int, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel; where not given, those of ImageNet.

    Args:
        in_chans: Channels of the network's input; of one, the mean of three, as timm does it.
        mean: Of each channel, of values in [0, 1].
        std: Of each channel, likewise.

    Raises:
        ConfigError: If the channels are neither 1 nor 3, or there are more or fewer numbers.
    """
    if in_chans not in (1, 3):
        raise invalid("in_chans", in_chans, "1 or 3")
    found = []
    for key, given, default in (("mean", mean, MEAN), ("std", std, STD)):
        values = given or (default if in_chans == 3 else (sum(default) / 3,))
        if len(values) != in_chans:
            raise invalid(key, values, f"{in_chans} numbers, one for each of in_chans")
        if max(values) > 1:
            raise invalid(key, values, "values of pixels in [0, 1]: divide by 255")
        found.append(tuple(values))
    return found[0], found[1]


class Normalize:
    """Subtracts a mean from each channel and divides it by a standard deviation.

    Args:
        mean: Of each channel, of values in [0, 1].
        std: Of each channel, likewise.

    Raises:
        ConfigError: If a value can't be subtracted or divided by.
    """

    def __init__(self, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> None:
        if min(std) <= 0:
            raise invalid("std", std, "numbers above 0")
        if not all(abs(value) < float("inf") for value in (*mean, *std)):
            raise invalid("mean", mean, "finite numbers")
        self.mean = mean
        self.std = std
        self._constants: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(
        self, images: UInt8[Tensor, "b c h w"], sizes: Sequence[Sequence[int]] | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Return images as a network takes them, on the device that they are on.

        Args:
            images: Values 0 to 255.
            sizes: Height and width in pixels of each image without its padding at the right and the
                bottom; None where none is padded.

        Returns:
            (images - 255 mean) / (255 std) as float32, contiguous; zero where padded.
        """
        mean, std = self._scales(images.device)
        # In place after the one conversion: a batch of 128 at 224 px is 77 MB as float32.
        layout = torch.contiguous_format
        found = images.to(torch.float32, memory_format=layout).sub_(mean).div_(std)
        for image, (height, width) in zip(found, sizes or (), strict=sizes is not None):
            image[:, height:].zero_()
            image[:, :height, width:].zero_()
        return found

    def _scales(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return what to subtract and to divide by, shape (C, 1, 1), copied to a device once."""
        if device not in self._constants:
            values = 255 * torch.tensor([self.mean, self.std]).reshape(2, -1, 1, 1)
            mean, std = values.to(device)
            self._constants[device] = (mean, std)
        return self._constants[device]


def in_precision_of_run(images: Tensor, data: LightningDataModule) -> Tensor:
    """Return normalised images in the precision that a run has throughout.

    For `precision: bf16-true` Lightning converts a batch's floats before it moves the batch, when
    there were none.

    Args:
        images: float32.
        data: The data module of the run; outside of one, images stay as they are.
    """
    if data.trainer is None:
        return images
    converted: Tensor = data.trainer.precision_plugin.convert_input(images)
    return converted
