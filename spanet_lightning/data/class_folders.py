"""Images in a folder for each class: `SPLIT/CLASS/…/NAME`, as lists of files and labels."""

from __future__ import annotations

import shlex
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from spanet_lightning.data.decode import opened, rgb
from spanet_lightning.data.faults import Fault
from spanet_lightning.data.images import unreadable
from spanet_lightning.data.listing import Listing, is_listed, natural_order
from spanet_lightning.errors import DataError, SpanetError, did_you_mean


def split_folder(root: str, split: str, key: str) -> Path:
    """Return the folder of a split below `root`.

    Args:
        root: Folder that holds one folder for each split.
        split: Name of the split.
        key: Argument that named it, for the message.

    Raises:
        DataError: If either folder is missing.
    """
    base = Path(root)
    if not base.is_dir():
        found = "a file" if base.exists() else "nothing"
        raise DataError(f"root: found {found} at {root}, expected a folder with a folder per split")
    folder = base / split
    if not folder.is_dir():
        present = subfolders(base)
        accepted = f"one of {', '.join(map(repr, present))}" if present else "a folder"
        hint = did_you_mean(split, present)
        if key == "val_split" and not hint:
            hint = "; data.split: 0.2 validates on a part of the training split"
        raise DataError(
            f"{key}: got {split!r}, which is no folder of {root}, expected {accepted}{hint}"
        )
    return folder


def subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, without hidden ones, in natural order."""
    return natural_order(
        entry.name for entry in folder.iterdir() if is_listed(entry.name) and entry.is_dir()
    )


def class_names(folder: Path) -> tuple[str, ...]:
    """Return the classes of a split: the names of its folders, numbers by value.

    Names are in Unicode's composed form: file systems differ in what they store.

    Raises:
        DataError: If there are fewer than two, or two have the same name.
    """
    names = [unicodedata.normalize("NFC", name) for name in subfolders(folder)]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"folder {folder}: got two folders called {twice[0]!r}, expected one")
    if len(names) < 2:
        found = f"only {names[0]!r}" if names else "none"
        raise DataError(
            f"folder {folder}: found {found}, expected a folder for each of two or more classes; "
            f"`spanet init {shlex.quote(str(folder.parent))}` tells what the data look like"
        )
    return tuple(names)


def class_faults(listing: Listing, classes: Sequence[str], *, training: bool) -> list[Fault]:
    """Return what is wrong with the folders of a split.

    Args:
        listing: The files of the split.
        classes: Names of the classes.
        training: Whether each class needs images.
    """
    folder = listing.folder
    faults = []
    stray = [name for name in listing.names if "/" not in name]
    if stray:
        detail = f"found {stray[0]}, expected a folder for each class"
        more = f" ({len(stray)} images)" if len(stray) > 1 else ""
        faults.append(Fault("images beside the classes", str(folder), "", detail + more))
    counts = Counter(map(_class_of, listing.names))
    present = {unicodedata.normalize("NFC", name) for name in subfolders(folder)}
    for name in natural_order(present - set(classes)) if classes else ():
        hint = did_you_mean(name, set(classes) - present)
        detail = f"{name!r} is not among the classes, which are {_some(classes)}{hint}"
        faults.append(Fault("unknown class", str(folder / name), "", detail))
    for name in classes if training else ():
        if not counts[name]:
            others = Counter(
                Path(other).suffix.lower() or "without ending"
                for other in listing.others
                if _class_of(other) == name
            )
            only = ", ".join(f"{count} {ending}" for ending, count in sorted(others.items()))
            instead = f" (only {only})" if only else ""
            detail = f"found no images{instead}, expected those of a class"
            faults.append(Fault("class without images", str(folder / name), "", detail))
    return faults


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" * (len(names) > 5))


def _class_of(name: str) -> str:
    return unicodedata.normalize("NFC", name.partition("/")[0])


@dataclass(frozen=True)
class LabelledFiles:
    """Images with their labels; the interface of timm's readers.

    Attributes:
        files: Their paths.
        labels: The label of each.
        numbers: Number of each in the split as listed, before any was left out.
    """

    files: Sequence[str]
    labels: Sequence[int]
    numbers: Sequence[int]

    @classmethod
    def of(cls, listing: Listing, classes: Sequence[str]) -> LabelledFiles:
        """Return the images of a split; those of an unknown class are left out."""
        label_of = {name: label for label, name in enumerate(classes)}
        names = [name for name in natural_order(listing.names) if _class_of(name) in label_of]
        return cls(
            [str(listing.folder / name) for name in names],
            [label_of[_class_of(name)] for name in names],
            range(len(names)),
        )

    @classmethod
    def unlabelled(cls, listing: Listing) -> LabelledFiles:
        """Return images whose class is unknown; all have label 0."""
        files = [str(listing.folder / name) for name in natural_order(listing.names)]
        return cls(files, [0] * len(files), range(len(files)))

    def select(self, places: Sequence[int]) -> LabelledFiles:
        """Return some of the images, given by their place."""
        return LabelledFiles(
            [self.files[i] for i in places],
            [self.labels[i] for i in places],
            [self.numbers[i] for i in places],
        )

    def counts(self, num_classes: int) -> np.ndarray:
        """Return the number of images of each class, shape (num_classes,)."""
        return np.bincount(np.asarray(self.labels, dtype=np.int64), minlength=num_classes)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return Path(self.files[index]).open("rb"), self.labels[index]

    def filename(self, index: int, absolute: bool = False) -> str:  # noqa: ARG002 - as timm's
        """Return the path of an image."""
        return self.files[index]


class CheckedImages(Dataset[tuple[Any, int]]):
    """The images that a reader lists, each of which has to be readable.

    timm's own `ImageDataset` puts the next image in the place of one that it can't read, which
    changes what an accuracy is an accuracy of.

    Args:
        reader: `LabelledFiles` or a reader of timm's: `reader[i]` is an open file and a label.
        transform: Makes a tensor of an RGB image.
    """

    def __init__(self, reader: Any, transform: Callable[[Image.Image], Tensor]) -> None:
        self.reader = reader
        self.transform = transform

    def __len__(self) -> int:
        return len(self.reader)

    @property
    def paths(self) -> Sequence[str]:
        """Paths of the images; none where a reader of timm's lists them."""
        return getattr(self.reader, "files", ())

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.image(index)
        return self.transform(image), label

    def image(self, index: int) -> tuple[Image.Image, int]:
        """Return an image as RGB, and its label.

        Raises:
            UnreadableImageError: If it can't be decoded.
        """
        try:
            stream, label = self.reader[index]
            with stream, opened(stream) as image:
                image.load()
                return rgb(image), label
        except SpanetError:
            raise
        except Exception as error:  # a decoder of broken bytes raises anything
            path = self.reader.filename(index, absolute=True)
            number = getattr(self.reader, "numbers", range(index + 1))[index]
            raise unreadable("image", path, number, error) from error
