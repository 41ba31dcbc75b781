"""SPANetV2 (TPAMI 2026, arXiv:2503.23947): the second generation.

Its token mixer, spectral-adaptive modulation (SPAM), runs depthwise convolutions of several sizes,
one a head, and re-scales their spectra by a learned filter (SRF) before they modulate the query:

    q   = GELU(W_q x)
    c_i = irfft2(rfft2(DW_ki((W_c x)_i)) ⊙ sigmoid(θ_i))        head i, kernel size k_i
    y   = W_o(q ⊙ W_2 GELU(GN(W_1[c_1 … c_h])))                 W_1 grouped, expands by 2

The hybrid variants use SPAM in the first two stages, attention with a depthwise convolution on its
values in the third, and attention in the last.

Shape letters: B batch, C channels, H×W pixels of the stage, N = H·W tokens, A attention channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from spanet_lightning.backbones import (
    official,
    registry,
    spectral,
    spectral_literal,
    validate,
)
from spanet_lightning.backbones.activated_conv import GELU, activated_conv1x1
from spanet_lightning.backbones.kept import Kept
from spanet_lightning.backbones.layers import (
    BRANCH_SCALES,
    BranchScale,
    GroupNorm1,
    LayerNorm2d,
    LiteralStarReluMlp,
    MlpHead,
    StarReluMlp,
    init_trunc_normal,
    pixelwise,
)
from spanet_lightning.backbones.metaformer import Backbone
from spanet_lightning.backbones.spectral import SpectralImpl
from spanet_lightning.errors import invalid

SrfGate = Literal["sigmoid", "scaled_sigmoid"]
HeadLayout = Literal["interleaved", "concatenated"]
Mixer = Literal["spam", "attention", "mixed"]
SPANetV2Variant = Literal[
    "s18_pure",
    "s18_hybrid",
    "s36_pure",
    "s36_hybrid",
    "m36_pure",
    "m36_hybrid",
    "b36_pure",
    "b36_hybrid",
    "test",
]

_PURE: tuple[Mixer, ...] = ("spam", "spam", "spam", "spam")
_HYBRID: tuple[Mixer, ...] = ("spam", "spam", "mixed", "attention")
HEAD_DIM = 32  # channels of an attention head
MIXED_KERNEL_SIZE = 7  # of the depthwise convolution beside attention, in pixels
EXPANSION = 2  # of the context projection


class SPANetV2Row(NamedTuple):
    """One row of the table of variants."""

    depths: tuple[int, int, int, int]
    dims: tuple[int, int, int, int]
    mixers: tuple[Mixer, ...] = _PURE


VARIANTS: dict[str, SPANetV2Row] = {
    "s18_pure": SPANetV2Row((3, 3, 9, 3), (64, 128, 320, 512)),
    "s18_hybrid": SPANetV2Row((3, 3, 9, 3), (64, 128, 320, 512), _HYBRID),
    "s36_pure": SPANetV2Row((3, 12, 18, 3), (64, 128, 320, 512)),
    "s36_hybrid": SPANetV2Row((3, 12, 18, 3), (64, 128, 320, 512), _HYBRID),
    "m36_pure": SPANetV2Row((3, 12, 18, 3), (96, 192, 384, 576)),
    "m36_hybrid": SPANetV2Row((3, 12, 18, 3), (96, 192, 384, 576), _HYBRID),
    "b36_pure": SPANetV2Row((3, 12, 18, 3), (128, 256, 512, 768)),
    "b36_hybrid": SPANetV2Row((3, 12, 18, 3), (128, 256, 512, 768), _HYBRID),
    "test": SPANetV2Row((1, 1, 2, 1), (16, 32, 64, 96)),
}


class SpectralRescaling(nn.Module):
    """SRF: re-scale each channel's spectrum by the sigmoid of learned logits (arXiv:2503.23947).

    Args:
        channels: Number of channels C.
        heads: Number of heads; each has its own tensor of logits, as in the official interleaved
            code, so that an optimizer with a trust ratio per tensor (LAMB) treats them alike.
        size: Height and width, in pixels of this stage, at which logits are stored. Another input
            size resizes them (`spectral.resize_logits`).
        gate: "sigmoid", or "scaled_sigmoid" for sigmoid(α·θ) with a learned scalar α.
        impl: See `spectral.SpectralImpl`.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        size: tuple[int, int],
        gate: SrfGate,
        impl: SpectralImpl,
    ) -> None:
        super().__init__()
        shape = (channels // heads, size[0], size[1] // 2 + 1)
        self.logits = nn.ParameterList(torch.randn(shape) * 0.02 for _ in range(heads))
        self.alpha = nn.Parameter(torch.ones(1)) if gate == "scaled_sigmoid" else None
        self.impl: SpectralImpl = impl
        self._kept = Kept[Tensor | spectral.RealGain]()

    def gain(self, height: int, width: int) -> Float[Tensor, "c {height} {width}//2+1"]:
        """Return the gains at this size, in the layout of a real FFT (rows unshifted)."""
        return self._gain(torch.cat(list(self.logits)), height, width)

    def head_gains(
        self, height: int, width: int
    ) -> list[Float[Tensor, "c_n {height} {width}//2+1"]]:
        """Return the gains of each head."""
        return [self._gain(logits, height, width) for logits in self.logits]

    def _gain(self, logits: Tensor, height: int, width: int) -> Tensor:
        logits = spectral.resize_logits(logits, height, width // 2 + 1)
        return torch.sigmoid(logits if self.alpha is None else self.alpha * logits)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return `x` with re-scaled spectra, same shape and dtype."""
        height, width = x.shape[-2:]

        def build() -> Tensor | spectral.RealGain:
            return spectral.srf_gain(self.gain(height, width), width, self.impl)

        return spectral.srf(x, self._kept(self, build, height, width))


class SPAM(nn.Module):
    """Spectral-adaptive modulation, the token mixer of SPANetV2 (arXiv:2503.23947).

    Args:
        channels: Number of channels C, a multiple of the number of heads.
        kernel_sizes: Kernel size of each head's depthwise convolution, in pixels.
        srf: The spectral filter, or `None`.
        head_layout: Order of channels before the grouped expansion: "interleaved" puts channel j of
            all heads side by side, so that a group mixes heads; "concatenated" puts head after
            head, so that a group mixes channels of one head.
    """

    def __init__(
        self,
        channels: int,
        kernel_sizes: Sequence[int],
        srf: SpectralRescaling | None,
        head_layout: HeadLayout,
    ) -> None:
        super().__init__()
        self.head_layout = head_layout
        size = channels // len(kernel_sizes)  # channels of a head, and number of groups
        self.query = nn.Conv2d(channels, channels, 1, bias=False)
        self.context = nn.Conv2d(channels, channels, 1, bias=False)
        self.local = nn.ModuleList(
            nn.Conv2d(size, size, k, padding=k // 2, groups=size) for k in kernel_sizes
        )
        self.srf = srf if srf is not None else nn.Identity()
        self.expand = nn.Conv2d(channels, channels * EXPANSION, 1, groups=size, bias=False)
        self.norm = GroupNorm1(channels * EXPANSION)
        self.reduce = nn.Conv2d(channels * EXPANSION, channels, 1, bias=False)
        self.proj = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the mixed tokens, same shape."""
        heads = self.context(x).chunk(len(self.local), dim=1)
        heads = [conv(head) for conv, head in zip(self.local, heads, strict=True)]
        if self.head_layout == "concatenated":
            context = self.srf(torch.cat(heads, dim=1))
        else:
            context = _interleave(self.srf(torch.cat(heads, dim=1)), len(heads))
        context = activated_conv1x1(
            self.norm(self.expand(context)),
            self.reduce.weight,
            None,
            GELU,
            recompute=self.training,
        )
        y: Tensor = self.proj(F.gelu(self.query(x)) * context)
        return y


class LiteralSPAM(SPAM):
    """`SPAM` as the official code computes it: `spectral_impl: fft`.

    Linear layers on (B, H, W, C), one convolution and one real FFT a head, written into a tensor of
    zeros in (B, C, H, W), which the expansion works on; back to (B, H, W, C) for the product.
    """

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the mixed tokens, same shape."""
        x_BHWC = x.permute(0, 2, 3, 1)
        query = F.gelu(pixelwise(self.query, x_BHWC))
        tokens = pixelwise(self.context, x_BHWC).permute(0, 3, 1, 2).chunk(len(self.local), dim=1)
        heads = [conv(head) for conv, head in zip(self.local, tokens, strict=True)]
        if self.head_layout == "concatenated":
            context = self.srf(torch.cat(heads, dim=1))
        elif isinstance(self.srf, SpectralRescaling):
            gains = self.srf.head_gains(*x.shape[-2:])
            context = spectral_literal.srf_interleaved(heads, gains)
        else:
            context = torch.stack(heads, dim=2).flatten(1, 2)
        context = self.reduce(F.gelu(self.norm(self.expand(context.contiguous()))))
        return pixelwise(self.proj, query * context.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _interleave(x: Tensor, heads: int) -> Tensor:
    """Reorder channels from head after head to channel after channel (a channel shuffle)."""
    batch, channels, height, width = x.shape
    x_BHWC = x.permute(0, 2, 3, 1).reshape(batch, height, width, heads, channels // heads)
    return x_BHWC.transpose(3, 4).reshape(batch, height, width, channels).permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Global self-attention with heads of 32 channels, optionally with a local branch.

    Args:
        channels: Number of channels C.
        local: Add a 7×7 depthwise convolution of the values to the attention's output: the mixed
            attention of the hybrid variants' third stage.
    """

    def __init__(self, channels: int, *, local: bool) -> None:
        super().__init__()
        self.heads = max(channels // HEAD_DIM, 1)
        width = self.heads * HEAD_DIM
        self.qkv = nn.Conv2d(channels, 3 * width, 1, bias=False)
        k = MIXED_KERNEL_SIZE
        self.local = (
            nn.Conv2d(width, width, k, padding=k // 2, groups=width, bias=False) if local else None
        )
        self.proj = nn.Conv2d(width, channels, 1, bias=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the mixed tokens, same shape."""
        batch, _, height, width = x.shape
        qkv = self.qkv(x)
        tokens = qkv.permute(0, 2, 3, 1).reshape(batch, height * width, 3, self.heads, HEAD_DIM)
        q, k, v = tokens.permute(2, 0, 3, 1, 4).unbind()
        y = F.scaled_dot_product_attention(q, k, v)
        y = y.transpose(1, 2).reshape(batch, height, width, -1).permute(0, 3, 1, 2)
        if self.local is not None:
            y = y + self.local(qkv.chunk(3, dim=1)[2])
        mixed: Tensor = self.proj(y)
        return mixed


class LiteralAttention(Attention):
    """`Attention` in the official code's steps, with the N×N matrix: `spectral_impl: fft`."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the mixed tokens, same shape."""
        batch, _, height, width = x.shape
        qkv = pixelwise(self.qkv, x.permute(0, 2, 3, 1))
        tokens = qkv.reshape(batch, height * width, 3, self.heads, HEAD_DIM)
        q, k, v = tokens.permute(2, 0, 3, 1, 4).unbind()
        weights = (q @ k.transpose(-2, -1) * HEAD_DIM**-0.5).softmax(dim=-1)
        y_BHWC = (weights @ v).transpose(1, 2).reshape(batch, height, width, -1)
        if self.local is not None:
            values = v.transpose(1, 2).reshape(batch, height, width, -1).permute(0, 3, 1, 2)
            y_BHWC = y_BHWC + self.local(values).permute(0, 2, 3, 1)
        return pixelwise(self.proj, y_BHWC).permute(0, 3, 1, 2)


class SPANetV2(Backbone):
    """SPANetV2, the second generation (TPAMI 2026, arXiv:2503.23947).

    Every key but `variant` overrides the variant's row or the published setting, so that each
    ablation is one key. Where paper and official code differ, the code's behaviour is the default,
    since released weights depend on it.

    Args:
        variant: Row of the table that gives depths, dims and mixers.
        depths: Blocks of each of the four stages; default: the variant's.
        dims: Channels of each stage; default: the variant's.
        mixers: "spam", "mixed" (attention beside a 7×7 depthwise convolution) or "attention" for
            each stage; default: the variant's.
        num_classes: Classes of the head; 0 leaves the head out.
        in_chans: Channels of the image.
        img_size: Side, or (height, width), in pixels, at which SRF logits are stored. Inputs of
            another size resize the logits on the way, without changing the module's state.
        drop_path_rate: Drop-path of the last block; it grows linearly from 0 at the first.
        drop_rate: Dropout before the last linear layer of the classifier.
        mlp_ratio: Hidden over outer channels of the channel MLPs.
        kernel_sizes: Kernel size of each SPAM head, odd, in pixels; their number is the number of
            heads. One size for all heads together with `num_heads`.
        num_heads: Number of SPAM heads where `kernel_sizes` is one size.
        srf: Off: no spectral filter.
        srf_gate: "sigmoid", or "scaled_sigmoid": sigmoid(α·θ) with a learned α for each mixer, the
            "scaled sigmoid" of the official README.
        head_layout: Order of the heads' channels: "interleaved" as in the main official code,
            "concatenated" as in its other published file. Weights do not carry over.
        branch_scale: "res": learned scales on the shortcuts of the last two stages, as published;
            "layer": on all branches of all stages, starting at 1e-5; or "none".
        spectral_impl: How the SRF is computed; the function is the same. "real": by products with
            real Fourier bases; "rfft": by one real FFT over all heads; "auto": the faster at each
            size, and the bases for export; "fft": the whole network as the official code computes
            it, with its memory layouts and a real FFT for each head, slowly: to compare with.

    Raises:
        ConfigError: If an argument is outside what is stated here.
    """

    def __init__(
        self,
        variant: SPANetV2Variant = "s18_pure",
        *,
        depths: Sequence[int] | None = None,
        dims: Sequence[int] | None = None,
        mixers: Sequence[Mixer] | None = None,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 224,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        mlp_ratio: float = 4.0,
        kernel_sizes: int | Sequence[int] = (3, 5, 7, 9),
        num_heads: int | None = None,
        srf: bool = True,
        srf_gate: SrfGate = "sigmoid",
        head_layout: HeadLayout = "interleaved",
        branch_scale: BranchScale = "res",
        spectral_impl: SpectralImpl = "auto",
    ) -> None:
        row = validate.row("variant", variant, VARIANTS)
        dims = validate.per_stage_ints("dims", row.dims if dims is None else dims)
        kinds: tuple[Mixer, ...] = validate.choices_per_stage(
            "mixers", row.mixers if mixers is None else mixers, get_args(Mixer)
        )
        kernels = _head_kernels(kernel_sizes, num_heads)
        for dim, kind in zip(dims, kinds, strict=True):
            if kind == "spam" and dim % len(kernels):
                raise invalid("dims", list(dims), f"multiples of the {len(kernels)} heads")
            if kind == "mixed" and dim % HEAD_DIM:
                raise invalid(
                    "dims", list(dims), f"a multiple of {HEAD_DIM} in a stage with mixed attention"
                )
        validate.choice("srf_gate", srf_gate, get_args(SrfGate))
        validate.choice("head_layout", head_layout, get_args(HeadLayout))
        validate.choice("branch_scale", branch_scale, BRANCH_SCALES)
        validate.choice("spectral_impl", spectral_impl, get_args(SpectralImpl))
        drop_rate = validate.fraction("drop_rate", drop_rate, below_one=True)
        mlp_ratio = validate.positive("mlp_ratio", mlp_ratio)
        height, width = validate.image_size("img_size", img_size)

        literal = spectral_impl == "fft"

        def mixer(stage: int, dim: int) -> nn.Module:
            if kinds[stage] != "spam":
                attention = LiteralAttention if literal else Attention
                return attention(dim, local=kinds[stage] == "mixed")
            stride = 2 ** (stage + 2)
            size = (height // stride, width // stride)
            rescaling = (
                SpectralRescaling(dim, len(kernels), size, srf_gate, spectral_impl) if srf else None
            )
            return (LiteralSPAM if literal else SPAM)(dim, kernels, rescaling, head_layout)

        super().__init__(
            depths=validate.per_stage_ints("depths", row.depths if depths is None else depths),
            dims=dims,
            num_classes=validate.positive_int("num_classes", num_classes, 0),
            in_chans=validate.positive_int("in_chans", in_chans),
            drop_path_rate=validate.fraction("drop_path_rate", drop_path_rate, below_one=True),
            branch_scale=("none", "none", "res", "res")
            if branch_scale == "res"
            else (branch_scale,) * 4,
            mixer=mixer,
            mlp=partial(LiteralStarReluMlp if literal else StarReluMlp, ratio=mlp_ratio),
            block_norm=LayerNorm2d,
            downsample_norm=LayerNorm2d,
            final_norm=nn.LayerNorm(dims[-1], eps=1e-6),
            head=partial(MlpHead, drop_rate=drop_rate),
            channels_last=not literal,
        )
        self.apply(init_trunc_normal)

    def pool(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c"]:
        """Average over space, then normalise over channels."""
        pooled: Tensor = self.norm(x.mean((2, 3)))
        return pooled


def _head_kernels(kernel_sizes: int | Sequence[int], num_heads: int | None) -> tuple[int, ...]:
    sizes = [kernel_sizes] if isinstance(kernel_sizes, int) else list(kernel_sizes)
    if not sizes:
        raise invalid("kernel_sizes", kernel_sizes, "one odd integer a head")
    for i, size in enumerate(sizes):
        validate.kernel_size(f"kernel_sizes[{i}]" if len(sizes) > 1 else "kernel_sizes", size)
    if num_heads is None:
        return tuple(sizes)
    validate.positive_int("num_heads", num_heads)
    if len(sizes) == 1:
        return tuple(sizes * num_heads)
    if len(sizes) != num_heads:
        raise invalid(
            "num_heads", num_heads, f"{len(sizes)}, the number of kernel_sizes, or only one size"
        )
    return tuple(sizes)


def timm_name(variant: str) -> str:
    """Return the name under which timm knows a variant."""
    return "test_spanetv2" if variant == "test" else f"spanetv2_{variant}"


registry.register(
    SPANetV2,
    {timm_name(v): v for v in VARIANTS},
    {timm_name(v): registry.pretrained_cfg(classifier="head.fc2") for v in VARIANTS},
    official.pretrained_filter,
)
