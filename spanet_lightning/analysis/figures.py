"""Figures: panels of curves or images, saved as data and drawn by one function.

An analysis describes its figure as a `Figure`. `save` writes NAME.svg and NAME.png, the numbers as
NAME.csv, and everything that was drawn as NAME.npz, so that a figure can be drawn again, or
restyled, without the model:

    figure = draw(load("analysis/spectrum/spectrum.npz"))  # a matplotlib figure
    figure.axes[0].set_xlim(0, 0.5)
    figure.savefig("cropped.svg")

Curves differ in colour (Okabe and Ito's palette), dash and marker, so that they can be told apart
in greyscale. The same data give the same bytes.
"""

from __future__ import annotations

import csv
import io
import json
import string
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from spanet_lightning.errors import ConfigError, DataError

COLOURS = ("#0072b2", "#d55e00", "#000000", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (8, 2)))
MARKERS = "osD^vPX*<>p"  # their number differs from that of the colours: no pair repeats early

Table = Sequence[Mapping[str, Any]]
Ticks = tuple[tuple[float, str], ...]

_INK, _MUTED, _GRID = "#1d2430", "#5f6b7a", "#d9dee5"
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "spanet",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.labelcolor": _INK,
    "axes.edgecolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "text.color": _INK,
    "figure.facecolor": "white",
    "image.interpolation": "nearest",
}


@dataclass(frozen=True)
class Curve:
    """One line of a panel.

    Attributes:
        x: (N,).
        y: (N,).
        label: Its name in the legend; without one it has no entry.
        series: Which colour, dash and marker it has.
        depth: From 0 to 1: coloured by depth instead, without markers.
        group: What the dash stands for where the colour stands for depth, such as "56×56".
        low: (N,) lower end of a band or of error bars.
        high: (N,) upper end.
        style: "line", "markers" alone, or markers with "bars" from `low` to `high`.
    """

    x: np.ndarray
    y: np.ndarray
    label: str = ""
    series: int = 0
    depth: float | None = None
    group: str = ""
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    style: str = "line"


@dataclass(frozen=True)
class Panel:
    """One plot of a figure: curves, or an image.

    Attributes:
        title: Above it.
        curves: In the order they are drawn.
        image: (H, W) values or (H, W, 3) colours from 0 to 1; drawn without axes.
        xlabel: Below it.
        ylabel: Beside it.
        xticks: Positions and labels; default: matplotlib's.
        yticks: The same.
        xlim: Range of x.
        ylim: Range of y; a descending one turns the axis around.
        vlines: Positions and series of vertical lines.
        hlines: Likewise, horizontal.
        note: Beside the first vertical line.
        xscale: "linear" or "log2".
        annotated: Whether the values of an image are written into its cells.
    """

    title: str = ""
    curves: tuple[Curve, ...] = ()
    image: np.ndarray | None = None
    xlabel: str = ""
    ylabel: str = ""
    xticks: Ticks = ()
    yticks: Ticks = ()
    xlim: tuple[float, float] | None = None
    ylim: tuple[float, float] | None = None
    vlines: tuple[tuple[float, int], ...] = ()
    hlines: tuple[tuple[float, int], ...] = ()
    note: str = ""
    xscale: str = "linear"
    annotated: bool = False


@dataclass(frozen=True)
class Figure:
    """All that is drawn, and its numbers as a table.

    Attributes:
        title: Above all panels.
        panels: Rows of panels; shorter rows leave their end empty.
        legend: Heading of the legend of series; "-" is one without a heading.
        colorbar: Label of the colour bar of images.
        limits: Values at both ends of the colours; default: each image's own.
        cmap: Colour map of images.
        smooth: Whether images are interpolated.
        panel_size: Width and height of a panel in inches; default: by what it holds.
        letters: Whether panels are numbered (a), (b), ….
        table: Rows of equal columns, written as CSV; not needed to draw.
    """

    title: str
    panels: tuple[tuple[Panel, ...], ...]
    legend: str = ""
    colorbar: str = ""
    limits: tuple[float, float] | None = None
    cmap: str = "viridis"
    smooth: bool = False
    panel_size: tuple[float, float] | None = None
    letters: bool = False
    table: Table = field(default=())


def in_rows(panels: Sequence[Panel], columns: int = 3) -> tuple[tuple[Panel, ...], ...]:
    """Arrange panels in rows of at most `columns`."""
    columns = min(columns, len(panels))
    return tuple(tuple(panels[i : i + columns]) for i in range(0, len(panels), columns))


def count(number: int, noun: str) -> str:
    """Return "1 image", "2 images"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def save(folder: Path, name: str, figure: Figure) -> list[Path]:
    """Write a figure, its numbers and its data.

    Args:
        folder: Made if it does not exist.
        name: Of the files, without suffix.
        figure: What is drawn.

    Returns:
        The files.

    Raises:
        ConfigError: If the folder can't be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output: cannot create {folder} ({error.strerror})") from None
    written = [save_data(folder / f"{name}.npz", figure)]
    if figure.table:
        written.append(write_csv(folder / f"{name}.csv", figure.table))
    with _styled():
        drawn = draw(figure)
        for suffix in ("svg", "png"):
            written.append(folder / f"{name}.{suffix}")
            _write(drawn, written[-1], suffix)
            drawn.set_layout_engine("none")  # computed once, which takes longer than drawing
    return written


def picture(figure: Figure) -> Image.Image:
    """Return a figure as an RGB image in memory."""
    buffer = io.BytesIO()
    with _styled():
        _write(draw(figure), buffer, "png")
    return Image.open(buffer).convert("RGB")


def write_csv(path: Path, rows: Table) -> Path:
    """Write rows of equal columns, and return the file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def save_data(path: Path, figure: Figure) -> Path:
    """Write all that is drawn as `.npz`, without the table, and return the file."""
    arrays: dict[str, Any] = {}
    described = json.dumps(_describe(figure, arrays), ensure_ascii=False)
    np.savez_compressed(path, figure=np.array(described), **arrays)
    return path


def load(path: str | Path) -> Figure:
    """Read what `save_data` wrote.

    Raises:
        DataError: If the file is something else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            described = json.loads(str(file["figure"]))
            arrays = {key: file[key] for key in file.files}
        return Figure(**_restore(described, arrays))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not the data of a figure ({error})") from None


def _describe(value: Any, arrays: dict[str, Any]) -> Any:
    """Return plain JSON values; arrays are put into `arrays` and referred to by name."""
    if is_dataclass(value) and not isinstance(value, type):
        parts = {
            part.name: _describe(getattr(value, part.name), arrays)
            for part in fields(value)
            if part.name != "table" and getattr(value, part.name) is not part.default
        }
        return parts if isinstance(value, Figure) else {"kind": type(value).__name__, **parts}
    if isinstance(value, np.ndarray):
        name = f"a{len(arrays)}"
        arrays[name] = value
        return {"array": name}
    if isinstance(value, tuple):
        return [_describe(part, arrays) for part in value]
    return float(value) if isinstance(value, np.floating) else value


def _restore(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(value, list):
        return tuple(_restore(part, arrays) for part in value)
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return arrays[value["array"]]
    parts = {key: _restore(part, arrays) for key, part in value.items() if key != "kind"}
    kinds = {"Panel": Panel, "Curve": Curve}
    return kinds[value["kind"]](**parts) if "kind" in value else parts


@contextmanager
def _styled() -> Iterator[None]:
    """Apply our style, whatever the user's own settings are."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def _write(drawn: Any, to: Path | io.BytesIO, suffix: str) -> None:
    metadata = {"Date": None} if suffix == "svg" else {"Software": None}
    # Tight: the layout leaves no space for the labels of images, which have no ticks.
    options = {"bbox_inches": "tight", "pad_inches": 0.05, "metadata": metadata}
    drawn.savefig(to, format=suffix, dpi=110, **options)


def draw(figure: Figure) -> Any:
    """Return a figure as a `matplotlib.figure.Figure`, without pyplot and its global state."""
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas
    from matplotlib.lines import Line2D

    flat = [panel for row in figure.panels for panel in row]
    columns = max(map(len, figure.panels))
    width, height = figure.panel_size or _panel_size(flat)
    with _styled():
        canvas = Canvas(
            figsize=(
                width * columns + (2.2 if figure.legend else 0.9),
                height * len(figure.panels) + 0.5,
            ),
            layout="constrained",
        )
        images = all(panel.image is not None for panel in flat)
        grid = canvas.subplots(
            len(figure.panels), columns, squeeze=False, sharey=False if images else "row"
        )
        groups = list(dict.fromkeys(c.group for p in flat for c in p.curves if c.group))
        image = None
        for row, panels in zip(grid, figure.panels, strict=True):
            for axes, panel in zip(row, panels, strict=False):
                title = panel.title
                if figure.letters:
                    title = f"({string.ascii_lowercase[flat.index(panel)]}) {title}"
                if panel.image is not None:
                    image = _draw_image(axes, panel, title, figure)
                else:
                    _draw_curves(axes, panel, title, groups)
            for axes in row[len(panels) :]:
                axes.set_visible(False)
        if figure.colorbar and image is not None:
            canvas.colorbar(image, ax=grid, label=figure.colorbar, shrink=0.8)
        if any(curve.depth is not None for panel in flat for curve in panel.curves):
            bar = mpl.cm.ScalarMappable(cmap="plasma_r")
            canvas.colorbar(bar, ax=list(grid.ravel()), label="normalised depth", shrink=0.8)
        if len(groups) > 1:
            lines = [
                Line2D([], [], color=_INK, linestyle=DASHES[i % len(DASHES)])
                for i in range(len(groups))
            ]
            canvas.legend(lines, groups, loc="outside lower center", ncols=min(len(lines), 6))
        if figure.legend:
            named = {c.label: c.series for p in flat for c in p.curves if c.label}
            lines = [Line2D([], [], **_look(series)) for series in named.values()]
            heading = None if figure.legend == "-" else figure.legend
            canvas.legend(
                lines, list(named), loc="outside right center", title=heading, handlelength=3
            )
        canvas.suptitle(figure.title, fontsize=10)
    return canvas


def _panel_size(panels: Sequence[Panel]) -> tuple[float, float]:
    image = panels[0].image
    if image is None:
        return (4.6, 3) if len(panels) == 1 else (3.4, 2.7)
    return 1.8 * max(image.shape[1] / image.shape[0], 1), 1.8 * max(
        image.shape[0] / image.shape[1], 1
    ) + 0.2


def _look(series: int) -> dict[str, Any]:
    return {
        "color": COLOURS[series % len(COLOURS)],
        "linestyle": DASHES[series % len(DASHES)],
        "marker": MARKERS[series % len(MARKERS)],
    }


def _draw_curves(axes: Any, panel: Panel, title: str, groups: Sequence[str]) -> None:
    import matplotlib as mpl

    for curve in panel.curves:
        look = _look(curve.series)
        if curve.depth is not None:
            dash = DASHES[groups.index(curve.group) % len(DASHES)] if curve.group else "-"
            colour = mpl.colormaps["plasma_r"](curve.depth)
            look = {"color": colour, "linestyle": dash, "marker": ""}
        if curve.style == "bars":
            axes.vlines(curve.x, curve.low, curve.high, color=_MUTED, linewidth=4, alpha=0.4)
        elif curve.low is not None and curve.high is not None:
            band = {"color": look["color"], "alpha": 0.2, "linewidth": 0}
            axes.fill_between(curve.x, curve.low, curve.high, **band)
        if curve.style == "markers":
            look["linestyle"] = "none"
        axes.plot(curve.x, curve.y, **look, markevery=max(1, len(curve.x) // 16))
    for position, series in panel.vlines:
        look = _look(series)
        axes.axvline(position, color=look["color"], linestyle=look["linestyle"], linewidth=1.1)
    for position, series in panel.hlines:
        axes.axhline(position, color=_look(series)["color"], linewidth=0.8, alpha=0.6)
    if panel.xscale == "log2":
        axes.set_xscale("log", base=2)
        axes.minorticks_off()
    if panel.xlim is not None:
        axes.set_xlim(panel.xlim)
    if panel.ylim is not None:
        axes.set_ylim(panel.ylim)
    if panel.note and panel.vlines:
        position, series = panel.vlines[0]
        right = position < np.mean(axes.get_xlim())
        axes.annotate(
            panel.note,
            (position, 0.93),
            xycoords=("data", "axes fraction"),
            xytext=(4 if right else -4, 0),
            textcoords="offset points",
            ha="left" if right else "right",
            color=_look(series)["color"],
        )
    _set_labels(axes, panel, title)


def _draw_image(axes: Any, panel: Panel, title: str, figure: Figure) -> Any:
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    low, high = figure.limits or (None, None)
    shown = panel.image
    assert shown is not None  # noqa: S101 - the caller's condition, for the type checker
    image = axes.imshow(
        shown,
        cmap=figure.cmap,
        vmin=low,
        vmax=high,
        interpolation="bilinear" if figure.smooth else "nearest",
    )
    if panel.annotated:
        middle = np.mean(image.get_clim())
        for (i, j), value in np.ndenumerate(shown):
            colour = "white" if value < middle else "black"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8)
    _set_labels(axes, panel, title, fontsize=8)
    return image


def _set_labels(axes: Any, panel: Panel, title: str, **size: Any) -> None:
    axes.set_title(_shortened(title), **({"fontsize": 8.5} if size else {}))
    axes.set_xlabel(panel.xlabel, **size)
    axes.set_ylabel(panel.ylabel, **size)
    if panel.xticks:
        long = size and max(len(label) for _, label in panel.xticks) > 6
        turned = {"rotation": 30, "ha": "right"} if long else {}
        axes.set_xticks(*map(list, zip(*panel.xticks, strict=True)), **turned)
    if panel.yticks:
        axes.set_yticks(*map(list, zip(*panel.yticks, strict=True)))


def _shortened(label: str, most: int = 44) -> str:
    return label if len(label) <= most else f"…{label[-most + 1 :]}"
