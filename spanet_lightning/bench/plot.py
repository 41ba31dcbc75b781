"""The plot of time against pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spanet_lightning.bench.models import Row
from spanet_lightning.bench.resolution import as_fit
from spanet_lightning.bench.timing import spread
from spanet_lightning.errors import ConfigError

FORMATS = ("svg", "png")
_MARKERS = "osD^vPX*"


def require_matplotlib() -> None:
    """Make sure that plots can be drawn.

    Raises:
        ConfigError: If matplotlib is missing.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "--plot: needs matplotlib; install it with pip install 'spanet-lightning[plots]'"
        ) from error


def plot_resolution(
    stem: Path, results: Sequence[Row], fits: Sequence[Row], settings: dict[str, Any], device: str
) -> list[Path]:
    """Draw time against pixels, and time of a megapixel, on which linear growth is level.

    Args:
        stem: Where to write, without the suffix.
        results: Of the JSON document.
        fits: Of the JSON document.
        settings: Of the JSON document.
        device: Name of the hardware.

    Returns:
        The files: SVG and PNG.
    """
    require_matplotlib()
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "spanet", "font.size": 9, "axes.grid": True}):
        figure = Figure(figsize=(11, 4.6), layout="constrained")
        whole, relative = figure.subplots(1, 2)
        for i, row in enumerate(fits):
            _draw(whole, relative, row, results, i)
        pixels = sorted({r["pixels"]: r["size"] for r in results}.items())
        for axes, title, unit in (
            (whole, "Time of an image", "ms"),
            (relative, "Time of a megapixel: level where growth is linear", "ms / megapixel"),
        ):
            axes.set_xscale("log")
            axes.set_xticks([n for n, _ in pixels], [str(s) for _, s in pixels], rotation=60)
            axes.minorticks_off()
            axes.set(title=title, xlabel="side of the image, px (axis: pixels, log)", ylabel=unit)
            axes.grid(alpha=0.3)
        whole.set_yscale("log")
        relative.set_ylim(bottom=0)
        whole.legend(fontsize=8, title="points: measured (bars: quartiles); lines: fit")
        figure.suptitle(
            f"Evaluation on {device}, {settings['dtype']}, compile {settings['compile']}, "
            f"{settings['rounds']} rounds"
        )
        files = []
        for suffix in FORMATS:
            path = stem.with_name(f"{stem.name}.{suffix}")
            metadata = {"Date": None} if suffix == "svg" else {}
            figure.savefig(path, dpi=150, metadata=metadata)
            files.append(path)
    return files


def _draw(whole: Any, relative: Any, row: Row, results: Sequence[Row], index: int) -> None:
    """Draw one subject into both panels."""
    mine = [r for r in results if r["subject"] == row["subject"]]
    found, color, marker = as_fit(row), f"C{index % 10}", _MARKERS[index % len(_MARKERS)]
    spreads = [spread(r["seconds"]) for r in mine]
    terms = ", ".join(name for name, value in row["terms"].items() if value > 0)
    label = f"{row['subject']}: {terms}; off by at most {100 * row['largest_error']:.0f} %"
    pixels = [r["pixels"] for r in mine]
    for axes, per in ((whole, [1.0] * len(mine)), (relative, [n / 1e6 for n in pixels])):
        middle = [1e3 * s.median / p for s, p in zip(spreads, per, strict=True)]
        below = [1e3 * (s.median - s.q1) / p for s, p in zip(spreads, per, strict=True)]
        above = [1e3 * (s.q3 - s.median) / p for s, p in zip(spreads, per, strict=True)]
        fitted = [1e3 * found.seconds(r["pixels"]) / p for r, p in zip(mine, per, strict=True)]
        axes.errorbar(
            pixels, middle, [below, above], fmt=marker, color=color, markersize=4, capsize=2
        )
        axes.plot(pixels, fitted, color=color, linewidth=1, label=label)
