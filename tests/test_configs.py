"""Every configuration trains, and those of ImageNet are the published recipes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from jsonargparse import ArgumentParser, Namespace
from lightning import Trainer
from PIL import Image

from spanet_lightning import ClassificationTask, ImageClassificationDataModule
from spanet_lightning.callbacks import global_batch
from spanet_lightning.cli import run
from spanet_lightning.tasks.optim import OptimizerConfig, ScheduleConfig
from tests import dense_sets

FOLDER = Path(__file__).parent.parent / "configs"
# Layers describe no experiment: `test_trainer_layers` puts each on top of each recipe.
CONFIGS = sorted(path for path in FOLDER.rglob("*.yaml") if "trainer" not in path.parts)
FIGURES = ("/top1", "/box_ap", "/miou")
IMAGENET = sorted((FOLDER / "imagenet").glob("*.yaml"))


def name(path: Path) -> str:
    return path.relative_to(FOLDER).with_suffix("").as_posix()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of noise, laid out as the folders of ImageNet."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            (root / split / label).mkdir(parents=True)
            for i in range(4):
                noise = rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)
                Image.fromarray(noise).save(root / split / label / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dense_sets.coco(tmp_path_factory.mktemp("coco"), train=4, val=1)


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dense_sets.masks(tmp_path_factory.mktemp("streets"), train=2, val=1)


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_config_trains(
    path: Path,
    images: Path,
    boxes: Path,
    streets: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One step and one validation batch, on small stand-ins for the data, of a tiny variant."""
    # Lightning warns where both the program and its caller have arguments.
    monkeypatch.setattr("sys.argv", ["lightning"])
    small: dict[str, Any] = {
        "trainer.fast_dev_run": "true",
        "trainer.default_root_dir": str(tmp_path),
        "trainer.accelerator": "cpu",
        "trainer.devices": "1",
        "trainer.strategy": "auto",
        "trainer.precision": "32-true",
        "data.batch_size": "2",
        "global_batch_size": "2",
    }
    kind = path.parent.name
    if kind != "digits":
        small |= {"data.num_workers": "0"}
    if kind in ("imagenet", "coco", "ade20k", "finetune"):
        small |= {"model.backbone.variant": "test"}
    if kind in ("imagenet", "cifar10", "finetune"):
        small |= {"data.root": str(images), "data.image_size": "32"}
    if kind == "finetune":
        small |= {"model.weights": "null"}
    if kind in ("imagenet", "finetune"):
        small |= {"model.backbone.img_size": "32"}
    if kind == "coco":
        small |= {"data.root": str(boxes), "data.long_side": "96", "data.short_side": "64"}
        small |= {"data.short_sides": "[64]"}
        small |= {f"data.{key}": value for key, value in dense_sets.COCO_FOLDERS.items()}
    if kind == "coco" and "rcnn" in path.stem:
        small |= {"model.head.box_batch_size_per_image": "16"}
        small |= {f"model.head.rpn_post_nms_top_n_{s}": "20" for s in ("train", "test")}
    if kind in ("ade20k", "camvid"):
        small |= {"data.root": str(streets), "data.crop_size": "64", "data.short_side": "64"}
        small |= {"data.long_side": "128", "model.window": "64", "model.window_stride": "48"}
    experiment = run(["fit", f"--config={path}", *(f"--{k}={v}" for k, v in small.items())])
    assert math.isfinite(float(experiment.trainer.callback_metrics["train/loss"]))


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_config_says_what_it_is(path: Path) -> None:
    """A header gives the command, the expected figure and the cost; nothing names a machine."""
    text = path.read_text(encoding="utf-8")
    header = text.split("seed_everything")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    assert f"lightning fit --config configs/{name(path)}.yaml" in header
    assert "Expected:" in header
    assert any(figure in header for figure in FIGURES)
    assert "Cost:" in header
    body = text[len(header) :]
    assert not any(value.startswith(("/", "~")) for value in body.split())


class Recipe(NamedTuple):
    """One row of the published settings."""

    optimizer: str
    lr: float
    images_per_step: int
    accumulate: int
    per_device: int
    warmup_epochs: int
    drop_path: float
    precision: str
    clip: float | None
    crop_pct: float


FP32, FP16 = "32-true", "16-mixed"
RECIPES = {
    "spanet_s": Recipe("adamw", 1e-3, 1024, 2, 128, 5, 0.1, FP32, None, 0.9),
    "spanet_m": Recipe("adamw", 1e-3, 1024, 4, 64, 5, 0.2, FP32, None, 0.9),
    "spanet_mx": Recipe("adamw", 1e-3, 1024, 4, 64, 5, 0.3, FP32, None, 0.9),
    "spanet_b": Recipe("adamw", 1e-3, 1024, 4, 64, 5, 0.3, FP32, None, 0.95),
    "spanet_bx": Recipe("adamw", 1e-3, 1024, 4, 64, 5, 0.5, FP32, None, 0.95),
    "spanetv2_s18_pure": Recipe("adamw", 4e-3, 4096, 8, 128, 20, 0.2, FP16, None, 1.0),
    "spanetv2_s18_hybrid": Recipe("lamb", 8e-3, 4096, 16, 64, 20, 0.15, FP16, None, 1.0),
    "spanetv2_s36_pure": Recipe("adamw", 4e-3, 4096, 16, 64, 20, 0.3, FP32, None, 1.0),
    "spanetv2_s36_hybrid": Recipe("lamb", 8e-3, 4096, 16, 64, 20, 0.3, FP16, None, 1.0),
    "spanetv2_m36_pure": Recipe("adamw", 4e-3, 4096, 32, 32, 20, 0.4, FP16, None, 1.0),
    "spanetv2_m36_hybrid": Recipe("lamb", 8e-3, 4096, 32, 32, 20, 0.4, FP32, None, 1.0),
    "spanetv2_b36_pure": Recipe("adamw", 4e-3, 4096, 32, 32, 20, 0.6, FP16, None, 1.0),
    "spanetv2_b36_hybrid": Recipe("lamb", 8e-3, 4096, 32, 32, 20, 0.6, FP32, 1.0, 1.0),
}


def resolve(path: Path) -> Namespace:
    """Return a configuration with the defaults of the code filled in, nothing built."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--seed_everything", type=int)
    parser.add_argument("--global_batch_size", type=int)
    parser.add_class_arguments(Trainer, "trainer", fail_untyped=False)
    parser.add_subclass_arguments(ClassificationTask, "model")
    parser.add_subclass_arguments(ImageClassificationDataModule, "data")
    return parser.parse_path(path)


def test_every_variant_has_its_recipe() -> None:
    assert {path.stem for path in IMAGENET} == set(RECIPES)


@pytest.mark.parametrize("path", IMAGENET, ids=name)
def test_imagenet_config_is_the_published_recipe(path: Path) -> None:
    row = RECIPES[path.stem]
    config = resolve(path)
    trainer, data, task = config.trainer, config.data.init_args, config.model.init_args

    generation, _, variant = path.stem.partition("_")
    backbones = {"spanet": "SPANet", "spanetv2": "SPANetV2"}
    assert task.backbone.class_path == f"spanet_lightning.{backbones[generation]}"
    assert task.backbone.init_args.variant == variant
    assert task.backbone.init_args.drop_path_rate == row.drop_path
    assert task.backbone.init_args.drop_rate == 0.0

    assert (trainer.devices, trainer.strategy, trainer.num_nodes) == (1, "auto", 1)
    assert config.global_batch_size == row.images_per_step
    assert (trainer.accumulate_grad_batches, trainer.limit_train_batches) == (1, None)  # derived
    assert data.batch_size == row.per_device
    # On the authors' four devices, what follows is what they accumulated.
    assert global_batch.split(
        config.global_batch_size, 4, data.batch_size
    ) == global_batch.GlobalBatch(4, row.per_device, row.accumulate)
    assert trainer.precision == row.precision
    assert trainer.gradient_clip_val == row.clip
    assert trainer.gradient_clip_algorithm in (None, "norm")
    assert trainer.max_epochs == 310
    assert config.seed_everything == 42

    optimizer = OptimizerConfig(**task.optimizer.as_dict())
    assert optimizer == OptimizerConfig(
        name=row.optimizer,  # type: ignore[arg-type]  # a name of the table
        lr=row.lr,
        weight_decay=0.05,
        betas=(0.9, 0.999),
        eps=None,  # the optimizer's own: 1e-8, and 1e-6 for LAMB
        max_grad_norm=1.0,  # LAMB's
    )
    schedule = ScheduleConfig(**task.schedule.as_dict())
    assert schedule == ScheduleConfig(
        name="cosine",
        warmup_epochs=row.warmup_epochs,
        warmup_lr=1e-6,
        min_lr=1e-5,
        cooldown_epochs=10,
        update="epoch",
    )
    mixing = {
        "mixup_alpha": 0.8,
        "cutmix_alpha": 1.0,
        "mixup_prob": 1.0,
        "mixup_switch_prob": 0.5,
        "label_smoothing": 0.1,
        "weights": None,
    }
    assert {key: task[key] for key in mixing} == mixing

    images: dict[str, Any] = {
        "dataset": "",
        "image_size": 224,
        "crop_pct": row.crop_pct,
        "interpolation": "bicubic",
        "train_interpolation": "random",
        "scale": (0.08, 1.0),
        "ratio": (3 / 4, 4 / 3),
        "hflip": 0.5,
        "auto_augment": "rand-m9-mstd0.5-inc1",
        "re_prob": 0.25,
        "mean": None,  # ImageNet's, for images of three channels
        "std": None,
        "num_workers": 8,
    }
    assert {key: data[key] for key in images} == images


@pytest.mark.parametrize("path", IMAGENET, ids=name)
def test_dropout_that_the_published_script_drops_is_explained(path: Path) -> None:
    intended = {"s36_hybrid": 0.4, "m36_hybrid": 0.4, "b36_hybrid": 0.5}
    rate = intended.get(path.stem.removeprefix("spanetv2_"))
    text = path.read_text(encoding="utf-8")
    assert ("drop_rate" in text) == (rate is not None)
    if rate is not None:
        assert f"--model.backbone.drop_rate={rate}" in text
