"""The embedded data set of dense tasks: scenes of real digits with boxes, masks, and a map."""

from __future__ import annotations

import hashlib
import warnings
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from spanet_lightning.data import digits
from spanet_lightning.data.batches import DetectionTarget
from spanet_lightning.data.dense import DenseDataModule
from spanet_lightning.data.draws import Draw
from spanet_lightning.data.info import DataInfo
from spanet_lightning.data.loaders import Collate
from spanet_lightning.data.manifest import DataIdentity, digest
from spanet_lightning.data.normalize import MEAN, STD
from spanet_lightning.data.padding import DetectionSample, Padding, SegmentationSample
from spanet_lightning.data.scenes import MOST_DIGIT, Scene, draw
from spanet_lightning.errors import invalid, invalid_choice

DenseTask = Literal["detection", "segmentation"]
_VERSION = 1  # to be raised by whatever changes a scene


class DigitScenesDataModule(DenseDataModule):
    """Scenes of handwritten digits on textured ground, made by seed, without a download.

    The digits are scikit-learn's 1,797 real ones; those of training, validation and test are
    disjoint, by the split of `DigitsDataModule`. Classes are the ten digits; for segmentation the
    ground is one more, the first.

    Args:
        task: "detection" gives boxes and instance masks, "segmentation" the class of every pixel.
        image_size: Height and width of a scene, in pixels.
        train_scenes: Scenes of a training epoch.
        val_scenes: Scenes that steer a run.
        test_scenes: Scenes that a run is judged by.
        digits_per_scene: Most digits in a scene, of 24 to 64 px; at least half as many are tried.
        fresh: Whether each epoch has new training scenes; false repeats those of the first.
        split_seed: Which digits and which scenes; independent of the seed of the run, but for
            fresh training scenes, which are made by both.
        batch_size: Scenes in a batch, on each device.
        num_workers: Processes that draw, on each device; 0 draws in the training process.

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
        super().__init__(MEAN, STD, batch_size, batch_size, num_workers)
        if task not in get_args(DenseTask):
            raise invalid_choice("task", task, get_args(DenseTask))
        for key, number, least in (
            ("image_size", image_size, MOST_DIGIT),
            ("train_scenes", train_scenes, 1),
            ("val_scenes", val_scenes, 1),
            ("test_scenes", test_scenes, 1),
            ("digits_per_scene", digits_per_scene, 1),
            ("split_seed", split_seed, 0),
        ):
            if number < least:
                raise invalid(key, number, f"at least {least}")
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
        made_of = (
            _VERSION,
            self.image_size,
            self.digits_per_scene,
            sorted(self.scenes.items()),
            digits.fingerprint(digits.split_indices(digits.load()[1].tolist(), self.split_seed)),
        )
        print_ = hashlib.sha256(repr(made_of).encode()).hexdigest()[:8]
        return f"digit-scenes-{self.split_seed}-{print_}"

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

    def setup(self, stage: str) -> None:  # noqa: ARG002 - nothing is drawn before it is asked for
        """Share out the digits."""
        if self.splits:
            return
        images, labels = digits.load()
        shares = digits.split_indices(labels.tolist(), self.split_seed)
        for number, (split, size) in enumerate(self.scenes.items()):
            members = shares[split]
            self.splits[split] = Scenes(
                self, images[members], labels[members], f"{split}/", [self.split_seed, number], size
            )
        # Lightning advises worker processes; a scene takes a few milliseconds.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")

    def train_dataloader(self) -> DataLoader[Any]:
        """Return shuffled batches of training scenes."""
        return self._shuffled(self.splits["train"])

    def collate(self, *, training: bool) -> Collate:  # noqa: ARG002 - both alike
        """Return what makes a batch of a list of samples."""
        return Padding().detection if self.task == "detection" else Padding().segmentation

    def evaluated(self, split: str) -> Scenes:
        """Return the scenes of a split."""
        return self.splits[split]


class Scenes(Dataset[DetectionSample | SegmentationSample]):
    """The scenes of a split, drawn when they are asked for; those that return are kept.

    Args:
        data: How scenes are to be.
        images: The digits to pick from.
        labels: Their classes.
        prefix: What the names of scenes begin with.
        seed: Numbers that name the split.
        size: Number of scenes.
    """

    def __init__(
        self,
        data: DigitScenesDataModule,
        images: Tensor,
        labels: Tensor,
        prefix: str,
        seed: list[int],
        size: int,
    ) -> None:
        self.task = data.task
        self.fresh = data.fresh
        self.image_size = data.image_size
        self.count = data.digits_per_scene
        self.images = images
        self.labels = labels
        self.prefix = prefix
        self.seed = seed
        self.size = size
        self.kept: dict[int, Scene] = {}

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, draw: Draw | int) -> DetectionSample | SegmentationSample:
        if isinstance(draw, Draw):  # in training
            number = draw.number
            scene = self.draw([number, draw.seed]) if self.fresh else self.scene(number)
        else:
            number, scene = draw, self.scene(draw)
        path = f"{self.prefix}{number + 1}"
        if self.task == "segmentation":
            return SegmentationSample(scene.image, scene.semantic, path)
        count = len(scene.labels)
        target = DetectionTarget(
            boxes=scene.boxes,
            labels=scene.labels + 1,
            masks=scene.masks,
            iscrowd=torch.zeros(count, dtype=torch.bool),
            area=scene.masks.flatten(1).sum(dim=1).float(),
            image_id=number + 1,
        )
        return DetectionSample(scene.image, (self.image_size, self.image_size), target, path)

    def scene(self, number: int) -> Scene:
        """Return a scene that is always the same."""
        if number not in self.kept:
            self.kept[number] = self.draw([number])
        return self.kept[number]

    def draw(self, seed: list[int]) -> Scene:
        """Draw a scene by seed, after that of the split."""
        return draw([*self.seed, *seed], self.images, self.labels, self.image_size, self.count)
