"""Spectral filters: their gains as fields, and as profiles over the radius."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from spanet_lightning.analysis.figures import style
from spanet_lightning.analysis.figures.store import FigureData
from spanet_lightning.analysis.filters import Filter


def data(found: Sequence[Filter], title: str) -> FigureData:
    """Return the figure of fields: a row a stage, the heads of its last block.

    Args:
        found: Of one model.
        title: Of the figure.
    """
    shown = _last_blocks(found)
    arrays = {f"{one.stage}.{one.head}": one.gain for one in shown}
    entries = [
        {"stage": one.stage, "block": one.block, "head": one.head, "name": one.name}
        for one in shown
    ]
    return FigureData("gates", {"title": title, "filters": entries}, arrays, table(found))


def profiles_data(found: Sequence[Filter], title: str) -> FigureData:
    """Return the figure of radial profiles: a panel a stage, a line a head, blocks as a band."""
    arrays: dict[str, np.ndarray] = {}
    entries = []
    keys = dict.fromkeys((one.stage, one.head, one.name) for one in found)
    for stage, head, name in keys:
        own = [one.radial for one in found if (one.stage, one.head) == (stage, head)]
        arrays[f"{stage}.{head}.radius"] = own[0][0]
        arrays[f"{stage}.{head}.gain"] = np.stack([gain for _, gain in own])
        entries.append({"stage": stage, "head": head, "name": name})
    return FigureData("gate_profiles", {"title": title, "filters": entries}, arrays)


def table(found: Sequence[Filter]) -> list[dict[str, Any]]:
    """Return the balance of low and high frequencies of every filter."""
    rows = []
    for one in found:
        low, high = one.balance
        rows.append(
            {
                "model": one.model,
                "stage": one.stage,
                "block": one.block,
                "head": one.head,
                "filter": one.name,
                "grid": f"{one.gain.shape[0]}x{one.gain.shape[1]}",
                "gain_at_0": one.gain[one.gain.shape[0] // 2, one.gain.shape[1] // 2],
                "gain_low": low,
                "gain_high": high,
                "low_share": low / (low + high),
                "channel_spread": float(one.spread.mean()),
            }
        )
    return rows


def _last_blocks(found: Sequence[Filter]) -> list[Filter]:
    last = {one.stage: one.block for one in found}
    return [one for one in found if one.block == last[one.stage]]


def draw(found: FigureData) -> Any:
    """Draw one of the kinds above."""
    return _draw_profiles(found) if found.kind == "gate_profiles" else _draw_fields(found)


def _draw_fields(found: FigureData) -> Any:
    entries = found.meta["filters"]
    stages = sorted({one["stage"] for one in entries})
    columns = max(sum(one["stage"] == stage for one in entries) for stage in stages)
    low = min(values.min() for values in found.arrays.values())
    high = max(values.max() for values in found.arrays.values())
    figure = style.new(1.75 * columns + 1.1, 1.85 * len(stages) + 0.4)
    grid = figure.subplots(len(stages), columns, squeeze=False)
    image = None
    for row, stage in zip(grid, stages, strict=True):
        own = [one for one in entries if one["stage"] == stage]
        for axes, one in zip(row, own, strict=False):
            values = found.arrays[f"{stage}.{one['head']}"]
            image = style.field(
                axes, values, f"head {one['head']}, {one['name']}", vmin=low, vmax=high
            )
        for axes in row[len(own) :]:
            axes.set_visible(False)
        row[0].set_ylabel(f"stage {stage}, block {own[0]['block']}", fontsize=8)
    figure.colorbar(image, ax=grid, label="gain (mean over channels)", shrink=0.8)
    figure.suptitle(found.meta["title"], fontsize=10)
    return figure


def _draw_profiles(found: FigureData) -> Any:
    entries = found.meta["filters"]
    stages = sorted({one["stage"] for one in entries})
    figure = style.new(2.6 * len(stages) + 0.4, 2.8)
    grid = figure.subplots(1, len(stages), squeeze=False, sharey=True)[0]
    for axes, stage in zip(grid, stages, strict=True):
        for i, one in enumerate(e for e in entries if e["stage"] == stage):
            key = f"{stage}.{one['head']}"
            x, blocks = found.arrays[f"{key}.radius"], found.arrays[f"{key}.gain"]
            look = style.line(i)
            axes.fill_between(
                x, blocks.min(0), blocks.max(0), color=look["color"], alpha=0.18, linewidth=0
            )
            axes.plot(x, blocks.mean(0), **look, markevery=max(1, len(x) // 6), label=one["name"])
        axes.set_title(f"stage {stage}")
        axes.set_xticks([0, 0.5, 1], ["0", "0.5π", "π"])
        axes.set_xlabel("radius")
    grid[0].set_ylabel("gain (band: over blocks)")
    grid[0].legend(title="head")
    figure.suptitle(found.meta["title"], fontsize=10)
    return figure
