"""`spanet analyze filters`: gates, masks and context maps."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spanet_lightning.cli.analyses.common import file_name, show, subjects


def filters(args: argparse.Namespace) -> list[Path]:
    """Draw filters and context maps."""
    import numpy as np

    from spanet_lightning.analysis.figures import filters as drawing
    from spanet_lightning.analysis.figures import overlays, save
    from spanet_lightning.analysis.filters import context_maps, filters
    from spanet_lightning.analysis.images import as_tensor, list_images, open_image, square

    models = subjects(args)
    measured = [filters(one, args.size) for one in models]
    images = list_images(args.images, args.limit)
    tensors = [as_tensor(square(open_image(i), args.size, args.fit)) for i in images]
    folder, written = Path(args.output), []
    for i, (one, found) in enumerate(zip(models, measured, strict=True)):
        part = folder if len(models) == 1 else folder / f"{i + 1}-{file_name(one.label)}"
        data = drawing.data(found, f"Spectral filters of {one.label}")
        keys = (
            "stage",
            "head",
            "filter",
            "grid",
            "gain_at_0",
            "gain_low",
            "gain_high",
            "low_share",
        )
        rows = [{key: row[key] for key in keys} for row in _last(data.table)]
        show(f"{one.label}: balance of the last block of each stage", rows)
        written += save(part, "gates", data)
        title = f"Gain by radius, {one.label}"
        written += save(part, "profiles", drawing.profiles_data(found, title))
        maps = [context_maps(one, tensor[None]) for tensor in tensors]
        pictures = [np.asarray(tensor.permute(1, 2, 0)) for tensor in tensors]
        title = f"Context maps of {one.label}"
        written += save(part, "context", overlays.context_data(pictures, maps, title))
    return written


def _last(rows: Sequence[Any]) -> list[Any]:
    last = {row["stage"]: row["block"] for row in rows}
    return [row for row in rows if row["block"] == last[row["stage"]]]
