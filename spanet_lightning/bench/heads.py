"""Detectors and segmentation heads on one backbone: time and memory of evaluation and training.

Images are noise, each with eight objects. Weights are random, and random scores would leave a
detector without work after its proposals, so the score threshold is lowered until an image is full
(100 detections), all of which get their masks. Evaluation ends with boxes, masks inside their boxes
or the class of each pixel; pasting and metrics are excluded. A training step ends with AdamW's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import timm
import torch
from torch import Tensor, nn

from spanet_lightning import heads
from spanet_lightning.backbones import Backbone
from spanet_lightning.bench.memory import measure_memory, tensors_of
from spanet_lightning.bench.models import (
    WARM_UP_CALLS,
    adamw,
    eval_call,
    throughput_row,
    train_call,
)
from spanet_lightning.bench.settings import Settings
from spanet_lightning.bench.timing import Progress, Row, alternate, ratio
from spanet_lightning.cost import model_cost
from spanet_lightning.dense_cost import CLASSES
from spanet_lightning.errors import invalid_choice
from spanet_lightning.heads import DenseModel, Detections
from spanet_lightning.heads.base import SegmentationLayers, resize
from spanet_lightning.heads.segmentation import segmentation_loss

HEADS = ("RetinaNet", "FasterRCNN", "MaskRCNN", "CascadeMaskRCNN", "SemanticFPN", "UPerNet")
BACKBONE = "backbone alone"
_SEGMENTATION = ("SemanticFPN", "UPerNet")
_OBJECTS = 8  # per image


def measure_heads(
    names: Sequence[str],
    backbone: str,
    modes: Sequence[str],
    settings: Settings,
    progress: Progress,
) -> tuple[list[Row], list[Row]]:
    """Measure heads, and their backbone alone, in alternation.

    Args:
        names: Names of the heads.
        backbone: The backbone of all of them, by timm's name.
        modes: "eval", "train" or both.
        settings: How to measure.
        progress: Is told what is measured next.

    Returns:
        The `results` and `ratios` of the JSON document; heads are compared with the backbone alone.

    Raises:
        ConfigError: If there is no such head or backbone.
    """
    for name in names:
        if name not in HEADS:
            raise invalid_choice("HEAD", name, HEADS)
    results: list[Row] = []
    ratios: list[Row] = []
    for mode in modes:
        calls, memories, costs = {}, {}, {}
        for name in (BACKBONE, *names):
            progress(f"{mode}: warm-up of {name}")
            torch.manual_seed(settings.seed)
            model = build_head(name, backbone)
            cost = model_cost(model, settings.image_size)
            costs[name] = {"parameters": cost.parameters, "macs": cost.macs}
            model = settings.place(model).train(mode == "train")
            optimizer = adamw(model) if mode == "train" else None
            call = _call(model, optimizer, settings)
            for _ in range(WARM_UP_CALLS):
                call()
            standing = tensors_of(model, optimizer)
            memories[name] = measure_memory(call, standing, settings.torch_device)
            calls[name] = call
        seconds = alternate(calls, settings.rounds, settings.seconds, progress)
        for name, times in seconds.items():
            row = throughput_row(name, mode, times, settings, costs[name], memories[name])
            results.append(row)
            if name != BACKBONE:
                compared = ratio(name, BACKBONE, mode, times, seconds[BACKBONE])
                compared["memory"] = memories[name].peak / memories[BACKBONE].peak
                ratios.append(compared)
    return results, ratios


class BackboneAlone(nn.Module):
    """The four normalised levels without a head.

    Args:
        model: A dense model, whose head is not called.
    """

    def __init__(self, model: DenseModel) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.output_norms = model.output_norms

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the levels (B, C, H, W), finest first."""
        levels: Any = self.backbone.forward_intermediates(images, intermediates_only=True)
        return [norm(x) for norm, x in zip(self.output_norms, levels, strict=True)]


def build_head(name: str, backbone: str) -> nn.Module:
    """Return a dense model of published size with random weights, or its backbone alone.

    Raises:
        ConfigError: If the backbone is not one of this project.
    """
    model = timm.create_model(backbone) if timm.is_model(backbone) else None
    if not isinstance(model, Backbone):
        raise invalid_choice("--backbone", backbone, timm.list_models("*spanet*"))
    kind = "segmentation" if name in _SEGMENTATION else "detection"
    head = getattr(heads, "SemanticFPN" if name == BACKBONE else name)()
    dense = DenseModel(model, head, CLASSES[kind])
    return BackboneAlone(dense) if name == BACKBONE else dense


def _call(model: nn.Module, optimizer: Any, settings: Settings) -> Callable[[], Any]:
    """Return one evaluation of a batch, or one training step."""
    images = settings.images()
    if isinstance(model, BackboneAlone):
        if optimizer is None:
            return eval_call(model, images, settings)
        return train_call(
            lambda: torch.stack([x.float().mean() for x in model(images)]).sum(),
            optimizer,
            settings,
        )
    assert isinstance(model, DenseModel)  # noqa: S101 - for the type checker
    segments = isinstance(model.head, SegmentationLayers)
    losses, evaluate = (_segmentation if segments else _detection)(model, images, settings)
    if optimizer is not None:
        return train_call(losses, optimizer, settings)

    def call() -> Any:
        with torch.inference_mode(), settings.autocast():
            return evaluate()

    return call


def _segmentation(
    model: DenseModel, images: Tensor, settings: Settings
) -> tuple[Callable[[], Tensor], Callable[[], Any]]:
    layers: Any = model.head
    size = settings.image_size
    masks = _integers(settings, (len(images), *size), 0, model.num_classes, settings.seed)

    def losses() -> Tensor:
        features = model.features(images)
        loss = segmentation_loss(layers(features), masks)
        auxiliary = layers.auxiliary(features)
        if auxiliary is not None:
            loss = loss + auxiliary[1] * segmentation_loss(auxiliary[0], masks)
        return loss

    return losses, lambda: resize(layers(model.features(images)).float(), size).argmax(dim=1)


def _detection(
    model: DenseModel, images: Tensor, settings: Settings
) -> tuple[Callable[[], Tensor], Callable[[], Any]]:
    layers: Any = model.head
    sizes = [settings.image_size] * len(images)
    targets = [_objects(settings, i, model.num_classes) for i in range(len(images))]

    def losses() -> Tensor:
        found = layers.losses(model.features(images), sizes, targets)
        return torch.stack(list(found.values())).sum()

    def detect() -> list[Detections]:
        detections: list[Detections] = layers.detect(model.features(images), sizes)
        return detections

    if not model.training:
        _lower_threshold(layers, detect)
    return losses, detect


def _lower_threshold(layers: Any, detect: Callable[[], list[Detections]]) -> None:
    """Lower the score threshold by factors of 0.8 until each image is full of detections.

    From above: too low a threshold gives NMS more boxes than any trained model would.
    """
    threshold = 0.9
    with torch.inference_mode():
        while threshold > 1e-5:
            layers.config = replace(layers.config, score_threshold=threshold)
            if min(len(found["labels"]) for found in detect()) >= layers.config.detections_per_img:
                break
            threshold *= 0.8


def _integers(settings: Settings, shape: tuple[int, ...], low: int, high: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, shape, generator=generator).to(settings.torch_device)


def _objects(settings: Settings, number: int, classes: int) -> dict[str, Tensor]:
    """Return an image's objects: sides of 1/8 to 1/2 of the image's, masks that fill the boxes."""
    generator = torch.Generator().manual_seed(settings.seed + number)
    height, width = settings.image_size
    limits = torch.tensor([width, height])
    sides = (torch.rand(_OBJECTS, 2, generator=generator) * 0.375 + 0.125) * limits
    start = torch.rand(_OBJECTS, 2, generator=generator) * (limits - sides)
    boxes = torch.cat([start, start + sides], dim=1)
    x1, y1, x2, y2 = boxes.reshape(_OBJECTS, 4, 1).unbind(dim=1)
    rows, columns = torch.arange(height), torch.arange(width)
    inside_rows, inside_columns = (rows >= y1) & (rows < y2), (columns >= x1) & (columns < x2)
    labels = _integers(settings, (_OBJECTS,), 1, classes + 1, settings.seed + number)
    target = {
        "boxes": boxes,
        "labels": labels,
        "masks": inside_rows.unsqueeze(2) & inside_columns.unsqueeze(1),
    }
    return {key: value.to(settings.torch_device) for key, value in target.items()}
