"""Checks that open each file of a data set: decoded to the end, of the size and kind expected."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from PIL import Image

from spanet_lightning.data.checks import SampleError, UnreadableImageError
from spanet_lightning.data.faults import Fault
from spanet_lightning.data.images import read_mask
from spanet_lightning.data.segmentation_transforms import IGNORED

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
    size: tuple[int, int] | None = None


class MaskJob(NamedTuple):
    """An image and its mask to open.

    Attributes:
        image: The image.
        mask: The mask.
        classes: Values that are classes: from the first to the second; None takes any.
    """

    image: Path
    mask: Path
    classes: tuple[int, int] | None


def image_faults(jobs: list[ImageJob], say: Say) -> Iterator[Fault]:
    """Yield what is wrong with images."""
    yield from _each(jobs, _image, say)


def mask_faults(jobs: list[MaskJob], say: Say) -> Iterator[Fault]:
    """Yield what is wrong with images and their masks."""
    yield from _each(jobs, _pair, say)


def _each(jobs: list[_Job], check: Callable[[_Job], list[Fault]], say: Say) -> Iterator[Fault]:
    # Decoders leave Python's lock, so threads do.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for done, faults in enumerate(pool.map(check, jobs), 1):
            say(done, len(jobs))
            yield from faults


def _image(job: ImageJob) -> list[Fault]:
    size, fault = measured(job.path)
    if fault is not None:
        return [fault._replace(item=job.item)]
    if job.size is not None and size != job.size:
        detail = f"got {_size(size)}, expected {_size(job.size)} as annotated"
        return [Fault("size mismatch", str(job.path), job.item, detail)]
    return []


def _pair(job: MaskJob) -> list[Fault]:
    size, fault = measured(job.image)
    faults = [] if fault is None else [fault]
    try:
        mask = read_mask(job.mask)
    except UnreadableImageError as error:
        reason = str(error).removeprefix(f"mask {job.mask}: ")
        return [*faults, Fault("unreadable mask", str(job.mask), "", reason)]
    except SampleError as error:
        reason = str(error).removeprefix(f"mask {job.mask}: ")
        return [*faults, Fault("mask of colours", str(job.mask), "", reason)]
    shape = (int(mask.shape[1]), int(mask.shape[0]))
    if size is not None and size != shape:
        detail = f"got {_size(shape)}, expected {_size(size)} as its image"
        faults.append(Fault("size mismatch", str(job.mask), "", detail))
    if job.classes is not None:
        first, last = job.classes
        wrong = mask[((mask < first) | (mask > last)) & (mask != IGNORED)]
        if len(wrong):
            values = torch.unique(wrong).tolist()
            shown = ", ".join(map(str, values[:5])) + (", …" if len(values) > 5 else "")
            detail = f"got {shown} at {len(wrong)} px, expected {first} to {last}, or {IGNORED}"
            faults.append(Fault("value beyond the classes", str(job.mask), "", detail))
    return faults


def measured(path: Path) -> tuple[tuple[int, int] | None, Fault | None]:
    """Return width and height of an image that decodes to its end, or the fault that it has."""
    try:
        with Image.open(path) as image:
            size = image.size
            # A JPEG is decoded at an eighth of its size: every byte is read, in half the time.
            image.draft(image.mode, (1, 1))
            image.load()
    except FileNotFoundError:
        return None, Fault("missing image", str(path), "", "there is no such file")
    except Exception as error:  # a decoder of broken bytes raises anything
        reason = " ".join(str(error).split()) or type(error).__name__
        return None, Fault("unreadable image", str(path), "", reason)
    return size, None


def _size(size: Iterable[int] | None) -> str:
    return "×".join(map(str, size or ())) + " px"
