"""The folder of a run: its name, who may write into it, and small files that are always whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from spanet_lightning.errors import ConfigError, invalid

CONFIG_FILE = "config.yaml"
RESUMED_FILE = "config.resumed.yaml"
LOCK_FILE = ".lock"
PATIENCE = 15.0
"""Seconds to wait for a folder: the data loaders of a killed process outlive it by a few."""
_RESERVED = ("sweeps",)  # studies have their folder beside those of runs
_LONGEST = 255 - len("-999")  # bytes that file systems allow, and a number for the next of a name


def check_name(name: str) -> str:
    """Return the name of a run, once it is that of a folder below `trainer.default_root_dir`.

    Raises:
        ConfigError: If it is not, or belongs to something else.
    """
    path = Path(name)
    accepts = ""
    if not name or path.is_absolute() or {"..", "."} & {*path.parts, name}:
        accepts = "the name of a folder below trainer.default_root_dir"
    elif not name.isprintable() or name != name.strip():
        accepts = "a name of printable characters, with no space at either end"
    elif any(len(part.encode()) > _LONGEST for part in path.parts):
        accepts = f"at most {_LONGEST} bytes (this name has {len(name.encode())})"
        name = f"{name[:20]}…"
    elif path.parts[0] in _RESERVED or any(part.startswith(".") for part in path.parts):
        accepts = "another name: hidden folders and 'sweeps' belong to the suite"
    if accepts:
        raise invalid("name", name, accepts)
    return name


def default_name(configs: Sequence[str]) -> str:
    """Name a run after its first configuration: `configs/digits/spanetv2.yaml`, "digits-spanetv2".

    Args:
        configs: Paths of the configurations, as given.
    """
    if not configs:
        return "run"
    path = Path(configs[0])
    if path.name in (CONFIG_FILE, RESUMED_FILE):  # of an earlier run: named as its folder
        return path.resolve().parent.name
    parent = path.resolve().parent.name
    return path.stem if parent in ("", "configs") else f"{parent}-{path.stem}"


def reserve(folder: Path) -> Path:
    """Create a folder that did not exist, so that runs started at once never share one.

    Args:
        folder: Wanted folder; where it is taken, `-2`, `-3`, … is added to its name.

    Returns:
        The folder that was created.
    """
    candidate, number = folder, 1
    while True:
        try:
            candidate.mkdir(parents=True)
        except FileExistsError:
            number += 1
            candidate = folder.with_name(f"{folder.name}-{number}")
        else:
            return candidate


def lock(folder: Path, patience: float = PATIENCE) -> FileLock:
    """Lock a folder for this process: two that save into it would mix two runs.

    Args:
        folder: Folder of a run.
        patience: Seconds to wait for another process.

    Returns:
        What is to be released. A file system without locks locks nothing.

    Raises:
        ConfigError: If another process trains there.
    """
    held = FileLock(folder / LOCK_FILE)
    try:
        held.acquire(timeout=patience)
    except Timeout:
        raise ConfigError(
            f"resume: {folder} is in use: another process trains there; expected a run that has "
            "ended"
        ) from None
    except (OSError, NotImplementedError):
        pass  # no locks here: nobody else can tell either
    return held


def write_text(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
