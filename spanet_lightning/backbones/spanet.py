"""SPANet (ICCV 2023, arXiv:2308.11568): the first generation.

Its token mixer, spectral pooling aggregation modulation (SPAM, Section 4.2), multiplies a query by
a context in which low and high frequencies have been re-balanced:

    q   = DW_k×1(DW_1×k(W_in x))                      query
    ctx = Σ_b W_b·SPF(q_b; r, λ_b) + c_b              one gate b for each chunk q_b of channels
    y   = W_out(q ⊙ ctx)

where SPF weights the spectrum by λ_b inside a circle of radius r and 1 - λ_b outside (Eq. 16-18,
`spectral.SpectralPooling`).

Shape letters: B batch, C channels, H×W pixels of the stage.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from timm.layers import GroupNorm1, Mlp  # type: ignore[attr-defined]  # re-exported
from torch import Tensor, nn
from torch.nn import functional as F

from spanet_lightning.backbones import official, registry, validate
from spanet_lightning.backbones.metaformer import Backbone, BranchScale, init_trunc_normal
from spanet_lightning.backbones.spectral import SpectralPooling, chunk_sizes
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


class SpectralGates(nn.Conv2d):
    """The context: the 1×1 convolutions of all gates, each over its chunk of channels (Eq. 19).

    Their sum is one convolution over all channels, hence one weight. The constructor takes what
    `nn.Conv2d` does, because adapters (LoRA) build their layers from the type of ours.

    Args:
        in_channels: Channels in, chunked as `torch.chunk` does.
        out_channels: Channels out.
        kernel_size: In pixels.
        stride: In pixels.
        padding: In pixels.
        groups: 1 alone.
        bias: Whether each gate has a bias, as in the official code. One bias would compute the
            same, but learn at another rate.
        gates: Number of gates.
        aggregation: Whether the context is the sum or the product of what the gates return.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 1,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        *,
        groups: int = 1,
        bias: bool = True,
        gates: int = 1,
        aggregation: Aggregation = "add",
    ) -> None:
        # On the meta device: not initialised twice.
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            groups=groups,
            bias=bias,
            device="meta",
        )
        self.aggregation: Aggregation = aggregation
        self.sizes = chunk_sizes(in_channels, gates)
        self.weight = nn.Parameter(torch.empty(self.weight.shape))
        self.bias = nn.Parameter(torch.empty(gates, out_channels)) if bias else None
        # Each gate's columns and bias as those of a convolution over its chunk alone.
        for i, columns in enumerate(torch.split(self.weight.detach(), self.sizes, 1)):
            bound = columns[0].numel() ** -0.5
            columns.uniform_(-bound, bound)
            if self.bias is not None:
                self.bias.detach()[i].uniform_(-bound, bound)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        """Return the context of filtered features."""
        if self.aggregation == "add":
            bias = None if self.bias is None else self.bias.sum(0)
            return F.conv2d(x, self.weight, bias, self.stride, self.padding)
        chunks, weights = torch.split(x, self.sizes, 1), torch.split(self.weight, self.sizes, 1)
        biases = [None] * len(chunks) if self.bias is None else self.bias
        return functools.reduce(torch.mul, map(F.conv2d, chunks, weights, biases))


class SPAM(nn.Module):
    """Spectral pooling aggregation modulation, the token mixer of SPANet (arXiv:2308.11568).

    Args:
        channels: Number of channels C.
        kernel_size: Length k, in pixels, of the 1×k and k×1 depthwise convolutions.
        spf: The spectral pooling filter, or `nn.Identity`.
        gates: The convolutions of the context.
    """

    def __init__(
        self, channels: int, kernel_size: int, spf: nn.Module, gates: SpectralGates
    ) -> None:
        super().__init__()
        k, p = kernel_size, kernel_size // 2
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.local_w = nn.Conv2d(channels, channels, (1, k), padding=(0, p), groups=channels)
        self.local_h = nn.Conv2d(channels, channels, (k, 1), padding=(p, 0), groups=channels)
        self.spf = spf
        self.gates = gates
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the mixed tokens, same shape."""
        q = self.local_h(self.local_w(self.proj_in(x)))
        y: Tensor = self.proj_out(q * self.gates(self.spf(q)))
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
        radius: Radius r of the SPF, one per stage, in cycles per side of that stage.
        balance: λ_b, one per gate: the weight of frequencies inside the radius. Their number is the
            number of gates.
        spf: Off: gates without spectral filter (1×1 convolutions alone).
        ring: Weight of frequencies at distance exactly r. 1/3 in the official code; `null` for the
            paper's equation, which counts them as outside (1 - λ_b).
        aggregation: How the gates' outputs become the context: "add", as published, or their
            element-wise product, "hadamard" (Table 5).
        branch_scale: "res": learned scales on the shortcuts of the last two stages, as published;
            "layer": on all branches of all stages, starting at 1e-5; or "none".

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
    ) -> None:
        row = validate.row("variant", variant, VARIANTS)
        dims = validate.per_stage_ints("dims", row.dims if dims is None else dims)
        radius = validate.radii("radius", radius)
        balance = validate.fractions("balance", balance)
        for dim in dims:
            if len(chunk_sizes(dim, len(balance))) != len(balance):
                raise invalid(
                    "balance",
                    list(balance),
                    f"at most as many gates as chunks of a stage's {dim} channels",
                )
        validate.kernel_size("kernel_size", kernel_size)
        validate.image_size("img_size", img_size)
        validate.choice("aggregation", aggregation, get_args(Aggregation))
        validate.choice("branch_scale", branch_scale, get_args(BranchScale))
        if ring is not None:
            validate.fraction("ring", ring)
        validate.fraction("drop_rate", drop_rate, below_one=True)
        mlp_ratio = validate.positive("mlp_ratio", mlp_ratio)

        def mixer(stage: int, dim: int) -> nn.Module:
            pooling = SpectralPooling(dim, radius[stage], balance, ring) if spf else nn.Identity()
            gates = SpectralGates(dim, dim, gates=len(balance), aggregation=aggregation)
            return SPAM(dim, kernel_size, pooling, gates)

        def mlp(dim: int) -> nn.Module:
            return Mlp(dim, int(dim * mlp_ratio), use_conv=True).apply(init_trunc_normal)

        super().__init__(
            depths=validate.per_stage_ints("depths", row.depths if depths is None else depths),
            dims=dims,
            num_classes=validate.positive_int("num_classes", num_classes, 0),
            in_chans=validate.positive_int("in_chans", in_chans),
            drop_path_rate=validate.fraction("drop_path_rate", drop_path_rate, below_one=True),
            branch_scale=branch_scale,
            mixer=mixer,
            mlp=mlp,
            block_norm=GroupNorm1,
            downsample_norm=None,
            final_norm=GroupNorm1(dims[-1]),
            head=_linear_head,
        )
        self.head_drop = nn.Dropout(drop_rate)

    def pool(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c"]:
        """Normalise over (C, H, W), then average over space."""
        pooled: Tensor = self.head_drop(self.norm(x).mean((2, 3)))
        return pooled


def _linear_head(features: int, num_classes: int) -> nn.Module:
    return nn.Linear(features, num_classes).apply(init_trunc_normal)


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
