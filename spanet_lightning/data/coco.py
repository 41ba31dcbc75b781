"""Images with boxes, and masks where asked for, from annotation files in COCO's format."""

from __future__ import annotations

from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from spanet_lightning.data import coco_file, detection_transforms
from spanet_lightning.data.bad_samples import BadSamples, OnBadSample
from spanet_lightning.data.coco_file import CocoIndex
from spanet_lightning.data.coco_images import (
    LEAST_SIDE,
    EvalImages,
    FolderImages,
    TrainImages,
    missing_images,
    read_sample,
    trained_images,
)
from spanet_lightning.data.dense import DenseDataModule
from spanet_lightning.data.detection_transforms import Augmentation
from spanet_lightning.data.faults import refuse
from spanet_lightning.data.info import DataInfo
from spanet_lightning.data.listing import check_folder, scan
from spanet_lightning.data.loaders import Collate
from spanet_lightning.data.manifest import DataIdentity, digest_files
from spanet_lightning.data.normalize import MEAN, STD, Channels
from spanet_lightning.data.padding import Padding
from spanet_lightning.errors import DataError, did_you_mean, invalid, invalid_choice

BadBoxes = Literal["refuse", "drop"]
Split = Literal["train", "val", "test"]


class CocoDataModule(DenseDataModule):
    """Object detection and instance segmentation on data in COCO's layout.

    Classes are those of the annotation files, ordered by id; training and evaluation have to agree
    on them. In training, crowds are left out, images with a side below 32 px as well, and batches
    are of wide or of tall images alone. Evaluation keeps everything, at the stored size.

    The defaults are those of the published COCO runs of SPANetV2, but for `bad_boxes`.

    Args:
        root: Folder that the other paths start from.
        train_images: Folder of the images to train on.
        train_annotations: Their annotations, instances in JSON.
        val_images: Folder of the images that steer the run.
        val_annotations: Their annotations.
        test_images: Folder of the images to test on; null takes those of validation.
        test_annotations: Their annotations; null takes those of validation.
        predict_root: Folder of images to predict, searched through; null predicts the test images.
        masks: Whether instance masks are read as well.
        augmentation: "multi_scale_crop" (SPANetV2) flips, then resizes to one of `short_sides`,
            for half of the images after a random crop; "flip" (SPANet) flips and resizes to
            `short_side`; "none" only resizes.
        long_side: Limit of an image's longer side, in pixels.
        short_side: Limit of its shorter side, in pixels, at evaluation and with one scale.
        short_sides: Limits to pick from in training with many scales, in pixels.
        hflip: Probability of a horizontal flip.
        keep_empty: Whether to train on images without boxes as well.
        bad_boxes: What to do in training with boxes that have no extent or stick out of their
            image by more than a pixel: "refuse" the file, or "drop" those with less than a pixel
            left and clip the others, as the published runs did (COCO itself has one).
        group_by_aspect: Whether training batches are of wide or of tall images alone.
        mean: Mean of each channel, of values in [0, 1], that is subtracted.
        std: Standard deviation of each channel that is divided by.
        batch_size: Images in a training batch, on each device.
        eval_batch_size: Images in a batch of evaluation, on each device; the published figures
            are for 1, without padding beyond a multiple of 32 px.
        num_workers: Processes that load, on each device; 0 loads in the training process.
        on_bad_sample: What to do with images that are unreadable or of another size than annotated:
            "fail" at the first, by name, or "skip": read all once beforehand, and leave them out.
        max_bad_samples: Largest share of a split that "skip" may leave out; one always may be.

    Raises:
        ConfigError: If a value is out of its range.
    """

    def __init__(
        self,
        root: str,
        train_images: str = "train2017",
        train_annotations: str = "annotations/instances_train2017.json",
        val_images: str = "val2017",
        val_annotations: str = "annotations/instances_val2017.json",
        test_images: str | None = None,
        test_annotations: str | None = None,
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
        mean: Channels = MEAN,
        std: Channels = STD,
        batch_size: int = 2,
        eval_batch_size: int = 1,
        num_workers: int = 4,
        on_bad_sample: OnBadSample = "fail",
        max_bad_samples: float = 0.01,
    ) -> None:
        super().__init__(mean, std, batch_size, eval_batch_size, num_workers)
        self.bad_samples = BadSamples(on_bad_sample, max_bad_samples)
        for key, choice, names in (
            ("augmentation", augmentation, get_args(Augmentation)),
            ("bad_boxes", bad_boxes, get_args(BadBoxes)),
        ):
            if choice not in names:
                raise invalid_choice(key, choice, names)
        if (test_images is None) != (test_annotations is None):
            raise invalid("test_annotations", test_annotations, "null exactly where test_images is")
        if not short_sides:
            raise invalid("short_sides", short_sides, "one side or more")
        for key, number, least in (
            ("short_side", short_side, LEAST_SIDE),
            *(("short_sides", side, LEAST_SIDE) for side in short_sides),
            ("long_side", long_side, short_side),
            # Its default is that of large images, which nothing else uses.
            *[("long_side", long_side, max(short_sides))] * (augmentation == "multi_scale_crop"),
        ):
            if number < least:
                raise invalid(key, number, f"at least {least}")
        if not 0 <= hflip <= 1:
            raise invalid("hflip", hflip, "a number in [0, 1]")
        self.root = root
        test = (test_images or val_images, test_annotations or val_annotations)
        self.sources: dict[str, tuple[str, str]] = {
            "train": (train_images, train_annotations),
            "val": (val_images, val_annotations),
            "test": test,
        }
        self.predict_root = predict_root
        self.masks = masks
        self.keep_empty = keep_empty
        self.bad_boxes = bad_boxes
        self.group_by_aspect = group_by_aspect
        self.train_transform = detection_transforms.training(
            augmentation, long_side, short_side, short_sides, hflip
        )
        self.eval_transform = detection_transforms.evaluation(long_side, short_side)
        self._documents: dict[str, dict[str, Any]] = {}
        self._indices: dict[str, CocoIndex] = {}
        self._kept: dict[str, np.ndarray] = {}
        self._train: TrainImages | None = None

    # -- what the data is

    @property
    def categories(self) -> dict[int, str]:
        """Names of the classes by their id in the annotation files, in the order of labels."""
        # The validation file has the same classes, as `setup` checks, and is read far faster.
        split = "val" if self._path("val", 1).is_file() else "train"
        if split in self._indices:
            index = self._indices[split]
            return dict(zip(index.category_ids, index.class_names, strict=True))
        return coco_file.categories(self._document(split), str(self._path(split, 1)))

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
        categories = self.categories
        return DataInfo(
            classes=tuple(categories.values()),
            ids=tuple(categories),
            mean=self.normalize.mean,
            std=self.normalize.std,
        )

    @property
    def predict_base(self) -> Path:
        """Folder that the images to predict are in."""
        return self._path("test", 0) if self.predict_root is None else Path(self.predict_root)

    def annotation_file(self, split: Split) -> Path:
        """Return the annotation file of a split."""
        return self._path(split, 1)

    def identity(self) -> DataIdentity:
        """Return what data this is, of the splits that were set up."""
        files = [
            self._path(split, 0) / index.images[i].file
            for split, index in self._indices.items()
            for i in range(len(index.images))
        ]
        return DataIdentity(
            name=Path(self.root).resolve().name,
            source=self.root,
            digest=digest_files(
                Path(self.root), files, [self._path(split, 1) for split in sorted(self._indices)]
            ),
            images={split: len(index) for split, index in self._indices.items()},
            classes=self.num_classes,
            covers="annotations as a whole, names and sizes of the images, contents of a sample",
        )

    # -- Lightning's hooks

    def setup(self, stage: str) -> None:
        """Read and check the annotations that `stage` needs.

        Raises:
            DataError: If a file or a folder is missing, or for the first fault in the annotations.
        """
        if stage == "predict" and self.predict_root is not None:
            return
        if stage == "fit":
            train = self._index("train", drop=self.bad_boxes == "drop")
            val = self._index("val")
            self._check_same_classes(train, val)
            self._train = TrainImages(
                train,
                self._path("train", 0),
                self.train_transform,
                self.masks,
                kept=self._sound("train", trained_images(train, self.keep_empty)),
            )
            if not len(self._train):
                raise DataError(
                    f"train_annotations: {self._path('train', 1)} has no image to train on, "
                    f"expected some of at least {LEAST_SIDE} px with a box"
                )
            self._report(train, len(self._train))
            self._all("val")
        elif stage == "validate":
            self._all("val")
        else:
            self._all("test")

    def train_dataloader(self) -> DataLoader[Any]:
        """Return shuffled batches of the training images, augmented."""
        assert self._train is not None  # noqa: S101 - Lightning calls setup first
        return self._shuffled(self._train, self._train.tall if self.group_by_aspect else None)

    def collate(self, *, training: bool) -> Collate:  # noqa: ARG002 - both alike
        """Return what makes a batch of a list of samples."""
        return Padding().detection

    def evaluated(self, split: str) -> EvalImages:
        """Return the images of a split as they are evaluated."""
        index, folder = self._indices[split], self._path(split, 0)
        return EvalImages(index, folder, self.eval_transform, self.masks, self._all(split))

    def predicted(self) -> EvalImages | FolderImages:
        """Return the images of `predict_root`, or the test images without it."""
        if self.predict_root is None:
            return self.evaluated("test")
        return FolderImages(Path(self.predict_root), self.eval_transform)

    # -- reading

    def _path(self, split: str, part: int) -> Path:
        return Path(self.root) / self.sources[split][part]

    def _document(self, split: str) -> dict[str, Any]:
        """Return an annotation file, parsed; test's may be validation's."""
        name = self.sources[split][1]
        if name not in self._documents:
            if not Path(self.root).is_dir():
                raise DataError(f"root: found no folder at {self.root}, expected one of a data set")
            self._documents[name] = coco_file.read(self._path(split, 1), f"{split}_annotations")
        return self._documents[name]

    def _index(self, split: str, drop: bool = False) -> CocoIndex:
        if split not in self._indices:
            file = str(self._path(split, 1))
            document = self._document(split)
            index = coco_file.index(document, file, masks=self.masks, drop_bad_boxes=drop)
            folder = self._path(split, 0)
            check_folder(folder, f"{split}_images")
            listing = scan(folder, Path(self.root))
            missing = missing_images(
                (index.images[i].file for i in range(len(index))), listing, file
            )
            refuse(chain(listing.faults, missing), f"spanet data check {self.root}")
            self._indices[split] = index
        # Gigabytes for COCO's training file, which is not needed any more.
        self._documents.pop(self.sources[split][1], None)
        return self._indices[split]

    def _all(self, split: str) -> np.ndarray:
        """Return which images of a split are evaluated: all that can be used."""
        return self._sound(split, np.arange(len(self._index(split))))

    def _sound(self, split: str, numbers: np.ndarray) -> np.ndarray:
        """Return which of some images of a split can be used."""
        if not self.bad_samples.skips:
            return numbers
        if split not in self._kept:
            index, folder = self._indices[split], self._path(split, 0)
            records = [index.images[i] for i in numbers]
            self._kept[split] = np.array(
                self.bad_samples.kept(
                    split,
                    numbers.tolist(),
                    [(str(folder / record.file),) for record in records],
                    partial(read_sample, index, folder=folder, crowds=True, masks=self.masks),
                    [(record.height, record.width) for record in records],
                )
            )
        return self._kept[split]

    def _check_same_classes(self, train: CocoIndex, val: CocoIndex) -> None:
        first, second = (
            dict(zip(index.category_ids, index.class_names, strict=True)) for index in (train, val)
        )
        if first != second:
            files = [str(self._path(split, 1)) for split in ("train", "val")]
            other = sorted(set(first.items()) ^ set(second.items()))[0]
            hint = did_you_mean(other[1], (set(first.values()) ^ set(second.values())) - {other[1]})
            raise DataError(
                f"val_annotations: categories of {files[1]} are not those of {files[0]}: category "
                f"{other[0]} ({other[1]!r}) is in one alone{hint}"
            )

    def _report(self, train: CocoIndex, kept: int) -> None:
        """Tell what is left out of training: nothing is, without a word."""
        out = {
            "annotations with hardly a pixel inside their image": train.dropped,
            "crowds": int(train.crowds.sum()),
            "images without a box or too small": len(train) - kept,
        }
        parts = [f"{count} {what}" for what, count in out.items() if count]
        if parts:
            rank_zero_info(f"Training on {kept} images; left out: {', '.join(parts)}.")
