"""Faults of a data set and of its samples, as the check lists them and training stops at them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from spanet_lightning.errors import DataError


class Fault(NamedTuple):
    """One thing that is wrong, and where.

    Attributes:
        kind: What kind of fault, in a few words that never change: scripts may count them.
        file: The file that has to be repaired.
        item: The record in it: "annotation 7 of image 3". Empty where it is the file itself.
        detail: What was found, and what is expected.
    """

    kind: str
    file: str
    item: str
    detail: str

    def __str__(self) -> str:
        where = f"{self.file}: {self.item}" if self.item else self.file
        return f"{where}: {self.kind}: {self.detail}"


def refuse(faults: Iterable[Fault], root: str | Path) -> None:
    """Stop at the first fault, if there is any.

    Args:
        faults: Faults, found as they are asked for.
        root: The data set, for the command that lists all of them.

    Raises:
        DataError: That names the first fault, and tells whether there are more.
    """
    rest = iter(faults)
    first = next(rest, None)
    if first is not None:
        # Not counted to the end: a set whose ids are all wrong has a million.
        count = sum(1 for _ in islice(rest, 999))
        some = f"; {count}{' or more' if count == 999 else ''} more like it or other"
        command = f"spanet data check {shlex.quote(str(root))}"
        raise DataError(f"{first}{some if count else ''}; `{command}` lists all faults")


class SampleError(DataError):
    """Something is wrong with one sample; raised where it is read, often in a worker process.

    torch raises the error of a worker again in the training process, with the worker's whole
    traceback as its message. The last line is ours, and all that a user needs.
    """

    def __init__(self, message: str) -> None:
        last_line = message.strip().rsplit("\n", maxsplit=1)[-1]
        super().__init__(last_line.removeprefix(f"{__name__}.{type(self).__name__}: "))


class UnreadableImageError(SampleError):
    """An image can't be decoded."""
