"""What a figure is drawn from, and how it is kept: NAME.npz beside NAME.svg and NAME.png."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from spanet_lightning.analysis.figures import style
from spanet_lightning.errors import ConfigError, DataError

FORMATS = ("svg", "png")
_KEY = "figure.json"  # the array of the .npz that holds what is no array

Target = TypeVar("Target", Path, io.BytesIO)

# Which module draws a kind: its function `draw(data)` returns a matplotlib figure.
_DRAWN_BY = {
    "response": "response",
    "response_matrix": "response",
    "mixers": "response",
    "spectrum": "spectrum",
    "spectrum_maps": "spectrum",
    "gates": "filters",
    "gate_profiles": "filters",
    "context": "overlays",
    "cam": "overlays",
    "shape_bias": "shape_bias",
    "robustness": "robustness",
}


@dataclass(frozen=True)
class FigureData:
    """All that a figure needs.

    Attributes:
        kind: Which drawing it is.
        meta: What is no array: labels, titles, options; plain JSON values.
        arrays: What is drawn.
        table: Rows for people, written as NAME.csv; not read again.
    """

    kind: str
    meta: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]
    table: Sequence[Mapping[str, Any]] = field(default=())


def require_matplotlib() -> None:
    """Make sure that figures can be drawn.

    Raises:
        ConfigError: If matplotlib is missing.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("figures: need matplotlib; install it with pip install matplotlib")


def save(folder: Path, name: str, data: FigureData) -> list[Path]:
    """Write a figure's data, its table and its pictures.

    Args:
        folder: Where; made if it is not there.
        name: Of the files, without suffix.
        data: What is drawn.

    Returns:
        The files.

    Raises:
        ConfigError: If the folder can't be made, or matplotlib is missing.
    """
    require_matplotlib()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output: {folder} can't be made ({error.strerror})") from None
    written = [save_data(folder / f"{name}.npz", data)]
    if data.table:
        written.append(write_csv(folder / f"{name}.csv", data.table))
    return written + _draw(folder, name, data)


def save_data(path: Path, data: FigureData) -> Path:
    """Write what a figure is drawn from, its table left out, and return the file."""
    told = json.dumps({"kind": data.kind, "meta": dict(data.meta)}, ensure_ascii=False)
    arrays: dict[str, Any] = {_KEY: np.array(told), **data.arrays}
    np.savez_compressed(path, **arrays)
    return path


def picture(data: FigureData) -> Image.Image:
    """Return a figure as a picture in memory."""
    written = _write(data, io.BytesIO(), "png")
    return Image.open(written).convert("RGB")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows that have the same columns, and return the file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def load(path: Path) -> FigureData:
    """Read a figure's data.

    Raises:
        DataError: If the file is none of ours.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            told = json.loads(str(file[_KEY]))
            arrays = {key: file[key] for key in file.files if key != _KEY}
        return FigureData(told["kind"], told["meta"], arrays)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not the data of a figure ({error})") from None


def redraw(folder: Path) -> list[Path]:
    """Draw all figures of a folder again, each from its data alone.

    Args:
        folder: Searched with its sub-folders; or one file.

    Returns:
        The pictures.

    Raises:
        DataError: If there is nothing to draw, or a file is none of ours.
    """
    require_matplotlib()
    if folder.is_file():
        files = [folder]
    else:
        files = sorted(folder.rglob("*.npz")) if folder.is_dir() else []
    if not files:
        raise DataError(f"{folder}: no figure's data (.npz) there")
    return [made for file in files for made in _draw(file.parent, file.stem, load(file))]


def _draw(folder: Path, name: str, data: FigureData) -> list[Path]:
    if data.kind not in _DRAWN_BY:
        raise DataError(f"{folder / name}.npz: is a figure of kind {data.kind!r}, which none draws")
    return [_write(data, folder / f"{name}.{suffix}", suffix) for suffix in FORMATS]


def _write(data: FigureData, to: Target, suffix: str) -> Target:
    """Draw into a file, or into memory."""
    module = importlib.import_module(f"{__package__}.{_DRAWN_BY[data.kind]}")
    metadata = {"Date": None} if suffix == "svg" else {"Software": None}
    with style.house():
        # Tight: the layout leaves no room for the labels of images, which have no ticks.
        module.draw(data).savefig(
            to,
            format=suffix,
            dpi=style.DPI,
            metadata=metadata,
            bbox_inches="tight",
            pad_inches=0.05,
        )
    return to
