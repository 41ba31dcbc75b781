"""The one listing of image files: training, evaluation, prediction and the check all read it.

**Images** are files whose ending is one of Pillow's (`IMAGE_ENDINGS`, in upper or lower case) and,
of those with no or an unknown ending, the ones whose contents Pillow recognises.

**Never listed**: hidden files and folders (`.DS_Store`, `._1.jpg`, `.ipynb_checkpoints`),
`__MACOSX`, `Thumbs.db`, `@eaDir` and their like.

**Links** are followed to files and folders alike, as long as they stay inside the data set. One
that leads out of it is refused: archives can hold links, and must not choose which files of this
machine are read. `SPANET_FOLLOW_LINKS=1` follows those too. Loops and broken links are refused.

Everything else is counted by ending (`Listing.left_out`), so that no file disappears silently.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote

from PIL import Image

from spanet_lightning.data.decode import FORMATS, is_image
from spanet_lightning.data.faults import Fault, refuse
from spanet_lightning.errors import DataError, did_you_mean

LINKS_VARIABLE = "SPANET_FOLLOW_LINKS"
"""Environment variable: 1 follows links out of a data set, for sets that are made of links."""
LINK_OUT = "link out of the data set"

# Of macOS, of Windows, and of network storage, which keeps thumbnails in @eaDir.
_JUNK = {
    *("__macosx", "icon\r", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin"),
    *("system volume information", "@eadir", "@recycle", "#recycle", "lost+found", "__pycache__"),
}
# Not worth opening: there can be as many of them as images.
_NEVER_IMAGES = frozenset(
    (
        *(".txt", ".json", ".jsonl", ".xml", ".csv", ".tsv", ".yaml", ".yml", ".md", ".html"),
        *(".htm", ".pdf", ".svg", ".py", ".ipynb", ".npy", ".npz", ".pt", ".pth", ".ckpt", ".mat"),
        *(".zip", ".tar", ".gz", ".7z", ".rar", ".mp4", ".avi", ".mov", ".mkv", ".log", ".lst"),
        *(".db", ".lock", ".cache"),
    )
)


def _image_endings() -> frozenset[str]:
    Image.init()
    readable = {*FORMATS, "MPO"}
    return frozenset(
        ending for ending, name in Image.registered_extensions().items() if name in readable
    )


IMAGE_ENDINGS = _image_endings()
"""Endings of image files, in lower case."""


@dataclass(frozen=True)
class Listing:
    """The files below a folder.

    Attributes:
        folder: The folder.
        names: Its image files, relative to it, with "/" between folders; in order of their parts.
        others: The other files, likewise.
        hidden: Number of hidden files by ending, of those that are called like images.
        faults: Links out of the data set, loops, broken links, folders that can't be read.
    """

    folder: Path
    names: tuple[str, ...]
    others: tuple[str, ...] = ()
    hidden: Counter[str] = field(default_factory=Counter)
    faults: tuple[Fault, ...] = ()

    @property
    def paths(self) -> list[Path]:
        """Paths of the images."""
        return [self.folder / name for name in self.names]

    def left_out(self) -> str:
        """Return how many files are left out by ending, such as "3 .txt, 1 without ending"."""
        endings = Counter(PurePosixPath(name).suffix.lower() for name in self.others)
        parts = [
            f"{count} {ending or 'without ending'}" for ending, count in sorted(endings.items())
        ]
        parts += [f"{count} hidden {ending}" for ending, count in sorted(self.hidden.items())]
        return ", ".join(parts)


def is_listed(name: str) -> bool:
    """Whether a file or folder of a name is looked at: it is not hidden, nor of a system's own."""
    return not name.startswith(".") and name.lower() not in _JUNK


def scan(folder: Path, root: Path | None = None) -> Listing:
    """List the files below a folder.

    Args:
        folder: The folder; may be a link itself, as whoever configured the run named it.
        root: The data set, which links may lead to as well; None is the folder alone.
    """
    inside = tuple(
        os.path.join(base.resolve(), "")  # noqa: PTH118 - with a slash at its end
        for base in {folder, root or folder}
    )
    everywhere = os.environ.get(LINKS_VARIABLE) == "1"
    names: list[str] = []
    others: list[str] = []
    hidden: Counter[str] = Counter()
    faults: list[Fault] = []

    def visit(path: str, below: str, ancestors: tuple[str, ...]) -> None:
        try:
            with os.scandir(path) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            faults.append(Fault("unreadable folder", path, "", reason))
            return
        for entry in entries:
            ending = PurePosixPath(entry.name).suffix.lower()
            if not is_listed(entry.name):
                hidden.update([ending] if ending in IMAGE_ENDINGS else [])
                continue
            real = ""
            if entry.is_symlink():
                real = os.path.realpath(entry.path)
                if not everywhere and not os.path.join(real, "").startswith(inside):  # noqa: PTH118
                    detail = f"leads to {real}; {LINKS_VARIABLE}=1 follows it"
                    faults.append(Fault(LINK_OUT, entry.path, "", detail))
                    continue
                if not Path(real).exists():
                    faults.append(Fault("broken link", entry.path, "", f"leads to {real}"))
                    continue
            if entry.is_dir():
                real = real or os.path.join(ancestors[-1], entry.name)  # noqa: PTH118
                if real in ancestors:
                    detail = f"leads to {real}, a folder that it is in"
                    faults.append(Fault("link in a loop", entry.path, "", detail))
                else:
                    visit(entry.path, f"{below}{entry.name}/", (*ancestors, real))
            elif entry.is_file() and (
                ending in IMAGE_ENDINGS or (ending not in _NEVER_IMAGES and is_image(entry.path))
            ):
                names.append(below + entry.name)
            else:
                others.append(below + entry.name)

    if folder.is_dir():
        visit(str(folder), "", (str(folder.resolve()),))
    return Listing(
        folder,
        tuple(sorted(names, key=lambda name: name.split("/"))),
        tuple(sorted(others, key=lambda name: name.split("/"))),
        hidden,
        tuple(faults),
    )


def list_images(folder: Path, key: str, root: Path | None = None) -> Listing:
    """List the images of a folder, of which there has to be one, and report what is left out.

    Args:
        folder: The folder.
        key: Argument that named it, for the message.
        root: The data set, which links may lead to as well; None is the folder alone.

    Raises:
        DataError: If the folder is missing, has no image, or for its first faulty link.
    """
    check_folder(folder, key)
    listing = scan(folder, root)
    refuse(listing.faults, root or folder)
    left_out = listing.left_out()
    if not listing.names:
        instead = f" (only {left_out})" if left_out else ""
        raise DataError(f"{key}: found no images in {folder}{instead}, expected at least one")
    if left_out:
        from lightning.pytorch.utilities import rank_zero_info

        rank_zero_info(f"{folder}: {len(listing.names)} images; not images: {left_out}.")
    return listing


def images_to_predict(folder: Path) -> list[Path]:
    """Return the images of a folder and those below it.

    Raises:
        DataError: If there is none.
    """
    return list_images(folder, "predict_root").paths


def check_folder(folder: Path, key: str) -> None:
    """Refuse a folder of images that is not there.

    Args:
        folder: The folder.
        key: Argument that named it, for the message.

    Raises:
        DataError: With a similar name, where there is one.
    """
    if folder.is_dir():
        return
    parent = folder.parent
    names = [entry.name for entry in parent.iterdir() if entry.is_dir()] if parent.is_dir() else []
    found = "a file" if folder.exists() else "no folder"
    raise DataError(
        f"{key}: found {found} at {folder}, expected a folder of images"
        f"{did_you_mean(folder.name, names)}"
    )


def name_fault(name: str) -> str | None:
    """Return what is wrong with the name of a file in an annotation file, or None.

    Args:
        name: Relative to the folder of the images.
    """
    parts = PurePosixPath(name.replace("\\", "/"))
    if not name or "\0" in name:
        return "got no name of a file"
    if parts.is_absolute() or ".." in parts.parts or re.match(r"[A-Za-z]:", name):
        return f"got {name!r}, expected a name below the folder of the images"
    return None


# -- names that are almost right

_SPELLINGS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("percent encoding", unquote),
    ("backslashes", lambda name: name.replace("\\", "/")),
    ("Unicode form", lambda name: unicodedata.normalize("NFC", name)),
    ("upper and lower case", str.casefold),
    ("blanks", lambda name: re.sub(r"\s+", "", name)),
    ("the leading folder", lambda name: PurePosixPath(name).name),
)


class NearNames:
    """Finds the file that a wrong name means.

    Args:
        names: Names of the files that there are.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = names
        self._known: dict[str, str] | None = None

    def hint(self, name: str) -> str:
        """Return `"; there is 'X', …"` for the file that a name means, or "" where none is near.

        Args:
            name: A name that no file has.
        """
        if self._known is None:  # most sets lack no file
            self._known = {}
            for one in self._names:
                self._known.setdefault(_simplified(one), one)
                self._known.setdefault(PurePosixPath(_simplified(one)).name, one)
        wanted = _simplified(name)
        near = self._known.get(wanted) or self._known.get(PurePosixPath(wanted).name)
        if near is None:
            return ""
        apart = [what for what, spell in _SPELLINGS if spell(name) == spell(near)]
        return f"; there is {near!r}" + (f", which differs in {apart[0]}" if apart else "")


def _simplified(name: str) -> str:
    for _, spell in _SPELLINGS[:-1]:
        name = spell(name)
    return name.removeprefix("./")


# -- pairs of images and masks


class Paired(NamedTuple):
    """Images with their masks.

    Attributes:
        pairs: Each image with its mask, in order.
        unpaired: Images without a mask.
        unused: Masks without an image.
        faults: What training refuses: images without a mask, names that are there twice.
    """

    pairs: list[tuple[Path, Path]]
    unpaired: list[Path]
    unused: list[Path]
    faults: list[Fault]


def stem(name: str) -> str:
    """Return a name without the ending of an image: "a.b.jpg" is "a.b", and so is "a.b"."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in IMAGE_ENDINGS else name


def pair_by_stem(images: Listing, masks: Listing) -> Paired:
    """Give each image the mask of the same folder and name, whatever their endings.

    Args:
        images: The images.
        masks: The masks.
    """
    faults: list[Fault] = []
    by_stem: tuple[dict[str, str], dict[str, str]] = ({}, {})
    for listing, known, what in zip((images, masks), by_stem, ("image", "mask"), strict=True):
        for name in listing.names:
            other = known.setdefault(stem(name), name)
            if other != name:
                detail = f"got the name of {other} but for its ending, expected one {what} of it"
                faults.append(
                    Fault(f"duplicate {what} name", str(listing.folder / name), "", detail)
                )
    of_images, of_masks = by_stem
    near = NearNames(of_masks)
    pairs: list[tuple[Path, Path]] = []
    unpaired: list[Path] = []
    for key, name in of_images.items():
        if key in of_masks:
            pairs.append((images.folder / name, masks.folder / of_masks[key]))
            continue
        unpaired.append(images.folder / name)
        detail = f"image without a mask of its name in {masks.folder}{near.hint(key)}"
        faults.append(Fault("missing mask", str(images.folder / name), "", detail))
    unused = [masks.folder / name for key, name in of_masks.items() if key not in of_images]
    return Paired(pairs, unpaired, unused, faults)


def natural_order(names: Iterable[str]) -> list[str]:
    """Return names as timm orders them: numbers by value, upper and lower case alike.

    Args:
        names: Names; those that differ in case alone follow each other as text does.
    """

    def key(name: str) -> tuple[Sequence[object], str]:
        parts = re.split(r"([0-9]+)", name.lower())
        return [int(part) if i % 2 else part for i, part in enumerate(parts)], name

    return sorted(names, key=key)
