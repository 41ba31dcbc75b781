"""Images with the class of every pixel, as masks in folders."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from spanet_lightning.data import class_lists
from spanet_lightning.data.bad_samples import BadSamples, OnBadSample
from spanet_lightning.data.batches import Collate, SegmentationSample
from spanet_lightning.data.dense import DenseDataModule, FolderImages, check_minimum
from spanet_lightning.data.draws import Draw
from spanet_lightning.data.faults import Fault, SampleError, refuse
from spanet_lightning.data.holdout import Holdout
from spanet_lightning.data.images import read_image
from spanet_lightning.data.info import DataInfo, evaluated
from spanet_lightning.data.listing import Listing, Paired, check_folder, pair_by_stem, scan, stem
from spanet_lightning.data.manifest import DataIdentity, digest, digest_files
from spanet_lightning.data.masks import (
    MaskClasses,
    Survey,
    classes_of,
    nothing_to_learn,
    same_aspect,
    survey,
)
from spanet_lightning.data.transforms import IGNORED, Fit, SegmentationAugmentation
from spanet_lightning.errors import DataError, did_you_mean, invalid, invalid_choice

MaskSize = Literal["same", "resize"]
_SPLITS = {"train": ("training", "train"), "val": ("validation", "val", "valid"), "test": ("test",)}
_IMAGES = ("images", "JPEGImages", "imgs")
_MASKS = ("annotations", "SegmentationClass", "masks", "labels")


class MaskFolders(NamedTuple):
    """Where a data set has its images and masks.

    Attributes:
        root: The data set.
        images: Folder of images: of all, or of one folder per split.
        masks: Folder of masks, likewise.
        lists: Folder with a list of names per split, as VOC's `ImageSets/Segmentation`.
    """

    root: Path
    images: str
    masks: str
    lists: Path | None

    @classmethod
    def find(cls, root: Path, images: str | None = None, masks: str | None = None) -> MaskFolders:
        """Return the folders of a data set, those not given by their usual names.

        Raises:
            DataError: If one is missing.
        """
        if not root.is_dir():
            raise DataError(f"root: found no folder at {root}, expected one of a data set")
        found = []
        for key, given, usual in (("images", images, _IMAGES), ("annotations", masks, _MASKS)):
            names = usual if given is None else (given,)
            name = next((n for n in names if (root / n).is_dir()), None)
            if name is None:
                present = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
                raise DataError(
                    f"{key}: found no folder at {root / names[0]}, expected one of images of each "
                    f"split{did_you_mean(names[0], present)}"
                )
            found.append(name)
        folders = (root / "ImageSets" / "Segmentation", root / "ImageSets")
        lists = next((f for f in folders if any(f.glob("*.txt"))), None)
        return cls(root, found[0], found[1], lists)

    @classmethod
    def exist(cls, root: Path) -> bool:
        """Whether a folder has images and masks."""
        try:
            return bool(cls.find(root).splits())
        except DataError:
            return False

    def splits(self) -> list[str]:
        """Return the names of all splits."""
        if self.lists is not None:
            names = {file.stem for file in self.lists.glob("*.txt")}
            # VOC's union of both: read where it is asked for, not as a third split.
            return sorted(names - ({"trainval"} if {"train", "val"} <= names else set()))
        folders = (self.root / self.images).iterdir()
        return sorted(f.name for f in folders if f.is_dir() and not f.name.startswith("."))

    def pair(self, split: str, key: str = "split") -> Paired:
        """Return the images of a split with their masks, and what is wrong with either.

        Args:
            split: Name of the split.
            key: Argument that named it, for messages.

        Raises:
            DataError: If a folder is missing or has no image.
        """
        present = self.splits()
        if split not in present and not (self.lists and (self.lists / f"{split}.txt").is_file()):
            where = self.lists or self.root / self.images
            hint = did_you_mean(split, present)
            if key == "val_split" and not hint:
                hint = "; data.split: 0.2 validates on a part of the training split"
            raise DataError(
                f"{key}: got {split!r}, which {where} lacks, expected one of "
                f"{', '.join(map(repr, present))}{hint}"
            )
        below = "" if self.lists is not None else split
        folders = [self.root / kind / below for kind in (self.images, self.masks)]
        for folder in folders:
            check_folder(folder, key)
        images, masks = (scan(folder, self.root) for folder in folders)
        links = [*images.faults, *masks.faults]
        if self.lists is None:
            paired = pair_by_stem(images, masks)
            return paired._replace(faults=[*links, *paired.faults])
        file = self.lists / f"{split}.txt"
        wanted = [line.split()[0] for line in file.read_text("utf-8").splitlines() if line.strip()]
        paired = pair_by_stem(_only(images, wanted), _only(masks, wanted))
        stems = {stem(name) for name in images.names}
        missing = [
            Fault("missing image", str(images.folder / name), "", f"{file} names it")
            for name in wanted
            if name not in stems
        ]
        return paired._replace(faults=[*links, *paired.faults, *missing])


def _only(listing: Listing, stems: list[str]) -> Listing:
    wanted = set(stems)
    return replace(listing, names=tuple(n for n in listing.names if stem(n) in wanted))


class SegmentationFoldersDataModule(DenseDataModule):
    """Semantic segmentation on folders of images and of masks with the same names.

    Reads `images/SPLIT/NAME.jpg` with `annotations/SPLIT/NAME.png` (ADE20K; `masks` or `labels` are
    found as well), and VOC's `JPEGImages`, `SegmentationClass` and `ImageSets`. A mask has one
    integer per pixel, or the index of a palette; 255 does not count. With `palette.yaml` (`name:
    [r, g, b]` for each class) or CVAT's `labelmap.txt` in the root, masks are read by colour, and
    `name: 255` in it names a grey level. Other names of classes are read from
    `objectInfo150.txt`, `classes.csv` or `classes.txt`.

    The defaults of augmentation are those of the published ADE20K runs.

    Args:
        root: Folder of the data.
        train_split: Split to train on; null is "training" or "train".
        val_split: Split to validate on; null is "validation", "val" or "valid".
        test_split: Split to test on; null is "test", or else the validation split.
        split: Share of the training images to validate on instead of a validation split.
        kfold: "K/I" holds out fold I, from 0, of K folds of the training images instead.
        split_seed: Seed of `split` and `kfold`; independent of the seed of the run.
        predict_root: Folder of images to predict, searched recursively; null predicts the test
            split.
        images: Folder of the images, below the root; null finds it.
        annotations: Folder of the masks, below the root; null finds it.
        reduce_zero_label: Whether 0 in a mask does not count and classes begin at 1, as ADE20K has
            it; null follows the class list (one that begins at 1, or calls 0 void), without one
            the masks: 0 is a class if it occurs.
        masks: What to do with a mask whose size is not its image's: "same" refuses it, "resize"
            scales it to the image, which must have the same aspect ratio.
        classes_file: Class list, below the root; null looks for the usual names.
        num_classes: Classes that count; null takes them from the class list, or without one from
            the masks, which are all read for that.
        crop_size: Height and width of a training image, in pixels.
        long_side: Limit of an image's longer side, in pixels.
        short_side: Limit of its shorter side, in pixels. Images are resized without antialiasing.
        scale: Range of the factor of both limits in training.
        hflip: Probability of a horizontal flip.
        photometric: Whether to distort colours in training.
        in_chans: Channels of the network's input: 3 (grey images are repeated) or 1 (colours become
            grey).
        mean: Mean of each channel, of values in [0, 1], that is subtracted; null is ImageNet's.
        std: Standard deviation of each channel that is divided by; null is ImageNet's.
        batch_size: Images in a training batch, on each device.
        eval_batch_size: Images in a batch of evaluation, on each device; the published figures are
            for 1, without any padding.
        num_workers: Processes that load, on each device; 0 loads in the training process.
        on_bad_sample: What to do with pairs that can't be used (unreadable, of unequal size, values
            beyond the classes): "fail" at the first, by name, or "skip": read all once beforehand,
            and exclude them.
        max_bad_samples: Largest share of a split that "skip" may exclude; one always may be.

    Raises:
        ConfigError: If a value is out of its range.
    """

    def __init__(
        self,
        root: str,
        train_split: str | None = None,
        val_split: str | None = None,
        test_split: str | None = None,
        split: float | None = None,
        kfold: str | None = None,
        split_seed: int = 0,
        predict_root: str | None = None,
        images: str | None = None,
        annotations: str | None = None,
        reduce_zero_label: bool | None = None,
        masks: MaskSize = "same",
        classes_file: str | None = None,
        num_classes: int | None = None,
        crop_size: int = 512,
        long_side: int = 2048,
        short_side: int = 512,
        scale: tuple[float, float] = (0.5, 2.0),
        hflip: float = 0.5,
        photometric: bool = True,
        in_chans: int = 3,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        batch_size: int = 4,
        eval_batch_size: int = 1,
        num_workers: int = 4,
        on_bad_sample: OnBadSample = "fail",
        max_bad_samples: float = 0.01,
    ) -> None:
        holdout = Holdout.parse(split, kfold, split_seed)
        super().__init__(in_chans, mean, std, batch_size, eval_batch_size, num_workers, holdout)
        self.bad_samples = BadSamples(on_bad_sample, max_bad_samples)
        check_minimum(crop_size=(crop_size, 32), short_side=(short_side, 32))
        check_minimum(long_side=(long_side, short_side))
        if num_classes is not None and not 2 <= num_classes <= IGNORED:
            raise invalid("num_classes", num_classes, f"null, or 2 to {IGNORED}")
        if not 0 < scale[0] <= scale[1]:
            raise invalid("scale", scale, "a range of numbers above 0")
        if not 0 <= hflip <= 1:
            raise invalid("hflip", hflip, "a number in [0, 1]")
        if masks not in get_args(MaskSize):
            raise invalid_choice("masks", masks, get_args(MaskSize))
        self.root = root
        self._given = {"train": train_split, "val": val_split, "test": test_split}
        self.predict_root = predict_root
        self.images = images
        self.annotations = annotations
        self.reduce_zero_label = reduce_zero_label
        self.resize_masks = masks == "resize"
        self.classes_file = classes_file
        self.given_num_classes = num_classes
        self.crop_size = crop_size
        self.augmentation = SegmentationAugmentation(
            crop_size, long_side, short_side, scale, hflip, photometric
        )
        self.eval_transform = Fit(long_side, [short_side])
        self._stored = evaluated.get()
        self._datasets: dict[str, Pairs] = {}
        self._surveys: dict[str, Survey] = {}

    # -- what the data is

    @cached_property
    def folders(self) -> MaskFolders:
        """Where the images and masks are."""
        return MaskFolders.find(Path(self.root), self.images, self.annotations)

    @cached_property
    def class_list(self) -> class_lists.ClassList | None:
        """The class list, if the data set has one."""
        file = class_lists.find(Path(self.root), self.classes_file)
        return None if file is None else class_lists.read(file)

    @cached_property
    def classes(self) -> MaskClasses:
        """The classes of pixels that count."""
        stored = self._stored
        if stored is not None and stored.ids is not None and not Path(self.root).is_dir():
            palette = stored.palette or tuple(class_lists.palette(len(stored.ids)))
            return MaskClasses(stored.classes, stored.ids, frozenset({IGNORED}), palette)
        values: Counter[int] | None = None
        colours: dict[int, class_lists.Colour] = {}
        if self.class_list is None:
            if self.given_num_classes is None:
                rank_zero_info(
                    f"Reading all masks of {self.root} to count their classes; data.num_classes, "
                    "or a class list, saves that."
                )
            values, colours = Counter(), {}
            present = set(self.folders.splits())
            names = [name for name in ("train", "val") if self.split(name) in present] or ["test"]
            for name in names:
                values += self._survey(name).pixels
                colours |= self._survey(name).colours
        classes = classes_of(
            self.class_list,
            self.reduce_zero_label,
            self.given_num_classes,
            values,
            self.root,
            colours,
        )
        count = len(classes.names)
        if self.given_num_classes not in (None, count):
            raise invalid("num_classes", self.given_num_classes, f"{count}, as many as are listed")
        if count < 2:
            raise DataError(f"classes_file: got {count} classes that count, expected two or more")
        return classes

    @property
    def num_classes(self) -> int:
        """Number of classes that count."""
        return len(self.classes.names)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class; its number where no list names it."""
        return self.classes.names

    @property
    def palette(self) -> list[class_lists.Colour]:
        """Colour of each class: that of the class list, or a distinct one."""
        return list(self.classes.palette)

    @property
    def info(self) -> DataInfo:
        """Classes with their values in masks and their colours, and the normalisation."""
        return DataInfo(
            classes=self.class_names,
            ids=self.classes.codes,
            palette=self.classes.palette,
            mean=self.normalize.mean,
            std=self.normalize.std,
            channels=self.in_chans,
        )

    @property
    def predict_base(self) -> Path:
        """Folder that the images to predict are in."""
        if self.predict_root is not None:
            return Path(self.predict_root)
        base = Path(self.root) / self.folders.images
        return base if self.folders.lists is not None else base / self.split("test")

    def split(self, name: str) -> str:
        """Return the name in the data set of "train", "val" or "test"."""
        if name == "val" and self.holdout is not None:
            return self.split("train")
        given = self._given[name]
        if given is not None:
            return given
        present = self.folders.splits()
        found = next((split for split in _SPLITS[name] if split in present), None)
        return found or (self.split("val") if name == "test" else _SPLITS[name][0])

    def identity(self) -> DataIdentity:
        """Return what data this is, of the splits that were set up."""
        root = Path(self.root)
        files = [file for pairs in self._datasets.values() for pair in pairs.pairs for file in pair]
        listed = class_lists.find(root, self.classes_file)
        found = digest_files(root, files, [] if listed is None else [listed])
        return DataIdentity(
            name=root.resolve().name,
            source=self.root,
            digest=found if self.holdout is None else digest(found, str(self.holdout)),
            images={name: len(pairs) for name, pairs in self._datasets.items()},
            classes=self.num_classes,
            covers="the list of classes, names and sizes of images and masks, contents of a sample",
        )

    # -- Lightning's hooks

    def setup(self, stage: str) -> None:
        """List the images and masks of the splits that `stage` reads.

        Raises:
            DataError: If a folder is missing or empty, an image has no mask, masks have values that
                are no class, or there is nothing to train on or to score.
        """
        if stage == "predict" and self.predict_root is not None:
            return
        names = {"fit": ("train", "val"), "validate": ("val",)}.get(stage, ("test",))
        for name in names:
            if name not in self._datasets:
                pairs = Pairs(self._paired(name), self.classes, self.resize_masks)
                files = [(str(image), str(mask)) for image, mask in pairs.pairs]
                settings = [self.classes.codes, sorted(self.classes.ignored), self.resize_masks]
                pairs.select(
                    self.bad_samples.kept(
                        self.split(name), range(len(pairs)), files, pairs.read, settings
                    )
                )
                self._datasets[name] = pairs
                if stage != "predict":
                    self._check_values(name)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return shuffled batches of the training split, augmented."""
        return self._shuffled(MaskedImages(self._datasets["train"], self.augmentation))

    def collate(self, *, training: bool) -> Collate:
        """Return the function that makes a batch of a list of samples."""
        # Images smaller than the crop are padded to it, as their masks are.
        return Collate(multiple=1, min_size=self.crop_size if training else 0)

    def evaluated(self, split: str) -> MaskedImages:
        """Return the images of a split as they are evaluated."""
        return MaskedImages(self._datasets[split], self.eval_transform)

    def predicted(self) -> MaskedImages | FolderImages:
        """Return the images of `predict_root`, or the test images without it."""
        if self.predict_root is None:
            return self.evaluated("test")
        return FolderImages(Path(self.predict_root), self.eval_transform, _unlabelled)

    # -- reading

    def _paired(self, name: str) -> list[tuple[Path, Path]]:
        """Return each image of a split with its mask."""
        paired = self.folders.pair(self.split(name), f"{name}_split")
        refuse(paired.faults, self.root)
        pairs = paired.pairs
        if self.holdout is not None and self.split(name) == self.split("train"):
            base = Path(self.root)
            names = [image.relative_to(base).as_posix() for image, _ in pairs]
            chosen = self.holdout.choose([0] * len(pairs), names)
            pairs = [
                pair for pair, out in zip(pairs, chosen, strict=True) if out != (name == "train")
            ]
        if not pairs:
            raise DataError(f"{name}_split: {self.split(name)!r} of {self.root} has no images")
        return pairs

    def _survey(self, name: str) -> Survey:
        if name not in self._surveys:
            listed = self.class_list
            self._surveys[name] = survey(
                [mask for _, mask in self._paired(name)],
                listed is not None and listed.by_colour,
                skip_bad=self.bad_samples.skips,
                whole=listed is None and self.given_num_classes is None,
            )
        return self._surveys[name]

    def _check_values(self, name: str) -> None:
        """Refuse masks without a pixel that counts; print which classes and values occur."""
        found, classes = self._survey(name), self.classes
        pixels = {code: found.pixels[code] for code in classes.codes}
        where = f"{found.read} masks of {self.split(name)}"
        if found.read < found.total:
            where = f"a sample of {where}"
        if found.conflict is not None:
            if self.class_list is None:
                raise DataError(
                    f"annotations: {found.conflict}; list the classes in {self.root}/palette.yaml "
                    "to read masks by colour, or in classes.txt if the indices are right"
                )
            rank_zero_info(f"{found.conflict}: masks are read by index, not by colour.")
        unknown = sorted(set(found.pixels) - {*classes.codes, *classes.ignored})
        if unknown and not self.bad_samples.skips:
            masks = [mask for _, mask in self._datasets[name].pairs]
            self._datasets[name].read(masks.index(found.files[unknown[0]]))  # raises the error
        fault = nothing_to_learn(found, classes, training=name == "train")
        if fault is not None:
            raise DataError(f"{name}_split: {where} {fault}")
        ignored = sorted(set(found.pixels) & classes.ignored)
        if ignored and not classes.by_colour:
            total = sum(found.pixels.values())
            shares = (f"{code} ({found.pixels[code] / total:.1%})" for code in ignored)
            rank_zero_info(f"Values that do not count in {where}: {', '.join(shares)}.")
        absent = [
            n for n, code in zip(classes.names, classes.codes, strict=True) if not pixels[code]
        ]
        if absent:
            more = f" and {len(absent) - 10} more" if len(absent) > 10 else ""
            rank_zero_info(
                f"{len(absent)} of {len(classes.names)} classes have no pixel in {where}: "
                f"{', '.join(absent[:10])}{more}."
            )


class Pairs:
    """Images with their masks, as stored.

    Args:
        pairs: Paths of each.
        classes: The classes of masks.
        resize: Whether a mask of another size is scaled to its image.

    Attributes:
        numbers: Number of each pair as listed, before any was excluded.
    """

    def __init__(
        self, pairs: list[tuple[Path, Path]], classes: MaskClasses, resize: bool = False
    ) -> None:
        self.pairs = pairs
        self.numbers: list[int] = list(range(len(pairs)))
        self.classes = classes
        self.resize = resize

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, number: int) -> SegmentationSample:
        """Read an image and its mask.

        Raises:
            SampleError: If one can't be read, they differ in size, or a value is of no class.
        """
        path, file = self.pairs[number]
        index = self.numbers[number]
        mask = self.classes.read(file, index)
        (mask_h, mask_w) = mask.shape
        image = read_image(path, (mask_h, mask_w), index)
        height, width = image.shape[1:]
        if image.shape[1:] != mask.shape:
            fits = same_aspect((width, height), (mask_w, mask_h))
            if not (self.resize and fits):
                hint = "; masks: resize scales it" if fits else ""
                raise SampleError(
                    f"mask {file} (index {index}): got {mask_w}×{mask_h} px, expected "
                    f"{width}×{height} as {path}{hint}"
                )
            labels = tv_tensors.Mask(mask[None])
            mask = F.resize(labels, [height, width]).as_subclass(Tensor)[0]
        return SegmentationSample(image, mask, str(path))

    def select(self, numbers: list[int]) -> None:
        """Exclude all but some pairs, given by their numbers."""
        self.pairs = [self.pairs[number] for number in numbers]
        self.numbers = list(numbers)


class MaskedImages(Dataset[SegmentationSample]):
    """Images with masks: augmented by the seed of each `Draw`, or to evaluate on.

    Args:
        pairs: What is stored.
        transform: The augmentation; in evaluation, a resize of the image: masks stay as they are.
    """

    def __init__(self, pairs: Pairs, transform: SegmentationAugmentation | v2.Transform) -> None:
        self.pairs = pairs
        self.transform = transform

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def paths(self) -> list[Path]:
        """Paths of the images."""
        return [image for image, _ in self.pairs.pairs]

    def __getitem__(self, item: Draw | int) -> SegmentationSample:
        draw = Draw.of(item)
        sample = self.pairs.read(draw.number)
        if not isinstance(self.transform, SegmentationAugmentation):
            return sample._replace(image=self.transform(sample.image))
        with draw.seeded():
            image, mask = self.transform(sample.image, sample.mask)
        return sample._replace(image=image, mask=mask)


def _unlabelled(
    image: Tensor,
    size: tuple[int, int],
    index: int,  # noqa: ARG001 - ids of detection are made of it
    path: str,
) -> SegmentationSample:
    """Return the sample of an image without a mask: none of its pixels counts."""
    mask = torch.full(size, IGNORED, dtype=torch.int64)
    return SegmentationSample(image, mask, path)
