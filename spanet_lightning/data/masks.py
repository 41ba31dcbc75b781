"""From the pixels of a stored mask to the class of each, and which of them a data set has."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from spanet_lightning.data import class_lists
from spanet_lightning.data.class_lists import Colour
from spanet_lightning.data.decode import opened
from spanet_lightning.data.faults import SampleError
from spanet_lightning.data.images import unreadable
from spanet_lightning.data.transforms import IGNORED
from spanet_lightning.errors import DataError, SpanetError

MAX_SURVEYED = 1000
"""Masks of a split that are read before training where that is not needed to count classes."""


@dataclass(frozen=True)
class MaskClasses:
    """The classes of the pixels of masks.

    Attributes:
        names: Name of each class.
        codes: The code of each class in masks: a value, or a colour as 0xRRGGBB.
        ignored: Codes that do not count.
        palette: Colour of each class.
        by_colour: Whether codes are colours. Grey levels and palette indices then stand for theirs.
    """

    names: tuple[str, ...]
    codes: tuple[int, ...]
    ignored: frozenset[int]
    palette: tuple[Colour, ...]
    by_colour: bool = False

    def read(self, path: Path, index: int | None = None) -> Int64[Tensor, "h w"]:
        """Read a mask.

        Args:
            path: The file.
            index: Its number in the data set, for messages.

        Returns:
            The class of each pixel; 255 where it does not count.

        Raises:
            SampleError: If the mask can't be read, or a pixel is of no class.
        """
        codes = read_codes(path, self.by_colour, index)[0]
        listed = np.array([*self.codes, *self.ignored])
        order = listed.argsort()
        labels = np.array([*range(len(self.codes)), *(IGNORED for _ in self.ignored)])[order]
        found = np.searchsorted(listed[order], codes).clip(max=len(listed) - 1)
        unknown = listed[order][found] != codes
        if unknown.any():
            raise SampleError(f"mask {path}{_at(index)}: {self.describe_unknown(codes[unknown])}")
        return torch.from_numpy(labels[found])

    def describe_unknown(self, codes: np.ndarray) -> str:
        """Return what is wrong with codes of no class."""
        unknown = np.unique(codes).tolist()
        if self.by_colour:
            shown = ", ".join(str(list(class_lists.unpacked(code))) for code in unknown[:5])
            return f"got the colour {shown} at {codes.size} px, expected those of the class list"
        shown = ", ".join(map(str, unknown[:5])) + (", …" if len(unknown) > 5 else "")
        ignored = " or ".join(map(str, sorted(self.ignored)))
        return (
            f"got the value {shown} at {codes.size} px, expected {self.codes[0]} to "
            f"{self.codes[-1]}, the classes, or {ignored}, which do not count"
        )


def read_codes(
    path: Path, by_colour: bool, index: int | None = None
) -> tuple[np.ndarray, list[Colour] | None]:
    """Read the value or the colour (as 0xRRGGBB) of each pixel of a mask, as stored.

    EXIF is not applied: what wrote the labels wrote none.

    Args:
        path: The file.
        by_colour: Whether colours are wanted.
        index: Its number in the data set, for messages.

    Returns:
        The codes, shape (H, W), int64, and the colours of the palette if it has one.

    Raises:
        UnreadableImageError: If it is missing or can't be decoded.
        SampleError: If its pixels are colours and values are wanted.
    """
    try:
        with opened(path) as image:
            image.load()
            palette = image.getpalette() if image.mode == "P" else None
            if by_colour or image.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
                pixels = np.asarray(image.convert("RGB")).astype(np.int64)
            else:
                pixels = np.asarray(image).astype(np.int64)
    except SpanetError:
        raise
    except Exception as error:  # a decoder of broken bytes raises anything
        raise unreadable("mask", path, index, error) from error
    colours: list[Colour] | None = None
    if palette is not None:
        colours = list(zip(palette[::3], palette[1::3], palette[2::3], strict=True))
    if pixels.ndim == 2:
        return pixels, colours
    red, green, blue = np.moveaxis(pixels, -1, 0)
    if by_colour:
        return red << 16 | green << 8 | blue, colours
    if (red == green).all() and (red == blue).all():  # grey levels that were saved as colours
        return red, colours
    some = np.unique(pixels.reshape(-1, 3), axis=0)[:4].tolist()
    raise SampleError(
        f"mask {path}{_at(index)}: got colours such as {', '.join(map(str, some))}, expected one "
        "integer per pixel, the class, or a palette.yaml in the data set's folder with `name: "
        "[r, g, b]` for each class"
    )


@dataclass
class Survey:
    """What masks contain.

    Attributes:
        total: Masks of the split.
        read: Masks that were read.
        pixels: Number of pixels of each code.
        files: The first mask with each code.
        colours: The colour of each code in palettes.
        conflict: Where the palettes of two masks differ in a colour that both use.
    """

    total: int
    read: int = 0
    pixels: Counter[int] = field(default_factory=Counter)
    files: dict[int, Path] = field(default_factory=dict)
    colours: dict[int, Colour] = field(default_factory=dict)
    conflict: str | None = None


def survey(
    masks: Sequence[Path], by_colour: bool, *, skip_bad: bool, whole: bool = False
) -> Survey:
    """Count the codes of masks.

    Args:
        masks: The masks of a split.
        by_colour: Whether codes are colours.
        skip_bad: Whether masks that can't be read are skipped.
        whole: Whether all are read; otherwise at most `MAX_SURVEYED`, at even distances.

    Raises:
        SampleError: If a mask can't be read.
    """
    found = Survey(len(masks))
    step = 1 if whole else -(-len(masks) // MAX_SURVEYED)
    by_index: dict[int, tuple[Colour, Path]] = {}

    def count(index: int) -> tuple[Path, np.ndarray, np.ndarray, list[Colour] | None] | None:
        path = masks[index]
        try:
            codes, palette = read_codes(path, by_colour, index)
        except SampleError:
            if skip_bad:
                return None
            raise
        return path, *np.unique(codes, return_counts=True), palette

    # Decoders release Python's lock, so threads do.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for result in pool.map(count, range(0, len(masks), step or 1)):
            if result is None:
                continue
            path, codes, counts, palette = result
            found.read += 1
            for code, number in zip(codes.tolist(), counts.tolist(), strict=True):
                found.pixels[code] += number
                found.files.setdefault(code, path)
                if palette is None or by_colour or code == IGNORED or code >= len(palette):
                    continue
                colour, first = by_index.setdefault(code, (palette[code], path))
                found.colours[code] = colour
                if colour != palette[code] and found.conflict is None:
                    found.conflict = (
                        f"the palettes of masks differ: index {code} is {list(colour)} in {first} "
                        f"and {list(palette[code])} in {path}"
                    )
    return found


def nothing_to_learn(found: Survey, classes: MaskClasses, *, training: bool) -> str | None:
    """Return why a split can't be trained on or scored, or None.

    Args:
        found: What its masks contain; a sample of them refuses nothing that others may have.
        classes: The classes.
        training: Whether two classes are needed, which training has to tell apart.
    """
    present = [
        name for name, code in zip(classes.names, classes.codes, strict=True) if found.pixels[code]
    ]
    if found.read < found.total or not found.read or len(present) > (1 if training else 0):
        return None
    what = f"pixels of one class alone, {present[0]!r}" if present else "no pixel of a class"
    if classes.by_colour:
        return f"have {what}"
    ignored = sorted(set(found.pixels) & classes.ignored)
    note = f"; {ranges(ignored)} does not count" if ignored else ""
    hint = "; `name: 255` in palette.yaml makes it a class" if IGNORED in ignored else ""
    return f"have {what}: the values are {ranges(found.pixels)}{note}{hint}"


def same_aspect(image: tuple[int, int], mask: tuple[int, int]) -> bool:
    """Whether a mask has the aspect of its image, but for rounding; both as width and height."""
    return abs(image[0] * mask[1] / image[1] - mask[0]) <= 1


def ranges(values: Iterable[int]) -> str:
    """Return numbers as text, consecutive ones as a range: "0 to 3, 7, 255"."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    parts = [f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return ", ".join(parts)


def classes_of(
    listed: class_lists.ClassList | None,
    reduce_zero_label: bool | None,
    num_classes: int | None,
    values: Counter[int] | None,
    where: str,
    colours: Mapping[int, Colour] | None = None,
) -> MaskClasses:
    """Return the classes of a data set.

    Args:
        listed: Its class list.
        reduce_zero_label: Whether 0 does not count; None follows the list, or else the values:
            it does not where no mask has it.
        num_classes: Classes that count; None takes them from the list or the values.
        values: Number of pixels of each value; None with a list.
        where: The data set, for messages.
        colours: The colour of each value in the palettes of the masks.

    Raises:
        DataError: If these contradict each other, or the values are not those of classes.
    """
    if listed is not None:
        first = min(listed.names)
        ignored = listed.ignored()
        if not listed.by_colour:
            # A list that begins at 1 is of the classes that count, as ADE20K's own is.
            drops_zero = first == 1 or 0 in ignored
            if drops_zero if reduce_zero_label is None else reduce_zero_label:
                ignored.add(0)
        codes = [code for code in listed.names if code not in ignored]
        if not listed.by_colour:
            codes.sort()
        own = class_lists.palette(len(codes))
        pairs = zip(codes, own, strict=True)
        palette = [listed.colours.get(code, colour) for code, colour in pairs]
        if listed.by_colour:
            palette = [class_lists.unpacked(code) for code in codes]
        return MaskClasses(
            names=tuple(listed.names[code] for code in codes),
            codes=tuple(codes),
            # A list may give 255 a name, as that of masks of 0 and 255 does.
            ignored=frozenset(ignored if listed.by_colour else {*ignored, IGNORED} - set(codes)),
            palette=tuple(palette),
            by_colour=listed.by_colour,
        )
    occurring = set(values or ()) - {IGNORED}
    if reduce_zero_label is None:
        reduce_zero_label = bool(occurring) and 0 not in occurring
    first = 1 if reduce_zero_label else 0
    counted = occurring - {0} if reduce_zero_label else occurring
    largest = max(counted, default=first)
    how = f"name the classes in {where}/palette.yaml, `name: VALUE` or `name: [r, g, b]` for each"
    if num_classes is None:
        num_classes = largest + 1 - first
        if len(counted) < 2 or num_classes > 2 * len(counted):
            note = " (255 does not count)" if IGNORED in (values or ()) else ""
            note += " (0 does not count: reduce_zero_label)" if 0 in occurring - counted else ""
            raise DataError(
                f"num_classes: the masks of {where} have the values {ranges(values or ())}{note}: "
                f"{len(counted)} of {max(num_classes, 1)} classes would have pixels; {how}, or "
                "set data.num_classes"
            )
    elif largest - first >= num_classes:
        hint = (
            f"num_classes: {largest + 1}, or reduce_zero_label: true if 0 does not count"
            if largest == num_classes and not first
            else how
        )
        raise DataError(
            f"num_classes: the masks of {where} have the values {ranges(values or ())}, expected "
            f"{first} to {num_classes - 1 + first}, or 255, which does not count; {hint}"
        )
    numbers = range(first, num_classes + first)
    stored = [colours[code] for code in numbers if code in (colours or {})] if colours else []
    distinct = len(set(stored)) == num_classes
    return MaskClasses(
        names=tuple(map(str, range(num_classes))),
        codes=tuple(numbers),
        ignored=frozenset({IGNORED, 0} if reduce_zero_label else {IGNORED}),
        palette=tuple(stored if distinct else class_lists.palette(num_classes)),
    )


def _at(index: int | None) -> str:
    return "" if index is None else f" (index {index})"
