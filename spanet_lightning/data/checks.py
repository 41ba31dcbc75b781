"""Checks of image folders, before anything is trained on them, and of each image as it is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from timm.data.readers.img_extensions import IMG_EXTENSIONS
from timm.data.readers.reader_factory import create_reader
from torch import Tensor
from torch.utils.data import Dataset

from spanet_lightning.data.decode import opened, rgb
from spanet_lightning.errors import DataError, SpanetError, did_you_mean


class SampleError(DataError):
    """Something is wrong with one sample; raised where it is read, often in a worker process.

    torch raises the error of a worker anew in the training process, the worker's whole traceback as
    its message. Its last line is ours, and all that a user needs.
    """

    def __init__(self, message: str) -> None:
        last_line = message.strip().rsplit("\n", maxsplit=1)[-1]
        super().__init__(last_line.removeprefix(f"{__name__}.{type(self).__name__}: "))


class UnreadableImageError(SampleError):
    """An image can't be decoded."""


class CheckedImages(Dataset[tuple[Any, int]]):
    """The images that a timm reader lists, each of which has to be readable.

    timm's own `ImageDataset` puts the next image in the place of one that it can't read, which
    changes what an accuracy is an accuracy of.

    Args:
        reader: A timm reader: `reader[i]` is an open file and a class index.
        transform: Makes a tensor of an RGB image.
    """

    def __init__(self, reader: Any, transform: Callable[[Image.Image], Tensor]) -> None:
        self.reader = reader
        self.transform = transform

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.image(index)
        return self.transform(image), label

    def image(self, index: int) -> tuple[Image.Image, int]:
        """Return an image as RGB, and its class.

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
            reason = " ".join(str(error).split()) or type(error).__name__
            listed = self.reader.kept[index] if isinstance(self.reader, KeptReader) else index
            raise UnreadableImageError(
                f"image {path} (index {listed}): {reason}; expected an image that Pillow can decode"
            ) from error


class KeptReader:
    """Some of the images that timm's reader of a folder lists.

    Args:
        reader: The reader.
        kept: Numbers of those that stay.
    """

    def __init__(self, reader: Any, kept: Sequence[int]) -> None:
        self.root = reader.root
        self.class_to_idx = reader.class_to_idx
        self.kept = list(kept)
        self.samples = [reader.samples[number] for number in kept]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, label = self.samples[index]
        return Path(path).open("rb"), label

    def filename(self, index: int, absolute: bool = False) -> str:  # noqa: ARG002 - as timm's
        """Return the path of an image."""
        return str(self.samples[index][0])


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
        present = sorted(entry.name for entry in base.iterdir() if entry.is_dir())
        accepted = f"one of {', '.join(map(repr, present))}" if present else "a folder"
        raise DataError(
            f"{key}: got {split!r}, which is no folder of {root}, expected {accepted}"
            f"{did_you_mean(split, present)}"
        )
    return folder


def read_folder(folder: Path) -> Any:
    """Return timm's reader of a folder of images: files, and their labels by name of their folder.

    Raises:
        DataError: If there is no image.
    """
    try:
        return create_reader("", root=str(folder))
    except RuntimeError as error:  # what timm says of a folder without images
        accepted = ", ".join(IMG_EXTENSIONS)
        raise DataError(
            f"folder {folder}: found no images, expected files of {accepted}"
        ) from error


def check_class_folders(folder: Path, reader: Any) -> None:
    """Refuse a split whose images are not in one folder for each class.

    Args:
        folder: Folder of the split.
        reader: What `read_folder` found in it.

    Raises:
        DataError: If images lie beside the folders of classes, or one of those has none.
    """
    tops = {Path(path).relative_to(folder).parts[0] for path, _ in reader.samples}
    for entry in sorted(folder.iterdir()):
        if entry.is_file() and entry.name in tops:
            raise DataError(
                f"folder {folder}: found {entry.name}, expected a folder for each class"
            )
        # hidden folders (.ipynb_checkpoints) are not meant as classes
        if entry.is_dir() and entry.name not in tops and not entry.name.startswith("."):
            raise DataError(f"folder {entry}: found no images, expected those of one class")


def check_same_classes(
    first: tuple[Path, Sequence[str]], second: tuple[Path, Sequence[str]]
) -> None:
    """Refuse two splits of different classes: labels count the classes of each split's own folders.

    Args:
        first: Folder of a split and the classes found there.
        second: The same of another split.

    Raises:
        DataError: If a class of one has no image in the other.
    """
    for (folder, classes), (other, others) in ((first, second), (second, first)):
        missing = [name for name in classes if name not in set(others)]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            hint = did_you_mean(missing[0], [name for name in others if name not in classes])
            raise DataError(
                f"folder {other}: found no images of {', '.join(map(repr, missing[:3]))}{more}, "
                f"expected the classes of {folder}{hint}"
            )
