"""Names and links of a data set that lead out of it.

Annotations come from anybody, and archives can hold links: neither may choose which files of this
machine are read, predicted on, and drawn into a report.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from spanet_lightning.data.faults import Fault

LINKS_VARIABLE = "SPANET_FOLLOW_LINKS"
"""Environment variable: 1 follows links out of a data set, for those made of links on purpose."""
KIND = "link out of the data set"


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


def links_out(folder: Path, root: Path) -> Iterator[Fault]:
    """Yield each link below a folder that leads out of it and of the data set.

    The folder itself may be a link: whoever configured the run named it.

    Args:
        folder: Where the images are.
        root: The data set.
    """
    if os.environ.get(LINKS_VARIABLE) == "1" or not folder.is_dir():
        return
    inside = tuple(os.path.join(base.resolve(), "") for base in (folder, root))  # noqa: PTH118
    pending = [str(folder)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            # Whether it is a link comes with the listing; nothing is asked for each file.
            for entry in entries:
                if entry.is_symlink():
                    target = os.path.realpath(entry.path)
                    if not target.startswith(inside):
                        detail = f"leads to {target}; {LINKS_VARIABLE}=1 follows it"
                        yield Fault(KIND, entry.path, "", detail)
                elif entry.is_dir():
                    pending.append(entry.path)
