"""The four-stage skeleton that both generations fill with their own mixers, norms and MLPs.

A MetaFormer (arXiv:2111.11418, arXiv:2210.13452) is a stem and four stages of pre-norm blocks
`x + mixer(norm(x))`, `x + mlp(norm(x))`, with a strided convolution between stages: strides 4, 8,
16 and 32. `Backbone` gives it timm's interface, so that timm's tools work on it.

Features are (B, C, H, W) tensors whose memory is channels-last, the layout in which every layer is
fast: a 1×1 convolution is one matrix product, a depthwise one vectorises over channels, a LayerNorm
runs over adjacent values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from timm.layers import DropPath  # type: ignore[attr-defined]  # re-exported
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from timm.models.metaformer import Scale
from torch import Tensor, nn

from spanet_lightning.errors import invalid
from spanet_lightning.keywords import CheckedKeywords

ModuleOf = Callable[[int], nn.Module]
"""Builds a module from its number of channels."""

BranchScale = Literal["res", "layer", "none"]

# The init of a layer scale in PoolFormer and CaiT; SPANet's Table 5 does not state its own.
LAYER_SCALE_INIT = 1e-5


class MetaFormerBlock(nn.Module):
    """Token mixer and channel MLP, each pre-normed, with a shortcut.

    Args:
        channels: Number of channels C.
        mixer: The token mixer.
        mlp: The channel MLP.
        norm: Builds a norm from C.
        drop_path: Probability of dropping a branch, per sample.
        branch_scale: "res" scales the shortcuts (arXiv:2110.09456), "layer" the branches
            (arXiv:2103.17239), "none" neither.
    """

    def __init__(
        self,
        channels: int,
        mixer: nn.Module,
        mlp: nn.Module,
        norm: ModuleOf,
        drop_path: float,
        branch_scale: BranchScale,
    ) -> None:
        super().__init__()

        def scale(kind: BranchScale, init: float) -> nn.Module:
            return Scale(channels, init) if branch_scale == kind else nn.Identity()

        def drop() -> nn.Module:
            return DropPath(drop_path) if drop_path > 0 else nn.Identity()

        self.norm1 = norm(channels)
        self.mixer = mixer
        self.drop_path1 = drop()
        self.layer_scale1 = scale("layer", LAYER_SCALE_INIT)
        self.res_scale1 = scale("res", 1.0)
        self.norm2 = norm(channels)
        self.mlp = mlp
        self.drop_path2 = drop()
        self.layer_scale2 = scale("layer", LAYER_SCALE_INIT)
        self.res_scale2 = scale("res", 1.0)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the block's output, same shape."""
        branch = self.layer_scale1(self.drop_path1(self.mixer(self.norm1(x))))
        x = self.res_scale1(x) + branch
        branch = self.layer_scale2(self.drop_path2(self.mlp(self.norm2(x))))
        y: Tensor = self.res_scale2(x) + branch
        return y


class Downsample(nn.Module):
    """A strided convolution, with a norm before it (between stages) or after it (the stem).

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
        norm: ModuleOf | None,
        *,
        norm_first: bool,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding)
        self.norm = norm(in_channels if norm_first else out_channels) if norm else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        """Return the down-sampled features."""
        y: Tensor = self.conv(self.norm(x)) if self.norm_first else self.norm(self.conv(x))
        return y


class Stage(nn.Module):
    """A down-sampling layer (none in the first stage) and its blocks.

    Args:
        downsample: From the stage before.
        blocks: The blocks, in order.
    """

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        """Return the stage's features."""
        x = self.downsample(x)
        y: Tensor = checkpoint_seq(self.blocks, x) if self.grad_checkpointing else self.blocks(x)
        return y


class Backbone(nn.Module, CheckedKeywords):
    """Base of `SPANet` and `SPANetV2`: four stages, a classifier, and timm's interface.

    Attributes:
        feature_info: For each of the four levels, `num_chs` (channels), `reduction` (stride in
            pixels) and `module` (name).
        num_features: Channels of the last stage.
        num_classes: Classes of the head; 0 where there is none.

    Args:
        depths: Blocks of each stage.
        dims: Channels of each stage.
        num_classes: Classes of the head; 0 leaves the head out.
        in_chans: Channels of the image.
        drop_path_rate: Drop-path of the last block; it grows linearly from 0 at the first.
        branch_scale: "res" scales the shortcuts of the last two stages, "layer" all branches.
        mixer: Builds the mixer from (stage, channels).
        mlp: Builds a block's MLP from its channels.
        block_norm: Builds a block's norm from its channels.
        downsample_norm: Builds the norm after the stem and before the other down-sampling layers.
        final_norm: The norm before the classifier.
        head: Builds the classifier from (features, classes).
    """

    def __init__(
        self,
        *,
        depths: Sequence[int],
        dims: Sequence[int],
        num_classes: int,
        in_chans: int,
        drop_path_rate: float,
        branch_scale: BranchScale,
        mixer: Callable[[int, int], nn.Module],
        mlp: ModuleOf,
        block_norm: ModuleOf,
        downsample_norm: ModuleOf | None,
        final_norm: nn.Module,
        head: Callable[[int, int], nn.Module],
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = dims[-1]
        self.grad_checkpointing = False
        self._build_head = head

        self.stem = Downsample(in_chans, dims[0], 7, 4, 2, downsample_norm, norm_first=False)
        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
        stages = []
        for i, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            scale = "none" if branch_scale == "res" and i < 2 else branch_scale
            blocks = [
                MetaFormerBlock(dim, mixer(i, dim), mlp(dim), block_norm, rates.pop(0), scale)
                for _ in range(depth)
            ]
            downsample = (
                Downsample(dims[i - 1], dim, 3, 2, 1, downsample_norm, norm_first=True)
                if i > 0
                else nn.Identity()
            )
            stages.append(Stage(downsample, blocks))
        self.stages = nn.Sequential(*stages)
        self.feature_info = [
            {"num_chs": dim, "reduction": 2 ** (i + 2), "module": f"stages.{i}"}
            for i, dim in enumerate(dims)
        ]
        self.norm = final_norm
        self.head = head(self.num_features, num_classes) if num_classes > 0 else nn.Identity()

    def pool(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c"]:
        """Normalise and average over space, in the order of the generation."""
        raise NotImplementedError

    def forward_features(self, x: Float[Tensor, "b i x y"]) -> Float[Tensor, "b c h w"]:
        """Return the last stage's features, before the final norm."""
        features: Tensor = self.stages(self._stem(x))
        return features

    def forward_head(
        self, x: Float[Tensor, "b c h w"], pre_logits: bool = False
    ) -> Float[Tensor, "b k"]:
        """Return the logits of the last stage's features, or the pooled features themselves."""
        pooled = self.pool(x)
        return pooled if pre_logits else self.head(pooled)

    def forward(self, x: Float[Tensor, "b i x y"]) -> Float[Tensor, "b k"]:
        """Return the logits (B, classes) of images (B, in_chans, X, Y), both sides at least 32."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Float[Tensor, "b i x y"],
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the features of chosen stages, as timm does.

        Args:
            x: Images.
            indices: The last n stages if an integer, all if `None`, else these.
            norm: Not available: the final norm belongs to the pooled features.
            stop_early: Leave out the stages after the last one asked for.
            output_fmt: "NCHW" alone.
            intermediates_only: Return the list without the last features.

        Returns:
            The features of the last stage that ran and the list, or the list alone.

        Raises:
            ConfigError: If `norm` or another `output_fmt` is asked for.
        """
        if output_fmt != "NCHW":
            raise invalid("output_fmt", output_fmt, "'NCHW'")
        if norm:
            raise invalid("norm", norm, "False (the final norm belongs to the pooled features)")
        take, last = feature_take_indices(len(self.stages), indices)
        x = self._stem(x)
        intermediates = []
        for i, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x = stage(x)
            if i in take:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Remove the stages and the head that features at `indices` do not need."""
        take, last = feature_take_indices(len(self.stages), indices)
        shorter = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        if shorter or prune_norm:
            self.norm = nn.Identity()
        if shorter or prune_head:
            self.reset_classifier(0)
        return list(take)

    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one; 0 classes leave it out.

        Raises:
            ConfigError: If `global_pool` is not "avg", the only pooling of both papers.
        """
        if global_pool not in (None, "avg"):
            raise invalid("global_pool", global_pool, "'avg'")
        self.num_classes = num_classes
        if num_classes == 0:
            self.head = nn.Identity()
            return
        reference = next(self.parameters())
        head = self._build_head(self.num_features, num_classes)
        self.head = head.to(reference.device, reference.dtype).train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass instead of storing their activations."""
        self.grad_checkpointing = enable
        for module in self.modules():
            if isinstance(module, Stage):
                module.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's patterns of parameter groups, by stage (`coarse`) or by block."""
        blocks: Any = (
            r"^stages\.(\d+)"
            if coarse
            else [
                (r"^stages\.(\d+)\.downsample", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^norm", (99999,)),
            ]
        )
        return {"stem": r"^stem", "blocks": blocks}

    def no_weight_decay(self) -> set[str]:
        """Return the parameters without weight decay beside norms and biases: none.

        The official list has the word 'norm', which equals no parameter's name.
        """
        return set()

    def _stem(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if height < 32 or width < 32:
            raise invalid("image size", (height, width), "at least 32 pixels on both sides")
        out: Tensor = self.stem(x.contiguous(memory_format=torch.channels_last))
        return out


def stage_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Return (H, W) of each stage's features, in pixels, for an image of these sides."""
    sizes = [((height - 3) // 4 + 1, (width - 3) // 4 + 1)]
    while len(sizes) < 4:
        h, w = sizes[-1]
        sizes.append(((h - 1) // 2 + 1, (w - 1) // 2 + 1))
    return sizes


def init_trunc_normal(module: nn.Module) -> None:
    """Initialise a layer's weight from N(0, 0.02²), truncated, and its bias with zeros."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
