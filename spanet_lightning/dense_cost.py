"""What detection and segmentation models cost, under both conventions of the published tables.

The authors counted MACs in two ways, and which one depends on the table:

- **A**, detection and UPerNet: convolutions and linear layers, and one for each value that a batch,
  group or layer norm or a ReLU returns; **no attention products**, so hybrid models seem cheaper
  than they are.
- **B**, Semantic FPN of V2: convolutions, linear layers **and attention products**.

Neither counts the spectral operators. Inputs: 1280×800 px for detection, 512×512 for Semantic FPN,
2048×512 for UPerNet. Two-stage detectors are charged 1000 regions for each box head and 100 for
each mask head; the auxiliary head of UPerNet does not run in evaluation and is charged nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import timm
import torch
from timm.models.metaformer import SquaredReLU, StarReLU
from torch import nn

from spanet_lightning import heads
from spanet_lightning.backbones import Backbone
from spanet_lightning.cost import ModelCost, model_cost
from spanet_lightning.published import PUBLISHED_DENSE, DenseKind, PublishedDense

CLASSES = {"detection": 80, "segmentation": 150}  # COCO, ADE20K
SIZES = {"SemanticFPN": (512, 512), "UPerNet": (512, 2048)}  # height, width
DETECTION_SIZE = (800, 1280)
UNUSED_CLASSIFIER = 3_104_744
"""Parameters of SPANetV2's classifier with 1,000 classes, which the authors' dense models keep."""

_COUNTED = (nn.BatchNorm2d, nn.SyncBatchNorm, nn.GroupNorm, nn.LayerNorm, nn.ReLU)


@dataclass(frozen=True)
class DenseCost:
    """A row of `spanet models --task`: a model's cost beside what is published.

    Attributes:
        published: The published row.
        cost: What we count; its `macs` are those of convention B.
        size: Height and width of the image in pixels.
        macs_a: Under convention A.
        unused_classifier: Parameters that published counts include beside ours.
    """

    published: PublishedDense
    cost: ModelCost
    size: tuple[int, int]
    macs_a: int
    unused_classifier: int

    @property
    def macs_b(self) -> int:
        """MACs under convention B."""
        return self.cost.macs

    def as_dict(self) -> dict[str, Any]:
        """Return the row flat, for JSON."""
        row = self.published
        return {
            "task": row.task,
            "head": row.head,
            "backbone": row.variant,
            "image_size": list(self.size),
            "parameters": self.cost.parameters,
            "unused_classifier": self.unused_classifier,
            "macs_a": self.macs_a,
            "macs_b": self.macs_b,
            "attention_macs": self.cost.attention_macs,
            "spectral_macs": self.cost.spectral_macs,
            "published_parameters": row.parameters,
            "published_macs": row.macs,
            "published_convention": row.convention,
            "published_quality": row.quality,
            "note": row.note,
        }


def dense_costs(task: DenseKind, pattern: str = "*") -> list[DenseCost]:
    """Count the published models of a task whose head or backbone matches `pattern`."""
    return [
        dense_cost(row)
        for row in PUBLISHED_DENSE
        if row.task == task
        and any(fnmatch(name, pattern) or pattern in name for name in (row.variant, row.head))
    ]


def dense_cost(row: PublishedDense) -> DenseCost:
    """Count the model of a published row, without computing anything."""
    with torch.device("meta"):
        backbone: Backbone = timm.create_model(row.variant)  # type: ignore[assignment]
        model = heads.DenseModel(backbone, getattr(heads, row.head)(), CLASSES[row.task])
    size = SIZES.get(row.head, DETECTION_SIZE)
    cost = model_cost(model, size)
    return DenseCost(
        row,
        cost,
        size,
        macs_a=cost.macs - cost.attention_macs + normed_values(model, size),
        unused_classifier=UNUSED_CLASSIFIER if row.variant.startswith("spanetv2") else 0,
    )


def normed_values(model: heads.DenseModel, size: tuple[int, int]) -> int:
    """Return how many values the norms and ReLUs of a model on the meta device return.

    Args:
        model: A model on the meta device.
        size: Height and width of the image in pixels.
    """
    total = 0

    def count(_: nn.Module, __: Any, out: torch.Tensor) -> None:
        nonlocal total
        total += out.numel()

    modules = list(model.modules())
    inner = {m.relu for m in modules if isinstance(m, (StarReLU, SquaredReLU))}  # not counted
    layers = [m for m in modules if isinstance(m, _COUNTED) and m not in inner]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    training = model.training
    try:
        with torch.no_grad():
            model.eval().cost_forward(torch.empty(1, 3, *size, device="meta"))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return total
