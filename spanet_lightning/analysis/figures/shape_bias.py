"""Shape bias by class, one mark a subject: shape to the left, texture to the right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from spanet_lightning.analysis.decisions import CLASSES
from spanet_lightning.analysis.figures import style
from spanet_lightning.analysis.figures.store import FigureData
from spanet_lightning.analysis.shape_bias import ShapeBias


def data(found: Sequence[ShapeBias], title: str) -> FigureData:
    """Return the figure and the table of subjects."""
    arrays = {
        "classes": np.array([[one.of_class(name) for name in CLASSES] for one in found]),
        "values": np.array([one.value for one in found]),
        "errors": np.array([one.standard_error for one in found]),
    }
    rows = [as_row(one) for one in found]
    meta = {"title": title, "names": [one.name for one in found], "classes": list(CLASSES)}
    return FigureData("shape_bias", meta, arrays, rows)


def as_row(one: ShapeBias) -> dict[str, Any]:
    """Return a subject as a row of a table."""
    return {
        "name": one.name,
        "subjects": one.subjects,
        "trials": one.trials,
        "shape": one.shape,
        "texture": one.texture,
        "dropped_without_conflict": one.dropped,
        "shape_bias": one.value,
        "standard_error": one.standard_error,
        "mean_over_classes": one.mean_over_classes,
        "cue_accuracy": one.cue_accuracy,
        **{name: one.of_class(name) for name in CLASSES},
    }


def draw(found: FigureData) -> Any:
    """Draw the per-class plot."""
    from matplotlib.lines import Line2D

    names, classes = found.meta["names"], found.meta["classes"]
    by_class, values = found.arrays["classes"], found.arrays["values"]
    figure = style.new(7.4, 5.4)
    axes = figure.subplots()
    y = np.arange(len(classes))
    for i, name in enumerate(names):
        look = {**style.line(i), "linestyle": "none"}
        known = not math.isnan(values[i])
        told = f"{values[i]:.3f}" if known else "no decision"
        # One below the other, so that none hides another.
        lower = (i - (len(names) - 1) / 2) * min(0.1, 0.7 / len(names))
        axes.plot(
            1 - by_class[i], y + lower, **look, alpha=0.9, label=f"{style.short(name)}  {told}"
        )
        if known:
            axes.axvline(1 - values[i], color=look["color"], linestyle=style.line(i)["linestyle"])
    axes.set_yticks(y, classes)
    axes.set_ylim(len(classes) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xticks(np.linspace(0, 1, 6), [f"{v:.1f}" for v in np.linspace(0, 1, 6)])
    axes.set_xlabel("share of texture decisions (← shape; texture →)")
    axes.set_ylabel("class of the shape")
    handles, labels = axes.get_legend_handles_labels()
    lines = [Line2D([], [], **style.line(i)) for i in range(len(handles))]
    figure.legend(lines, labels, loc="outside right upper", title="shape bias", handlelength=3.5)
    figure.suptitle(found.meta["title"], fontsize=10)
    return figure
