"""`spanet analyze cam`: class activation maps over photographs."""

from __future__ import annotations

import argparse
from pathlib import Path

from spanet_lightning.cli.analyses.common import say, show, subjects


def cam(args: argparse.Namespace) -> list[Path]:
    """Draw class activation maps."""
    import numpy as np

    from spanet_lightning.analysis.cam import class_map
    from spanet_lightning.analysis.figures import overlays, save
    from spanet_lightning.analysis.images import as_tensor, list_images, open_image, square

    images = list_images(args.images, args.limit)
    models = subjects(args)
    pictures, found = [], []
    for i, image in enumerate(images):
        opened = open_image(image)
        tensor = as_tensor(square(opened, args.size))
        pictures.append(np.asarray(tensor.permute(1, 2, 0)))
        row = []
        for one in models:
            say(f"image {i + 1} of {len(images)}, {one.label}")
            one.image_size(args.size)
            options = (args.method, args.target, args.batch, args.channels)
            row.append(class_map(one, tensor[None], *options))
        found.append(row)
    say("")
    title = "Score-CAM" if args.method == "score" else "Grad-CAM"
    data = overlays.cam_data(pictures, found, title)
    show(title, data.table)
    return save(Path(args.output), "cam", data)
