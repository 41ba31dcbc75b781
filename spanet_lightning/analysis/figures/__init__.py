"""Figures from tables alone: nothing here sees a model.

A figure is drawn from `FigureData`, which is saved beside it as an `.npz`: `spanet analyze redraw
FOLDER` draws it again from that file.
"""

from __future__ import annotations

from spanet_lightning.analysis.figures.store import (
    FigureData,
    picture,
    redraw,
    require_matplotlib,
    save,
    save_data,
)

__all__ = ["FigureData", "picture", "redraw", "require_matplotlib", "save", "save_data"]
