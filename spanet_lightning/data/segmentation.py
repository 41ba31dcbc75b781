"""Images with the class of every pixel, in folders as ADE20K has them."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from spanet_lightning.data import class_lists
from spanet_lightning.data.bad_samples import BadSamples, OnBadSample
from spanet_lightning.data.checks import SampleError, split_folder
from spanet_lightning.data.dense import DenseDataModule
from spanet_lightning.data.faults import refuse
from spanet_lightning.data.images import read_mask
from spanet_lightning.data.info import DataInfo
from spanet_lightning.data.listing import list_images, pair_by_stem
from spanet_lightning.data.loaders import Collate
from spanet_lightning.data.manifest import DataIdentity, digest_files
from spanet_lightning.data.normalize import MEAN, STD, Channels
from spanet_lightning.data.padding import Padding
from spanet_lightning.data.segmentation_images import (
    EvalPairs,
    FolderImages,
    Pair,
    Pairs,
    TrainPairs,
    reduced,
)
from spanet_lightning.data.segmentation_transforms import (
    IGNORED,
    SegmentationAugmentation,
    evaluation,
)
from spanet_lightning.errors import DataError, invalid


class SegmentationFoldersDataModule(DenseDataModule):
    """Semantic segmentation on folders of images and of masks with the same names.

    `images/<split>/NAME.jpg` has its mask at `annotations/<split>/NAME.png`: one integer a pixel,
    255 for pixels that do not count. Names of classes are read from `objectInfo150.txt`,
    `classes.csv` or `classes.txt` in the root, if there is one.

    The defaults of augmentation are those of the published ADE20K runs.

    Args:
        root: Folder of the data.
        train_split: Split to train on.
        val_split: Split that steers the run.
        test_split: Split to test on; null is `val_split`.
        predict_root: Folder of images to predict, searched through; null predicts the test split.
        images: Folder of the images, below the root.
        annotations: Folder of the masks, below the root.
        reduce_zero_label: Whether 0 in a mask does not count and classes begin at 1, as ADE20K has
            it: 0 becomes 255, all others one less.
        classes_file: List of the classes, below the root; null looks for the usual names.
        num_classes: Classes that count; null takes them from the list of classes, or without one
            from the masks, which are all read for that.
        crop_size: Height and width of a training image, in pixels.
        long_side: Limit of an image's longer side, in pixels.
        short_side: Limit of its shorter side, in pixels.
        scale: Range of the factor of both limits in training.
        hflip: Probability of a horizontal flip.
        photometric: Whether to distort colours in training.
        mean: Mean of each channel, of values in [0, 1], that is subtracted.
        std: Standard deviation of each channel that is divided by.
        batch_size: Images in a training batch, on each device.
        eval_batch_size: Images in a batch of evaluation, on each device; the published figures are
            for 1, without any padding.
        num_workers: Processes that load, on each device; 0 loads in the training process.
        on_bad_sample: What to do with pairs that can't be used (unreadable, of unequal size, values
            beyond the classes): "fail" at the first, by name, or "skip": read all once beforehand,
            and leave them out.
        max_bad_samples: Largest share of a split that "skip" may leave out; one always may be.

    Raises:
        ConfigError: If a value is out of its range.
    """

    def __init__(
        self,
        root: str,
        train_split: str = "training",
        val_split: str = "validation",
        test_split: str | None = None,
        predict_root: str | None = None,
        images: str = "images",
        annotations: str = "annotations",
        reduce_zero_label: bool = True,
        classes_file: str | None = None,
        num_classes: int | None = None,
        crop_size: int = 512,
        long_side: int = 2048,
        short_side: int = 512,
        scale: tuple[float, float] = (0.5, 2.0),
        hflip: float = 0.5,
        photometric: bool = True,
        mean: Channels = MEAN,
        std: Channels = STD,
        batch_size: int = 4,
        eval_batch_size: int = 1,
        num_workers: int = 4,
        on_bad_sample: OnBadSample = "fail",
        max_bad_samples: float = 0.01,
    ) -> None:
        super().__init__(mean, std, batch_size, eval_batch_size, num_workers)
        self.bad_samples = BadSamples(on_bad_sample, max_bad_samples)
        for key, number, least in (
            ("crop_size", crop_size, 32),
            ("short_side", short_side, 32),
            ("long_side", long_side, short_side),
        ):
            if number < least:
                raise invalid(key, number, f"at least {least}")
        if num_classes is not None and not 2 <= num_classes <= IGNORED:
            raise invalid("num_classes", num_classes, f"null, or 2 to {IGNORED}")
        if not 0 < scale[0] <= scale[1]:
            raise invalid("scale", scale, "a range of numbers above 0")
        if not 0 <= hflip <= 1:
            raise invalid("hflip", hflip, "a number in [0, 1]")
        self.root = root
        self.splits = {"train": train_split, "val": val_split, "test": test_split or val_split}
        self.predict_root = predict_root
        self.images = images
        self.annotations = annotations
        self.reduce_zero_label = reduce_zero_label
        self.classes_file = classes_file
        self._num_classes = num_classes
        self.crop_size = crop_size
        self.augmentation = SegmentationAugmentation(
            crop_size, long_side, short_side, scale, hflip, photometric
        )
        self.eval_transform = evaluation(long_side, short_side)
        self._datasets: dict[str, Pairs] = {}

    # -- what the data is

    @cached_property
    def _listed(self) -> class_lists.ClassList | None:
        """The classes by their label, where a file lists them."""
        found = class_lists.find(Path(self.root), self.classes_file)
        if found is None:
            return None
        listed = class_lists.read(found)
        first = min(listed.names)
        # A list that begins with 1 is of the classes that count, as ADE20K's own is.
        shift = 1 if self.reduce_zero_label else 0
        names = {value - shift: name for value, name in listed.names.items() if value >= shift}
        if sorted(names) != list(range(len(names))):
            raise DataError(
                f"{found}: got ids from {first} to {max(listed.names)}, expected every number from "
                f"{shift} (reduce_zero_label is {str(self.reduce_zero_label).lower()})"
            )
        colours = {value - shift: colour for value, colour in listed.colours.items()}
        return class_lists.ClassList(names, colours)

    @property
    def lists_classes(self) -> bool:
        """Whether a file lists the classes."""
        return self._listed is not None

    @cached_property
    def num_classes(self) -> int:
        """Number of classes that count."""
        listed = self._listed
        if self._num_classes is not None:
            if listed is not None and len(listed.names) != self._num_classes:
                raise invalid(
                    "num_classes", self._num_classes, f"{len(listed.names)}, as many as are listed"
                )
            return self._num_classes
        return self._counted() if listed is None else len(listed.names)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class; its number where no list names it."""
        if self._listed is None:
            return tuple(map(str, range(self.num_classes)))
        return tuple(self._listed.names[label] for label in range(self.num_classes))

    @property
    def palette(self) -> list[class_lists.Colour]:
        """Colour of each class: that of the list of classes, or a well-told one."""
        own = class_lists.palette(self.num_classes)
        given = {} if self._listed is None else self._listed.colours
        return [given.get(label, colour) for label, colour in enumerate(own)]

    @property
    def info(self) -> DataInfo:
        """Classes with their values in masks and their colours, and the normalisation."""
        shift = 1 if self.reduce_zero_label else 0
        return DataInfo(
            classes=self.class_names,
            ids=tuple(range(shift, self.num_classes + shift)),
            palette=tuple(self.palette),
            mean=self.normalize.mean,
            std=self.normalize.std,
        )

    @property
    def predict_base(self) -> Path:
        """Folder that the images to predict are in."""
        if self.predict_root is not None:
            return Path(self.predict_root)
        return Path(self.root) / self.images / self.splits["test"]

    def identity(self) -> DataIdentity:
        """Return what data this is, of the splits that were set up."""
        root = Path(self.root)
        files = [file for pairs in self._datasets.values() for pair in pairs.pairs for file in pair]
        listed = class_lists.find(root, self.classes_file)
        return DataIdentity(
            name=root.resolve().name,
            source=self.root,
            digest=digest_files(root, files, [] if listed is None else [listed]),
            images={name: len(pairs) for name, pairs in self._datasets.items()},
            classes=self.num_classes,
            covers="the list of classes, names and sizes of images and masks, contents of a sample",
        )

    # -- Lightning's hooks

    def setup(self, stage: str) -> None:
        """List the images and masks of the splits that `stage` reads.

        Raises:
            DataError: If a folder is missing or empty, or an image has no mask.
        """
        if stage == "predict" and self.predict_root is not None:
            return
        names = {"fit": ("train", "val"), "validate": ("val",)}
        for name in names.get(stage, ("test",)):
            if name not in self._datasets:
                pairs = Pairs(self._pairs(name), self.num_classes, self.reduce_zero_label)
                files = [(str(image), str(mask)) for image, mask in pairs.pairs]
                settings = [self.num_classes, self.reduce_zero_label]
                numbers = range(len(pairs))
                pairs.keep(
                    self.bad_samples.kept(self.splits[name], numbers, files, pairs.read, settings)
                )
                self._datasets[name] = pairs

    def train_dataloader(self) -> DataLoader[Any]:
        """Return shuffled batches of the training split, augmented."""
        return self._shuffled(TrainPairs(self._datasets["train"], self.augmentation))

    def collate(self, *, training: bool) -> Collate:
        """Return what makes a batch of a list of samples."""
        # Images smaller than the crop are padded to it, as their masks are.
        crop = self.crop_size if training else 0
        return Padding(multiple=1, least=(crop, crop)).segmentation

    def evaluated(self, split: str) -> EvalPairs:
        """Return the images of a split as they are evaluated."""
        return EvalPairs(self._datasets[split], self.eval_transform)

    def predicted(self) -> EvalPairs | FolderImages:
        """Return the images of `predict_root`, or the test images without it."""
        if self.predict_root is None:
            return self.evaluated("test")
        return FolderImages(Path(self.predict_root), self.eval_transform)

    # -- reading

    def _folder(self, kind: str, name: str) -> Path:
        """Return the folder of the images or masks of a split."""
        root = Path(self.root)
        if not root.is_dir():
            raise DataError(f"root: found no folder at {self.root}, expected one of a data set")
        parent = root / kind
        if not parent.is_dir():
            key = "images" if kind == self.images else "annotations"
            raise DataError(f"{key}: found no folder at {parent}, expected one with the splits")
        return split_folder(str(parent), self.splits[name], f"{name}_split")

    def _pairs(self, name: str) -> list[Pair]:
        """Return each image of a split with its mask."""
        folder, masks = self._folder(self.images, name), self._folder(self.annotations, name)
        root = Path(self.root)
        key = f"{name}_split"
        paired = pair_by_stem(list_images(folder, key, root), list_images(masks, key, root))
        refuse(iter(paired.faults), f"spanet data check {self.root}")
        return paired.pairs

    def _counted(self) -> int:
        """Return the number of classes that the masks themselves show."""
        names = [name for name in ("train", "val") if self._has(name)] or ["val"]
        pairs = [pair for name in names for pair in self._pairs(name)]
        rank_zero_info(
            f"Reading {len(pairs)} masks to count their classes; data.num_classes, or a list of "
            f"classes in {self.root}, saves that."
        )
        largest = 0
        for _, file in pairs:
            try:
                mask = reduced(read_mask(file), self.reduce_zero_label)
            except SampleError:
                if self.bad_samples.skips:  # left out, once the classes are known
                    continue
                raise
            found = mask[mask != IGNORED]
            if len(found):
                largest = max(largest, int(found.max()))
        return max(2, largest + 1)

    def _has(self, name: str) -> bool:
        return (Path(self.root) / self.images / self.splits[name]).is_dir()
