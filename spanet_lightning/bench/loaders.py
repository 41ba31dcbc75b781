"""Loading: images a second of our ImageFolder pipeline beside timm's own, on the same folder.

Both read, augment (the published recipe), and normalise with the same settings; timm's loader runs
as `create_loader` builds it, once with its prefetcher, which normalises whole batches, and once
without. Every round seeds both alike.

The clock starts when each worker has delivered its first batch (without workers: at the first), so
that neither the start of processes nor what they prepared meanwhile counts.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
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
from spanet_lightning.errors import ConfigError, invalid

SPLITS = {"train": "train", "eval": "val"}


@dataclass(frozen=True)
class LoaderSettings:
    """What all loaders of a comparison have in common.

    Args:
        batch: Images in a batch.
        size: Side of the images that come out, in pixels.
        workers: Numbers of worker processes to measure; 0 loads in this process.
        rounds: How often each loader is measured.
        seed: Of every round's order and augmentation.

    Raises:
        ConfigError: If a value is not accepted.
    """

    batch: int = 32
    size: int = 224
    workers: tuple[int, ...] = (0, 2)
    rounds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for key, number, least in (
            ("--batch", self.batch, 1),
            ("--size", self.size, 32),
            ("--rounds", self.rounds, 1),
            *(("--workers", workers, 0) for workers in self.workers),
        ):
            if number < least:
                raise invalid(key, number, f"at least {least}")


def measure_loaders(
    root: Path, modes: Sequence[str], settings: LoaderSettings, say: Say
) -> tuple[list[Row], list[Row]]:
    """Measure loaders in alternation.

    Args:
        root: Folder with `train` and `val`, each with a folder for each class.
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
            loaders = {
                "ours": _ours(root, mode, workers, settings),
                "timm": _timm(root, mode, workers, settings, prefetcher=False),
                "timm with prefetcher": _timm(root, mode, workers, settings, prefetcher=True),
            }
            skipped = max(1, workers)
            turns = {
                subject: _turn(loader, skipped, settings) for subject, loader in loaders.items()
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
            ratios += [
                ratio("ours", other, name, seconds["ours"], seconds[other])
                for other in seconds
                if other != "ours"
            ]
    return results, ratios


def seconds_per_image(
    loader: Iterable[Any], skipped: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Read a loader to its end.

    Args:
        loader: Gives batches of (images, labels).
        skipped: Batches that come before the clock starts.
        clock: Tells the time, in seconds.

    Raises:
        ConfigError: If nothing is left to measure.
    """
    images, start, batches = 0, 0.0, 0
    for batches, (pixels, _labels) in enumerate(loader, 1):
        if batches == skipped:
            start = clock()
        elif batches > skipped:
            images += len(pixels)
    if images == 0:
        raise ConfigError(
            f"--batch: found {batches} full batches, expected more than {skipped}; give a smaller "
            "one, or more images"
        )
    return (clock() - start) / images


def _turn(loader: Iterable[Any], skipped: int, settings: LoaderSettings) -> Turn:
    def turn() -> float:
        random.seed(settings.seed)
        np.random.seed(settings.seed)  # noqa: NPY002 - timm's augmentation draws from it
        torch.manual_seed(settings.seed)
        return seconds_per_image(loader, skipped)

    return turn


def _ours(root: Path, mode: str, workers: int, settings: LoaderSettings) -> Iterable[Any]:
    module = ImageClassificationDataModule(
        str(root), image_size=settings.size, batch_size=settings.batch, num_workers=workers
    )
    module.setup("fit")
    return module.train_dataloader() if mode == "train" else module.val_dataloader()


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
