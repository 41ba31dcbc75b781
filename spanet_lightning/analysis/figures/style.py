"""One look for all figures: colour-blind safe, and told apart in greyscale print as well.

Lines differ in colour (Okabe and Ito's eight, which differ in lightness too), dash and marker;
fields use maps whose lightness grows steadily.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

DPI = 110

COLOURS = ("#0072b2", "#d55e00", "#000000", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (8, 2)))
MARKERS = "osD^vPX*<>p"
"""Of another number than the colours, so that a ninth line is not the first one again."""


SEQUENTIAL = "viridis"
DEPTH = "plasma_r"
"""Of lines ordered by depth, as in SPANetV2's figure."""

DIVERGING = "RdBu_r"
INK, MUTED, GRID = "#1d2430", "#5f6b7a", "#d9dee5"


@contextmanager
def house() -> Iterator[None]:
    """Draw in the house's style, whatever the user's own settings are."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(
            {
                "svg.hashsalt": "spanet",
                "svg.fonttype": "none",
                "font.size": 9,
                "axes.titlesize": 9.5,
                "axes.titlelocation": "left",
                "axes.labelcolor": INK,
                "axes.edgecolor": MUTED,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.grid": True,
                "grid.color": GRID,
                "grid.linewidth": 0.6,
                "axes.axisbelow": True,
                "lines.linewidth": 1.5,
                "lines.markersize": 4.5,
                "legend.frameon": False,
                "legend.fontsize": 8,
                "xtick.color": MUTED,
                "ytick.color": MUTED,
                "xtick.labelcolor": INK,
                "ytick.labelcolor": INK,
                "text.color": INK,
                "figure.facecolor": "white",
                "image.interpolation": "nearest",
            }
        )
        yield


def line(index: int) -> dict[str, Any]:
    """Return colour, dash and marker of the i-th line."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": DASHES[index % len(DASHES)],
        "marker": MARKERS[index % len(MARKERS)],
    }


def new(width: float, height: float) -> Any:
    """Return an empty figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def field(axes: Any, values: np.ndarray, title: str = "", **options: Any) -> Any:
    """Draw an array as an image without axes, and return what a colour bar needs."""
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    if title:
        axes.set_title(title, fontsize=8.5)
    return axes.imshow(values, **{"cmap": SEQUENTIAL, **options})


def stage_legend(figure: Any, stages: Sequence[int]) -> None:
    """Say which dash is which stage's, where there is more than one."""
    from matplotlib.lines import Line2D

    if len(stages) > 1:
        lines = [Line2D([], [], color=INK, linestyle=DASHES[(s - 1) % len(DASHES)]) for s in stages]
        names = [f"stage {s}" for s in stages]
        figure.legend(lines, names, loc="outside lower center", ncols=len(lines))


def short(label: str, most: int = 28) -> str:
    """Return a label that fits over a small panel."""
    return label if len(label) <= most else f"…{label[-most + 1 :]}"
