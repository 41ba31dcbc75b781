"""Labelled images: a folder for each class, or any other source that timm reads."""

from __future__ import annotations

import os
import random
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from jaxtyping import Float, UInt8
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image
from timm.data.auto_augment import posterize
from timm.data.dataset import ImageDataset, IterableImageDataset
from timm.data.dataset_factory import create_dataset
from timm.data.random_erasing import RandomErasing
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Grayscale

from spanet_lightning.data.bad_samples import BadSamples, OnBadSample
from spanet_lightning.data.class_folders import (
    CheckedImages,
    LabelledFiles,
    class_faults,
    class_names,
    split_folder,
)
from spanet_lightning.data.draws import entropy, preserved, spread, uniform
from spanet_lightning.data.faults import refuse
from spanet_lightning.data.holdout import Holdout
from spanet_lightning.data.info import DataInfo, check_unique, evaluated
from spanet_lightning.data.listing import Listing, list_images
from spanet_lightning.data.loaders import drawn_loader, exact_loader
from spanet_lightning.data.manifest import DataIdentity, digest, digest_files
from spanet_lightning.data.normalize import Normalize, channel_statistics, in_precision_of_run
from spanet_lightning.errors import DataError, did_you_mean, invalid, invalid_choice
from spanet_lightning.keywords import CheckedKeywords

_KEYS = ("train_split", "val_split", "test_split")
_ERASING = 1  # sets its seeds apart from those of the samples
SOURCES = ("torch/", "hfds/", "hfids/", "tfds/", "wds/")
Interpolation = Literal["bilinear", "bicubic", "nearest", "lanczos"]
TrainInterpolation = Literal["random", "bilinear", "bicubic", "nearest", "lanczos"]
Sampling = Literal["shuffle", "balanced"]
ClassWeights = Literal["balanced"]


class ImageClassificationDataModule(LightningDataModule, CheckedKeywords):
    """Labelled images through timm's transforms, by default a folder for each split and class.

    A class is a folder directly below a split; folders below it are just folders. Labels number the
    classes of the training split, whichever split is read. The loaders give images as uint8, shape
    (B, C, H, W): worker processes and the bus to a device carry a quarter of what float32 takes.
    `on_after_batch_transfer`, which Lightning calls once a batch is on its device, normalises the
    images there. Code that iterates over a loader itself calls `normalize`.

    The defaults of augmentation are those of the published ImageNet recipe. Random erasing
    comes last, after Mixup: `ClassificationTask` calls `erase`.

    Args:
        root: Folder of the data: `root/<split>/<class>/*.jpg` for an empty `dataset`.
        dataset: Empty for folders, or another source in the notation of `timm.data.create_dataset`:
            `wds/...`, `hfds/...`, `torch/...`; these may need a package of their own.
        train_split: Split to train on; "." if the folders of classes are in `root` itself.
        val_split: Split to validate on.
        test_split: Split to test on; null is the validation split.
        split: Share of each class of the training split to validate on instead of `val_split`.
        kfold: "K/I" holds out fold I, from 0, of K stratified folds of the training split instead.
        split_seed: Seed of `split` and `kfold`; independent of the seed of the run.
        predict_root: Folder of images to predict, searched recursively; null predicts the test
            split.
        classes: Names of the classes in the order of labels; null takes the folders of the training
            split, or without one those of the split that there is.
        num_classes: Classes of a `dataset` that doesn't state them; null counts those of folders.
        image_size: Height and width of the network's input, in pixels.
        in_chans: Channels of the network's input: 3 (grey images are repeated) or 1 (colours become
            grey).
        crop_pct: At evaluation, `image_size` over the length to which the shorter side is resized
            before the central crop.
        interpolation: How images are resized at evaluation.
        train_interpolation: How images are resized in training; random is bilinear or bicubic.
        scale: Range of the share of the area that a random crop keeps.
        ratio: Range of the crop's width over its height before it is resized to a square.
        hflip: Probability of a horizontal flip.
        color_jitter: Strength of colour jitter, where `auto_augment` is null.
        auto_augment: Policy in timm's notation, such as `rand-m9-mstd0.5-inc1`; null is none.
        re_prob: Probability that random erasing fills one box of the image with noise.
        mean: Mean of each channel, of values in [0, 1], that is subtracted; null is ImageNet's.
        std: Standard deviation of each channel that is divided by; null is ImageNet's.
        class_weights: "balanced" weights the training loss of each image by the inverse frequency
            of its class; null weights all alike.
        sampling: "shuffle" visits each training image once per epoch; "balanced" draws as many from
            each class, with replacement.
        batch_size: Images in a batch, on each device.
        num_workers: Processes that load, on each device, at most as many as the machine has cores;
            0 loads in the training process.
        on_bad_sample: What to do with images that can't be decoded: "fail" at the first, by name,
            or "skip": read all once beforehand, and exclude them. Folders only.
        max_bad_samples: Largest share of a split that "skip" may exclude; one image always may be.

    Raises:
        ConfigError: If a value is out of its range.
    """

    def __init__(
        self,
        root: str,
        dataset: str = "",
        train_split: str = "train",
        val_split: str = "val",
        test_split: str | None = None,
        split: float | None = None,
        kfold: str | None = None,
        split_seed: int = 0,
        predict_root: str | None = None,
        classes: list[str] | None = None,
        num_classes: int | None = None,
        image_size: int = 224,
        in_chans: int = 3,
        crop_pct: float = 0.9,
        interpolation: Interpolation = "bicubic",
        train_interpolation: TrainInterpolation = "random",
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        hflip: float = 0.5,
        color_jitter: float = 0.4,
        auto_augment: str | None = "rand-m9-mstd0.5-inc1",
        re_prob: float = 0.25,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        class_weights: ClassWeights | None = None,
        sampling: Sampling = "shuffle",
        batch_size: int = 128,
        num_workers: int = 8,
        on_bad_sample: OnBadSample = "fail",
        max_bad_samples: float = 0.01,
    ) -> None:
        super().__init__()
        self.bad_samples = BadSamples(on_bad_sample, max_bad_samples)
        if dataset and not dataset.startswith(SOURCES):
            accepted = ", ".join(repr(f"{source}...") for source in SOURCES)
            hint = did_you_mean(f"{dataset.partition('/')[0]}/", SOURCES)
            raise invalid("dataset", dataset, f"'' for folders or one of {accepted}", hint)
        for key, value, default in (
            ("on_bad_sample", on_bad_sample, "fail"),
            ("split", split, None),
            ("kfold", kfold, None),
            ("class_weights", class_weights, None),
            ("sampling", sampling, "shuffle"),
        ):
            if dataset and value != default:
                raise invalid(key, value, f"{default!r} with dataset={dataset!r}")
        for key, number, least in (
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("image_size", image_size, 32),
            ("num_classes", 2 if num_classes is None else num_classes, 2),
        ):
            if number < least:
                raise invalid(key, number, f"at least {least}")
        if not 0 < crop_pct <= 1:
            raise invalid("crop_pct", crop_pct, "a number in (0, 1]")
        if not 0 < scale[0] <= scale[1] <= 1:
            raise invalid("scale", scale, "a range within (0, 1]")
        if not 0 < ratio[0] <= ratio[1]:
            raise invalid("ratio", ratio, "a range of numbers above 0")
        for key, share in (("hflip", hflip), ("re_prob", re_prob)):
            if not 0 <= share <= 1:
                raise invalid(key, share, "a number in [0, 1]")
        for key, choice, names in (
            ("interpolation", interpolation, get_args(Interpolation)),
            ("train_interpolation", train_interpolation, get_args(TrainInterpolation)),
            ("sampling", sampling, get_args(Sampling)),
            ("class_weights", class_weights or "balanced", get_args(ClassWeights)),
        ):
            if choice not in names:
                raise invalid_choice(key, choice, names)
        if classes is not None:
            check_unique(classes, "classes")
        mean, std = channel_statistics(in_chans, mean, std)
        whole = in_chans == 3
        self.root = root
        self.dataset = dataset
        self.train_split = train_split
        self.val_split = val_split
        self.test_split = test_split
        self.holdout = Holdout.parse(split, kfold, split_seed)
        self.predict_root = predict_root
        self.image_size = image_size
        self.in_chans = in_chans
        self.class_weights = class_weights
        self.sampling: Sampling = sampling
        self.batch_size = batch_size
        self.num_workers = num_workers
        self._classes = classes
        self._stored = evaluated.get()
        self._num_classes = num_classes
        self._listings: dict[str, Listing] = {}
        self._readers: dict[str, LabelledFiles] = {}
        self._datasets: dict[str, Dataset[Any]] = {}
        self._normalize = Normalize(mean, std)
        self.mean, self.std = mean, std
        self.re_prob = re_prob
        # Of the images that are picked by then: see `erase`.
        self.erasing = RandomErasing(1.0, mode="pixel", max_count=1, device="cpu")  # type: ignore[no-untyped-call]
        try:
            self.train_transform = create_transform(
                image_size,
                is_training=True,
                scale=scale,
                ratio=ratio,
                hflip=hflip,
                color_jitter=color_jitter,
                auto_augment=auto_augment,
                interpolation=train_interpolation,
                mean=mean if whole else mean * 3,  # fills what rotations and shifts uncover
                use_prefetcher=True,  # ends with uint8
            )
        except (AssertionError, KeyError, ValueError) as error:
            # everything else is checked above; timm says little of what it makes of a policy
            accepted = "null or a policy of timm's, such as 'rand-m9-mstd0.5-inc1' or 'original'"
            raise invalid("auto_augment", auto_augment, accepted) from error
        self.eval_transform = create_transform(
            image_size, interpolation=interpolation, crop_pct=crop_pct, use_prefetcher=True
        )
        for step in self.train_transform.transforms:
            for op in (*getattr(step, "ops", ()), *chain(*getattr(step, "policy", ()))):
                if op.name.startswith("Posterize"):
                    op.aug_fn = _posterize
        if not whole:  # timm's policies are for colours
            for transform in (self.train_transform, self.eval_transform):
                transform.transforms.insert(-1, Grayscale())

    # -- what the data is

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their labels.

        Raises:
            DataError: If the data doesn't state them and `num_classes` is null.
        """
        if self._classes is not None:
            return tuple(self._classes)
        if not self.dataset:
            folders = [Path(self.root) / self.split_name(key) for key in _KEYS]
            # Of a checkpoint, where the training split is elsewhere: the others may lack a class.
            if self._stored is not None and not folders[0].is_dir():
                return self._stored.classes
            for folder in folders:
                if folder.is_dir():
                    return class_names(folder)
            return class_names(split_folder(self.root, self.train_split, "train_split"))
        if self._num_classes is not None:
            return tuple(map(str, range(self._num_classes)))
        names = getattr(self._open("val_split"), "classes", None)  # torchvision's sets have them
        if names is None:
            raise DataError(
                f"num_classes: got null, expected a number, as {self.dataset!r} does not state it"
            )
        return tuple(names)

    @property
    def num_classes(self) -> int:
        """Number of classes of the data."""
        return self._num_classes or len(self.class_names)

    @property
    def info(self) -> DataInfo:
        """Classes, channels and the normalisation."""
        return DataInfo(self.class_names, mean=self.mean, std=self.std, channels=self.in_chans)

    @property
    def predict_base(self) -> Path | None:
        """Folder that the images to predict are in; None of a `dataset`."""
        if self.predict_root is not None:
            return Path(self.predict_root)
        return None if self.dataset else Path(self.root) / self.split_name("test_split")

    @property
    def predict_files(self) -> list[str]:
        """Paths of the images to predict, in their order: of `predict_root`, or the test split's.

        Raises:
            ConfigError: If they come from a `dataset`, whose files have no names.
        """
        if self.predict_root is None and self.dataset:
            raise invalid("predict_root", None, "a folder")
        return list(self._reader("test_split" if self.predict_root is None else "predict").files)

    def loss_weights(self) -> Float[Tensor, " k"] | None:
        """Return the weight of each class in the loss, 1 on average over the training images."""
        if self.class_weights is None:
            return None
        counts = torch.from_numpy(self._reader("train_split").counts(self.num_classes))
        return (counts.sum() / (self.num_classes * counts)).float()

    def identity(self) -> DataIdentity:
        """Return what data this is, of the splits that were set up."""
        keys = [key for key in ("train_split", "val_split", "test_split") if key in self._datasets]
        images = {
            "val" if self._is_held_out(key) else self.split_name(key): _length(self._datasets[key])
            for key in keys
        }
        if self.dataset:
            parts = (self.dataset, *(f"{split} {size}" for split, size in images.items()))
            return DataIdentity(
                name=self.dataset,
                source=self.root,
                digest=digest(*parts),
                images=images,
                classes=self.num_classes,
                covers="the names of source and splits, and their sizes; not what they hold",
            )
        files = [file for key in keys for file in self._reader(key).files]
        found, covers = digest_files(Path(self.root), files), "names and sizes of the files"
        if self.holdout is not None:
            found = digest(found, str(self.holdout))
            covers += ", the validation split"
        return DataIdentity(
            name=Path(self.root).resolve().name,
            source=self.root,
            digest=found,
            images=images,
            classes=self.num_classes,
            covers=f"{covers}, contents of a sample",
        )

    # -- Lightning's hooks

    def setup(self, stage: str) -> None:
        """List the images of the splits that `stage` reads, and check them.

        Raises:
            DataError: If a folder is missing or empty, or has images of an unknown class.
        """
        keys = {"fit": ("train_split", "val_split"), "validate": ("val_split",)}
        if stage == "predict" and self.predict_root is not None:
            keys["predict"] = ("predict",)
        for key in keys.get(stage, ("test_split",)):
            self._datasets[key] = self._open(key)
            if not self.dataset and key != "predict" and stage != "predict":
                self._report(key)

    def normalize(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return images of a loader as a network takes them, on the device that they are on.

        Args:
            images: Values 0 to 255.

        Returns:
            (images - 255 mean) / (255 std) as float32, contiguous.
        """
        return self._normalize(images)

    def on_after_batch_transfer(
        self,
        batch: tuple[Tensor, Tensor],
        dataloader_idx: int,  # noqa: ARG002 - Lightning gives it
    ) -> tuple[Tensor, Tensor]:
        """Return a batch whose images are normalised.

        Args:
            batch: uint8 images of shape (B, C, H, W) and labels of shape (B,), on their device.
            dataloader_idx: Not used: all loaders are treated alike.

        Returns:
            The images as float32, or in the precision that the trainer runs in throughout, and the
            labels as they came.
        """
        images, labels = batch
        return in_precision_of_run(self.normalize(images), self), labels

    def erase(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Fill a box of noise into a share of `re_prob` of the images of a batch, in place.

        The task calls it once the images are mixed. What is drawn is a function of the run's seed,
        the epoch and the place in its order: the same with any number of processes that share out
        the same batches.

        Args:
            images: Normalised, of the batch that the trainer is at.
        """
        trainer = self.trainer
        if trainer is None or self.re_prob == 0:
            return images
        batch = trainer.fit_loop.batch_idx * trainer.world_size + trainer.global_rank
        places = batch * self.batch_size + np.arange(len(images))
        seeds = spread(entropy(trainer.current_epoch, _ERASING), places)
        self.erasing.device = images.device
        # The streams of the training step go on as if unused, that of a GPU as well.
        with preserved(), torch.random.fork_rng([images.device] if images.is_cuda else []):
            for i in np.flatnonzero(uniform(seeds, 1)[:, 0] < self.re_prob).tolist():
                random.seed(int(seeds[i]))
                torch.manual_seed(int(seeds[i]))  # of any device
                self.erasing(images[i])
        return images

    def train_dataloader(self) -> DataLoader[Any]:
        """Return shuffled batches of the training split, augmented, as uint8."""
        epoch = 0 if self.trainer is None else self.trainer.current_epoch
        dataset = self._datasets["train_split"]
        if isinstance(dataset, IterableImageDataset):
            dataset.set_epoch(epoch)  # type: ignore[no-untyped-call]
        weights = None
        if self.sampling == "balanced":
            reader = self._reader("train_split")
            weights = 1.0 / reader.counts(self.num_classes)[np.asarray(reader.labels)]
        return drawn_loader(
            dataset,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            epoch=epoch,
            weights=weights,
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation split in order, as uint8."""
        return self._evaluated("val_split")

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the test split in order, as uint8."""
        return self._evaluated("test_split")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the images of `predict_root`, or else of the test split, in order, as uint8."""
        return self._evaluated("test_split" if self.predict_root is None else "predict")

    def _evaluated(self, key: str) -> DataLoader[Any]:
        return exact_loader(
            self._datasets[key], batch_size=self.batch_size, num_workers=self.num_workers
        )

    # -- reading

    def _is_held_out(self, key: str) -> bool:
        """Whether a split is the part of the training split that is validated on."""
        return self.holdout is not None and (
            key == "val_split" or (key == "test_split" and self.test_split is None)
        )

    def split_name(self, key: str) -> str:
        """Return the folder of the split that argument `key` names."""
        if self._is_held_out(key):
            return self.train_split
        name: str | None = getattr(self, key)
        return self.val_split if name is None else name

    def _listing(self, key: str) -> Listing:
        """Return the files of a split, which takes a while for millions: only once."""
        if key == "predict":
            return list_images(Path(str(self.predict_root)), "predict_root")
        split = self.split_name(key)
        if split not in self._listings:
            folder = split_folder(self.root, split, key)
            listing = list_images(folder, key, Path(self.root))
            training = split == self.train_split
            faults = class_faults(listing, self.class_names, training=training)
            refuse(faults, self.root)
            self._listings[split] = listing
        return self._listings[split]

    def _reader(self, key: str) -> LabelledFiles:
        """Return the images of a split and their labels, without those that are excluded."""
        if key in self._readers:
            return self._readers[key]
        listing = self._listing(key)
        if key == "predict":
            reader = LabelledFiles.unlabelled(listing)
        else:
            reader = LabelledFiles.of(listing, self.class_names)
            if self.holdout is not None and (key == "train_split" or self._is_held_out(key)):
                folder = os.path.join(str(listing.folder), "")  # noqa: PTH118 - with its slash
                names = [file.removeprefix(folder) for file in reader.files]
                chosen = self.holdout.choose(reader.labels, names)
                reader = reader.select(np.flatnonzero(chosen == (key != "train_split")).tolist())
            look = CheckedImages(reader, self.eval_transform).image
            files = [(file,) for file in reader.files]
            name = "val" if self._is_held_out(key) else self.split_name(key)
            usable = self.bad_samples.kept(name, range(len(files)), files, look)
            if len(usable) < len(reader):
                reader = reader.select(usable)
        if not len(reader):
            raise DataError(f"{key}: found no images in {listing.folder}, expected at least one")
        self._readers[key] = reader
        return reader

    def _report(self, key: str) -> None:
        """Print which classes have no image in a split, and how uneven they are in training."""
        counts = self._reader(key).counts(self.num_classes)
        absent = [name for name, n in zip(self.class_names, counts, strict=False) if not n]
        where = "the validation part" if self._is_held_out(key) else repr(self.split_name(key))
        if absent:
            shown = ", ".join(map(repr, absent[:5])) + (", …" if len(absent) > 5 else "")
            rank_zero_info(f"{where} has no image of {shown}: no figure of it includes them.")
        plain = self.class_weights is None and self.sampling == "shuffle"
        if key == "train_split" and counts.min() and plain and counts.max() >= 10 * counts.min():
            rank_zero_info(
                f"Classes have {counts.min()} to {counts.max()} training images; "
                "data.class_weights or data.sampling: balanced evens them out."
            )

    def _open(self, key: str) -> Dataset[Any]:
        """Return the data set of a split, with the transform that it is read with."""
        training = key == "train_split"
        transform = self.train_transform if training else self.eval_transform
        if not self.dataset or key == "predict":
            return CheckedImages(self._reader(key), transform)
        split = self.split_name(key)
        try:
            dataset: Any = create_dataset(
                self.dataset,
                root=self.root,
                split=split,
                is_training=training,
                batch_size=self.batch_size,
                seed=int(os.environ.get("PL_GLOBAL_SEED", "0")),
            )
        except Exception as error:  # as many kinds as there are sources, a missing package included
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(
                f"dataset: can't open {self.dataset!r}, split {split!r}, at {self.root}: {reason}"
            ) from error
        if isinstance(dataset, ImageDataset):
            return CheckedImages(dataset.reader, transform)
        if isinstance(dataset, IterableImageDataset):
            dataset.set_loader_cfg(num_workers=self.num_workers)
        dataset.transform = transform
        return cast("Dataset[Any]", dataset)


def _length(dataset: Any) -> int:
    """Return the number of images of a data set; -1 of a stream that does not tell."""
    try:
        return len(dataset)
    except TypeError:
        return -1


def _posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    """Return timm's posterization; with 0 bits, which Pillow refuses from 13 on, a black image.

    The published policy keeps 0 bits in one of 45 cases, which would end an epoch.
    """
    if bits < 1:
        return image.point(lambda _value: 0)
    found: Image.Image = posterize(image, bits, **options)  # type: ignore[no-untyped-call]
    return found
