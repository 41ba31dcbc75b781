"""Relative log-amplitudes of feature maps, and their two-dimensional spectra."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from spanet_lightning.analysis.figures import style
from spanet_lightning.analysis.figures.store import FigureData
from spanet_lightning.analysis.spectrum import MapSpectrum, ModelSpectrum


def data(found: Sequence[ModelSpectrum], *, radial: bool, title: str) -> FigureData:
    """Return the figure of curves, a panel a model.

    Args:
        found: The models.
        radial: Draw the mean over rings instead of the diagonal.
        title: Of the figure.
    """
    arrays, rows, entries = {}, [], []
    for m, model in enumerate(found):
        for one in model.drawn():
            curve = one.radial if radial else one.relative
            arrays[f"{m}.{one.index}"] = curve
            rows += [
                {
                    "model": model.label,
                    "map": one.index,
                    "module": one.tap.name,
                    "stage": one.tap.stage,
                    "block": one.tap.block,
                    "frequency": x,
                    "delta": y,
                }
                for x, y in zip(np.linspace(0, 1, len(curve)), curve, strict=True)
            ]
        entries.append(
            {
                "label": model.label,
                "images": model.images,
                "maps": len(model.maps),
                "drawn": [
                    {"index": one.index, "stage": one.tap.stage, "size": len(one.log_amplitude)}
                    for one in model.drawn()
                ],
            }
        )
    meta = {"title": title, "models": entries, "radial": radial}
    return FigureData("spectrum", meta, arrays, rows)


def maps_data(found: Sequence[ModelSpectrum], title: str) -> FigureData:
    """Return the figure of log-amplitudes in two dimensions.

    Of each stage the last map; of a model of one stage four maps, evenly spread.
    """
    arrays, entries = {}, []
    for m, model in enumerate(found):
        panels = []
        for i, one in enumerate(_shown(model)):
            arrays[f"{m}.{i}"] = one.log_amplitude
            size = "×".join(map(str, one.log_amplitude.shape))
            panels.append(f"stage {one.tap.stage}, block {one.tap.block}, {size}")
        entries.append({"label": model.label, "panels": panels})
    return FigureData("spectrum_maps", {"title": title, "models": entries}, arrays)


def _shown(model: ModelSpectrum) -> list[MapSpectrum]:
    drawn = model.drawn()
    last = {one.tap.stage: one for one in drawn}
    if len(last) > 1 or len(drawn) < 4:
        return list(last.values())
    return [drawn[round((i + 1) * len(drawn) / 4) - 1] for i in range(4)]


def draw(found: FigureData) -> Any:
    """Draw one of the kinds above."""
    return _draw_maps(found) if found.kind == "spectrum_maps" else _draw_curves(found)


def _draw_curves(found: FigureData) -> Any:
    import matplotlib as mpl

    models = found.meta["models"]
    columns = min(3, len(models))
    lines = -(-len(models) // columns)
    figure = style.new(3.3 * columns + 0.8, 2.9 * lines + 0.5)
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
    colours = mpl.colormaps[style.DEPTH]
    for m, (axes, model) in enumerate(zip(grid, models, strict=False)):
        for one in model["drawn"]:
            curve = found.arrays[f"{m}.{one['index']}"]
            x = np.linspace(0, 1, len(curve))
            # As published, the colour is the map's place among all, down-sampling layers included.
            colour = colours(one["index"] / model["maps"])
            dash = style.DASHES[(one["stage"] - 1) % len(style.DASHES)]
            axes.plot(x, curve, color=colour, linestyle=dash)
        axes.set_title(style.short(model["label"], 40))
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0.0π", "", "0.5π", "", "1.0π"])
        axes.set_xlabel("radius" if found.meta["radial"] else "frequency (diagonal)")
    for axes in grid[::columns]:
        axes.set_ylabel("Δ log amplitude")
    for axes in grid[len(models) :]:
        axes.set_visible(False)
    bar = mpl.cm.ScalarMappable(cmap=colours)
    figure.colorbar(bar, ax=list(grid), label="normalised depth", shrink=0.8)
    stages = sorted({one["stage"] for model in models for one in model["drawn"]})
    style.stage_legend(figure, stages)
    figure.suptitle(found.meta["title"], fontsize=10)
    return figure


def _draw_maps(found: FigureData) -> Any:
    models = found.meta["models"]
    columns = max(len(model["panels"]) for model in models)
    figure = style.new(1.75 * columns + 0.9, 1.85 * len(models) + 0.4)
    grid = figure.subplots(len(models), columns, squeeze=False)
    image = None
    for m, model in enumerate(models):
        for axes in grid[m]:
            axes.set_visible(False)
        for i, (axes, name) in enumerate(zip(grid[m], model["panels"], strict=False)):
            axes.set_visible(True)
            values = found.arrays[f"{m}.{i}"]
            height, width = values.shape
            # The lone frequency -n/2 of an even side is drawn once, at the top and left.
            values = values - values[height // 2, width // 2]
            image = style.field(axes, values, name, vmin=-5, vmax=0)
        grid[m][0].set_ylabel(style.short(model["label"], 22), fontsize=8)
    figure.colorbar(image, ax=grid, label="log amplitude less that at 0", shrink=0.8, extend="both")
    figure.suptitle(found.meta["title"], fontsize=10)
    return figure
