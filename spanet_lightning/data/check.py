"""All faults of a data set at once: what training would refuse, and every image decoded."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from spanet_lightning.data.contents import Contents, ImageJob, notes_on_classes
from spanet_lightning.data.decode import opened, rgb
from spanet_lightning.data.faults import Fault, SampleError, UnreadableImageError
from spanet_lightning.data.masks import MaskClasses, read_codes, same_aspect
from spanet_lightning.data.orientation import Meaning, Size, meaning, orientation
from spanet_lightning.errors import SpanetError

Progress = Callable[[str, int, int], None]
"""Is called with what is checked, how many are done, and how many there are."""


class Measured(NamedTuple):
    """An image that decodes to its end.

    Attributes:
        size: As stored.
        orientation: How it is turned, 1 to 8 as EXIF counts.
        digest: The same for images of the same pixels.
    """

    size: Size
    orientation: int
    digest: bytes

    def __str__(self) -> str:
        turned = f" (EXIF-rotated, orientation {self.orientation})"
        return f"{_size(self.size)}{turned if self.orientation > 1 else ''}"


class Checked(NamedTuple):
    """The result of a check.

    Attributes:
        faults: What training would refuse.
        notes: What deserves a look.
    """

    faults: list[Fault]
    notes: list[str]


def check(contents: Contents, progress: Progress) -> Checked:
    """Return all faults of a data set, every image decoded to its end.

    Args:
        contents: What it contains.
        progress: Is told how far the check is.
    """
    faults = list(contents.faults)
    meant: Counter[Meaning] = Counter()
    copies: dict[bytes, list[tuple[str, ImageJob]]] = defaultdict(list)
    look = partial(_look, classes=contents.mask_classes, resize=contents.resize_masks)
    for name, split in contents.splits.items():
        # Decoders release Python's lock, so threads do.
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for done, (job, seen) in enumerate(
                zip(split.jobs, pool.map(look, split.jobs), strict=True), 1
            ):
                progress(f"images of {name}", done, len(split.jobs))
                faults += seen.faults
                if seen.meant is not None:
                    meant[seen.meant] += 1
                if seen.digest:
                    copies[seen.digest].append((name, job))
    notes = [*contents.notes, *notes_on_classes(contents), *_copies(copies.values(), contents)]
    turned = {way: meant[way] for way in ("upright", "stored", "unclear")}
    if contents.layout != "folders" and any(turned.values()):
        notes.append(
            f"EXIF-rotated images: {turned['upright']} annotated upright, {turned['stored']} as "
            f"stored, and {turned['unclear']} whose size does not tell: those are read upright"
        )
    return Checked(faults, notes)


class _Seen(NamedTuple):
    faults: list[Fault]
    meant: Meaning | None = None
    digest: bytes = b""


def _look(job: ImageJob, classes: MaskClasses | None, resize: bool) -> _Seen:
    image = measured(job.path)
    faults = [image._replace(item=job.item)] if isinstance(image, Fault) else []
    stated, file = job.size, job.path
    if job.mask is not None:
        fault, stated = _mask(job.mask, classes)
        file = job.mask
        faults += [fault] if fault else []
    if isinstance(image, Fault):
        return _Seen(faults)
    meant = meaning(image.orientation, image.size, stated)
    if meant == "neither":
        if job.mask is None:
            detail = f"got {image}, expected {_size(stated)} as annotated"
        else:
            scales = stated is not None and same_aspect(image.size, stated)
            if scales and resize:
                return _Seen(faults, "plain", image.digest)
            hint = "; data.masks: resize scales it" if scales else ""
            detail = f"got {_size(stated)}, expected {image} as its image{hint}"
        faults.append(Fault("size mismatch", str(file), job.item, detail))
    return _Seen(faults, meant, image.digest)


def _mask(path: Path, classes: MaskClasses | None) -> tuple[Fault | None, Size | None]:
    """Return the fault of a mask, and its width and height where it can be read."""
    try:
        if classes is None:
            height, width = read_codes(path, by_colour=False)[0].shape
        else:
            height, width = classes.read(path).shape
    except SampleError as error:
        kind = "value beyond the classes"
        if isinstance(error, UnreadableImageError):
            kind = "unreadable mask"
        elif "got colours" in str(error):
            kind = "mask of colours"
        return Fault(kind, str(path), "", str(error).removeprefix(f"mask {path}: ")), None
    return None, (int(width), int(height))


def _copies(groups: Iterable[list[tuple[str, ImageJob]]], contents: Contents) -> Iterator[str]:
    """Yield how many images are in two splits or under two labels."""
    splits, labels = [], []
    for group in groups:
        first = group[0]
        group = [first, *(one for one in group[1:] if one[1].path != first[1].path)]
        splits += [(first, other) for other in group[1:] if other[0] != first[0]][:1]
        labels += [(first, other) for other in group[1:] if other[1].label != first[1].label][:1]
    for where, pairs in (("in two splits", splits), ("under two labels", labels)):
        if pairs:
            (_, one), (_, other) = pairs[0]
            names = " and ".join(_below(job.path, contents.root) for job in (one, other))
            count = f"{len(pairs)} images are" if len(pairs) > 1 else "1 image is"
            yield f"{count} {where}, with the same pixels, such as {names}"


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def measured(path: Path) -> Measured | Fault:
    """Decode an image to its end; return what it is, or its fault."""
    try:
        with opened(path) as image:
            size = image.size
            # A JPEG is decoded at an eighth of its size: every byte is read, in half the time.
            image.draft(image.mode, (1, 1))
            image.load()
            pixels = hashlib.blake2b(repr(size).encode(), digest_size=16)
            pixels.update(rgb(image).tobytes())
            return Measured(size, orientation(image), pixels.digest())
    except FileNotFoundError:
        return Fault("missing image", str(path), "", "there is no such file")
    except SpanetError:
        raise
    except Exception as error:  # a decoder of broken bytes raises anything
        reason = " ".join(str(error).split()) or type(error).__name__
        return Fault("unreadable image", str(path), "", reason)


def _size(size: Iterable[int] | None) -> str:
    return "×".join(map(str, size or ())) + " px"
