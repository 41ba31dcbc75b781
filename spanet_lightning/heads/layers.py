"""What the dense heads share: pyramid, convolutions with their published initialisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool

Init = Callable[[nn.Module], None]
Extra = Literal["none", "pool", "conv"]


class FPN(FeaturePyramidNetwork):  # type: ignore[misc]  # torchvision has no types
    """torchvision's feature pyramid network (arXiv:1612.03144) with its published initialisation.

    - `extra="pool"`: P6 is every second pixel of P5 (Mask R-CNN; for its proposals only).
    - `extra="conv"`: P6 is a 3×3 convolution of stride 2 on the backbone's last level, P7 the same
      on P6, **without** a ReLU between them (as published; torchvision's has one).

    Args:
        channels: Channels of the backbone's levels that are read, finest first.
        out_channels: Channels of every level of the pyramid.
        extra: The coarser levels that are added.
    """

    def __init__(self, channels: Sequence[int], out_channels: int, extra: Extra = "none") -> None:
        blocks: dict[Extra, Callable[[], ExtraFPNBlock | None]] = {
            "none": lambda: None,
            "pool": LastLevelMaxPool,
            "conv": lambda: _LastLevelP6P7(channels[-1], out_channels),
        }
        super().__init__(list(channels), out_channels, blocks[extra]())
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                init_xavier(layer)

    def forward(self, x: Sequence[Tensor]) -> list[Tensor]:
        """Return the pyramid's levels, finest first, each (B, out_channels, H_l, W_l)."""
        levels: dict[str, Tensor] = super().forward({str(i): level for i, level in enumerate(x)})
        return list(levels.values())


class _LastLevelP6P7(ExtraFPNBlock):  # type: ignore[misc]
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, 2, 1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, 2, 1)

    def forward(
        self, results: list[Tensor], x: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        """Return the pyramid and its names with P6 and P7."""
        p6 = self.p6(x[-1])
        return [*results, p6, self.p7(p6)], [*names, "p6", "p7"]


FPN_RULES = (
    (r"^neck\.lateral_convs\.(\d)\.conv\.", r"neck.inner_blocks.\1.0."),
    (r"^neck\.fpn_convs\.(\d)\.conv\.", r"neck.layer_blocks.\1.0."),
    (r"^neck\.laterals\.(\d)\.", r"neck.inner_blocks.\1.0."),
    (r"^neck\.outputs\.(\d)\.", r"neck.layer_blocks.\1.0."),
)


def devices() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mean_over_devices(count: int, like: Tensor) -> Tensor | float:
    """Return what a sum over this device's share of a batch is divided by, at least 1.

    Gradients are averaged over devices. Sums that each are divided by the mean count average to the
    whole batch's sum over its count; divided by their own counts they would not, and a device with
    one object would weigh as much as one with a hundred.

    Args:
        count: Of this device: anchors, boxes or pixels.
        like: Tells the device.
    """
    if devices() == 1:
        return max(count, 1)
    total = torch.tensor(float(count), device=like.device)
    dist.all_reduce(total)
    return total.clamp(min=1) / devices()


class ConvModule(nn.Sequential):
    """Convolution without bias, batch norm, ReLU: mmcv's unit, with its names.

    Args:
        channels: Channels in.
        out_channels: Channels out.
        kernel_size: Side of the kernel in pixels, odd; the output keeps the input's size.
    """

    def __init__(self, channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False
        )
        self.bn = nn.BatchNorm2d(out_channels)
        self.activate = nn.ReLU()
        init_kaiming(self.conv)


def conv_relu(channels: int, out: int, init: Init) -> nn.Sequential:
    """Return a 3×3 convolution with bias, initialised by `init`, and a ReLU."""
    conv = nn.Conv2d(channels, out, 3, padding=1)
    init(conv)
    return nn.Sequential(conv, nn.ReLU())


def init_normal(std: float, bias: float = 0.0) -> Init:
    """Return an initialisation: normal weights of deviation `std`, constant biases."""

    def init(layer: nn.Module) -> None:
        assert isinstance(layer, (nn.Conv2d, nn.Linear))  # noqa: S101 - for the type checker
        nn.init.normal_(layer.weight, std=std)
        if layer.bias is not None:
            nn.init.constant_(layer.bias, bias)

    return init


def init_xavier(layer: nn.Module) -> None:
    """Initialise weights uniformly after Glorot; zero the biases."""
    assert isinstance(layer, (nn.Conv2d, nn.Linear))  # noqa: S101 - for the type checker
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def init_kaiming(layer: nn.Module) -> None:
    """Draw weights normally after He, scaled by the fan-out for a ReLU; zero the biases."""
    assert isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))  # noqa: S101 - for the type checker
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
