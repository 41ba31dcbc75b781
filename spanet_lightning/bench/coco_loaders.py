"""Loading of data in COCO's layout: our data module beside what torchvision has for it.

Both resize to fit, flip in training, normalise, and pad at the right and the bottom to a batch of
multiples of 32 px; theirs is made of `CocoDetection`, `wrap_dataset_for_transforms_v2`, the
transforms of v2 in the order that its documentation advises, and a plain DataLoader. Both read the
same images, and neither groups them by shape, so that both pad alike.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import v2

from spanet_lightning.bench.loaders import Loader, LoaderSettings
from spanet_lightning.data import CocoDataModule
from spanet_lightning.data.normalize import MEAN, STD
from spanet_lightning.errors import ConfigError

LONG = 1333 / 800
"""Limit of the longer side over that of the shorter side, as published."""
FOLDERS = {"train": "train2017", "eval": "val2017"}
_MULTIPLE = 32


def coco_loaders(
    root: Path, mode: str, workers: int, settings: LoaderSettings
) -> dict[str, Loader]:
    """Return our loader and torchvision's.

    Args:
        root: Folder with `train2017`, `val2017` and `annotations`.
        mode: "train" or "eval".
        workers: Processes that load.
        settings: How.

    Raises:
        DataError: If the folder is not as it has to be.
        ConfigError: If pycocotools is missing, which torchvision reads annotations with.
    """
    if importlib.util.find_spec("pycocotools") is None:
        raise ConfigError(
            "--layout: 'coco' needs pycocotools, which torchvision reads annotations with; install "
            "it with pip install pycocotools"
        )
    module = ours_of(root, workers, settings)
    ours = module.train_dataloader() if mode == "train" else module.val_dataloader()
    dataset: Any = ours.dataset
    index = dataset.index
    numbers = dataset.kept.tolist() if mode == "train" else range(len(index))
    theirs = theirs_of(root, mode, workers, settings, [index.images[i].id for i in numbers])

    def normalized() -> Iterator[Any]:
        for batch in ours:
            yield module.normalized(batch)  # as the hook

    return {"ours": Loader(normalized), "torchvision": Loader(lambda: theirs)}


def ours_of(root: Path, workers: int, settings: LoaderSettings) -> CocoDataModule:
    """Return our data module; arguments as of `coco_loaders`."""
    module = CocoDataModule(
        str(root),
        masks=settings.masks,
        augmentation="flip",
        long_side=round(LONG * settings.size),
        short_side=settings.size,
        short_sides=(settings.size,),
        bad_boxes="drop",  # COCO itself has one
        group_by_aspect=False,
        batch_size=settings.batch,
        eval_batch_size=settings.batch,
        num_workers=workers,
    )
    module.setup("fit")
    return module


def theirs_of(
    root: Path, mode: str, workers: int, settings: LoaderSettings, ids: Sequence[int]
) -> DataLoader[Any]:
    """Return a loader of torchvision's parts.

    Args:
        root: As of `coco_loaders`.
        mode: Likewise.
        workers: Likewise.
        settings: Likewise.
        ids: Of the images to read.
    """
    folder = FOLDERS[mode]
    file = root / "annotations" / f"instances_{folder}.json"
    training = mode == "train"
    long = round(LONG * settings.size)
    steps = [
        v2.ToImage(),
        v2.Resize(settings.size, max_size=long, antialias=True),
        *([v2.RandomHorizontalFlip(0.5)] if training else []),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(MEAN, STD),
        v2.ToPureTensor(),
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports on its reading
        read = datasets.CocoDetection(str(root / folder), str(file), transforms=v2.Compose(steps))
    read.ids = list(ids)
    keys = {"image_id", "boxes", "labels", *(["masks"] if settings.masks else [])}
    return DataLoader(
        datasets.wrap_dataset_for_transforms_v2(read, target_keys=keys),
        batch_size=settings.batch,
        shuffle=training,
        drop_last=training,
        num_workers=workers,
        collate_fn=padded,
    )


def padded(samples: list[tuple[Tensor, dict[str, Any]]]) -> tuple[Tensor, list[dict[str, Any]]]:
    """Return images as one tensor, zero where padded, and their annotations.

    Args:
        samples: Normalised images of shape (3, H, W) with what is annotated.
    """
    largest = (max(image.shape[axis] for image, _ in samples) for axis in (1, 2))
    height, width = (-(-side // _MULTIPLE) * _MULTIPLE for side in largest)
    batch = torch.zeros(len(samples), 3, height, width)
    for slot, (image, _) in zip(batch, samples, strict=True):
        slot[:, : image.shape[1], : image.shape[2]].copy_(image)
    return batch, [target for _, target in samples]
