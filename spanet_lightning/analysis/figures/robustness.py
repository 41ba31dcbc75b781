"""Accuracy against the frequency that is cut or disturbed, a panel a corruption, a line a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from spanet_lightning.analysis.figures import style
from spanet_lightning.analysis.figures.store import FigureData
from spanet_lightning.analysis.robustness import Robustness

_TITLES = {
    "low": ("only frequencies up to the radius", "radius, cycles per side"),
    "high": ("only frequencies beyond the radius", "radius, cycles per side"),
    "noise": ("noise in a band", "middle of the band, cycles per side"),
}


def data(found: Sequence[Robustness], title: str) -> FigureData:
    """Return the figure and its table."""
    arrays, entries, rows = {}, [], []
    for i, one in enumerate(found):
        arrays[f"{i}.radii"] = np.array(one.radii)
        arrays[f"{i}.accuracy"] = np.array(one.accuracy)
        entries.append({"model": one.model, "corruption": one.corruption, "clean": one.clean})
        rows += [
            {
                "model": one.model,
                "corruption": one.corruption,
                "radius": radius,
                "accuracy": accuracy,
                "clean": one.clean,
                "images": one.images,
                "right_means": "as without corruption" if one.agreement else "the label",
            }
            for radius, accuracy in zip(one.radii, one.accuracy, strict=True)
        ]
    agreement = any(one.agreement for one in found)
    label = "agreement with the clean decision" if agreement else "top-1 accuracy"
    meta = {"title": title, "curves": entries, "label": label}
    return FigureData("robustness", meta, arrays, rows)


def draw(found: FigureData) -> Any:
    """Draw the curves."""
    curves = found.meta["curves"]
    kinds = list(dict.fromkeys(one["corruption"] for one in curves))
    models = list(dict.fromkeys(one["model"] for one in curves))
    figure = style.new(3.3 * len(kinds) + 0.3, 3.3)
    grid = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    for axes, kind in zip(grid, kinds, strict=True):
        for i, one in enumerate(curves):
            if one["corruption"] != kind:
                continue
            look = style.line(models.index(one["model"]))
            x = found.arrays[f"{i}.radii"]
            axes.plot(x, found.arrays[f"{i}.accuracy"], **look, label=style.short(one["model"]))
            axes.axhline(one["clean"], color=look["color"], linewidth=0.7, alpha=0.6)
            axes.set_xticks(x, [f"{v:g}" for v in x])
        axes.set_xscale("log", base=2)
        axes.set_xticks(x, [f"{v:g}" for v in x])
        axes.minorticks_off()
        axes.set_title(_TITLES[kind][0])
        axes.set_xlabel(_TITLES[kind][1])
    grid[0].set_ylim(0, 1.03)
    grid[0].set_ylabel(found.meta["label"])
    handles = grid[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=min(len(models), 3))
    figure.suptitle(f"{found.meta['title']} (thin lines: without corruption)", fontsize=10)
    return figure
