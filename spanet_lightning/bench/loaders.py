"""Loading: images a second of our pipelines beside timm's and torchvision's own, on the same files.

What is measured is what a training step gets: images read, augmented, normalised, and in a batch.
Of a folder for each class (here) all read and augment by the published recipe; timm's loader runs
as `create_loader` builds it, once with its prefetcher, which normalises whole batches as our data
module's hook does, and once without. Of data in COCO's layout see `coco_loaders`. Every round seeds
all alike.

The clock starts when each worker has delivered its first batch and one more has come, so that
neither the start of processes nor what they prepared meanwhile counts.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data.dataset_factory import create_dataset
from timm.data.loader import create_loader

from spanet_lightning.bench.models import Row, ratio
from spanet_lightning.bench.timing import Say, Turn, alternate, spread
from spanet_lightning.data import ImageClassificationDataModule
from spanet_lightning.data.posterize import repair_posterize
from spanet_lightning.errors import ConfigError, invalid, invalid_choice

SPLITS = {"train": "train", "eval": "val"}
LAYOUTS = ("folders", "coco")


@dataclass(frozen=True)
class Loader:
    """One subject of a comparison.

    Attributes:
        batches: Starts an epoch: batches whose first entry has one image an element.
        ahead: Batches that it has read already when it hands one out.
    """

    batches: Callable[[], Iterable[Any]]
    ahead: int = 0


Loaders = Callable[[Path, str, int, "LoaderSettings"], dict[str, Loader]]
"""Builds the loaders of a folder, a mode and a number of workers, ours first, by name."""


@dataclass(frozen=True)
class LoaderSettings:
    """What all loaders of a comparison have in common.

    Args:
        layout: "folders" or "coco".
        masks: Whether COCO's instance masks are drawn as well.
        batch: Images in a batch.
        size: Side of the images that come out, in pixels; in COCO's layout the limit of the
            shorter side.
        workers: Numbers of worker processes to measure; 0 loads in this process.
        rounds: How often each loader is measured.
        seed: Of every round's order and augmentation.

    Raises:
        ConfigError: If a value is not accepted.
    """

    layout: str = "folders"
    masks: bool = False
    batch: int = 32
    size: int = 224
    workers: tuple[int, ...] = (0, 2)
    rounds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise invalid_choice("--layout", self.layout, LAYOUTS)
        if self.masks and self.layout != "coco":
            raise invalid("--masks", self.masks, "COCO's layout, which alone has masks")
        for key, number, least in (
            ("--batch", self.batch, 1),
            ("--size", self.size, 32),
            ("--rounds", self.rounds, 1),
            *(("--workers", workers, 0) for workers in self.workers),
        ):
            if number < least:
                raise invalid(key, number, f"at least {least}")


def measure_loaders(
    loaders: Loaders, root: Path, modes: Sequence[str], settings: LoaderSettings, say: Say
) -> tuple[list[Row], list[Row]]:
    """Measure loaders in alternation.

    Args:
        loaders: Which.
        root: Folder of the data.
        modes: "train" (augmented), "eval" or both.
        settings: How.
        say: Is told how far it is.

    Returns:
        The `results` and `ratios` of the JSON document.

    Raises:
        DataError: If the folder is not as it has to be.
        ConfigError: If it has too few images.
    """
    results, ratios = [], []
    for mode in modes:
        for workers in settings.workers:
            name = f"{mode}, {workers} worker{'' if workers == 1 else 's'}"
            skipped = max(1, workers) + 1
            turns = {
                subject: _turn(loader, skipped, settings)
                for subject, loader in loaders(root, mode, workers, settings).items()
            }
            say(f"{name}: warm-up")
            for turn in turns.values():
                turn()
            say(name)
            seconds = alternate(turns, settings.rounds, say)
            for subject, values in seconds.items():
                results.append(
                    {
                        "subject": subject,
                        "mode": name,
                        "seconds": values,
                        "images_per_second": 1 / spread(values).median,
                    }
                )
            ours, *others = seconds
            ratios += [ratio(ours, it, name, seconds[ours], seconds[it]) for it in others]
    return results, ratios


def seconds_per_image(
    batches: Iterable[Any],
    skipped: int,
    ahead: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Read batches to their end.

    Args:
        batches: What to read: the first entry of each batch has one image an element.
        skipped: Batches that are read before the clock starts.
        ahead: How many of those have been read, but not handed out: a loader that prefetches would
            else begin with a batch that cost it nothing.
        clock: Tells the time, in seconds.

    Raises:
        ConfigError: If nothing is left to measure.
    """
    images, start, number = 0, 0.0, 0
    for number, batch in enumerate(batches, 1):
        if number == skipped - ahead:
            start = clock()
        if number > skipped:
            images += len(batch[0])
    if images == 0:
        raise ConfigError(
            f"--batch: found {number} full batches, expected more than {skipped}; give a smaller "
            "one, or more images"
        )
    return (clock() - start) / images


def _turn(loader: Loader, skipped: int, settings: LoaderSettings) -> Turn:
    def turn() -> float:
        random.seed(settings.seed)
        np.random.seed(settings.seed)  # noqa: NPY002 - timm's augmentation draws from it
        torch.manual_seed(settings.seed)
        return seconds_per_image(loader.batches(), skipped, loader.ahead)

    return turn


def folder_loaders(
    root: Path, mode: str, workers: int, settings: LoaderSettings
) -> dict[str, Loader]:
    """Return our loader and timm's two of a folder with `train` and `val`, a folder for each class.

    Args:
        root: The folder.
        mode: "train" or "eval".
        workers: Processes that load.
        settings: How.

    Raises:
        DataError: If the folder is not as it has to be.
    """
    ours = _ours(root, mode, workers, settings)  # first, as its errors tell what is wrong
    theirs = [_timm(root, mode, workers, settings, prefetcher=on) for on in (False, True)]
    return {
        "ours": ours,
        "timm": Loader(lambda: theirs[0]),
        # It hands out a batch when it has the next one.
        "timm with prefetcher": Loader(lambda: theirs[1], ahead=1),
    }


def _ours(root: Path, mode: str, workers: int, settings: LoaderSettings) -> Loader:
    module = ImageClassificationDataModule(
        str(root), image_size=settings.size, batch_size=settings.batch, num_workers=workers
    )
    module.setup("fit")
    training = mode == "train"
    loader = module.train_dataloader() if training else module.val_dataloader()

    def batches() -> Iterator[Any]:
        for images, labels in loader:
            erase = range(len(images)) if training else ()
            yield module.normalize(images, erase), labels  # as the hook

    return Loader(batches)


def _timm(
    root: Path, mode: str, workers: int, settings: LoaderSettings, *, prefetcher: bool
) -> Iterable[Any]:
    """Build timm's loader with the defaults of `ImageClassificationDataModule`."""
    dataset: Any = create_dataset("", root=str(root / SPLITS[mode]))
    training: dict[str, Any] = {
        "is_training": True,
        "scale": (0.08, 1.0),
        "ratio": (3 / 4, 4 / 3),
        "hflip": 0.5,
        "color_jitter": 0.4,
        "auto_augment": "rand-m9-mstd0.5-inc1",
        "interpolation": "random",
        "re_prob": 0.25,
        "re_mode": "pixel",
    }
    loader: Iterable[Any] = create_loader(
        dataset,
        input_size=(3, settings.size, settings.size),
        batch_size=settings.batch,
        num_workers=workers,
        device=torch.device("cpu"),
        use_prefetcher=prefetcher,
        persistent_workers=False,  # as ours: an epoch starts its workers
        **(training if mode == "train" else {"interpolation": "bicubic", "crop_pct": 0.9}),
    )
    repair_posterize(dataset.transform)
    return loader
