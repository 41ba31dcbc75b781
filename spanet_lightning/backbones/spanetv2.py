"""SPANetV2 (TPAMI 2026, arXiv:2503.23947): the second generation.

Its token mixer, spectral-adaptive modulation (SPAM), runs depthwise convolutions of several sizes,
one per head, and re-scales their spectra by a learned filter (SRF) before they modulate the query:

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
from timm.layers import GroupNorm1, Mlp  # type: ignore[attr-defined]  # re-exported
from timm.models.metaformer import LayerNorm2dNoBias, MlpHead, Pooling, SepConv, StarReLU
from torch import Tensor, nn
from torch.nn import functional as F

from spanet_lightning.backbones import official, registry, validate
from spanet_lightning.backbones.metaformer import (
    Backbone,
    BranchScale,
    init_trunc_normal,
    stage_sizes,
)
from spanet_lightning.backbones.spectral import SRF_GATES, SpectralRescaling, SrfGate
from spanet_lightning.errors import invalid

__all__ = ["SPAM", "VARIANTS", "Attention", "SPANetV2", "SpectralRescaling", "timm_name"]

HeadLayout = Literal["interleaved", "concatenated"]
Mixer = Literal["spam", "attention", "mixed", "sepconv", "pooling", "identity"]
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

_PURE: tuple[Mixer, ...] = ("spam",) * 4
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


class SPAM(nn.Module):
    """Spectral-adaptive modulation, the token mixer of SPANetV2 (arXiv:2503.23947).

    Args:
        channels: Number of channels C, a multiple of the number of heads.
        kernel_sizes: Kernel size of each head's depthwise convolution, in pixels.
        srf: The spectral filter, or `nn.Identity`.
        head_layout: Order of channels before the grouped expansion: "interleaved" puts channel j of
            all heads side by side, so that a group mixes heads; "concatenated" puts head after
            head, so that a group mixes channels of one head.
    """

    def __init__(
        self,
        channels: int,
        kernel_sizes: Sequence[int],
        srf: nn.Module,
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
        self.srf = srf
        self.expand = nn.Conv2d(channels, channels * EXPANSION, 1, groups=size, bias=False)
        self.norm = GroupNorm1(channels * EXPANSION)
        self.reduce = nn.Conv2d(channels * EXPANSION, channels, 1, bias=False)
        self.proj = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the mixed tokens, same shape."""
        heads = self.context(x).chunk(len(self.local), dim=1)
        heads = [conv(head) for conv, head in zip(self.local, heads, strict=True)]
        context = self.srf(torch.cat(heads, dim=1))
        if self.head_layout == "interleaved":
            context = _interleave(context, len(heads))
        context = self.reduce(F.gelu(self.norm(self.expand(context))))
        y: Tensor = self.proj(F.gelu(self.query(x)) * context)
        return y


def _interleave(x: Float[Tensor, "b c h w"], heads: int) -> Float[Tensor, "b c h w"]:
    """Reorder channels from head after head to channel after channel (a channel shuffle)."""
    batch, channels, height, width = x.shape
    x_BNGHW = x.reshape(batch, heads, channels // heads, height, width)
    return x_BNGHW.transpose(1, 2).flatten(1, 2)


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


class SPANetV2(Backbone):
    """SPANetV2, the second generation (TPAMI 2026, arXiv:2503.23947).

    Every key but `variant` overrides the variant's row or the published setting, so that each
    ablation is one key. Where paper and official code differ, the code's behaviour is the default,
    since released weights depend on it.

    Args:
        variant: Row of the table that gives depths, dims and mixers.
        depths: Blocks of each of the four stages; default: the variant's.
        dims: Channels of each stage; default: the variant's.
        mixers: The token mixer of each stage: "spam", "mixed" (attention beside a 7×7 depthwise
            convolution), "attention", and for comparisons "sepconv" (ConvFormer's separable
            convolution), "pooling" (PoolFormer's) or "identity"; default: the variant's.
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
        validate.choice("srf_gate", srf_gate, SRF_GATES)
        validate.choice("head_layout", head_layout, get_args(HeadLayout))
        validate.choice("branch_scale", branch_scale, get_args(BranchScale))
        drop_rate = validate.fraction("drop_rate", drop_rate, below_one=True)
        mlp_ratio = validate.positive("mlp_ratio", mlp_ratio)
        sizes = stage_sizes(*validate.image_size("img_size", img_size))

        def mixer(stage: int, dim: int) -> nn.Module:
            match kinds[stage]:
                case "spam":
                    filters = SRF_GATES[srf_gate](dim, len(kernels), sizes[stage]) if srf else None
                    return SPAM(dim, kernels, filters or nn.Identity(), head_layout)
                case "sepconv":
                    return SepConv(dim)
                case "pooling":
                    return Pooling()
                case "identity":
                    return nn.Identity()
                case kind:
                    return Attention(dim, local=kind == "mixed")

        def mlp(dim: int) -> nn.Module:
            return Mlp(dim, int(dim * mlp_ratio), act_layer=StarReLU, bias=False, use_conv=True)

        super().__init__(
            depths=validate.per_stage_ints("depths", row.depths if depths is None else depths),
            dims=dims,
            num_classes=validate.positive_int("num_classes", num_classes, 0),
            in_chans=validate.positive_int("in_chans", in_chans),
            drop_path_rate=validate.fraction("drop_path_rate", drop_path_rate, below_one=True),
            branch_scale=branch_scale,
            mixer=mixer,
            mlp=mlp,
            block_norm=LayerNorm2dNoBias,
            downsample_norm=LayerNorm2dNoBias,
            final_norm=nn.LayerNorm(dims[-1], eps=1e-6),
            head=partial(_mlp_head, drop_rate=drop_rate),
        )
        self.apply(init_trunc_normal)

    def pool(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c"]:
        """Average over space, then normalise over channels."""
        pooled: Tensor = self.norm(x.mean((2, 3)))
        return pooled


def _mlp_head(features: int, num_classes: int, drop_rate: float) -> nn.Module:
    head = MlpHead(features, num_classes, norm_layer=nn.LayerNorm, drop_rate=drop_rate)
    return head.apply(init_trunc_normal)


def _head_kernels(kernel_sizes: int | Sequence[int], num_heads: int | None) -> tuple[int, ...]:
    sizes = [kernel_sizes] if isinstance(kernel_sizes, int) else list(kernel_sizes)
    if not sizes:
        raise invalid("kernel_sizes", kernel_sizes, "one odd integer per head")
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
