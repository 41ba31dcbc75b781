"""Detectors and segmentation heads on one backbone: time and memory of evaluation and training.

Images are noise; each has eight objects of a fixed draw. Weights are random, and random scores
would leave a detector without work after its proposals, so the score threshold is set such that
about as many objects are found as an image may have (100), all of which get their masks. Evaluation
is whatever follows the images up to boxes, masks in their boxes or the class of each pixel; pasting
and metrics are not in it. A training step ends with one of AdamW's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from spanet_lightning import heads
from spanet_lightning.backbones import Backbone
from spanet_lightning.bench.memory import memory, tensors_of
from spanet_lightning.bench.models import WARM_UP_CALLS, Row, ratio
from spanet_lightning.bench.settings import Settings
from spanet_lightning.bench.timing import Say, alternate, spread, timed
from spanet_lightning.cost import model_cost
from spanet_lightning.dense_cost import CLASSES
from spanet_lightning.errors import invalid, invalid_choice
from spanet_lightning.heads import DenseModel, Detections
from spanet_lightning.heads.base import DetectionLayers, SegmentationLayers
from spanet_lightning.heads.segmentation import resize, segmentation_loss

HEADS = ("RetinaNet", "FasterRCNN", "MaskRCNN", "CascadeMaskRCNN", "SemanticFPN", "UPerNet")
BACKBONE = "backbone alone"
OBJECTS = 8  # in each image


@dataclass(frozen=True)
class DenseSettings(Settings):
    """Settings of images that need not be square.

    Args:
        batch: Images in a batch.
        size: Width of the images, in pixels.
        height: Their height.
        backbone: The backbone of all heads, by timm's name.
    """

    batch: int = 2
    size: int = 640
    height: int = 480
    backbone: str = "spanetv2_s18_pure"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.height < 32:
            raise invalid("--size", f"{self.size}x{self.height}", "at least 32x32")
        if not timm.is_model(self.backbone):
            raise invalid_choice("--backbone", self.backbone, timm.list_models("spanet*"))

    def images(
        self, batch: int | None = None, size: int | None = None, channels: int = 3
    ) -> Tensor:
        """Return normal noise (B, C, H, W), the same for the same seed."""
        del size
        generator = torch.Generator().manual_seed(self.seed)
        shape = (batch or self.batch, channels, self.height, self.size)
        return self.place(torch.randn(shape, generator=generator))


def measure_dense(
    names: Sequence[str], modes: Sequence[str], settings: DenseSettings, say: Say
) -> tuple[list[Row], list[Row]]:
    """Measure heads, and their backbone alone, in alternation.

    Args:
        names: Names of the heads.
        modes: "eval", "train" or both.
        settings: How.
        say: Is told how far it is.

    Returns:
        The `results` and `ratios` of the JSON document; each head is compared with the backbone
        alone.

    Raises:
        ConfigError: If there is no such head.
    """
    for name in names:
        if name not in HEADS:
            raise invalid_choice("HEAD", name, HEADS)
    images = settings.images()
    results, ratios = [], []
    for mode in modes:
        turns, memories, costs = {}, {}, {}
        for name in (BACKBONE, *names):
            say(f"{mode}: warm-up of {name}")
            torch.manual_seed(settings.seed)
            model = build(name, settings)
            costs[name] = _cost(model, settings)
            model = settings.place(model).train(mode == "train")
            optimizer = AdamW(model.parameters(), lr=1e-5, fused=True) if mode == "train" else None
            call = _call(model, images, optimizer, settings)
            for _ in range(WARM_UP_CALLS):
                call()
            standing = [*tensors_of(model, optimizer), images]
            memories[name] = memory(call, standing, settings.torch_device)
            turns[name] = timed(call, settings.seconds)
        seconds = alternate(turns, settings.rounds, say)
        for name, times in seconds.items():
            rate = settings.batch / spread(times).median
            results.append(
                {
                    "subject": name,
                    "mode": mode,
                    "seconds": list(times),
                    "images_per_second": rate,
                    "ms_per_image": 1e3 / rate,
                    "parameters": costs[name][0],
                    "macs": costs[name][1],
                    "memory": asdict(memories[name]),
                }
            )
            if name != BACKBONE:
                row = ratio(name, BACKBONE, mode, times, seconds[BACKBONE])
                row["memory"] = memories[name].peak / memories[BACKBONE].peak
                ratios.append(row)
    return results, ratios


class BackboneAlone(nn.Module):
    """The four normed levels and no head: what every head is compared with.

    Args:
        model: A dense model, whose head is not called.
    """

    def __init__(self, model: DenseModel) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.output_norms = model.output_norms

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the levels."""
        levels: Any = self.backbone.forward_intermediates(images, intermediates_only=True)
        return [norm(x) for norm, x in zip(self.output_norms, levels, strict=True)]


def build(name: str, settings: DenseSettings) -> nn.Module:
    """Return a dense model at its published size with random weights, or the backbone alone."""
    kind = "segmentation" if name in ("SemanticFPN", "UPerNet") else "detection"
    backbone = timm.create_model(settings.backbone)
    if not isinstance(backbone, Backbone):
        raise invalid("--backbone", settings.backbone, "a backbone of this project")
    # Batch norm over devices needs a process group; with one device it is the same.
    options = {"norm": "batch"} if name in ("CascadeMaskRCNN", "SemanticFPN", "UPerNet") else {}
    head = getattr(heads, "SemanticFPN" if name == BACKBONE else name)(**options)
    model = DenseModel(backbone, head, CLASSES[kind])
    return BackboneAlone(model) if name == BACKBONE else model


def _cost(model: nn.Module, settings: DenseSettings) -> tuple[int, int]:
    cost = model_cost(model, (settings.height, settings.size))
    return cost.parameters, cost.macs


def _call(
    model: nn.Module, images: Tensor, optimizer: AdamW | None, settings: DenseSettings
) -> Callable[[], Any]:
    """Return one evaluation of a batch, or one training step."""
    losses, evaluate = _work(model, images, settings)
    if optimizer is None:

        def call() -> Any:
            with torch.inference_mode(), settings.autocast():
                return evaluate()

        return call

    def step() -> None:
        with settings.autocast():
            loss = losses()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _work(
    model: nn.Module, images: Tensor, settings: DenseSettings
) -> tuple[Callable[[], Tensor], Callable[[], Any]]:
    size = (settings.height, settings.size)
    if isinstance(model, BackboneAlone):

        def mean() -> Tensor:
            return torch.stack([x.float().mean() for x in model(images)]).sum()

        return mean, lambda: model(images)
    assert isinstance(model, DenseModel)  # noqa: S101 - for the type checker
    layers = model.head
    sizes = [size] * len(images)
    if isinstance(layers, SegmentationLayers):
        masks = _random(settings, (len(images), *size), model.num_classes)

        def losses() -> Tensor:
            features = model.features(images)
            loss = segmentation_loss(layers(features), masks)
            auxiliary = layers.auxiliary(features)
            if auxiliary is not None:
                loss = loss + auxiliary[1] * segmentation_loss(auxiliary[0], masks)
            return loss

        return losses, lambda: resize(layers(model.features(images)).float(), size).argmax(dim=1)
    assert isinstance(layers, DetectionLayers)  # noqa: S101 - for the type checker
    targets = [_objects(settings, i, model.num_classes) for i in range(len(images))]

    def detect() -> list[Detections]:
        return layers.detect(model.features(images), sizes)

    if not model.training:
        _find_threshold(layers, detect)

    def total() -> Tensor:
        found = layers.losses(model.features(images), sizes, targets)
        return torch.stack(list(found.values())).sum()

    return total, detect


def _find_threshold(layers: Any, detect: Callable[[], list[Detections]]) -> None:
    """Set the score threshold to the highest power of 0.8 at which an image's detections are full.

    From above: a threshold that is too low gives NMS more boxes than any trained model would.
    """
    most = layers.config.max_detections
    layers.config.score_threshold = 0.9
    with torch.inference_mode():
        while layers.config.score_threshold > 1e-5:
            if min(len(found["labels"]) for found in detect()) >= most:
                break
            layers.config.score_threshold *= 0.8


def _random(settings: DenseSettings, shape: tuple[int, ...], high: int) -> Tensor:
    generator = torch.Generator().manual_seed(settings.seed)
    found: Tensor = torch.randint(high, shape, generator=generator).to(settings.torch_device)
    return found


def _objects(settings: DenseSettings, number: int, classes: int) -> dict[str, Tensor]:
    """Return the objects of an image: an eighth to a half of its sides, masks that fill them."""
    generator = torch.Generator().manual_seed(settings.seed + number)
    limits = torch.tensor([settings.size, settings.height])
    sides = (torch.rand(OBJECTS, 2, generator=generator) * 0.375 + 0.125) * limits
    start = torch.rand(OBJECTS, 2, generator=generator) * (limits - sides)
    boxes = torch.cat([start, start + sides], dim=1)
    rows, columns = torch.arange(settings.height), torch.arange(settings.size)
    x1, y1, x2, y2 = boxes.reshape(OBJECTS, 4, 1).unbind(dim=1)
    inside_rows, inside_columns = (rows >= y1) & (rows < y2), (columns >= x1) & (columns < x2)
    masks = inside_rows.unsqueeze(2) & inside_columns.unsqueeze(1)
    labels = torch.randint(1, classes + 1, (OBJECTS,), generator=generator)
    found = {"boxes": boxes, "labels": labels, "masks": masks}
    return {key: value.to(settings.torch_device) for key, value in found.items()}
