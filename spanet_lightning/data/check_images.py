"""Checks that open each file of a data set: decoded to the end, of the size and kind expected."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from spanet_lightning.data.checks import SampleError, UnreadableImageError
from spanet_lightning.data.decode import opened, rgb
from spanet_lightning.data.faults import Fault
from spanet_lightning.data.masks import MaskClasses, read_codes
from spanet_lightning.data.orientation import Meaning, Size, meaning, orientation
from spanet_lightning.errors import SpanetError

_Job = TypeVar("_Job")
Say = Callable[[int, int], None]  # is told how many of how many are done


class ImageJob(NamedTuple):
    """An image to open.

    Attributes:
        path: Where it is.
        item: The record that names it; empty without one.
        size: Width and height in pixels that it has to have; None takes any.
    """

    path: Path
    item: str = ""
    size: Size | None = None


class MaskJob(NamedTuple):
    """An image and its mask to open.

    Attributes:
        image: The image.
        mask: The mask.
        classes: The classes of masks; None takes any.
    """

    image: Path
    mask: Path
    classes: MaskClasses | None


class Opened(NamedTuple):
    """What a job has found.

    Attributes:
        faults: What is wrong.
        meant: How the image is meant; None where that can't be told.
    """

    faults: list[Fault]
    meant: Meaning | None = None


def image_faults(jobs: list[ImageJob], say: Say, meant: Counter[Meaning]) -> Iterator[Fault]:
    """Yield what is wrong with images; count how they are meant."""
    yield from _each(jobs, _image, say, meant)


def mask_faults(jobs: list[MaskJob], say: Say, meant: Counter[Meaning]) -> Iterator[Fault]:
    """Yield what is wrong with images and their masks; count how the images are meant."""
    yield from _each(jobs, _pair, say, meant)


def _each(
    jobs: list[_Job], check: Callable[[_Job], Opened], say: Say, meant: Counter[Meaning]
) -> Iterator[Fault]:
    # Decoders leave Python's lock, so threads do.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for done, opened in enumerate(pool.map(check, jobs), 1):
            say(done, len(jobs))
            if opened.meant is not None:
                meant[opened.meant] += 1
            yield from opened.faults


def _image(job: ImageJob) -> Opened:
    found = measured(job.path)
    if isinstance(found, Fault):
        return Opened([found._replace(item=job.item)])
    meant = meaning(found.orientation, found.size, job.size)
    if meant != "neither":
        return Opened([], meant)
    detail = f"got {found}, expected {_size(job.size)} as annotated"
    return Opened([Fault("size mismatch", str(job.path), job.item, detail)], meant)


def _pair(job: MaskJob) -> Opened:
    image = measured(job.image)
    faults = [image] if isinstance(image, Fault) else []
    shape: tuple[int, ...] | None = None
    problem: tuple[str, SampleError] | None = None
    try:
        if job.classes is None:
            shape = read_codes(job.mask, by_colour=True)[0].shape
        else:
            shape = tuple(job.classes.read(job.mask).shape)
    except UnreadableImageError as error:
        problem = "unreadable mask", error
    except SampleError as error:
        colours = "got colours" in str(error)
        problem = "mask of colours" if colours else "value beyond the classes", error
    if problem is not None:
        reason = str(problem[1]).removeprefix(f"mask {job.mask}: ")
        faults.append(Fault(problem[0], str(job.mask), "", reason))
    meant: Meaning | None = None
    if isinstance(image, Measured) and shape is not None:
        size = (int(shape[1]), int(shape[0]))
        meant = meaning(image.orientation, image.size, size)
        if meant == "neither":
            detail = f"got {_size(size)}, expected {image} as its image"
            faults.append(Fault("size mismatch", str(job.mask), "", detail))
    return Opened(faults, meant)


class Measured(NamedTuple):
    """An image that decodes to its end.

    Attributes:
        size: As stored.
        orientation: How it is turned, 1 to 8 as EXIF counts.
    """

    size: Size
    orientation: int

    def __str__(self) -> str:
        turned = f" (stored turned, EXIF orientation {self.orientation})"
        return f"{_size(self.size)}{turned if self.orientation > 1 else ''}"


def measured(path: Path) -> Measured | Fault:
    """Decode an image to its end; return what it is, or the fault that it has."""
    try:
        with opened(path) as image:
            size = image.size
            # A JPEG is decoded at an eighth of its size: every byte is read, in half the time.
            image.draft(image.mode, (1, 1))
            image.load()
            rgb(image)
            return Measured(size, orientation(image))
    except FileNotFoundError:
        return Fault("missing image", str(path), "", "there is no such file")
    except SpanetError:
        raise
    except Exception as error:  # a decoder of broken bytes raises anything
        reason = " ".join(str(error).split()) or type(error).__name__
        return Fault("unreadable image", str(path), "", reason)


def _size(size: Iterable[int] | None) -> str:
    return "×".join(map(str, size or ())) + " px"
