"""Images of a folder, or of any other source that timm reads, as a classifier trains on them."""

from __future__ import annotations

import os
import random
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from jaxtyping import Float, UInt8
from lightning import LightningDataModule
from timm.data.dataset import ImageDataset, IterableImageDataset
from timm.data.dataset_factory import create_dataset
from timm.data.random_erasing import RandomErasing
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from spanet_lightning.data.bad_samples import BadSamples, OnBadSample
from spanet_lightning.data.checks import (
    CheckedImages,
    KeptReader,
    check_class_folders,
    check_same_classes,
    read_folder,
    split_folder,
)
from spanet_lightning.data.draws import entropy, preserved, spread, uniform
from spanet_lightning.data.faults import refuse
from spanet_lightning.data.info import DataInfo
from spanet_lightning.data.listing import scan
from spanet_lightning.data.loaders import drawn_loader, exact_loader
from spanet_lightning.data.manifest import DataIdentity, digest, digest_files
from spanet_lightning.data.normalize import MEAN, STD, Channels, Normalize, in_precision_of_run
from spanet_lightning.data.posterize import repair_posterize
from spanet_lightning.errors import DataError, did_you_mean, invalid, invalid_choice

_ERASING = 1  # sets its seeds apart from those of the samples
SOURCES = ("torch/", "hfds/", "hfids/", "tfds/", "wds/")
Interpolation = Literal["bilinear", "bicubic", "nearest", "lanczos"]
TrainInterpolation = Literal["random", "bilinear", "bicubic", "nearest", "lanczos"]


class ImageClassificationDataModule(LightningDataModule):
    """Labelled images through timm's transforms, by default a folder for each split and class.

    The loaders give images as uint8, shape (B, 3, H, W): worker processes and the bus to a device
    carry a quarter of what float32 takes. `on_after_batch_transfer`, which Lightning calls once a
    batch is on its device, normalises the images there. Who
    iterates over a loader by hand calls `normalize`.

    The defaults of augmentation are those of the published ImageNet recipe. Random erasing
    comes last, after Mixup: `ClassificationTask` calls `erase`.

    Args:
        root: Folder of the data: `root/<split>/<class>/*.jpg` for an empty `dataset`.
        dataset: Empty for folders, or another source in the words of `timm.data.create_dataset`:
            `wds/...`, `hfds/...`, `torch/...`; these may need a package of their own.
        train_split: Split to train on.
        val_split: Split that steers the run.
        test_split: Split to test on; null is `val_split`.
        predict_root: Folder of images to predict, searched through; null predicts the test split.
        num_classes: Classes of a `dataset` that can't tell; null counts those of folders.
        image_size: Height and width of the network's input, in pixels.
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
        mean: Mean of each channel, of values in [0, 1], that is subtracted.
        std: Standard deviation of each channel that is divided by.
        batch_size: Images in a batch, on each device.
        num_workers: Processes that load, on each device; 0 loads in the training process.
        on_bad_sample: What to do with images that can't be decoded: "fail" at the first, by name,
            or "skip": read all once beforehand, and leave them out. Folders only.
        max_bad_samples: Largest share of a split that "skip" may leave out; one always may be.

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
        predict_root: str | None = None,
        num_classes: int | None = None,
        image_size: int = 224,
        crop_pct: float = 0.9,
        interpolation: Interpolation = "bicubic",
        train_interpolation: TrainInterpolation = "random",
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        hflip: float = 0.5,
        color_jitter: float = 0.4,
        auto_augment: str | None = "rand-m9-mstd0.5-inc1",
        re_prob: float = 0.25,
        mean: Channels = MEAN,
        std: Channels = STD,
        batch_size: int = 128,
        num_workers: int = 8,
        on_bad_sample: OnBadSample = "fail",
        max_bad_samples: float = 0.01,
    ) -> None:
        super().__init__()
        self.bad_samples = BadSamples(on_bad_sample, max_bad_samples)
        if self.bad_samples.skips and dataset:
            raise invalid("on_bad_sample", on_bad_sample, f"'fail' with dataset={dataset!r}")
        if dataset and not dataset.startswith(SOURCES):
            accepted = ", ".join(repr(f"{source}...") for source in SOURCES)
            hint = did_you_mean(f"{dataset.partition('/')[0]}/", SOURCES)
            raise invalid("dataset", dataset, f"'' for folders or one of {accepted}", hint)
        if batch_size < 1:
            raise invalid("batch_size", batch_size, "at least 1")
        if num_workers < 0:
            raise invalid("num_workers", num_workers, "at least 0")
        if num_classes is not None and num_classes < 2:
            raise invalid("num_classes", num_classes, "null or at least 2")
        if image_size < 32:
            raise invalid("image_size", image_size, "at least 32 pixels")
        if not 0 < crop_pct <= 1:
            raise invalid("crop_pct", crop_pct, "a number in (0, 1]")
        if not 0 < scale[0] <= scale[1] <= 1:
            raise invalid("scale", scale, "a range within (0, 1]")
        if not 0 < ratio[0] <= ratio[1]:
            raise invalid("ratio", ratio, "a range of numbers above 0")
        for key, share in (("hflip", hflip), ("re_prob", re_prob)):
            if not 0 <= share <= 1:
                raise invalid(key, share, "a number in [0, 1]")
        for key, value, names in (
            ("interpolation", interpolation, get_args(Interpolation)),
            ("train_interpolation", train_interpolation, get_args(TrainInterpolation)),
        ):
            if value not in names:
                raise invalid_choice(key, value, names)
        self.root = root
        self.dataset = dataset
        self.train_split = train_split
        self.val_split = val_split
        self.test_split = test_split
        self.predict_root = predict_root
        self.image_size = image_size
        self.batch_size = batch_size
        self.num_workers = num_workers
        self._num_classes = num_classes
        self._readers: dict[str, Any] = {}
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
                mean=mean,  # what turns and shifts are filled with
                use_prefetcher=True,  # ends with uint8
            )
        except (AssertionError, KeyError, ValueError) as error:
            # everything else is checked above; timm says little of what it makes of a policy
            accepted = "null or a policy of timm's, such as 'rand-m9-mstd0.5-inc1' or 'original'"
            raise invalid("auto_augment", auto_augment, accepted) from error
        repair_posterize(self.train_transform)
        self.eval_transform = create_transform(
            image_size, interpolation=interpolation, crop_pct=crop_pct, use_prefetcher=True
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their labels.

        Raises:
            DataError: If the data can't tell and `num_classes` is null.
        """
        if not self.dataset:
            # The validation split has the same classes, as `setup` checks, in far fewer files.
            # Without it, the training split tells, or the error of a missing folder.
            try:
                reader = self._reader("val_split")
            except DataError:
                reader = self._reader("train_split")
            return tuple(reader.class_to_idx)
        if self._num_classes is not None:
            return tuple(map(str, range(self._num_classes)))
        names = getattr(self._open("val_split"), "classes", None)  # torchvision's sets have them
        if names is None:
            raise DataError(
                f"num_classes: got null, expected a number, as {self.dataset!r} does not tell"
            )
        return tuple(names)

    @property
    def info(self) -> DataInfo:
        """Classes and the normalisation."""
        return DataInfo(self.class_names, mean=tuple(self.mean), std=tuple(self.std))

    @property
    def num_classes(self) -> int:
        """Number of classes of the data."""
        if self._num_classes is None and not self.dataset and len(self.class_names) < 2:
            # No network can be built for one class: where another split has more, say which.
            self._check_classes()
        return self._num_classes or len(self.class_names)

    @property
    def predict_files(self) -> list[str]:
        """Paths of the images to predict, in their order: of `predict_root`, or the test split's.

        Raises:
            ConfigError: If they come from a `dataset`, which has no files to tell of.
        """
        if self.predict_root is not None:
            return self._predict_files
        if self.dataset:
            raise invalid("predict_root", None, "a folder")
        return [path for path, _ in self._reader("test_split").samples]

    @cached_property
    def _predict_files(self) -> list[str]:
        return [path for path, _ in self._predicted().samples]

    def identity(self) -> DataIdentity:
        """Return what data this is, of the splits that were set up."""
        keys = [key for key in ("train_split", "val_split", "test_split") if key in self._datasets]
        images = {self._split(key): _length(self._datasets[key]) for key in keys}
        if self.dataset:
            known = (self.dataset, *(f"{split} {size}" for split, size in images.items()))
            return DataIdentity(
                name=self.dataset,
                source=self.root,
                digest=digest(*known),
                images=images,
                classes=self.num_classes,
                covers="the names of source and splits, and their sizes; not what they hold",
            )
        files = [path for key in keys for path, _ in self._reader(key).samples]
        return DataIdentity(
            name=Path(self.root).resolve().name,
            source=self.root,
            digest=digest_files(Path(self.root), files),
            images=images,
            classes=self.num_classes,
            covers="names and sizes of the files, contents of a sample",
        )

    def setup(self, stage: str) -> None:
        """List the images of the splits that `stage` reads, and check them.

        Raises:
            DataError: If a folder is missing or empty, or classes differ between splits.
        """
        if stage == "predict" and self.predict_root is not None:
            self._datasets["predict"] = CheckedImages(self._predicted(), self.eval_transform)
            return
        keys = {"fit": ("train_split", "val_split"), "validate": ("val_split",)}
        for key in keys.get(stage, ("test_split",)):
            self._datasets[key] = self._open(key)
        if stage == "fit" and not self.dataset:
            self._check_classes()

    def normalize(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
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
        return drawn_loader(
            dataset, batch_size=self.batch_size, num_workers=self.num_workers, epoch=epoch
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

    def _check_classes(self) -> None:
        train, val = self._reader("train_split"), self._reader("val_split")
        check_same_classes(
            (Path(train.root), list(train.class_to_idx)), (Path(val.root), list(val.class_to_idx))
        )

    def _split(self, key: str) -> str:
        """Return the name of the split that argument `key` names."""
        name: str | None = getattr(self, key)
        return self.val_split if name is None else name

    def _reader(self, key: str) -> Any:
        """Return timm's reader of a split's folder, which takes a while for millions: only once."""
        split = self._split(key)
        if split not in self._readers:
            folder = split_folder(self.root, split, key)
            refuse(iter(scan(folder, Path(self.root)).faults), f"spanet data check {self.root}")
            reader = read_folder(folder)
            check_class_folders(folder, reader)
            self._readers[split] = reader
        return self._readers[split]

    def _sound(self, key: str) -> Any:
        """Return the reader of a split without the images that are to be left out."""
        reader, split = self._reader(key), self._split(key)
        if self.bad_samples.skips and not isinstance(reader, KeptReader):
            files = [(path,) for path, _ in reader.samples]
            look = CheckedImages(reader, self.eval_transform).image
            kept = self.bad_samples.kept(split, range(len(files)), files, look)
            self._readers[split] = KeptReader(reader, kept)
        return self._readers[split]

    def _predicted(self) -> Any:
        folder = Path(str(self.predict_root))
        if not folder.is_dir():
            raise DataError(f"predict_root: found no folder at {folder}, expected one of images")
        refuse(iter(scan(folder).faults), f"spanet data check {folder}")
        return read_folder(folder)

    def _open(self, key: str) -> Dataset[Any]:
        """Return the data set of a split, with the transform that it is read with."""
        training = key == "train_split"
        transform = self.train_transform if training else self.eval_transform
        if not self.dataset:
            return CheckedImages(self._sound(key), transform)
        split = self._split(key)
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
