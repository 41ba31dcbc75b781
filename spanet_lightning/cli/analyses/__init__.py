"""What each analysis of `spanet analyze` does with its arguments: measure, print, write figures."""

from __future__ import annotations

import argparse
from pathlib import Path

from spanet_lightning.cli.analyses.cam import cam
from spanet_lightning.cli.analyses.common import DEFAULT_MODEL
from spanet_lightning.cli.analyses.filters import filters
from spanet_lightning.cli.analyses.response import response
from spanet_lightning.cli.analyses.robustness import robustness
from spanet_lightning.cli.analyses.shape_bias import shape_bias
from spanet_lightning.cli.analyses.spectrum import spectrum

__all__ = [
    "DEFAULT_MODEL",
    "cam",
    "filters",
    "redraw",
    "response",
    "robustness",
    "shape_bias",
    "spectrum",
]


def redraw(args: argparse.Namespace) -> list[Path]:
    """Draw figures again."""
    from spanet_lightning.analysis.figures import redraw

    return redraw(Path(args.folder))
