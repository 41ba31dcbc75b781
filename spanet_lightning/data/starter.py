"""A configuration to start from, for a data set that nobody has described yet."""

from __future__ import annotations

import math
import os
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from lightning import LightningDataModule

from spanet_lightning.data.classification import ImageClassificationDataModule
from spanet_lightning.data.contents import Contents, image_sizes, typical_size
from spanet_lightning.errors import DataError, invalid_choice

TASKS = {"classification": "folders", "detection": "coco", "segmentation": "masks"}
"""The layout that each task needs."""


class Starter(NamedTuple):
    """A configuration.

    Attributes:
        text: YAML with comments.
        task: What it trains.
    """

    text: str
    task: str


def write_starter(
    data: LightningDataModule, contents: Contents, root: str, name: str, task: str | None = None
) -> Starter:
    """Write a configuration whose image size, batch and workers fit a data set and this machine.

    Args:
        data: What reads the data set.
        contents: What it contains.
        root: Its folder, as the configuration is to name it.
        name: Name of the file, for the comments.
        task: What to train; None is what the layout is for.

    Raises:
        ConfigError: If the task is unknown or the data is not for it.
        DataError: If there is nothing to train on.
    """
    usual = next(one for one, layout in TASKS.items() if layout == contents.layout)
    task = task or usual
    if task not in TASKS:
        raise invalid_choice("--task", task, TASKS)
    if TASKS[task] != contents.layout:
        raise DataError(
            f"--task: got {task!r}, but {root} has the layout of {usual}; expected annotations "
            "for it"
        )
    sizes, modes = image_sizes(contents)
    if not sizes:
        raise DataError(f"ROOT: {root} has no image that can be read")
    images = next(iter(contents.splits.values()), None)
    train = max(2, len(images.jobs) if images else 0)
    cuda = torch.cuda.is_available()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    fit = _Fit(typical_size(sizes), train, cuda, min(8, cores or 1))
    grey = set(modes) <= {"L", "1", "LA", "I;16", "I;16B"}
    parts = {
        "classification": _classification,
        "detection": _detection,
        "segmentation": _segmentation,
    }[task](data, contents, fit, grey)
    counts = ", ".join(f"{n} {len(split.jobs)}" for n, split in contents.splits.items())
    lines = [
        f"# {len(contents.classes)} classes, images: {counts}.",
        f"# Written by `spanet init {shlex.quote(root)}`.",
        "#",
        f"#   spanet data check --config {shlex.quote(name)}",
        f"#   lightning fit --config {shlex.quote(name)}",
        "#",
        "# Every key can be set on the command line: --trainer.max_epochs=10. Published recipes",
        "# are in configs/; weights to start from go to model.weights.",
        yaml.safe_dump({"name": Path(name).stem}, allow_unicode=True).strip(),
        "seed_everything: 0",
        "trainer:",
        f"  max_epochs: {fit.epochs}",
        f"  log_every_n_steps: {min(50, max(1, train // 128))}",
        "  accelerator: auto",
        *parts,
    ]
    text = "\n".join(lines) + "\n"
    yaml.safe_load(text)
    return Starter(text, task)


class _Fit(NamedTuple):
    """What a configuration depends on: typical width and height, images, device, processes."""

    size: tuple[int, int]
    train: int
    cuda: bool
    workers: int

    @property
    def epochs(self) -> int:
        """Epochs for some 10,000 to 20,000 images on a CPU, ten times as many on a GPU."""
        wanted = (200_000 if self.cuda else 20_000) / self.train
        return int(min(max(wanted, 10), 100))

    def batch(self, most: int) -> int:
        """Return a batch, a power of two: eight or more an epoch, at most what fits the memory."""
        return 1 << int(math.log2(min(max(2, self.train // 8), most)))

    def side(self, most: int) -> int:
        """Return the side of the network's input: that of the images, a multiple of 32."""
        return min(max(32, min(self.size) // 32 * 32), most)


def _model(task: str, size: int, fit: _Fit, extra: list[str], head: str | None) -> list[str]:
    variant = "s18_pure" if fit.cuda or size > 160 else "test"
    note = "" if variant != "test" else "  # tiny, for a CPU and small images; next is s18_pure"
    lines = [
        "model:",
        f"  class_path: spanet_lightning.{task}",
        "  init_args:",
        "    backbone:",
        "      class_path: spanet_lightning.SPANetV2",
        "      init_args:",
        f"        variant: {variant}{note}",
        f"        img_size: {size}",
        *extra,
    ]
    if head is not None:
        lines += ["    head:", f"      class_path: spanet_lightning.{head}"]
    return [
        *lines,
        "    optimizer:",
        "      lr: 1.0e-3" if task == "ClassificationTask" else "      lr: 2.0e-4",
        "    schedule:",
        "      name: cosine",
        "      update: step",
        "      cooldown_epochs: 0",
    ]


def _data(kind: str, options: dict[str, Any], notes: dict[str, str]) -> list[str]:
    lines = ["data:", f"  class_path: spanet_lightning.{kind}", "  init_args:"]
    for key, value in options.items():
        text = yaml.safe_dump({key: value}, default_flow_style=False, allow_unicode=True).strip()
        note = notes.get(key)
        lines.append(f"    {text}{f'  # {note}' if note else ''}")
    return lines


def _classification(
    data: LightningDataModule, contents: Contents, fit: _Fit, grey: bool
) -> list[str]:
    assert isinstance(data, ImageClassificationDataModule)  # noqa: S101 - its layout
    size = fit.side(224 if fit.cuda else 128)
    options: dict[str, Any] = {"root": str(data.root)}
    notes = {"image_size": f"typical images have {fit.size[0]}×{fit.size[1]} px"}
    for key, usual in (("train_split", "train"), ("val_split", "val"), ("test_split", None)):
        value = getattr(data, key)
        if value != usual and not (key == "val_split" and data.holdout):
            options[key] = value
    if data.holdout:
        options["split"] = data.holdout.share
        notes["split"] = "of each class to validate on; kfold: 5/0 is one of five folds"
    options["image_size"] = size
    if grey:
        options["in_chans"] = 1
        notes["in_chans"] = "the images are grey"
    options |= {"batch_size": fit.batch(128 if fit.cuda else 32), "num_workers": fit.workers}
    counts = [count for split in contents.splits.values() for count in split.counts if count]
    if counts and max(counts) >= 10 * min(counts):
        options["class_weights"] = "balanced"
        notes["class_weights"] = "classes are uneven"
    channels = ["        in_chans: 1"] if grey else []
    extra = [
        "    mixup_alpha: 0.2  # 0.8 and cutmix_alpha: 1.0 for long runs on many images",
        "    cutmix_alpha: 0.0",
    ]
    return [
        *_model("ClassificationTask", size, fit, channels + extra, None),
        f"      warmup_epochs: {max(1, fit.epochs // 20)}",
        *_data("ImageClassificationDataModule", options, notes),
    ]


def _detection(data: Any, contents: Contents, fit: _Fit, grey: bool) -> list[str]:  # noqa: ARG001
    channels = ["        in_chans: 1"] if grey else []
    short = fit.side(800 if fit.cuda else 320)
    long = math.ceil(short * max(fit.size) / min(fit.size) / 32) * 32
    options: dict[str, Any] = {"root": str(data.root)}
    for split in ("train",) if data.holdout else ("train", "val"):
        files = data.files(split)
        root = Path(data.root)
        options[f"{split}_images"] = files.folder.relative_to(root).as_posix()
        options[f"{split}_annotations"] = files.file.relative_to(root).as_posix()
    if data.holdout:
        options["split"] = data.holdout.share
    options |= {
        "masks": data.masks,
        "augmentation": "flip",
        "short_side": short,
        "long_side": max(long, short),
        **({"in_chans": 1} if grey else {}),
        "batch_size": fit.batch(8 if fit.cuda else 2),
        "num_workers": fit.workers,
    }
    notes = {
        "in_chans": "the images are grey",
        "short_side": f"typical images have {fit.size[0]}×{fit.size[1]} px",
        "split": "of the images to validate on; kfold: 5/0 is one of five folds",
        "masks": "instance masks: Mask R-CNN" if data.masks else "boxes alone",
    }
    return [
        *_model("DetectionTask", short, fit, channels, "MaskRCNN" if data.masks else "RetinaNet"),
        f"      warmup_epochs: {max(1, fit.epochs // 20)}",
        "checkpoint:",
        "  monitor: val/box_ap",
        *_data("CocoDataModule", options, notes),
    ]


def _segmentation(data: Any, contents: Contents, fit: _Fit, grey: bool) -> list[str]:  # noqa: ARG001
    channels = ["        in_chans: 1"] if grey else []
    crop = fit.side(512 if fit.cuda else 256)
    long = math.ceil(crop * max(fit.size) / min(fit.size) / 32) * 32
    options: dict[str, Any] = {
        "root": str(data.root),
        "train_split": data.split("train"),
        **({"split": data.holdout.share} if data.holdout else {"val_split": data.split("val")}),
        "crop_size": crop,
        "short_side": crop,
        "long_side": max(long, crop),
        **({"in_chans": 1} if grey else {}),
        "batch_size": fit.batch(16 if fit.cuda else 4),
        "num_workers": fit.workers,
    }
    notes = {
        "in_chans": "the images are grey",
        "split": "of the images to validate on; kfold: 5/0 is one of five folds",
        "crop_size": f"typical images have {fit.size[0]}×{fit.size[1]} px",
    }
    return [
        *_model("SegmentationTask", crop, fit, channels, "SemanticFPN"),
        f"      warmup_epochs: {max(1, fit.epochs // 20)}",
        "checkpoint:",
        "  monitor: val/miou",
        *_data("SegmentationFoldersDataModule", options, notes),
    ]
