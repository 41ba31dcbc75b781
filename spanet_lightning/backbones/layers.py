"""What both generations share, on (B, C, H, W) tensors whose memory is channels-last.

Channels-last is the layout in which every part is fast: a 1×1 convolution is one matrix product, a
depthwise one vectorises over channels, LayerNorm runs over adjacent values, and the spectral bases
contract whole rows (`spectral`). No layer copies a tensor to change its layout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from spanet_lightning.backbones.activated_conv import GELU, SQUARED_RELU, activated_conv1x1

BranchScale = Literal["res", "layer", "none"]
BRANCH_SCALES: tuple[BranchScale, ...] = ("res", "layer", "none")

# The init of a layer scale in PoolFormer and CaiT; SPANet's Table 5 does not state its own.
LAYER_SCALE_INIT = 1e-5


class LayerNorm2d(nn.Module):
    """LayerNorm over channels at each pixel, with a weight and no bias (arXiv:2210.13452).

    Args:
        channels: Number of channels C.
        eps: Added to the variance.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return `x` normalised, same shape."""
        x_BHWC = x.permute(0, 2, 3, 1)
        x_BHWC = F.layer_norm(x_BHWC, self.weight.shape, self.weight, None, self.eps)
        return x_BHWC.permute(0, 3, 1, 2)


class GroupNorm1(nn.GroupNorm):
    """GroupNorm with one group: statistics over (C, H, W), affine over C (arXiv:2111.11418).

    Args:
        channels: Number of channels C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(1, channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return `x` normalised, same shape."""
        if not x.is_cuda or x.is_contiguous():
            return super().forward(x)
        # CUDA's GroupNorm has no channels-last kernel: it would copy there and back.
        x_BHWC = x.permute(0, 2, 3, 1)
        x_BHWC = F.layer_norm(x_BHWC, x_BHWC.shape[1:], eps=self.eps)
        x_BHWC = torch.addcmul(self.bias, x_BHWC, self.weight).to(x_BHWC.dtype)
        return x_BHWC.permute(0, 3, 1, 2)


class DepthwiseRow(nn.Conv2d):
    """A depthwise convolution along the width, with a kernel of 1×k pixels.

    In channels-last memory every row of the image is an image of its own, of height W and width 1,
    on which the kernel is k×1: the same sums on a view. oneDNN's gradient of a 1×k depthwise kernel
    takes 4 to 7 times as long as that of a k×1 one, so training on a CPU uses the view.

    Args:
        channels: Number of channels C.
        kernel_size: Length k of the kernel in pixels, odd.
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        padding = (0, kernel_size // 2)
        super().__init__(channels, channels, (1, kernel_size), padding=padding, groups=channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the filtered features, same shape."""
        if (
            not self.training
            or x.device.type != "cpu"
            or torch.compiler.is_compiling()  # the view's conditions would fix the batch size
            or not x.is_contiguous(memory_format=torch.channels_last)
        ):
            return super().forward(x)
        batch, channels, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(batch * height, width, 1, channels)
        y = F.conv2d(
            rows.permute(0, 3, 1, 2),
            self.weight.transpose(2, 3),
            self.bias,
            padding=(self.kernel_size[1] // 2, 0),
            groups=channels,
        )
        y_BHWC = y.permute(0, 2, 3, 1).reshape(batch, height, width, channels)
        return y_BHWC.permute(0, 3, 1, 2)


class Scale(nn.Module):
    """Multiply each channel by a learned factor.

    On the shortcut it is the res-scale (arXiv:2110.09456), on the branch the layer-scale
    (arXiv:2103.17239).

    Args:
        channels: Number of channels C.
        init: First value of all factors.
    """

    def __init__(self, channels: int, init: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels,), init))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return `x` scaled, same shape."""
        return x * self.scale.view(-1, 1, 1)

    def add(
        self, x: Float[Tensor, "b c h w"], y: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        """Return `scale·x + y`, in one pass over memory."""
        return torch.addcmul(y, x, self.scale.view(-1, 1, 1))


class GeluMlp(nn.Module):
    """1×1 convolution, GELU, 1×1 convolution, with biases: the channel MLP of SPANet.

    Args:
        channels: Number of channels C in and out.
        ratio: Hidden channels over C.
    """

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__()
        hidden = int(channels * ratio)
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)
        for fc in (self.fc1, self.fc2):
            init_trunc_normal(fc)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the MLP of each pixel, same shape."""
        return activated_conv1x1(
            self.fc1(x), self.fc2.weight, self.fc2.bias, GELU, recompute=self.training
        )


class LiteralGeluMlp(GeluMlp):
    """`GeluMlp` operation by operation, as the official code: `spectral_impl: fft`."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the MLP of each pixel, same shape."""
        y: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return y


class StarReLU(nn.Module):
    """s·relu(x)² + b with learned scalars s and b (arXiv:2210.13452, Eq. 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the activation, same shape."""
        return self.scale * F.relu(x).square() + self.bias


class StarReluMlp(nn.Module):
    """1×1 convolution, StarReLU, 1×1 convolution, without biases: the channel MLP of SPANetV2.

    The scalars of StarReLU are folded into the second convolution,
    W(s·r² + b) = (s·W)·r² + b·W1: the same function, without two passes over the hidden features.

    Args:
        channels: Number of channels C in and out.
        ratio: Hidden channels over C.
    """

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__()
        hidden = int(channels * ratio)
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=False)
        self.act = StarReLU()
        self.fc2 = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the MLP of each pixel, same shape."""
        weight = self.fc2.weight
        return activated_conv1x1(
            self.fc1(x),
            weight * self.act.scale,
            weight.sum((1, 2, 3)) * self.act.bias,
            SQUARED_RELU,
            recompute=self.training,
        )


class LiteralStarReluMlp(StarReluMlp):
    """`StarReluMlp` as the official code: linear layers on (B, H, W, C), StarReLU in steps."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the MLP of each pixel, same shape."""
        hidden = self.act(pixelwise(self.fc1, x.permute(0, 2, 3, 1)))
        return pixelwise(self.fc2, hidden).permute(0, 3, 1, 2)


def pixelwise(conv: nn.Conv2d, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w d"]:
    """Apply a 1×1 convolution as a linear layer on the last dimension, as the official V2 does."""
    return F.linear(x, conv.weight.flatten(1), conv.bias)


class Downsample(nn.Module):
    """A strided convolution, with a norm before or after it, or none.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel_size: In pixels.
        stride: In pixels.
        padding: In pixels.
        norm: Builds the norm from its number of channels, or `None`.
        norm_first: Whether the norm comes before the convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        padding: int,
        norm: Callable[[int], nn.Module] | None = None,
        *,
        norm_first: bool = False,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding)
        self.norm = norm(in_channels if norm_first else out_channels) if norm else None

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        """Return the down-sampled features."""
        if self.norm is not None and self.norm_first:
            x = self.norm(x)
        x = self.conv(x)
        if self.norm is not None and not self.norm_first:
            x = self.norm(x)
        return x


class MlpHead(nn.Module):
    """Linear, squared ReLU, LayerNorm, linear: the classifier of SPANetV2 (arXiv:2210.13452).

    Args:
        features: Features D in.
        num_classes: Classes K out.
        drop_rate: Dropout before the last linear layer. The published training script states a rate
            but never passes it on (0 in effect); this is where the authors meant it.
        ratio: Hidden features over D.
    """

    def __init__(
        self, features: int, num_classes: int, drop_rate: float = 0.0, ratio: int = 4
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, features * ratio)
        self.norm = nn.LayerNorm(features * ratio)
        self.drop = nn.Dropout(drop_rate)
        self.fc2 = nn.Linear(features * ratio, num_classes)
        self.apply(init_trunc_normal)

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        """Return the logits."""
        logits: Tensor = self.fc2(self.drop(self.norm(F.relu(self.fc1(x)).square())))
        return logits


def init_trunc_normal(module: nn.Module) -> None:
    """Draw a layer's weight from N(0, 0.02²), truncated, and zero its bias."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
