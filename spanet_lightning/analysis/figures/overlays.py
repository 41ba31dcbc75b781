"""Maps beside, or over, the photographs they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from spanet_lightning.analysis.cam import ClassMap
from spanet_lightning.analysis.figures import style
from spanet_lightning.analysis.figures.store import FigureData
from spanet_lightning.analysis.filters import ContextMaps


def context_data(
    pictures: Sequence[Float[np.ndarray, "_ _ 3"]], found: Sequence[ContextMaps], title: str
) -> FigureData:
    """Return the figure of context maps: a row an image, a panel a stage."""
    arrays: dict[str, np.ndarray] = {}
    for i, (picture, one) in enumerate(zip(pictures, found, strict=True)):
        arrays[f"{i}.image"] = _bytes(picture)
        for stage, values in zip(one.stages, one.maps, strict=True):
            arrays[f"{i}.stage{stage}"] = values
    meta = {"title": title, "images": len(found), "stages": list(found[0].stages)}
    return FigureData("context", meta, arrays)


def cam_data(
    pictures: Sequence[Float[np.ndarray, "_ _ 3"]],
    found: Sequence[Sequence[ClassMap]],
    title: str,
) -> FigureData:
    """Return the figure of class activation maps: a row an image, a panel a model."""
    arrays: dict[str, np.ndarray] = {}
    rows, entries = [], []
    for i, (picture, maps) in enumerate(zip(pictures, found, strict=True)):
        arrays[f"{i}.image"] = _bytes(picture)
        for m, one in enumerate(maps):
            arrays[f"{i}.{m}"] = one.heat
            entry = {"model": one.model, "class": one.target, "probability": one.probability}
            entries.append({"image": i, "panel": m, **entry})
            rows.append({"image": i, **entry})
    meta = {"title": title, "images": len(found), "maps": entries}
    return FigureData("cam", meta, arrays, rows)


def _bytes(picture: np.ndarray) -> np.ndarray:
    whole: np.ndarray = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    return whole


def draw(found: FigureData) -> Any:
    """Draw one of the kinds above."""
    return _draw_cam(found) if found.kind == "cam" else _draw_context(found)


def _panels(found: FigureData, columns: int) -> tuple[Any, Any]:
    shape = found.arrays["0.image"].shape
    wide = 1.9 * max(shape[1] / shape[0], 1)
    high = 1.9 * max(shape[0] / shape[1], 1)
    rows = found.meta["images"]
    figure = style.new(wide * columns + 0.2, (high + 0.2) * rows + 0.4)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _draw_context(found: FigureData) -> Any:
    stages = found.meta["stages"]
    figure, grid = _panels(found, 1 + len(stages))
    for i, row in enumerate(grid):
        style.field(row[0], found.arrays[f"{i}.image"], "image" if i == 0 else "")
        for axes, stage in zip(row[1:], stages, strict=True):
            values = found.arrays[f"{i}.stage{stage}"]
            size = f"{values.shape[0]}×{values.shape[1]}"
            # Interpolated as the official notebook shows them; each on its own scale.
            style.field(axes, values, f"stage {stage}, {size}", interpolation="bilinear")
    figure.suptitle(found.meta["title"], fontsize=10)
    return figure


def _draw_cam(found: FigureData) -> Any:
    import matplotlib as mpl

    entries = found.meta["maps"]
    columns = max(one["panel"] for one in entries) + 1
    figure, grid = _panels(found, 1 + columns)
    colours = mpl.colormaps["inferno"]
    for i, row in enumerate(grid):
        picture = found.arrays[f"{i}.image"] / 255
        style.field(row[0], picture, "image" if i == 0 else "")
        for one in (e for e in entries if e["image"] == i):
            axes = row[1 + one["panel"]]
            heat = found.arrays[f"{i}.{one['panel']}"]
            mixed = 0.5 * picture + 0.5 * colours(heat)[..., :3]
            label = style.short(one["model"], 24)
            style.field(axes, mixed / mixed.max(), label if i == 0 else "")
            axes.set_xlabel(f"class {one['class']}, {100 * one['probability']:.1f} %", fontsize=8)
    figure.suptitle(found.meta["title"], fontsize=10)
    return figure
