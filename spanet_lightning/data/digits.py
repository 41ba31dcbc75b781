"""The embedded data set: 1,797 scans of handwritten digits that scikit-learn ships.

Real images without a download (E. Alpaydin and C. Kaynak, UCI "Optical Recognition of Handwritten
Digits", its test set): 8×8 pixels, 17 grey levels. Small enough to train on with two CPU cores in
a minute; the tests and the demo use it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from spanet_lightning.data.draws import Draw, uniform
from spanet_lightning.data.info import DataInfo
from spanet_lightning.data.loaders import exact_loader, train_loader
from spanet_lightning.data.manifest import DataIdentity, digest
from spanet_lightning.errors import invalid
from spanet_lightning.keywords import CheckedKeywords

SOURCE = "sklearn.datasets.load_digits"
SPLITS = ("train", "val", "test")
# Share of each class that is set aside, in the order in which it is taken.
TEST_SHARE, VAL_SHARE = 0.2, 0.1
FEWEST = 122  # training images of the rarest class, 8


class DigitsDataModule(LightningDataModule, CheckedKeywords):
    """Handwritten digits, split by a named seed: 70 % to train, 10 % to validate, 20 % to test.

    Each split holds about the same share of each class. Images are enlarged to `image_size`
    bilinearly and normalised by the mean and standard deviation of all. They stay in memory, so no
    worker processes are needed.

    Args:
        batch_size: Images in a batch, on each device.
        image_size: Height and width in pixels; at least 32, the total stride of a backbone.
        in_chans: Channels; 3 repeats the grey values.
        split_seed: Which split; independent of the seed of the run.
        train_per_class: Learn from so few images of each class only, and validate on the others of
            the training split as well: a task that is not solved at once, measured on many images.
            Null learns from all.
        augment: Turn, scale, shift the training images a little: up to 10°, 10 % and 8 % of the
            width.

    Raises:
        ConfigError: If a value is out of its range.
    """

    num_classes = 10
    class_names = tuple("0123456789")
    mean = 0.305  # of the enlarged images, grey values in [0, 1]
    std = 0.324

    def __init__(
        self,
        batch_size: int = 64,
        image_size: int = 32,
        in_chans: int = 3,
        split_seed: int = 0,
        train_per_class: int | None = None,
        augment: bool = True,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise invalid("batch_size", batch_size, "at least 1")
        if image_size < 32:
            raise invalid("image_size", image_size, "at least 32 pixels")
        if in_chans not in (1, 3):
            raise invalid("in_chans", in_chans, "1 or 3")
        if train_per_class is not None and not 1 <= train_per_class <= FEWEST:
            accepted = f"1 to {FEWEST}, the images of the rarest class, or null for all"
            raise invalid("train_per_class", train_per_class, accepted)
        self.batch_size = batch_size
        self.image_size = image_size
        self.in_chans = in_chans
        self.split_seed = split_seed
        self.train_per_class = train_per_class
        self.augment = augment
        self.splits: dict[str, TensorDataset] = {}

    @property
    def info(self) -> DataInfo:
        """The ten digits, and the normalisation."""
        count = self.in_chans
        return DataInfo(
            self.class_names, mean=(self.mean,) * count, std=(self.std,) * count, channels=count
        )

    def setup(self, stage: str) -> None:  # noqa: ARG002 - all three splits are one read away
        """Read, enlarge, normalise and split the images."""
        if self.splits:
            return
        grey, labels = load()
        images = F.interpolate(grey, size=(self.image_size, self.image_size), mode="bilinear")
        images = ((images - self.mean) / self.std).repeat(1, self.in_chans, 1, 1)
        for split, index in self._indices(labels).items():
            self.splits[split] = TensorDataset(images[index], labels[index])
        # Lightning advises worker processes; for tensors in memory they would cost, not save, time.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")

    @property
    def split_id(self) -> str:
        """Name of the split: its seed and a fingerprint of which images are where."""
        return f"digits-{self.split_seed}-{fingerprint(self._indices(load()[1]))}"

    def _indices(self, labels: Tensor) -> dict[str, list[int]]:
        return split_indices(labels.tolist(), self.split_seed, self.train_per_class)

    def identity(self) -> DataIdentity:
        """Return what data this is: the digest is over all pixels, labels and who is where."""
        grey, labels = load()
        indices = split_indices(labels.tolist(), self.split_seed)
        return DataIdentity(
            name="digits",
            source=SOURCE,
            digest=digest(grey.numpy().tobytes(), labels.numpy().tobytes(), self.split_id),
            images={split: len(members) for split, members in indices.items()},
            classes=self.num_classes,
            covers=f"all pixels, labels and the split {self.split_id}",
        )

    def train_dataloader(self) -> DataLoader[Any]:
        """Return shuffled batches, augmented where that is asked for."""
        return train_loader(
            DrawnDigits(self.splits["train"]),
            batch_size=self.batch_size,
            num_workers=0,
            epoch=0 if self.trainer is None else self.trainer.current_epoch,
            collate=augmented_batch if self.augment else plain_batch,
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation set: about 180 images, more with `train_per_class`."""
        return self._evaluated("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the images that a run is judged by: about 360."""
        return self._evaluated("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the test images."""
        return self._evaluated("test")

    def _evaluated(self, split: str) -> DataLoader[Any]:
        return exact_loader(self.splits[split], batch_size=self.batch_size, num_workers=0)


class DrawnDigits(Dataset[tuple[Tensor, Tensor, int]]):
    """The training images, each with its class and the seed of its draw.

    Args:
        images: The images and their classes.
    """

    def __init__(self, images: TensorDataset) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: Draw | int) -> tuple[Tensor, Tensor, int]:
        # A number alone comes from Lightning's sampler for `overfit_batches`.
        number, seed = draw if isinstance(draw, Draw) else (draw, draw)
        image, label = self.images[number]
        return image, label, seed


def load() -> tuple[Float[Tensor, "n 1 8 8"], Tensor]:
    """Return all images, grey values in [0, 1], and their classes, shape (n,)."""
    # The file that scikit-learn's `load_digits` reads, without the second that importing it takes.
    package = importlib.util.find_spec("sklearn")
    folder = Path(package.origin or "").parent if package is not None else Path()
    rows = np.loadtxt(folder / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    grey = torch.from_numpy(rows[:, :-1].reshape(-1, 1, 8, 8)).float() / 16.0
    return grey, torch.from_numpy(rows[:, -1]).long()


def split_indices(
    labels: list[int], seed: int, train_per_class: int | None = None
) -> dict[str, list[int]]:
    """Return the indices of each split, every class in the same shares.

    Images are ranked within their class by a hash of the seed and their index: no generator, so
    the split is the same with every version of every library.

    Args:
        labels: Class of each image.
        seed: Which split.
        train_per_class: Images of each class to learn from, the first by rank; the others of the
            training split go to validation. None learns from all.
    """
    by_class: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        by_class.setdefault(label, []).append(index)
    splits: dict[str, list[int]] = {split: [] for split in SPLITS}
    for members in by_class.values():
        ranked = sorted(members, key=lambda i: hashlib.sha256(f"{seed}:{i}".encode()).digest())
        test = round(TEST_SHARE * len(ranked))
        val = test + round(VAL_SHARE * len(ranked))
        splits["test"] += ranked[:test]
        last = len(ranked) if train_per_class is None else val + train_per_class
        splits["val"] += ranked[test:val] + ranked[last:]
        splits["train"] += ranked[val:last]
    return {split: sorted(indices) for split, indices in splits.items()}


def fingerprint(indices: dict[str, list[int]]) -> str:
    """Return eight hexadecimal digits that change when an image changes its split."""
    return hashlib.sha256(repr(sorted(indices.items())).encode()).hexdigest()[:8]


def plain_batch(samples: list[tuple[Tensor, Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Return a batch of images as they are, and their classes."""
    images, labels, _ = zip(*samples, strict=True)
    return torch.stack(images), torch.stack(labels)


def augmented_batch(samples: list[tuple[Tensor, Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Return a batch whose images are turned, scaled and shifted, each by its own seed."""
    images, labels = plain_batch(samples)
    return random_affine(images, [seed for _, _, seed in samples]), labels


def random_affine(
    images: Float[Tensor, "b c h w"],
    seeds: Sequence[int],
    degrees: float = 10.0,
    scale: float = 0.1,
    shift: float = 0.08,
) -> Float[Tensor, "b c h w"]:
    """Return each image under its own random similarity; what comes into view repeats the border.

    Args:
        images: A batch.
        seeds: What the similarity of each image is drawn by.
        degrees: Largest angle, in degrees.
        scale: Largest change of size, as a fraction.
        shift: Largest shift in each direction, as a fraction of the width and height.
    """
    drawn = torch.from_numpy(2 * uniform(np.asarray(seeds), 4) - 1).float()
    angle, zoom, dx, dy = drawn.unbind(dim=1)
    angle = angle * math.radians(degrees)
    zoom = 1 + zoom * scale
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    # Coordinates run from -1 to 1, so a shift by a fraction of the width is twice that.
    top = torch.stack([cos, -sin, 2 * shift * dx], dim=1)
    bottom = torch.stack([sin, cos, 2 * shift * dy], dim=1)
    grid = F.affine_grid(torch.stack([top, bottom], dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
