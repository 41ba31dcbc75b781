"""What every dense model is: a backbone, a norm for each pyramid level, and a head on top.

A head is described by a value of the configuration (`DetectionHead`, `SegmentationHead`), which
builds its layers once the backbone's channels and the number of classes are known.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NotRequired, TypedDict

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from spanet_lightning.backbones import Backbone, TimmBackbone
from spanet_lightning.backbones.official import Rules, rename
from spanet_lightning.backbones.validate import positive_int
from spanet_lightning.errors import invalid
from spanet_lightning.keywords import CheckedKeywords

Size = Sequence[int]  # height, width; a list once a loader has pinned it
Losses = dict[str, Tensor]

STRIDES = (4, 8, 16, 32)


class Detections(TypedDict):
    """The objects detected in one image.

    Attributes:
        boxes: Corners (x1, y1, x2, y2) in pixels, shape (N, 4), best first.
        scores: In [0, 1], shape (N,).
        labels: 1 to the number of classes, shape (N,).
        mask_probs: Probability of the object inside its box, (N, 28, 28); with instance masks only.
        masks: The same in the whole image, (N, H, W), bool; once they are pasted there.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    mask_probs: NotRequired[Tensor]
    masks: NotRequired[Tensor]


class DenseLayers(nn.Module, ABC):
    """The layers of a head.

    Attributes:
        first_level: The finest of the backbone's four levels that is read; finer ones are ignored.
        rules: Pairs of a pattern and what replaces it, in this order, which turn the names of
            mmdetection's, mmsegmentation's and the first version's checkpoints into ours.
        background_last: Pattern of our names whose first row is the background, which official
            checkpoints have last; empty where there is none.
    """

    first_level: ClassVar[int] = 0
    rules: Rules = ()
    background_last: str = ""

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(_rename_first_version)  # type: ignore[no-untyped-call]

    @abstractmethod
    def cost_forward(self, features: Sequence[Tensor]) -> None:
        """Run the layers of one test image as often as published costs count them.

        For counting only: nothing is selected, so that it works without values.
        """


def _rename_first_version(module: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Give tensors of a first version's checkpoint their present names, in their order."""
    for key in [key for key in state if key.startswith(prefix)]:
        state[prefix + rename(key[len(prefix) :], module.rules)] = state.pop(key)


def rename_first_version(model: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict of a model with a head, or of one without, under present names."""
    renamed = dict(state)
    for name, module in model.named_modules():
        if isinstance(module, DenseLayers):
            _rename_first_version(module, renamed, f"{name}.")
    return renamed


class DetectionLayers(DenseLayers):
    """The layers of a detector."""

    has_masks: ClassVar[bool] = False

    @abstractmethod
    def losses(
        self,
        features: Sequence[Tensor],
        sizes: Sequence[Size],
        targets: Sequence[Mapping[str, Any]],
    ) -> Losses:
        """Return the losses of a batch by name; their sum is what is minimised.

        Args:
            features: The backbone's four levels.
            sizes: Height and width in pixels of each image before padding.
            targets: For each image `boxes` (N, 4) in pixels, `labels` (N,) from 1 on, and `masks`
                (N, H, W) where instance masks are learnt.
        """

    @abstractmethod
    def detect(self, features: Sequence[Tensor], sizes: Sequence[Size]) -> list[Detections]:
        """Return the detections of each image, in pixels of the images before padding.

        Args:
            features: The backbone's four levels.
            sizes: Height and width in pixels of each image before padding.
        """


class SegmentationLayers(DenseLayers):
    """The layers of a segmentation head.

    Attributes:
        min_train_images: Images that a batch of training needs, of all devices if batch norms are
            synchronised.
    """

    min_train_images: ClassVar[int] = 1

    @abstractmethod
    def forward(self, features: Sequence[Tensor]) -> Float[Tensor, "b k h w"]:
        """Return logits (B, classes, H/4, W/4) of the backbone's four levels."""

    def cost_forward(self, features: Sequence[Tensor]) -> None:
        """Run the head once, without the auxiliary one, which evaluation does not need."""
        self(features)

    def auxiliary(self, features: Sequence[Tensor]) -> tuple[Tensor, float] | None:  # noqa: ARG002
        """Return the logits of an auxiliary head and the weight of their loss, if there is one."""
        return None


class DetectionHead(CheckedKeywords, ABC):
    """A detection head as a value of a configuration."""

    has_masks: ClassVar[bool] = False

    @abstractmethod
    def build(self, channels: Sequence[int], num_classes: int) -> DetectionLayers:
        """Return the layers for a backbone with these channels a level; background not counted."""


class SegmentationHead(CheckedKeywords, ABC):
    """A segmentation head as a value of a configuration."""

    @abstractmethod
    def build(self, channels: Sequence[int], num_classes: int) -> SegmentationLayers:
        """Return the layers for a backbone with these channels a level."""


class DenseModel(nn.Module):
    """A backbone, a norm for each pyramid level, and the layers of a head.

    The backbone gives up its classifier and its final norm: they are never called here. (Official
    SPANetV2 models keep them as parameters, 3,104,744 with 1,000 classes, and count them.)

    The norm of a level is of the kind that the backbone's blocks use: GroupNorm of one group (V1)
    or LayerNorm over channels without bias (V2); see `TimmBackbone.output_norm` for other models.
    Only what the head sees is normed.

    Args:
        backbone: The backbone, taken over. It has features at strides 4, 8, 16 and 32.
        head: Describes the head.
        num_classes: Classes, without background.
        frozen_stages: Stem and first stages that are not trained: 0 (none) to 4 (all). 1 freezes
            the stem and stage 1.

    Raises:
        ConfigError: If a value is out of its range, or the backbone lacks one of the four levels.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: DetectionHead | SegmentationHead,
        num_classes: int,
        frozen_stages: int = 0,
    ) -> None:
        super().__init__()
        positive_int("num_classes", num_classes)
        if isinstance(frozen_stages, bool) or frozen_stages not in range(5):
            raise invalid("frozen_stages", frozen_stages, "an integer from 0 (none) to 4 (all)")
        levels = pyramid_levels(backbone)
        infos = [backbone.feature_info[level] for level in levels]
        channels = [int(info["num_chs"]) for info in infos]
        if isinstance(backbone, TimmBackbone):
            norms = [backbone.output_norm(c) for c in channels]
        else:
            norm: Any = type(backbone.stages[0].blocks[0].norm1)  # type: ignore[union-attr, index]
            norms = [norm(c) for c in channels]
        # timm's models may count levels anew once the later ones are gone.
        self.levels = list(backbone.prune_intermediate_layers(levels, prune_norm=True))
        self.backbone = backbone
        self.output_norms = nn.ModuleList(norms)
        self.head = head.build(channels, num_classes)
        self.num_classes = num_classes
        self.frozen_stages = frozen_stages
        self._last_frozen = str(infos[frozen_stages - 1]["module"]) if frozen_stages else ""
        # There in the published counts and checkpoints, but nothing reads what they would return.
        self.output_norms[: self.head.first_level].requires_grad_(False)
        for part in self._frozen():
            part.requires_grad_(False)

    def _frozen(self) -> list[nn.Module]:
        """Return the backbone's layers up to the end of the last frozen stage, in their order."""
        if not self._last_frozen:
            return []
        model = self.backbone.model if isinstance(self.backbone, TimmBackbone) else self.backbone
        within = f"{self._last_frozen}."
        modules = [(f"{name}.", module) for name, module in model.named_modules() if name]
        last = max(i for i, (name, _) in enumerate(modules) if name.startswith(within))
        return [
            m for name, m in modules[: last + 1] if name == within or not within.startswith(name)
        ]

    def train(self, mode: bool = True) -> DenseModel:
        """Set the mode; frozen stages stay in evaluation, without drop path."""
        super().train(mode)
        for part in self._frozen():
            part.eval()
        return self

    def features(self, images: Float[Tensor, "b c h w"]) -> list[Tensor]:
        """Return the four normed levels, strides 4, 8, 16 and 32."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.frozen_stages < len(STRIDES)):
            levels: Any = self.backbone.forward_intermediates(
                images, indices=self.levels, intermediates_only=True
            )
        first = self.head.first_level
        normed = zip(self.output_norms, levels, strict=True)
        return [norm(x) if i >= first else x for i, (norm, x) in enumerate(normed)]

    def forward(self, images: Float[Tensor, "b c h w"]) -> Tensor | list[Detections]:
        """Return the inference result of images without padding.

        Detections of each image in pixels; or logits of each pixel, (B, classes, H, W).
        """
        features, size = self.features(images), images.shape[-2:]
        if isinstance(self.head, DetectionLayers):
            return self.head.detect(features, [tuple(size)] * len(images))
        return resize(self.head(features).float(), size)

    def cost_forward(self, images: Float[Tensor, "b c h w"]) -> None:
        """Run what published costs count for one test image; see `DenseLayers.cost_forward`."""
        self.head.cost_forward(self.features(images))


def resize(x: Float[Tensor, "b c h w"], size: Sequence[int]) -> Float[Tensor, "b c i j"]:
    """Return maps resized bilinearly to (height, width), corners not aligned."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def pyramid_levels(backbone: Backbone) -> list[int]:
    """Return the indices of a backbone's features at strides 4, 8, 16 and 32.

    Raises:
        ConfigError: If it lacks one of them.
    """
    strides = [int(level["reduction"]) for level in backbone.feature_info]
    # Of several levels with one stride, the last is the most refined.
    found = [
        max((i for i, s in enumerate(strides) if s == stride), default=-1) for stride in STRIDES
    ]
    if -1 in found:
        name = getattr(backbone, "name", type(backbone).__name__)
        has = ", ".join(map(str, dict.fromkeys(strides))) or "none"
        accepted = f"a model with features at strides 4, 8, 16 and 32 for this task; it has {has}"
        raise invalid("backbone", name, accepted)
    return found
