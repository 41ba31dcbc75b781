"""What data a run was on: counts, and a digest that changes when the data does.

**What the digest of files is made of**, so that it takes well under a second for a thousand files
and seconds for a million:

- the name of every file, below the folder that all are in;
- the size of every file, or, of more than 100,000, of the sample below;
- the first MiB of a sample of 256 files at even distances among the sorted names, so that the same
  files are looked into on every machine;
- files that say what is in the others (annotations in JSON, lists of classes), to their end.

Times and owners are no part of it: a copy of the data is the same data. An image outside of the
sample that was changed and kept its size goes unnoticed.
"""

# Paths are text here: for a million of them, pathlib takes ten times as long.
# ruff: noqa: PTH100, PTH116, PTH118, PTH123

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SAMPLE = 256  # files that are looked into
_HEAD = 1 << 20  # bytes of them
_MOST_SIZES = 100_000  # files whose sizes are all asked for: a second or a few, on a local disk
_DIGITS = 32  # hexadecimal digits of a digest; MLflow takes 36


@dataclass(frozen=True)
class DataIdentity:
    """What data a run is on.

    Attributes:
        name: Short name, to find runs on the same data by.
        source: Where it comes from: a path, or the name of what is embedded.
        digest: 32 hexadecimal digits; the same for the same data, wherever it is.
        images: Number of images of each split.
        classes: Number of classes; None where unknown.
        covers: What the digest is made of, in words.
    """

    name: str
    source: str
    digest: str
    images: Mapping[str, int]
    classes: int | None
    covers: str

    def profile(self) -> dict[str, Any]:
        """Return what the tracker keeps beside name, source and digest."""
        return {"images": dict(self.images), "classes": self.classes, "digest": self.covers}


def digest(*parts: bytes | str) -> str:
    """Return 32 hexadecimal digits of SHA-256 over some parts, whose borders count."""
    found = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        found.update(len(raw).to_bytes(8, "big"))
        found.update(raw)
    return found.hexdigest()[:_DIGITS]


def digest_files(root: Path, files: Iterable[Path | str], whole: Sequence[Path] = ()) -> str:
    """Return the digest of a data set of files, as this module describes it.

    Args:
        root: Folder that names are taken below, where they are below it.
        files: The images and masks, in any order.
        whole: Files that count to their end.
    """
    # Both as they are written and as they are: a path of a million is not made absolute in vain.
    bases = tuple(os.path.join(base, "") for base in (os.fspath(root), os.path.abspath(root)))
    by_name = {_below(os.fspath(file), bases): os.fspath(file) for file in files}
    names = sorted(by_name)
    found = hashlib.sha256("\0".join(names).encode(errors="surrogateescape"))
    step = max(1, len(names) // _SAMPLE)
    sample = names[::step][:_SAMPLE]
    for name in names if len(names) <= _MOST_SIZES else sample:
        found.update(b"%d\0" % _size(by_name[name]))
    for name in sample:
        found.update(_head(by_name[name]))
    for path in whole:
        with path.open("rb") as stream:
            found.update(_below(str(path), bases).encode() + b"\0")
            found.update(hashlib.file_digest(stream, "sha256").digest())
    return found.hexdigest()[:_DIGITS]


def identify(data: Any) -> DataIdentity:
    """Return what data a data module reads, once it is set up.

    Args:
        data: A data module; one with a method `identity` tells by itself. Of any other, the class
            and what can be counted are all that is known.
    """
    own = getattr(data, "identity", None)
    if callable(own):
        found: DataIdentity = own()
        return found
    name = type(data).__name__
    classes = getattr(data, "num_classes", None)
    known = {"class": name, "classes": classes, "root": str(getattr(data, "root", ""))}
    return DataIdentity(
        name=name,
        source=known["root"] or f"{type(data).__module__}.{name}",
        digest=digest(json.dumps(known, sort_keys=True, default=str)),
        images={},
        classes=classes,
        covers="the class of the data module and its number of classes, not the files",
    )


def _below(path: str, bases: tuple[str, ...]) -> str:
    """Return a path as seen from a folder, with slashes; in full where it is elsewhere."""
    for base in bases:
        if path.startswith(base):
            return path[len(base) :].replace(os.sep, "/")
    full = os.path.abspath(path)
    return full.removeprefix(bases[-1]).replace(os.sep, "/")


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # inside an archive, or gone: reading it is training's to complain of
        return -1


def _head(path: str) -> bytes:
    try:
        with open(path, "rb") as stream:
            return hashlib.sha256(stream.read(_HEAD)).digest()
    except OSError:
        return b"-"
