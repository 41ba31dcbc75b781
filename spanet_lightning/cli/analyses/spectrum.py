"""`spanet analyze spectrum`: the feature maps of models."""

from __future__ import annotations

import argparse
from pathlib import Path

from spanet_lightning.cli.analyses.common import say, show, subjects


def spectrum(args: argparse.Namespace) -> list[Path]:
    """Measure feature maps."""
    from spanet_lightning.analysis.figures import save
    from spanet_lightning.analysis.figures import spectrum as drawing
    from spanet_lightning.analysis.images import batches, list_images
    from spanet_lightning.analysis.spectrum import spectra

    images = list_images(args.images, args.limit)
    found = []
    for one in subjects(args):
        say(one.label)
        stream = batches(images, one.image_size(args.size), args.batch)
        found.append(spectra(one, stream, mixers=args.mixers))
    say("")
    what = "token mixers" if args.mixers else "blocks"
    title = f"Relative log amplitude of the outputs of {what}, {len(images)} images"
    data = drawing.data(found, radial=args.radial, title=title)
    ends = [row for row in data.table if row["frequency"] == 1]
    show("at the highest frequency", ends)
    folder = Path(args.output)
    title = f"Fourier spectra of the outputs of {what}, last of each stage, {len(images)} images"
    return save(folder, "spectrum", data) + save(folder, "maps", drawing.maps_data(found, title))
