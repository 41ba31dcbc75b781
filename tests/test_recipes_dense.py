"""If one of these fails, a detection or segmentation recipe is not the one that was published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser, Namespace
from lightning import LightningDataModule, Trainer

import spanet_lightning
from spanet_lightning.callbacks.global_batch import GlobalBatch, split
from spanet_lightning.tasks import Task
from spanet_lightning.tasks.optim import LayerDecay, OptimizerConfig, ScheduleConfig

FOLDER = Path(__file__).parent.parent / "configs"
COCO = {
    # batch on a device, accumulated, lr, epochs, milestones, drop path, layer decay, warm-up images
    "retinanet_spanet_s": (4, 1, 1e-4, 12, (8, 11), 0.0, None, 8000),
    "retinanet_spanet_m": (4, 1, 1e-4, 12, (8, 11), 0.0, None, 8000),
    "mask_rcnn_spanet_s": (2, 1, 2e-4, 12, (8, 11), 0.0, None, 4000),
    "mask_rcnn_spanet_m": (2, 1, 2e-4, 12, (8, 11), 0.0, None, 4000),
    "mask_rcnn_spanetv2_s18_pure": (2, 2, 1e-4, 36, (27, 33), 0.2, (0.95, 6), 8000),
    "mask_rcnn_spanetv2_s18_hybrid": (2, 2, 1e-4, 36, (27, 33), 0.15, (0.95, 6), 8000),
    "cascade_mask_rcnn_spanetv2_s18_pure": (1, 4, 2e-4, 36, (27, 33), 0.2, (0.7, 6), 4000),
    "cascade_mask_rcnn_spanetv2_s18_hybrid": (1, 4, 2e-4, 36, (27, 33), 0.15, (0.7, 6), 4000),
    "cascade_mask_rcnn_spanetv2_s36_pure": (1, 4, 2e-4, 36, (27, 33), 0.3, (0.7, 9), 4000),
    "cascade_mask_rcnn_spanetv2_s36_hybrid": (1, 4, 2e-4, 36, (27, 33), 0.3, (0.7, 9), 4000),
}
ADE20K = {
    # batch on a device, steps, lr, decay, power, drop path, layers of the decay, warm-up images
    "semantic_fpn_spanet_s": (4, 80_000, 2e-4, 1e-4, 0.9, 0.0, None, 0),
    "semantic_fpn_spanet_m": (4, 80_000, 2e-4, 1e-4, 0.9, 0.0, None, 0),
    "semantic_fpn_spanetv2_s18_pure": (8, 40_000, 2e-4, 1e-4, 0.9, 0.2, None, 0),
    "semantic_fpn_spanetv2_s18_hybrid": (8, 40_000, 2e-4, 1e-4, 0.9, 0.15, None, 0),
    "semantic_fpn_spanetv2_s36_pure": (8, 40_000, 2e-4, 1e-4, 0.9, 0.3, None, 0),
    "semantic_fpn_spanetv2_s36_hybrid": (8, 40_000, 2e-4, 1e-4, 0.9, 0.3, None, 0),
    "upernet_spanetv2_s18_pure": (4, 160_000, 1e-4, 0.05, 1.0, 0.2, 7, 24_000),
    "upernet_spanetv2_s18_hybrid": (4, 160_000, 1e-4, 0.05, 1.0, 0.15, 7, 24_000),
    "upernet_spanetv2_s36_pure": (4, 160_000, 1e-4, 0.05, 1.0, 0.3, 11, 24_000),
    "upernet_spanetv2_s36_hybrid": (4, 160_000, 1e-4, 0.05, 1.0, 0.3, 11, 24_000),
}
INFERRED = {*(n for n in COCO if "s36" in n), "semantic_fpn_spanet_s", "semantic_fpn_spanet_m"}


def resolve(path: Path) -> Namespace:
    """Return a configuration with the defaults of the code filled in, nothing built."""
    for name in spanet_lightning.__all__:
        getattr(spanet_lightning, name)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--seed_everything", type=int)
    parser.add_argument("--global_batch_size", type=int)
    parser.add_argument("--checkpoint.monitor", type=str)
    parser.add_class_arguments(Trainer, "trainer", fail_untyped=False)
    parser.add_subclass_arguments(Task, "model", skip={"num_classes"})
    parser.add_subclass_arguments(LightningDataModule, "data")
    return parser.parse_path(path)


def value(config: Any, cls: type) -> Any:
    given = config.as_dict()
    if given.get("layer_decay"):
        given["layer_decay"] = LayerDecay(**given["layer_decay"])
    return cls(**given)


def test_every_row_has_its_file() -> None:
    assert {p.stem for p in (FOLDER / "coco").glob("*.yaml")} == set(COCO)
    assert {p.stem for p in (FOLDER / "ade20k").glob("*.yaml")} == set(ADE20K)


def check_backbone(task: Any, name: str, drop_path: float) -> None:
    generation, variant = name[name.index("spanet") :].split("_", 1)
    assert task.backbone.class_path.endswith(
        {"spanet": ".SPANet", "spanetv2": ".SPANetV2"}[generation]
    )
    assert task.backbone.init_args.variant == variant
    assert task.backbone.init_args.drop_path_rate == drop_path
    assert task.frozen_stages == 0


@pytest.mark.parametrize("name", COCO)
def test_coco_recipe(name: str) -> None:
    batch, accumulate, lr, epochs, milestones, drop_path, decay, warmup = COCO[name]
    config = resolve(FOLDER / "coco" / f"{name}.yaml")
    trainer, data, task = config.trainer, config.data.init_args, config.model.init_args
    v2 = "spanetv2" in name
    check_backbone(task, name, drop_path)
    heads = {
        "retinanet": "RetinaNet",
        "mask_rcnn": "MaskRCNN",
        "cascade_mask_rcnn": "CascadeMaskRCNN",
    }
    head = heads[name[: name.index("_spanet")]]
    assert task.head.class_path.endswith(f".{head}")
    assert (trainer.devices, trainer.strategy, trainer.max_epochs) == (1, "auto", epochs)
    assert trainer.precision == ("16-mixed" if v2 else None)
    assert (trainer.accumulate_grad_batches, trainer.gradient_clip_val) == (1, None)
    assert data.batch_size == batch
    assert split(config.global_batch_size, 4, data.batch_size) == GlobalBatch(4, batch, accumulate)
    assert data.augmentation == ("multi_scale_crop" if v2 else "flip")
    assert data.masks == (head != "RetinaNet")
    assert (data.long_side, data.short_side, data.keep_empty) == (1333, 800, False)
    assert value(task.optimizer, OptimizerConfig) == OptimizerConfig(
        lr=lr,
        weight_decay=0.05 if v2 else 1e-4,
        no_decay="norms_and_biases" if v2 else "none",
        layer_decay=LayerDecay(decay[0], "layer", decay[1]) if decay else None,
    )
    schedule = value(task.schedule, ScheduleConfig)
    assert (schedule.name, schedule.milestones, schedule.gamma) == ("step", milestones, 0.1)
    assert (schedule.warmup_images, schedule.warmup_factor) == (warmup, 1e-3)
    assert config.checkpoint.monitor == "val/box_ap"


@pytest.mark.parametrize("name", ADE20K)
def test_ade20k_recipe(name: str) -> None:
    batch, steps, lr, weight_decay, power, drop_path, layers, warmup = ADE20K[name]
    config = resolve(FOLDER / "ade20k" / f"{name}.yaml")
    trainer, data, task = config.trainer, config.data.init_args, config.model.init_args
    check_backbone(task, name, drop_path)
    upernet = layers is not None
    assert task.head.class_path.endswith(".UPerNet" if upernet else ".SemanticFPN")
    assert (trainer.devices, trainer.strategy) == (1, "auto")
    assert split(config.global_batch_size, 4, data.batch_size) == GlobalBatch(4, batch, 1)
    assert (trainer.max_steps, trainer.max_epochs) == (steps, -1)
    assert trainer.precision == ("16-mixed" if "spanetv2" in name else None)
    assert trainer.accumulate_grad_batches == 1
    assert (data.batch_size, data.crop_size, data.long_side, data.short_side) == (
        batch,
        512,
        2048,
        512,
    )
    assert value(task.optimizer, OptimizerConfig) == OptimizerConfig(
        lr=lr,
        weight_decay=weight_decay,
        no_decay="norms_and_biases" if upernet else "none",
        layer_decay=LayerDecay(0.9, "stage", layers) if upernet else None,
    )
    schedule = value(task.schedule, ScheduleConfig)
    assert (schedule.name, schedule.power, schedule.min_lr) == ("poly", power, 0.0)
    assert schedule.warmup_images == warmup
    assert schedule.warmup_factor == (1e-6 if upernet else None)
    assert task.inference == ("slide" if upernet else "whole")
    assert (task.window, task.window_stride) == (512, 341)
    assert (task.scales, task.flip, task.loss_over_all) == ((1.0,), False, True)


@pytest.mark.parametrize("name", [*COCO, *ADE20K])
def test_what_the_authors_did_not_publish_is_marked(name: str) -> None:
    folder = "coco" if name in COCO else "ade20k"
    header = (FOLDER / folder / f"{name}.yaml").read_text(encoding="utf-8").split("seed_")[0]
    assert ("inferred" in header) == (name in INFERRED)
    assert ("the published recipe" in " ".join(header.replace("#", " ").split())) == (
        name not in INFERRED
    )
