"""Images with boxes, and optionally instance masks, from annotation files in COCO's format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from spanet_lightning.data import coco_file, coco_layout
from spanet_lightning.data.bad_samples import BadSamples, OnBadSample
from spanet_lightning.data.batches import Collate, DetectionSample, DetectionTarget
from spanet_lightning.data.coco_file import CocoIndex
from spanet_lightning.data.decode import opened
from spanet_lightning.data.dense import DenseDataModule, FolderImages, check_minimum
from spanet_lightning.data.draws import Draw
from spanet_lightning.data.faults import SampleError, refuse
from spanet_lightning.data.holdout import Holdout
from spanet_lightning.data.images import read_image
from spanet_lightning.data.info import DataInfo, evaluated
from spanet_lightning.data.listing import check_folder, scan
from spanet_lightning.data.manifest import DataIdentity, digest, digest_files
from spanet_lightning.data.transforms import (
    Augmentation,
    Fit,
    detection_training,
    transform_detection,
)
from spanet_lightning.errors import DataError, invalid, invalid_choice

BadBoxes = Literal["refuse", "drop"]
Split = Literal["train", "val", "test"]
MIN_SIDE = 32
"""Pixels: smaller images are not trained on, as in the published runs."""


class CocoSet(NamedTuple):
    """An annotation file with the folder of its images.

    Attributes:
        root: The data set.
        file: The annotation file.
        folder: Folder of the images.
        key: Configuration keys of the two begin with it.
    """

    root: Path
    file: Path
    folder: Path
    key: str = "train"

    def load(
        self, categories: Mapping[int, str], *, masks: bool | None, drop: bool = False
    ) -> coco_file.Parsed:
        """Read the annotations; `files` of the index are paths, empty where there is no file.

        Args:
            categories: The classes, by id.
            masks: Whether segmentations are needed; None means if there are any.
            drop: See `coco_file.parse`.

        Raises:
            DataError: If the file can't be read.
        """
        document = coco_file.read(self.file, f"{self.key}_annotations")
        check_folder(self.folder, f"{self.key}_images")
        names = {
            record["file_name"]: record.get("id")
            for record in document["images"]
            if isinstance(record, dict) and isinstance(record.get("file_name"), str)
        }
        listing = scan(self.folder, self.root)
        files, missing = coco_layout.resolve_names(names, listing, self.root, str(self.file))
        parsed = coco_file.parse(
            document,
            str(self.file),
            categories,
            masks=coco_file.has_masks(document) if masks is None else masks,
            drop=drop,
            size_of=lambda name: _stored_size(files.get(name)),
        )
        moved = [n for n in files if not str(files[n]).endswith(n.replace("\\", "/"))]
        if moved:
            rank_zero_info(
                f"{self.file}: {len(moved)} of {len(files)} images are found by the end of their "
                f"names, as {moved[0]!r} at {files[moved[0]]}."
            )
        names_in_order: Iterable[str] = parsed.annotations.files.tolist()
        paths = np.array([str(files.get(name, "")) for name in names_in_order])
        faults = [*parsed.faults, *listing.faults, *missing]
        return coco_file.Parsed(replace(parsed.annotations, files=paths), faults)


class CocoDataModule(DenseDataModule):
    """Object detection and instance segmentation on data in COCO's format.

    Reads COCO itself (`train2017/`, `annotations/instances_train2017.json`), exports with
    `SPLIT/_annotations.coco.json` beside the images (Roboflow), and `annotations/SPLIT.json` with
    `SPLIT/`; other places are named by the arguments. Classes are the categories of the training
    annotations, ordered by id. In training, crowds are excluded, images with a side below 32 px as
    well, and batches hold wide or tall images only. Evaluation includes everything, at the stored
    size.

    The defaults are those of the published COCO runs of SPANetV2, except for `bad_boxes`.

    Args:
        root: Folder that the other paths are below.
        train_images: Folder of the training images; null finds it, as the others, in `root`.
        train_annotations: Their annotations, instances in JSON.
        val_images: Folder of the validation images.
        val_annotations: Their annotations.
        test_images: Folder of the test images; null takes those of a test split, or of validation.
        test_annotations: Their annotations; for prediction, `images` and `categories` are enough.
        split: Share of the training images to validate on instead of a validation split, of
            each class alike, by the rarest in an image.
        kfold: "K/I" holds out fold I, from 0, of K folds of the training images instead.
        split_seed: Seed of `split` and `kfold`; independent of the seed of the run.
        predict_root: Folder of images to predict, searched recursively; null predicts the test
            images.
        masks: Whether instance masks are read as well.
        augmentation: "multi_scale_crop" (SPANetV2) flips, then resizes to one of `short_sides`,
            for half of the images after a random crop; "flip" (SPANet) flips and resizes to
            `short_side`; "none" only resizes. Images are resized without antialiasing.
        long_side: Limit of an image's longer side, in pixels.
        short_side: Limit of its shorter side, in pixels, in evaluation and with one scale.
        short_sides: Limits to draw from in training with many scales, in pixels.
        hflip: Probability of a horizontal flip.
        keep_empty: Whether to train on images without boxes as well.
        bad_boxes: What to do in training with boxes that have no extent or exceed their image by
            more than a pixel, and masks without a pixel: "refuse" the file, or "drop" those with
            less than a pixel left and clip the others, as the published runs did (COCO itself has
            one).
        group_by_aspect: Whether training batches hold wide or tall images only.
        in_chans: Channels of the network's input: 3 (grey images are repeated) or 1 (colours become
            grey).
        mean: Mean of each channel, of values in [0, 1], that is subtracted; null is ImageNet's.
        std: Standard deviation of each channel that is divided by; null is ImageNet's.
        batch_size: Images in a training batch, on each device.
        eval_batch_size: Images in a batch of evaluation, on each device; the published figures
            are for 1, without padding beyond a multiple of 32 px.
        num_workers: Processes that load, on each device; 0 loads in the training process.
        on_bad_sample: What to do with images that are unreadable or of another size than annotated:
            "fail" at the first, by name, or "skip": read all once beforehand, and exclude them.
        max_bad_samples: Largest share of a split that "skip" may exclude; one always may be.

    Raises:
        ConfigError: If a value is out of its range.
    """

    def __init__(
        self,
        root: str,
        train_images: str | None = None,
        train_annotations: str | None = None,
        val_images: str | None = None,
        val_annotations: str | None = None,
        test_images: str | None = None,
        test_annotations: str | None = None,
        split: float | None = None,
        kfold: str | None = None,
        split_seed: int = 0,
        predict_root: str | None = None,
        masks: bool = False,
        augmentation: Augmentation = "multi_scale_crop",
        long_side: int = 1333,
        short_side: int = 800,
        short_sides: tuple[int, ...] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
        hflip: float = 0.5,
        keep_empty: bool = False,
        bad_boxes: BadBoxes = "refuse",
        group_by_aspect: bool = True,
        in_chans: int = 3,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        batch_size: int = 2,
        eval_batch_size: int = 1,
        num_workers: int = 4,
        on_bad_sample: OnBadSample = "fail",
        max_bad_samples: float = 0.01,
    ) -> None:
        holdout = Holdout.parse(split, kfold, split_seed)
        super().__init__(in_chans, mean, std, batch_size, eval_batch_size, num_workers, holdout)
        self.bad_samples = BadSamples(on_bad_sample, max_bad_samples)
        for key, choice, names in (
            ("augmentation", augmentation, get_args(Augmentation)),
            ("bad_boxes", bad_boxes, get_args(BadBoxes)),
        ):
            if choice not in names:
                raise invalid_choice(key, choice, names)
        self._given: dict[Split, tuple[str | None, str | None]] = {
            "train": (train_images, train_annotations),
            "val": (val_images, val_annotations),
            "test": (test_images, test_annotations),
        }
        for name, (images, file) in self._given.items():
            if images is not None and file is None:
                key = f"{name}_annotations"
                raise invalid(key, file, f"the annotations of {name}_images")
        if not short_sides:
            raise invalid("short_sides", short_sides, "at least one side")
        # The default of short_sides is for large images, and only one augmentation uses it.
        largest = max(short_sides) if augmentation == "multi_scale_crop" else short_side
        check_minimum(short_side=(short_side, MIN_SIDE), short_sides=(min(short_sides), MIN_SIDE))
        check_minimum(long_side=(long_side, max(short_side, largest)))
        if not 0 <= hflip <= 1:
            raise invalid("hflip", hflip, "a number in [0, 1]")
        self.root = root
        self.predict_root = predict_root
        self.masks = masks
        self.keep_empty = keep_empty
        self.bad_boxes = bad_boxes
        self.group_by_aspect = group_by_aspect
        self.train_transform = detection_training(
            augmentation, long_side, short_side, short_sides, hflip
        )
        self.eval_transform = Fit(long_side, [short_side])
        self._stored = evaluated.get()
        self._indices: dict[Split, CocoIndex] = {}
        self._usable: dict[Split, np.ndarray] = {}

    # -- what the data is

    @cached_property
    def categories(self) -> dict[int, str]:
        """Names of the classes by their id in the annotation files, in the order of labels."""
        stored = self._stored
        if stored is not None and stored.ids is not None and not self._has_training_file():
            return dict(zip(stored.ids, stored.classes, strict=True))
        sets: list[CocoSet] = [self.files(split) for split in ("train", "val", "test")]
        files = sorted((s.file for s in sets), key=lambda file: not file.is_file())
        return coco_file.read_categories(list(dict.fromkeys(files)), f"{sets[0].key}_annotations")

    def _has_training_file(self) -> bool:
        return Path(self.root).is_dir() and self.files("train").file.is_file()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes: label 1 is the first."""
        return tuple(self.categories.values())

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Ids of the classes in the annotation files: label 1 is the first."""
        return tuple(self.categories)

    @property
    def num_classes(self) -> int:
        """Number of classes, without background."""
        return len(self.categories)

    @property
    def info(self) -> DataInfo:
        """Classes with the ids of their categories, and the normalisation."""
        mean, std = self.normalize.mean, self.normalize.std
        return DataInfo(
            self.class_names, self.category_ids, mean=mean, std=std, channels=self.in_chans
        )

    @property
    def predict_base(self) -> Path:
        """Folder that the images to predict are in."""
        return self.files("test").folder if self.predict_root is None else Path(self.predict_root)

    def annotation_file(self, split: Split) -> Path:
        """Return the annotation file of a split."""
        return self.files(split).file

    def identity(self) -> DataIdentity:
        """Return what data this is, of the splits that were set up."""
        files = [file for index in self._indices.values() for file in index.files.tolist()]
        whole = dict.fromkeys(self.files(split).file for split in sorted(self._indices))
        found = digest_files(Path(self.root), files, list(whole))
        held = self.holdout is not None
        return DataIdentity(
            name=Path(self.root).resolve().name,
            source=self.root,
            digest=digest(found, str(self.holdout)) if held else found,
            images={split: len(self._part(split, index)) for split, index in self._indices.items()},
            classes=self.num_classes,
            covers="annotations as a whole, names and sizes of the images, contents of a sample",
        )

    # -- Lightning's hooks

    def setup(self, stage: str) -> None:
        """Read and check the annotations that `stage` needs.

        Raises:
            DataError: If a file or a folder is missing, for the first fault in the annotations, or
                if there is nothing to train on or to score.
        """
        if stage == "predict" and self.predict_root is not None:
            return
        splits: dict[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",)}
        for split in splits.get(stage, ("test",)):
            index = self._index(split)
            if split == "train":
                large = trainable_images(index, self.keep_empty)
                self._use(split, np.intersect1d(large, self._part(split, index)))
                self._report(index, len(self._usable["train"]))
            else:
                self._use(split, self._part(split, index))
                if stage != "predict" and not index.num_objects()[self._usable[split]].any():
                    file = self.files(split).file
                    raise DataError(
                        f"{split}_annotations: {file} has no annotations of objects, expected some "
                        "to score predictions by"
                    )

    def train_dataloader(self) -> DataLoader[Any]:
        """Return shuffled batches of the training images, augmented."""
        images = self._images("train", self.train_transform, training=True)
        sizes = images.index.sizes[images.numbers]
        tall = (sizes[:, 0] >= sizes[:, 1]).astype(int).tolist()
        return self._shuffled(images, tall if self.group_by_aspect else None)

    def collate(self, *, training: bool) -> Collate:  # noqa: ARG002 - both alike
        """Return the function that makes a batch of a list of samples."""
        return Collate()

    def evaluated(self, split: str) -> CocoImages:
        """Return the images of a split as they are evaluated."""
        return self._images("val" if split == "val" else "test", self.eval_transform)

    def predicted(self) -> CocoImages | FolderImages:
        """Return the images of `predict_root`, or the test images without it."""
        if self.predict_root is None:
            return self.evaluated("test")
        return FolderImages(Path(self.predict_root), self.eval_transform, _unannotated)

    # -- reading

    def files(self, split: Split) -> CocoSet:
        """Return the files of a split: those given, or those that are where exports have them."""
        root = Path(self.root)
        if split == "val" and self.holdout is not None:
            return self.files("train")._replace(key="val")
        images, file = self._given[split]
        if file is None:
            if not root.is_dir():
                raise DataError(f"root: found no folder at {self.root}, expected one of a data set")
            found = coco_layout.find_split(root, split)
            if found is None:
                if split == "test":
                    return self.files("val")
                # COCO's own: the error about the missing file names it.
                name = coco_layout.SPLITS[split][0]
                found = (name, f"annotations/instances_{name}.json")
            images, file = images or found[0], found[1]
        if images is None:
            images = coco_layout.image_folder(root, root / file)
        return CocoSet(root, root / file, root / images, split)

    def _index(self, split: Split) -> CocoIndex:
        if split not in self._indices:
            files = self.files(split)
            drop = split == "train" and self.bad_boxes == "drop"
            index, faults = files.load(self.categories, masks=self.masks, drop=drop)
            refuse(faults, self.root)
            if not len(index):
                raise DataError(f"{split}_annotations: {files.file} lists no images")
            self._check_categories(split, files.file)
            self._indices[split] = index
        return self._indices[split]

    def _part(self, split: Split, index: CocoIndex) -> np.ndarray:
        """Return the images of a split: a part of the training images, or all of its own."""
        ours = split == "train" or self.files(split).file == self.files("train").file
        if self.holdout is None or not ours:
            return np.arange(len(index))
        chosen = self.holdout.choose(index.rarest(), list(map(str, index.ids.tolist())))
        found: np.ndarray = np.flatnonzero(chosen == (split != "train"))
        return found

    def _use(self, split: Split, numbers: np.ndarray) -> None:
        """Note which of some images of a split can be used."""
        if split in self._usable:
            return
        if self.bad_samples.skips:
            images = CocoImages(self._indices[split], numbers, self.masks, self.eval_transform)
            files, sizes = images.index.files[numbers].tolist(), images.index.sizes[numbers]
            usable = self.bad_samples.kept(
                split,
                numbers.tolist(),
                [(file,) for file in files],
                partial(images.read, crowds=True),
                sizes.tolist(),
            )
            numbers = np.array(usable)
        self._usable[split] = numbers

    def _images(
        self, split: Split, transform: v2.Transform, *, training: bool = False
    ) -> CocoImages:
        index, numbers = self._indices[split], self._usable[split]
        return CocoImages(index, numbers, self.masks, transform, training)

    def _check_categories(self, split: Split, file: Path) -> None:
        """Refuse a split with a category that the training annotations lack or name otherwise."""
        own = coco_file.read_categories([file], f"{split}_annotations")
        fault = coco_file.category_fault(own, self.categories)
        if fault is not None:
            raise DataError(f"{split}_annotations: categories of {file}: {fault}")

    def _report(self, train: CocoIndex, count: int) -> None:
        """Print what is excluded from training and which classes are never seen."""
        if not count:
            raise DataError(
                f"train_annotations: {self.files('train').file} has no image to train on, expected "
                f"some of at least {MIN_SIDE} px with a box"
            )
        excluded = {
            "annotations with hardly a pixel inside their image": train.dropped,
            "crowds": int(train.crowds.sum()),
            "images without a box or too small": len(train) - count,
        }
        parts = [f"{number} {what}" for what, number in excluded.items() if number]
        if parts:
            rank_zero_info(f"Training on {count} images; excluded: {', '.join(parts)}.")
        for split, index in self._indices.items():
            used = set(index.labels[~index.crowds].tolist())
            unused = [name for i, name in enumerate(self.class_names, 1) if i not in used]
            if unused:
                more = f" and {len(unused) - 10} more" if len(unused) > 10 else ""
                effect = "can't be learned" if split == "train" else "are not scored"
                rank_zero_info(
                    f"{len(unused)} of {self.num_classes} categories have no annotation in "
                    f"{self.files(split).file} and {effect}: {', '.join(unused[:10])}{more}."
                )


class CocoImages(Dataset[DetectionSample]):
    """Images with their annotations.

    Training excludes crowds and augments by the seed of each `Draw`. In evaluation only the image
    is resized: annotations stay at the stored size.

    Args:
        index: The annotations.
        numbers: Which images of the index.
        masks: Whether instance masks are decoded.
        transform: The augmentation, or a resize.
        training: Whether to train on them.
    """

    def __init__(
        self,
        index: CocoIndex,
        numbers: np.ndarray,
        masks: bool,
        transform: v2.Transform,
        training: bool = False,
    ) -> None:
        self.index = index
        self.numbers = numbers
        self.masks = masks
        self.transform = transform
        self.training = training

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def paths(self) -> list[str]:
        """Paths of the images."""
        paths: list[str] = self.index.files[self.numbers].tolist()
        return paths

    def __getitem__(self, item: Draw | int) -> DetectionSample:
        draw = Draw.of(item)
        sample = self.read(int(self.numbers[draw.number]), crowds=not self.training)
        if not self.training:
            return sample._replace(image=self.transform(sample.image))
        with draw.seeded():
            image, target = transform_detection(self.transform, sample.image, sample.target)
        return sample._replace(image=image, target=target)

    def read(self, number: int, *, crowds: bool) -> DetectionSample:
        """Read an image with its annotations, as stored.

        Raises:
            SampleError: If the image can't be read, or has another size than its annotations state.
        """
        path, id_ = str(self.index.files[number]), int(self.index.ids[number])
        height, width = (int(side) for side in self.index.sizes[number])
        image = read_image(path, (height, width), number)
        if tuple(image.shape[1:]) != (height, width):
            raise SampleError(
                f"image {path} (index {number}, id {id_}): got {image.shape[2]}×{image.shape[1]} "
                f"px, expected {width}×{height}, the size in its annotations"
            )
        target = self.index.target(number, crowds=crowds, masks=self.masks)
        return DetectionSample(image, (height, width), target, path)


def trainable_images(index: CocoIndex, keep_empty: bool) -> np.ndarray:
    """Return the indices of the images to train on.

    Args:
        index: The annotations.
        keep_empty: Whether those without a box are included.
    """
    large = index.sizes.min(axis=1) >= MIN_SIDE
    numbers: np.ndarray = np.flatnonzero(large & (keep_empty | (index.num_objects() > 0)))
    return numbers


def _unannotated(image: Tensor, size: tuple[int, int], index: int, path: str) -> DetectionSample:
    """Return the sample of an image of a folder; ids count from 1."""
    target = DetectionTarget(
        boxes=torch.zeros(0, 4),
        labels=torch.zeros(0, dtype=torch.int64),
        iscrowd=torch.zeros(0, dtype=torch.bool),
        area=torch.zeros(0),
        image_id=index + 1,
    )
    return DetectionSample(image, size, target, path)


def _stored_size(path: Path | None) -> tuple[int, int] | None:
    """Return height and width of an image by its header; None where it can't be read."""
    if path is None:
        return None
    try:
        with opened(path) as image:
            return image.height, image.width
    except (OSError, ValueError):
        return None
