"""Frequency responses of mixers: curves with their spread and cut-off, and whole matrices."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from spanet_lightning.analysis.figures import style
from spanet_lightning.analysis.figures.store import FigureData
from spanet_lightning.analysis.random_mixers import Choices
from spanet_lightning.analysis.response import HALF_POWER, MINUS_3_DB, Response


def data(found: Sequence[Response], choices: Choices, title: str) -> FigureData:
    """Return the figure of random mixers: a panel each, and one of their cut-offs.

    Args:
        found: Responses; the last is attention's.
        choices: What they were drawn with.
        title: Of the figure.
    """
    arrays: dict[str, np.ndarray] = {}
    cuts, rows = [], []
    rule: Any = {"rule": choices.rule, "reference": choices.reference}
    for i, one in enumerate(found):
        half, decibel = (one.cut_offs(level, **rule) for level in (HALF_POWER, MINUS_3_DB))
        ratio = one.high_over_low()
        arrays |= {
            f"{i}.frequencies": one.frequencies,
            f"{i}.multiplicities": one.multiplicities,
            f"{i}.draws": one.draws,
            f"{i}.cut_offs": half,
        }
        cuts.append(float(np.median(half)))
        rows.append(
            {
                "mixer": one.name,
                "draws": len(one.draws),
                "cut_off_half_power_median": np.median(half),
                "cut_off_half_power_q1": np.percentile(half, 25, method="nearest"),
                "cut_off_half_power_q3": np.percentile(half, 75, method="nearest"),
                "cut_off_minus_3_db_median": np.median(decibel),
                "high_over_low_median": np.median(ratio),
                "high_over_low_mean": ratio.mean(),
                "high_over_low_std": ratio.std(),
            }
        )
    meta = {"title": title, "names": [one.name for one in found], "cut_offs": cuts}
    return FigureData("response", meta, arrays, rows)


def matrix_data(matrices: Sequence[np.ndarray], names: Sequence[str], title: str) -> FigureData:
    """Return the figure of |Uᵀ C U| of several mixers, in decibels."""
    arrays = {str(i): one.astype(np.float32) for i, one in enumerate(matrices)}
    return FigureData("response_matrix", {"title": title, "names": list(names)}, arrays)


def mixers_data(found: Sequence[Any], title: str) -> FigureData:
    """Return the figure of a model's own mixers, one line a mixer, one panel a model.

    Args:
        found: `mixers.MixerResponse`s, of any number of models.
        title: Of the figure.
    """
    arrays: dict[str, np.ndarray] = {}
    rows, entries = [], []
    for i, one in enumerate(found):
        arrays |= {
            f"{i}.frequencies": one.response.frequencies,
            f"{i}.draws": one.response.draws,
        }
        entries.append({"model": one.model, "name": one.tap.name, "stage": one.tap.stage})
        ratio = one.response.high_over_low()
        rows.append(
            {
                "model": one.model,
                "mixer": one.tap.name,
                "stage": one.tap.stage,
                "block": one.tap.block,
                "how": one.how,
                "grid": f"{one.grid[0]}x{one.grid[1]}",
                "response_at_0": one.response.mean[0],
                "cut_off_half_power": np.median(one.response.cut_offs()),
                "high_over_low": np.median(ratio),
                "leakage": one.leakage,
            }
        )
    return FigureData("mixers", {"title": title, "mixers": entries}, arrays, rows)


def draw(found: FigureData) -> Any:
    """Draw one of the kinds above."""
    if found.kind == "response_matrix":
        return _draw_matrix(found)
    return _draw_mixers(found) if found.kind == "mixers" else _draw_random(found)


def _draw_random(found: FigureData) -> Any:
    names, cuts = found.meta["names"], found.meta["cut_offs"]
    panels = len(names) + 1
    columns = min(3, panels)
    lines = -(-panels // columns)
    figure = style.new(3.4 * columns, 2.5 * lines + 0.3)
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    peak = max(np.abs(found.arrays[f"{i}.draws"]).mean(0).max() for i in range(len(names)))
    for i, name in enumerate(names):
        axes = grid[i]
        draws = np.abs(found.arrays[f"{i}.draws"])
        x, mean, spread = found.arrays[f"{i}.frequencies"], draws.mean(0), draws.std(0)
        colour = style.COLOURS[0]
        axes.fill_between(x, np.maximum(mean - spread, 0), mean + spread, color=colour, alpha=0.25)
        axes.plot(x, mean, color=colour, marker="o", markersize=2.2, linewidth=1)
        if np.isfinite(cuts[i]):
            axes.axvline(cuts[i], color=style.COLOURS[1], linestyle="--")
            right = cuts[i] < 0.9
            axes.annotate(
                f"cut-off {cuts[i]:.3f}",
                (cuts[i], 0.93),
                xycoords=("data", "axes fraction"),
                xytext=(4 if right else -4, 0),
                textcoords="offset points",
                ha="left" if right else "right",
                color=style.COLOURS[1],
            )
        axes.set(xlim=(-0.04, 1.5), ylim=(0, 1.08 * peak))
        axes.set_title(f"({string.ascii_lowercase[i]}) {name}")
        axes.set_xlabel("frequency (eigenvalue λ of the mixer's graph)")
        axes.set_ylabel("|response|")
    last = grid[len(names)]
    positions = range(len(names))
    spreads = [np.percentile(found.arrays[f"{i}.cut_offs"], (25, 75)) for i in positions]
    finite = [i for i in positions if np.isfinite(cuts[i])]
    for i in finite:
        low, high = spreads[i]
        if np.isfinite(high):
            last.plot([i, i], [low, high], color=style.MUTED, linewidth=4, alpha=0.4)
    last.plot(finite, [cuts[i] for i in finite], **style.line(1))
    last.set_xticks(positions, [n.replace("convolution ", "").replace("self-", "") for n in names])
    last.set_ylim(0, 1.1 * max([1.0, *(cuts[i] for i in finite)]))
    last.set_title(f"({string.ascii_lowercase[len(names)]}) median cut-off")
    last.set_ylabel("frequency λ")
    for axes in grid[panels:]:
        axes.set_visible(False)
    figure.suptitle(found.meta["title"], fontsize=10)
    return figure


def _draw_matrix(found: FigureData) -> Any:
    names = found.meta["names"]
    figure = style.new(2.2 * len(names) + 0.6, 2.7)
    grid = figure.subplots(1, len(names), squeeze=False)[0]
    image = None
    for i, (axes, name) in enumerate(zip(grid, names, strict=True)):
        decibels = 20 * np.log10(np.maximum(found.arrays[str(i)], 1e-4))
        image = style.field(axes, decibels, name, vmin=-60, vmax=0)
        axes.set_xlabel("mode in")
    grid[0].set_ylabel("mode out")
    figure.colorbar(image, ax=grid, label="|UᵀCU|, dB", shrink=0.85)
    figure.suptitle(found.meta["title"], fontsize=10)
    return figure


def _draw_mixers(found: FigureData) -> Any:
    entries = found.meta["mixers"]
    models = list(dict.fromkeys(entry["model"] for entry in entries))
    columns = min(3, len(models))
    lines = -(-len(models) // columns)
    figure = style.new(3.5 * columns + 0.7, 2.7 * lines + 0.5)
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
    import matplotlib as mpl

    colours = mpl.colormaps[style.DEPTH]
    for axes, model in zip(grid, models, strict=False):
        own = [i for i, entry in enumerate(entries) if entry["model"] == model]
        for order, i in enumerate(own):
            values = np.abs(found.arrays[f"{i}.draws"]).mean(0)
            scale = values[0] if values[0] > 0 else 1
            axes.plot(
                found.arrays[f"{i}.frequencies"],
                20 * np.log10(np.maximum(values / scale, 1e-3)),
                color=colours(0.1 + 0.85 * order / max(len(own) - 1, 1)),
                linestyle=style.DASHES[(entries[i]["stage"] - 1) % len(style.DASHES)],
                linewidth=1.1,
            )
        axes.axhline(-3, color=style.MUTED, linewidth=0.7)
        axes.set_title(style.short(model, 40))
        axes.set_xlabel("frequency (eigenvalue λ of the 3×3 grid)")
    for axes in grid[::columns]:
        axes.set_ylabel("response, dB of that at 0")
    for axes in grid[len(models) :]:
        axes.set_visible(False)
    style.stage_legend(figure, sorted({entry["stage"] for entry in entries}))
    bar = mpl.cm.ScalarMappable(cmap=colours)
    figure.colorbar(bar, ax=list(grid), label="depth of the block, 0 to 1", shrink=0.7)
    figure.suptitle(found.meta["title"], fontsize=10)
    return figure
