"""What the dense heads share: convolutions with their published initialisation, batch norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from spanet_lightning.errors import invalid_choice

HeadNorm = Literal["batch", "sync"]
"""Batch norm of a head: of each device's own images, or of those of all devices."""

Init = Callable[[nn.Module], None]


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch norm over the images of all devices: torch's SyncBatchNorm, but on CPUs as well.

    One configuration has to run on both, and several CPU processes have to train as one. It is no
    subclass of torch's, which DDP refuses on CPUs. On a single device it is a plain batch norm.
    """

    process_group = None  # all processes
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return `x` normalised over (B, H, W), of all devices in training; same shape."""
        if not self.training or devices() == 1:
            return super().forward(x)
        if x.is_cuda:
            fused: Tensor = nn.SyncBatchNorm.forward(self, x)  # type: ignore[arg-type]
            return fused
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return self._over_processes(x)

    def _over_processes(self, x: Tensor) -> Tensor:
        ones = x.new_full((1,), x.numel() / x.shape[1])
        total = _SumOverDevices.apply(torch.cat([x.sum(dim=(0, 2, 3)), ones]))
        count = total[-1].detach()
        mean = total[:-1] / count
        centred = x - mean[:, None, None]
        var = _SumOverDevices.apply(centred.square().sum(dim=(0, 2, 3))) / count
        if self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                momentum = self.momentum or 0.0
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(var * count / (count - 1), momentum)
        y: Tensor = centred * torch.rsqrt(var + self.eps)[:, None, None]
        if self.affine:
            y = y * self.weight[:, None, None] + self.bias[:, None, None]
        return y


class _SumOverDevices(torch.autograd.Function):
    """The sum of a tensor over all devices; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004 - autograd's signature
        total = x.detach().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ARG004
        total = grad.clone()
        dist.all_reduce(total)
        return total


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


def batch_norm(kind: HeadNorm, channels: int) -> nn.Module:
    """Return the batch norm of `channels` channels.

    Raises:
        ConfigError: If there is no such kind.
    """
    if kind not in get_args(HeadNorm):
        raise invalid_choice("norm", kind, get_args(HeadNorm))
    return SyncBatchNorm(channels) if kind == "sync" else nn.BatchNorm2d(channels)


class ConvNormReLU(nn.Sequential):
    """Convolution without bias, batch norm, ReLU: the unit of every head that normalises.

    Args:
        channels: Channels in.
        out: Channels out.
        kernel_size: Side of the kernel in pixels, odd; the output keeps the input's size.
        norm: Which batch norm.
    """

    def __init__(self, channels: int, out: int, kernel_size: int, norm: HeadNorm) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = batch_norm(norm, out)
        self.relu = nn.ReLU()
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


def init_xavier(layer: nn.Conv2d | nn.Linear) -> None:
    """Draw weights uniformly after Glorot; zero the biases."""
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def init_kaiming(layer: nn.Module) -> None:
    """Draw weights normally after He, scaled by the fan-out for a ReLU; zero the biases."""
    assert isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))  # noqa: S101 - for the type checker
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
