"""Samples that can't be used: a run stops at the first, or leaves them all out from the start.

Under "skip" every file of a split is read once before training, by the very function that training
reads by. What it can't use is left out of the index, so order, batches and what is evaluated are
the same in every epoch, after a resume, and for any number of workers or processes. Leaving a
sample out while batches are made could keep none of that. Nothing ever takes a sample's place.

The list is kept in the cache folder, under a key made of the names, sizes and times of the files
and of whatever decides on them: a second run reads no image.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import PIL
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_info

from spanet_lightning.cache import cache_folder
from spanet_lightning.data.decode import max_pixels
from spanet_lightning.data.faults import SampleError
from spanet_lightning.data.samplers import processes
from spanet_lightning.errors import DataError, invalid, invalid_choice

OnBadSample = Literal["fail", "skip"]
FILE = "bad_samples.csv"
_SECONDS = 30.0  # between two lines of a long look
_READERS = 8  # threads at most: decoders leave Python's lock


class BadSample(NamedTuple):
    """A sample that can't be used.

    Attributes:
        number: Its index in the split, as listed before anything was left out.
        file: The image.
        reason: What is wrong.
    """

    number: int
    file: str
    reason: str


class Split(NamedTuple):
    """A split as it was looked at.

    Attributes:
        size: Samples in it.
        bad: Those that can't be used, in order.
    """

    size: int
    bad: list[BadSample]


class BadSamples:
    """What to do with samples that can't be used, and which were found.

    Args:
        policy: "fail" leaves it to whoever reads; "skip" looks for them beforehand.
        most: Largest share of a split that may be left out; one sample always may.

    Attributes:
        found: Each split that was looked at.

    Raises:
        ConfigError: If a value is out of its range.
    """

    def __init__(self, policy: OnBadSample, most: float) -> None:
        if policy not in get_args(OnBadSample):
            raise invalid_choice("on_bad_sample", policy, get_args(OnBadSample))
        if not 0 <= most < 1:
            raise invalid("max_bad_samples", most, "a share of a split, in [0, 1)")
        self.policy = policy
        self.most = most
        self.found: dict[str, Split] = {}

    @property
    def skips(self) -> bool:
        """Whether samples that can't be used are left out."""
        return self.policy == "skip"

    def kept(
        self,
        split: str,
        numbers: Sequence[int],
        files: Sequence[Sequence[str]],
        read: Callable[[int], object],
        settings: Any = None,
    ) -> list[int]:
        """Return the numbers of the samples that can be used; all of them under "fail".

        Args:
            split: Name of the split.
            numbers: The samples that are asked for, by their numbers in the split.
            files: The files of each of them, the image first.
            read: Reads a sample; raises `SampleError` for one that can't be used.
            settings: What else decides on them, as JSON takes it.

        Raises:
            DataError: If there are more bad ones than may be left out, or nothing else.
        """
        if not self.skips:
            return list(numbers)
        bad = _looked(split, numbers, files, read, settings)
        self.found[split] = Split(len(numbers), bad)
        allowed = max(1, int(self.most * len(numbers)))
        if len(bad) > allowed or len(bad) == len(numbers):
            first = bad[0]
            raise DataError(
                f"max_bad_samples: got {self.most:g}, at most {allowed} of the {len(numbers)} "
                f"samples of {split}, but {len(bad)} can't be used, such as {first.reason}"
            )
        left_out = {sample.number for sample in bad}
        return [number for number in numbers if number not in left_out]

    def line(self) -> str:
        """Return how many are left out of each split, in one line."""
        counts = (f"{len(s.bad)} of {s.size} of {name}" for name, s in self.found.items())
        return f"Bad samples left out: {', '.join(counts)}"

    def table(self) -> str:
        """Return all that are left out as CSV: split, index, file, reason."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(("split", "index", "file", "reason"))
        for name, split in self.found.items():
            rows.writerows((name, *sample) for sample in split.bad)
        return text.getvalue()


def _looked(
    split: str,
    numbers: Sequence[int],
    files: Sequence[Sequence[str]],
    read: Callable[[int], object],
    settings: Any,
) -> list[BadSample]:
    """Return the bad samples, from the cache or by reading all; every process gets the same."""
    file = cache_folder() / "bad_samples" / f"{_key(numbers, files, settings)}.json"
    many, rank = processes()
    # What one process knows all take: who reads and who doesn't must not differ.
    known = next((one for one in _gathered(_remembered(file), many) if one is not None), None)
    if known is None:
        rank_zero_info(
            f"on_bad_sample is skip: reading the {len(numbers)} samples of {split} once."
        )
        began = time.perf_counter()
        share = list(range(rank, len(numbers), many))
        parts = _gathered(list(_read(share, numbers, files, read)), many)
        known = sorted(sample for part in parts for sample in part)
        seconds = time.perf_counter() - began
        rank_zero_info(f"Read {len(numbers) / max(seconds, 1e-9):.0f} samples/s, {len(known)} bad.")
        if rank == 0:
            _remember(file, known)
    return known


def _read(
    share: Sequence[int],
    numbers: Sequence[int],
    files: Sequence[Sequence[str]],
    read: Callable[[int], object],
) -> Iterator[BadSample]:
    def look(place: int) -> BadSample | None:
        try:
            read(numbers[place])
        except SampleError as error:
            return BadSample(numbers[place], files[place][0], str(error))
        return None

    said = time.perf_counter()
    with ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1)) as pool:
        for done, bad in enumerate(pool.map(look, share), 1):
            if bad is not None:
                yield bad
            if time.perf_counter() - said > _SECONDS:
                said = time.perf_counter()
                rank_zero_info(f"{done} of {len(share)} are read.")


def _gathered(mine: Any, many: int) -> list[Any]:
    if many == 1:
        return [mine]
    found: list[Any] = [None] * many
    dist.all_gather_object(found, mine)
    return found


def _key(numbers: Sequence[int], files: Sequence[Sequence[str]], settings: Any) -> str:
    found = hashlib.sha256()
    what = [1, PIL.__version__, max_pixels(), settings]
    found.update(json.dumps(what, sort_keys=True, default=str).encode())
    for number, some in zip(numbers, files, strict=True):
        found.update(b"%d\0" % number)
        for file in some:
            size, when = -1, -1
            with suppress(OSError):  # gone, or a link that leads nowhere: reading will say so
                state = Path(file).stat()
                size, when = state.st_size, state.st_mtime_ns
            name = str(Path(file).absolute()).encode(errors="surrogateescape")
            found.update(b"%s\0%d\0%d\0" % (name, size, when))
    return found.hexdigest()


def _remembered(file: Path) -> list[BadSample] | None:
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        return [BadSample(int(index), str(path), str(why)) for index, path, why in rows]
    except (OSError, ValueError, TypeError):
        return None


def _remember(file: Path, bad: list[BadSample]) -> None:
    with suppress(OSError):  # the next run reads them again
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{file.name}.{os.getpid()}")
        partial.write_text(json.dumps(bad), encoding="utf-8")
        partial.replace(file)
