"""`spanet analyze robustness`: accuracy by the frequencies of the input."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from spanet_lightning.cli.analyses.common import numbers, say, show, subjects
from spanet_lightning.errors import ConfigError


def robustness(args: argparse.Namespace) -> list[Path]:
    """Measure accuracy by frequency."""
    import torch

    from spanet_lightning.analysis.figures import robustness as drawing
    from spanet_lightning.analysis.figures import save
    from spanet_lightning.analysis.images import batches, labelled, list_images
    from spanet_lightning.analysis.robustness import Batch, robustness

    root = Path(args.images[0])
    pairs, classes = labelled(root, args.limit) if len(args.images) == 1 else ([], [])
    images: Any = [path for path, _ in pairs] or list_images(args.images, args.limit)
    labels = torch.tensor([index for _, index in pairs])
    radii = [float(value) for value in numbers("--radii", args.radii)]
    corruptions: Any = [part.strip() for part in args.corruptions.split(",") if part.strip()]
    found = []
    for one in subjects(args, len(classes) or None):
        outputs = getattr(one.model, "num_classes", None)
        if classes and outputs not in (None, len(classes)):
            raise ConfigError(
                f"{one.label}: has {outputs} classes, {root} has {len(classes)} folders of classes"
            )

        def stream(size: int = one.image_size(args.size)) -> Any:
            start = 0
            for part in batches(images, size, args.batch):
                known = labels[start : start + len(part)] if len(labels) else None
                start += len(part)
                batch: Batch = (part, known)
                yield batch

        say(one.label)
        found += robustness(one, stream(), corruptions, radii, args.noise, args.seed)
    say("")
    data = drawing.data(found, f"Robustness by frequency, {len(images)} images")
    show("robustness", data.table)
    return save(Path(args.output), "robustness", data)
