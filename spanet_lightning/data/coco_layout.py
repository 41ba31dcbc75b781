"""Where COCO-style data sets keep their annotation files and the images that those name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from spanet_lightning.data.faults import Fault
from spanet_lightning.data.listing import Listing, NearNames, name_fault

SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("train2017", "train", "training"),
    "val": ("val2017", "val", "valid", "validation"),
    "test": ("test2017", "test"),
}
"""Names that the splits have in different exports, COCO's own first."""

_ANNOTATIONS = (
    "annotations/instances_{0}.json",
    "annotations/{0}.json",
    "{0}/_annotations.coco.json",  # Roboflow
    "{0}.json",
)


def annotation_files(root: Path) -> list[Path]:
    """Return the JSON files of the places where COCO-style data sets have their annotations."""
    patterns = ("annotations/*.json", "*/_annotations.coco.json", "*.json")
    return sorted({file for pattern in patterns for file in root.glob(pattern)})


def find_split(root: Path, split: str) -> tuple[str, str] | None:
    """Return the image folder and the annotation file of a split below a root, or None.

    Args:
        root: The data set: COCO's own layout, an export of Roboflow, or annotations by split.
        split: "train", "val" or "test".
    """
    for name in SPLITS[split]:
        for pattern in _ANNOTATIONS:
            file = pattern.format(name)
            if (root / file).is_file():
                return image_folder(root, root / file), file
    return None


def image_folder(root: Path, file: Path) -> str:
    """Return the folder, below a root, that the images of an annotation file are in."""
    if file.parent not in (root, root / "annotations"):
        return file.parent.relative_to(root).as_posix()
    split = file.stem.removeprefix("instances_")
    short = split.rstrip("0123456789")
    named = [split, short, f"images/{split}", f"images/{short}", "images"]
    return next((name for name in named if name and (root / name).is_dir()), ".")


def resolve_names(
    names: Mapping[str, Any], listing: Listing, root: Path, annotations: str
) -> tuple[dict[str, Path], list[Fault]]:
    """Return the file of each image that annotations name, and a fault for each that has none.

    A name is a path below the image folder or below the root. Tools also write paths of the machine
    that exported them, with backslashes, or URLs: then the file in the folder whose path ends like
    it, if there is exactly one. Only files of the folder and the root are ever opened.

    Args:
        names: As the annotations state them, each with the id of its image.
        listing: The files of the image folder.
        root: The data set.
        annotations: The annotation file, for messages.
    """
    folder = listing.folder
    present = {name: folder / name for name in (*listing.names, *listing.others)}
    near = NearNames(present)
    by_end: dict[str, list[str]] = {}
    resolved: dict[str, Path] = {}
    faults = []
    for name, id_ in names.items():
        plain = name.replace("\\", "/").removeprefix("./")
        found = present.get(plain)
        outside = name_fault(name)
        if found is None and outside is None and (root / plain).is_file():
            found = root / plain
        if found is None:
            if not by_end:
                for path in present:
                    by_end.setdefault(PurePosixPath(path).name, []).append(path)
            if re.match(r"[a-z]+://", plain):
                plain = unquote(plain.partition("://")[2].partition("?")[0])
            ends = by_end.get(PurePosixPath(plain).name, [])
            shared = {path: _shared_parts(path, plain) for path in ends}
            best = [path for path in ends if shared[path] == max(shared.values())]
            found = present[best[0]] if len(best) == 1 else None
        if found is not None:
            resolved[name] = found
            continue
        detail = f"there is no such file{near.hint(plain)}"
        if outside is None:
            faults.append(Fault("missing image", str(folder / plain), f"image {id_}", detail))
        else:
            item = f"image {id_} ({name})"
            faults.append(Fault("name out of the folder", annotations, item, outside))
    return resolved, faults


def _shared_parts(path: str, other: str) -> int:
    pairs = zip(reversed(path.split("/")), reversed(other.split("/")), strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(path.split("/")))
