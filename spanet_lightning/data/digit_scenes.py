"""The embedded data set of dense tasks: real handwritten digits on textured ground, by seed.

Each scene is a function of its seed, the digits to pick from and its size, so that the data set
needs neither a download nor a disk. Boxes and masks are exact.
"""

from __future__ import annotations

import hashlib
import warnings
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.ops import masks_to_boxes

from spanet_lightning.data import digits
from spanet_lightning.data.batches import (
    Collate,
    DetectionSample,
    DetectionTarget,
    SegmentationSample,
)
from spanet_lightning.data.dense import DenseDataModule, check_minimum
from spanet_lightning.data.draws import Draw
from spanet_lightning.data.info import DataInfo
from spanet_lightning.data.manifest import DataIdentity, digest
from spanet_lightning.data.normalize import MEAN, STD
from spanet_lightning.errors import invalid_choice

DenseTask = Literal["detection", "segmentation"]
_VERSION = 1  # increased by every change of a scene
_MIN_DIGIT, _MAX_DIGIT = 24, 64  # pixels of a digit's height
_TRIES = 12  # positions that are tried for a digit before it is left out
_MAX_OVERLAP = 0.15  # of the smaller box, so that every digit stays legible
_MIN_VISIBLE = 16  # pixels: overlaps are limited for boxes, and ink is thin


class DigitScenesDataModule(DenseDataModule):
    """Scenes of handwritten digits on textured ground, made by seed, without a download.

    The digits are scikit-learn's 1,797 real ones; those of training, validation and test are
    disjoint, by the split of `DigitsDataModule`. Classes are the ten digits; for segmentation the
    ground is another one, the first.

    Args:
        task: "detection" gives boxes and instance masks, "segmentation" the class of every pixel.
        image_size: Height and width of a scene, in pixels.
        train_scenes: Scenes of a training epoch.
        val_scenes: Scenes of the validation set.
        test_scenes: Scenes of the test set.
        digits_per_scene: Most digits in a scene, of 24 to 64 px; at least half as many are tried.
        fresh: Whether each epoch has new training scenes; false repeats those of the first.
        split_seed: Which digits and which scenes; independent of the seed of the run, except for
            fresh training scenes, which are made by both.
        batch_size: Scenes in a batch, on each device.
        num_workers: Processes that make scenes, on each device; 0 makes them in the training
            process.

    Raises:
        ConfigError: If a value is out of its range.
    """

    def __init__(
        self,
        task: DenseTask = "detection",
        image_size: int = 160,
        train_scenes: int = 600,
        val_scenes: int = 150,
        test_scenes: int = 150,
        digits_per_scene: int = 6,
        fresh: bool = True,
        split_seed: int = 0,
        batch_size: int = 8,
        num_workers: int = 0,
    ) -> None:
        super().__init__(3, MEAN, STD, batch_size, batch_size, num_workers)
        if task not in get_args(DenseTask):
            raise invalid_choice("task", task, get_args(DenseTask))
        check_minimum(image_size=(image_size, _MAX_DIGIT), split_seed=(split_seed, 0))
        check_minimum(train_scenes=(train_scenes, 1), val_scenes=(val_scenes, 1))
        check_minimum(test_scenes=(test_scenes, 1), digits_per_scene=(digits_per_scene, 1))
        self.task: DenseTask = task
        self.image_size = image_size
        self.scenes = {"train": train_scenes, "val": val_scenes, "test": test_scenes}
        self.digits_per_scene = digits_per_scene
        self.fresh = fresh
        self.split_seed = split_seed
        self.splits: dict[str, Scenes] = {}

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes: those of boxes from label 1, those of pixels from 0."""
        names = digits.DigitsDataModule.class_names
        return names if self.task == "detection" else ("ground", *names)

    @property
    def num_classes(self) -> int:
        """Number of classes: of boxes without background, of pixels with the ground."""
        return len(self.class_names)

    @property
    def info(self) -> DataInfo:
        """Classes and the normalisation."""
        return DataInfo(self.class_names, mean=MEAN, std=STD)

    @property
    def split_id(self) -> str:
        """Name of the scenes: the seed, and a fingerprint of all that they are made of."""
        ingredients = (
            _VERSION,
            self.image_size,
            self.digits_per_scene,
            sorted(self.scenes.items()),
            digits.fingerprint(digits.split_indices(digits.load()[1].tolist(), self.split_seed)),
        )
        fingerprint = hashlib.sha256(repr(ingredients).encode()).hexdigest()[:8]
        return f"digit-scenes-{self.split_seed}-{fingerprint}"

    def identity(self) -> DataIdentity:
        """Return what data this is: the digest is over the digits and what makes scenes of them."""
        grey, labels = digits.load()
        return DataIdentity(
            name="digit-scenes",
            source=digits.SOURCE,
            digest=digest(grey.numpy().tobytes(), labels.numpy().tobytes(), self.split_id),
            images=dict(self.scenes),
            classes=self.num_classes,
            covers=f"all digits and what makes the scenes {self.split_id}",
        )

    def setup(self, stage: str) -> None:  # noqa: ARG002 - scenes are made when they are asked for
        """Split the digits."""
        if self.splits:
            return
        images, labels = digits.load()
        shares = digits.split_indices(labels.tolist(), self.split_seed)
        for number, (split, size) in enumerate(self.scenes.items()):
            members, seed = shares[split], [self.split_seed, number]
            self.splits[split] = Scenes(self, images[members], labels[members], split, seed, size)
        # Lightning advises worker processes; a scene takes a few milliseconds.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")

    def train_dataloader(self) -> DataLoader[Any]:
        """Return shuffled batches of training scenes."""
        return self._shuffled(self.splits["train"])

    def collate(self, *, training: bool) -> Collate:  # noqa: ARG002 - both alike
        """Return the function that makes a batch of a list of samples."""
        return Collate()

    def evaluated(self, split: str) -> Scenes:
        """Return the scenes of a split."""
        return self.splits[split]


class Scenes(Dataset[DetectionSample | SegmentationSample]):
    """The scenes of a split, made when they are asked for; those that repeat are cached.

    Args:
        data: Properties of the scenes.
        images: The digits to pick from.
        labels: Their classes.
        name: Name of the split.
        seed: Numbers that identify the split.
        size: Number of scenes.
    """

    def __init__(
        self,
        data: DigitScenesDataModule,
        images: Tensor,
        labels: Tensor,
        name: str,
        seed: list[int],
        size: int,
    ) -> None:
        self.task = data.task
        self.fresh = data.fresh
        self.image_size = data.image_size
        self.count = data.digits_per_scene
        self.images = images
        self.labels = labels
        self.name = name
        self.seed = seed
        self.size = size
        self._cache: dict[int, Scene] = {}

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, item: Draw | int) -> DetectionSample | SegmentationSample:
        number = item.number if isinstance(item, Draw) else item
        if self.fresh and isinstance(item, Draw):  # in training
            scene = self._make(number, item.seed)
        else:
            if number not in self._cache:
                self._cache[number] = self._make(number)
            scene = self._cache[number]
        path = f"{self.name}/{number + 1}"
        if self.task == "segmentation":
            return SegmentationSample(scene.image, scene.semantic, path)
        target = DetectionTarget(
            boxes=scene.boxes,
            labels=scene.labels + 1,
            masks=scene.masks,
            iscrowd=torch.zeros(len(scene.labels), dtype=torch.bool),
            area=scene.masks.flatten(1).sum(dim=1).float(),
            image_id=number + 1,
        )
        return DetectionSample(scene.image, (self.image_size, self.image_size), target, path)

    def _make(self, *seed: int) -> Scene:
        return make_scene(
            [*self.seed, *seed], self.images, self.labels, self.image_size, self.count
        )


class Scene(NamedTuple):
    """A scene with N digits.

    Attributes:
        image: Shape (3, H, W), uint8.
        labels: The class of each digit, 0 to 9, shape (N,).
        masks: The visible pixels of each, shape (N, H, W), no pixel in two of them.
    """

    image: UInt8[Tensor, "3 h w"]
    labels: Int64[Tensor, " n"]
    masks: Bool[Tensor, "n h w"]

    @property
    def boxes(self) -> Float[Tensor, "n 4"]:
        """Corners x1, y1, x2, y2 around each mask in pixels, the far edges included."""
        boxes: Tensor = masks_to_boxes(self.masks)
        return boxes + boxes.new_tensor([0, 0, 1, 1])

    @property
    def semantic(self) -> Int64[Tensor, "h w"]:
        """The class of each pixel: 0 is ground, 1 to 10 are the digits 0 to 9."""
        return (self.masks.long() * (self.labels + 1).reshape(-1, 1, 1)).sum(dim=0)


def make_scene(
    seed: list[int], digits: Float[Tensor, "k 1 8 8"], labels: Tensor, size: int, count: int
) -> Scene:
    """Make a scene.

    Args:
        seed: Numbers that identify the scene.
        digits: Grey values in [0, 1] of the digits to pick from; 0 is paper.
        labels: Their classes, shape (k,).
        size: Height and width of the scene, in pixels.
        count: Digits that are placed, at most; at least half as many are tried.
    """
    rng = np.random.default_rng(seed)
    dark = bool(rng.integers(2))
    image = _ground(rng, size, dark)
    masks = torch.zeros(0, size, size, dtype=torch.bool)
    chosen: list[int] = []
    spots: list[tuple[int, int, int, int]] = []
    for _ in range(int(rng.integers((count + 1) // 2, count + 1))):
        which = int(rng.integers(len(digits)))
        alpha = _ink(rng, digits[which], size)
        height, width = alpha.shape
        # Always as many numbers: whether a position is free must not shift what comes after.
        positions = rng.random((_TRIES, 2))
        colour = torch.from_numpy(rng.random(3)).float() * 0.35
        colour = 1 - colour if dark else colour
        for y, x in positions:
            top, left = int(y * (size - height + 1)), int(x * (size - width + 1))
            spot = (top, left, top + height, left + width)
            if all(_overlap(spot, other) <= _MAX_OVERLAP for other in spots):
                break
        else:
            continue
        part = image[:, spot[0] : spot[2], spot[1] : spot[3]]
        part += alpha * (colour.reshape(3, 1, 1) - part)
        mask = torch.zeros(1, size, size, dtype=torch.bool)
        mask[0, spot[0] : spot[2], spot[1] : spot[3]] = alpha > 0.5
        masks = torch.cat([masks & ~mask, mask])  # the later one lies on top
        chosen.append(which)
        spots.append(spot)
    visible = masks.flatten(1).sum(dim=1) >= _MIN_VISIBLE
    pixels = (image * 255).round().clamp(0, 255).to(torch.uint8)
    return Scene(pixels, labels[chosen][visible], masks[visible])


def _ink(
    rng: np.random.Generator, digit: Float[Tensor, "1 8 8"], size: int
) -> Float[Tensor, "h w"]:
    """Return how much of each pixel a digit covers, at a random size and slant."""
    height = int(rng.integers(_MIN_DIGIT, min(_MAX_DIGIT, size) + 1))
    width = max(8, round(height * float(rng.uniform(0.7, 1.0))))
    grey = F.interpolate(digit.unsqueeze(0), size=(height, width), mode="bicubic")[0, 0]
    slant = float(rng.uniform(-0.2, 0.2))
    theta = torch.tensor([[[1.0, slant, 0.0], [0.0, 1.0, 0.0]]])
    grid = F.affine_grid(theta, [1, 1, height, width], align_corners=False)
    grey = F.grid_sample(grey[None, None], grid, align_corners=False)[0, 0]
    # Ink with an edge of a pixel or two, where enlarging made it fade over many.
    alpha = ((grey - 0.3) / 0.3).clamp(0, 1)
    left, top, right, bottom = masks_to_boxes((alpha > 0.5)[None])[0].int().tolist()
    return alpha[top : bottom + 1, left : right + 1]


def _ground(rng: np.random.Generator, size: int, dark: bool) -> Float[Tensor, "3 h w"]:
    """Return coloured noise of three scales, darker or lighter than the ink will be."""
    ground = torch.from_numpy(rng.random((3, 1, 1))).float() * 0.3
    for cells, strength in ((3, 0.2), (11, 0.12), (size // 4, 0.1)):
        noise = torch.from_numpy(rng.random((1, 3, cells, cells))).float()
        ground = ground + strength * F.interpolate(noise, size=(size, size), mode="bilinear")[0]
    ground = ground.clamp(0, 1)
    return ground if dark else 1 - ground


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Return the shared area of two boxes as a share of the smaller one."""
    height = min(a[2], b[2]) - max(a[0], b[0])
    width = min(a[3], b[3]) - max(a[1], b[1])
    if height <= 0 or width <= 0:
        return 0.0
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return height * width / smaller
