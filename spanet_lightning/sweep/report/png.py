"""Scenes as PNG, by matplotlib, which is optional: it is a rasteriser with a font here."""

from __future__ import annotations

import importlib.util
import io
from typing import Any

from spanet_lightning.sweep.report.scene import Box, Dot, Line, Mark, Scene
from spanet_lightning.sweep.report.svg import LIGHT

_DPI = 100  # a pixel of the scene is a hundredth of an inch
_SHARPER = 2


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def png(scene: Scene) -> bytes:
    """Return a scene as a PNG in light colours, with twice its pixels.

    Args:
        scene: What to draw.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # Whatever the user's own settings are, the same bytes.
    with mpl.rc_context():
        mpl.rcdefaults()
        figure = Figure(figsize=(scene.width / _DPI, scene.height / _DPI), dpi=_DPI)
        figure.set_facecolor(LIGHT["paper"])
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, scene.width), ylim=(scene.height, 0))
        axes.axis("off")
        for i, mark in enumerate(scene.marks):
            _draw(axes, mark, i)
        written = io.BytesIO()
        figure.savefig(
            written, format="png", dpi=_DPI * _SHARPER, metadata={"Software": None}, pad_inches=0
        )
    return written.getvalue()


def _draw(axes: Any, mark: Mark, order: int) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    colour, points = LIGHT[mark.ink], 72 / _DPI
    if isinstance(mark, Line):
        xs, ys = zip(*mark.points, strict=True)
        style: Any = "-"
        if mark.dash:
            style = (0, tuple(d / mark.width for d in mark.dash))
        line = Line2D(
            xs, ys, color=colour, linewidth=mark.width * points, alpha=mark.opacity, zorder=order
        )
        line.set_linestyle(style)
        axes.add_line(line)
    elif isinstance(mark, Box):
        corner = (mark.x, mark.y)
        axes.add_patch(
            Rectangle(
                corner,
                mark.width,
                mark.height,
                facecolor=colour,
                edgecolor="none",
                alpha=mark.opacity,
                zorder=order,
            )
        )
    elif isinstance(mark, Dot):
        shape = {"circle": "o", "diamond": "D", "cross": "x"}[mark.shape]
        # A diamond of matplotlib's is as wide as its side; ours is as wide as its diagonal.
        size = 2 * mark.radius * (0.5**0.5 if mark.shape == "diamond" else 1)
        axes.plot(
            [mark.x],
            [mark.y],
            marker=shape,
            markersize=size * points,
            markerfacecolor="none" if mark.hollow else colour,
            markeredgecolor=colour,
            markeredgewidth=1.5 * points if mark.hollow or mark.shape == "cross" else 0,
            alpha=mark.opacity,
            zorder=order,
        )
    else:
        axes.text(
            mark.x,
            mark.y,
            mark.text,
            color=colour,
            # DejaVu Sans is a tenth wider than the fonts of screens.
            fontsize=mark.size * points * 0.9,
            ha={"start": "left", "middle": "center", "end": "right"}[mark.anchor],
            # A turned text stands on its baseline too, which is then at its right.
            va="center" if mark.turned else "baseline",
            rotation=90 if mark.turned else 0,
            fontweight="bold" if mark.bold else "normal",
            parse_math=False,
            zorder=order,
        )
