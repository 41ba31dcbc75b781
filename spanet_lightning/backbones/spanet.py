"""SPANet (ICCV 2023, arXiv:2308.11568): the first generation.

Its token mixer, spectral pooling aggregation modulation (SPAM, Section 4.2), multiplies a query by
a context in which low and high frequencies have been re-balanced:

    q   = DW_k×1(DW_1×k(W_in x))                      query
    ctx = Σ_b W_b·SPF(q_b; r, λ_b) + c_b              one gate b for each chunk q_b of channels
    y   = W_out(q ⊙ ctx)

where SPF weights the spectrum by λ_b inside a circle of radius r and 1 - λ_b outside (Eq. 16-18,
`spectral.circular_mask`). The sum of 1×1 convolutions over chunks is one 1×1 convolution over all
channels, so `SpectralGates` stores one weight.

Shape letters: B batch, C channels, H×W pixels of the stage.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spanet_lightning.backbones import (
    official,
    registry,
    spectral,
    spectral_literal,
    validate,
)
from spanet_lightning.backbones.layers import (
    BRANCH_SCALES,
    BranchScale,
    DepthwiseRow,
    GeluMlp,
    GroupNorm1,
    LiteralGeluMlp,
    init_trunc_normal,
)
from spanet_lightning.backbones.metaformer import Backbone
from spanet_lightning.backbones.spectral import Gate, SpectralImpl
from spanet_lightning.errors import invalid

Aggregation = Literal["add", "hadamard"]
SPANetVariant = Literal["s", "m", "mx", "b", "bx", "test"]


class SPANetRow(NamedTuple):
    """One row of the table of variants."""

    depths: tuple[int, int, int, int]
    dims: tuple[int, int, int, int]
    crop_pct: float = 0.9
    url: str = ""


# Of the released files only the small one's address is published in the official repository (in its
# demo notebook).
_RELEASE = "https://github.com/DoranLyong/SPANet-official/releases/download/ImageNet-pretrained"

VARIANTS: dict[str, SPANetRow] = {
    "s": SPANetRow((4, 4, 12, 4), (64, 128, 320, 512), url=f"{_RELEASE}/spanet-small.pth"),
    "m": SPANetRow((6, 6, 18, 6), (64, 128, 320, 512)),
    "mx": SPANetRow((8, 8, 24, 8), (64, 128, 320, 512)),
    "b": SPANetRow((6, 6, 18, 6), (96, 192, 384, 768), crop_pct=0.95),
    "bx": SPANetRow((8, 8, 24, 8), (96, 192, 384, 768), crop_pct=0.95),
    "test": SPANetRow((1, 1, 2, 1), (24, 36, 48, 60)),
}


class SpectralGates(nn.Module):
    """The context: every gate filters its chunk of channels, a 1×1 convolution mixes them (Eq. 19).

    Args:
        channels: Number of channels C.
        radius: Radius of the SPF in cycles per side, or `None` for gates without SPF.
        balance: λ_b, one a gate; the channels are chunked as `torch.chunk` does.
        ring: Weight exactly on the circle, `None` for 1 - λ_b.
        aggregation: Whether the context is the sum or the product of what the gates return.
        impl: See `spectral.SpectralImpl`.
    """

    def __init__(
        self,
        channels: int,
        radius: float | None,
        balance: Sequence[float],
        ring: float | None,
        aggregation: Aggregation,
        impl: SpectralImpl,
    ) -> None:
        super().__init__()
        self.gates = spectral.gates(balance, ring, channels)
        self.radius = radius
        self.aggregation: Aggregation = aggregation
        self.impl: SpectralImpl = impl
        self.weight = nn.Parameter(torch.empty(channels, channels, 1, 1))
        # One row a gate: the official gates have a bias each. One bias would compute the same, but
        # learn at another rate.
        self.bias = nn.Parameter(torch.empty(len(self.gates), channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw each gate's columns and bias as a convolution over its chunk alone would."""
        start = 0
        for row, gate in zip(self.bias, self.gates, strict=True):
            bound = gate.channels**-0.5
            with torch.no_grad():
                self.weight[:, start : start + gate.channels].uniform_(-bound, bound)
                row.uniform_(-bound, bound)
            start += gate.channels

    def forward(self, q: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the context of a query `q`, same shape."""
        if self.radius is not None and self.impl == "fft":
            product = self.aggregation == "hadamard"
            return spectral_literal.spf_context(
                q, self.weight, self.bias, self.radius, self.gates, product=product
            )
        if self.aggregation == "add":  # then all gates are one convolution
            return self._mixed(q, self.weight, self.bias.sum(0), self.gates)
        sizes = [gate.channels for gate in self.gates]
        chunks, weights = torch.split(q, sizes, 1), torch.split(self.weight, sizes, 1)
        contexts = [
            self._mixed(chunk, weight, bias, (gate,))
            for chunk, weight, bias, gate in zip(
                chunks, weights, self.bias, self.gates, strict=True
            )
        ]
        return functools.reduce(torch.mul, contexts)

    def _mixed(self, q: Tensor, weight: Tensor, bias: Tensor, gates: tuple[Gate, ...]) -> Tensor:
        """Return what the gates of some channels of the query add up to."""
        if self.radius is None:
            return nn.functional.conv2d(q, weight, bias)
        return spectral.spf_conv1x1(q, weight, bias, self.radius, gates, self.impl)

    def mask(self, gate: int, height: int, width: int) -> Float[Tensor, "{height} {width}"]:
        """Return a gate's mask, zero frequency at the centre as in official checkpoints."""
        if self.radius is None:
            return torch.ones(height, width)
        mask = spectral.circular_mask(height, width, self.radius, self.gates[gate])
        centred: Tensor = torch.fft.fftshift(mask)
        return centred

    def extra_repr(self) -> str:
        """Show what is not a parameter."""
        return (
            f"radius={self.radius}, gates={self.gates}, aggregation={self.aggregation!r}, "
            f"impl={self.impl!r}"
        )


class SPAM(nn.Module):
    """Spectral pooling aggregation modulation, the token mixer of SPANet (arXiv:2308.11568).

    Args:
        channels: Number of channels C.
        kernel_size: Length k, in pixels, of the 1×k and k×1 depthwise convolutions.
        gates: The context.
    """

    def __init__(self, channels: int, kernel_size: int, gates: SpectralGates) -> None:
        super().__init__()
        k, p = kernel_size, kernel_size // 2
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.local_w = DepthwiseRow(channels, k)
        self.local_h = nn.Conv2d(channels, channels, (k, 1), padding=(p, 0), groups=channels)
        self.gates = gates
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the mixed tokens, same shape."""
        q = self.local_h(self.local_w(self.proj_in(x)))
        y: Tensor = self.proj_out(q * self.gates(q))
        return y


class SPANet(Backbone):
    """SPANet, the first generation (ICCV 2023, arXiv:2308.11568).

    Every key but `variant` overrides the variant's row or the published setting, so that each
    ablation of the paper's Table 5 is one key. Where paper and official code differ, the code's
    behaviour is the default, since released weights depend on it.

    Args:
        variant: Row of the table that gives depths and dims.
        depths: Blocks of each of the four stages; default: the variant's.
        dims: Channels of each stage; default: the variant's.
        num_classes: Classes of the head; 0 leaves the head out.
        in_chans: Channels of the image.
        img_size: Side, or (height, width), in pixels. SPANet stores no spectrum: its masks are
            built centred for whatever size arrives, so this changes nothing. (The official
            classifier raises away from 224 px, its detection copy lets the mask drift off the zero
            frequency.)
        drop_path_rate: Drop-path of the last block; it grows linearly from 0 at the first.
        drop_rate: Dropout before the classifier.
        mlp_ratio: Hidden over outer channels of the channel MLPs.
        kernel_size: Length of the 1×k and k×1 depthwise convolutions, odd, in pixels.
        radius: Radius r of the SPF, one a stage, in cycles per side of that stage.
        balance: λ_b, one a gate: the weight of frequencies inside the radius. Their number is the
            number of gates.
        spf: Off: gates without spectral filter (1×1 convolutions alone).
        ring: Weight of frequencies at distance exactly r. 1/3 in the official code; `null` for the
            paper's equation, which counts them as outside (1 - λ_b).
        aggregation: How the gates' outputs become the context: "add", as published, or their
            element-wise product, "hadamard" (Table 5).
        branch_scale: "res": learned scales on the shortcuts of the last two stages, as published;
            "layer": on all branches of all stages, starting at 1e-5; or "none".
        spectral_impl: How the SPF is computed; the function is the same. "real": in a real basis of
            the few frequencies within the radius; "rfft": by one real FFT; "auto": the basis unless
            the radius makes it slow; "fft": the whole network as the official code computes it,
            with its memory layout and its complex FFTs with shifts, slowly: to compare with.

    Raises:
        ConfigError: If an argument is outside what is stated here.
    """

    def __init__(
        self,
        variant: SPANetVariant = "s",
        *,
        depths: Sequence[int] | None = None,
        dims: Sequence[int] | None = None,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 224,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        mlp_ratio: float = 4.0,
        kernel_size: int = 7,
        radius: Sequence[float] = (2, 2, 1, 1),
        balance: Sequence[float] = (0.7, 0.8, 0.9),
        spf: bool = True,
        ring: float | None = 1 / 3,
        aggregation: Aggregation = "add",
        branch_scale: BranchScale = "res",
        spectral_impl: SpectralImpl = "auto",
    ) -> None:
        row = validate.row("variant", variant, VARIANTS)
        dims = validate.per_stage_ints("dims", row.dims if dims is None else dims)
        radius = validate.radii("radius", radius)
        balance = validate.fractions("balance", balance)
        for dim in dims:
            if len(spectral.gate_sizes(dim, len(balance))) != len(balance):
                raise invalid(
                    "balance",
                    list(balance),
                    f"at most as many gates as chunks of a stage's {dim} channels",
                )
        validate.kernel_size("kernel_size", kernel_size)
        validate.image_size("img_size", img_size)
        validate.choice("aggregation", aggregation, get_args(Aggregation))
        validate.choice("branch_scale", branch_scale, BRANCH_SCALES)
        validate.choice("spectral_impl", spectral_impl, get_args(SpectralImpl))
        if ring is not None:
            validate.fraction("ring", ring)
        validate.fraction("drop_rate", drop_rate, below_one=True)
        mlp_ratio = validate.positive("mlp_ratio", mlp_ratio)

        def mixer(stage: int, dim: int) -> nn.Module:
            low = radius[stage] if spf else None
            gates = SpectralGates(dim, low, balance, ring, aggregation, spectral_impl)
            return SPAM(dim, kernel_size, gates)

        literal = spectral_impl == "fft"

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
            mlp=partial(LiteralGeluMlp if literal else GeluMlp, ratio=mlp_ratio),
            block_norm=GroupNorm1,
            downsample_norm=None,
            final_norm=GroupNorm1(dims[-1]),
            head=_linear_head,
            channels_last=not literal,
        )
        self.head_drop = nn.Dropout(drop_rate)

    def pool(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c"]:
        """Normalise over (C, H, W), then average over space."""
        pooled: Tensor = self.head_drop(self.norm(x).mean((2, 3)))
        return pooled


def _linear_head(features: int, num_classes: int) -> nn.Module:
    head = nn.Linear(features, num_classes)
    init_trunc_normal(head)
    return head


def timm_name(variant: str) -> str:
    """Return the name under which timm knows a variant."""
    return "test_spanet" if variant == "test" else f"spanet_{variant}"


registry.register(
    SPANet,
    {timm_name(v): v for v in VARIANTS},
    {
        timm_name(v): registry.pretrained_cfg(row.url, crop_pct=row.crop_pct, classifier="head")
        for v, row in VARIANTS.items()
    },
    official.pretrained_filter,
)
