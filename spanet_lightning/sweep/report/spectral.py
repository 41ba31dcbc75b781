"""What the arms do to frequencies: the spectra of their best checkpoints, where a report is asked.

The rest of a report is made from the storage alone; this reads checkpoints and photographs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml

from spanet_lightning.errors import ConfigError
from spanet_lightning.sweep.report import words
from spanet_lightning.sweep.report.document import (
    Block,
    Cell,
    Column,
    Document,
    Picture,
    Section,
    Table,
)
from spanet_lightning.sweep.report.gather import Gathered, Trial

if TYPE_CHECKING:
    from PIL import Image

    from spanet_lightning.analysis.spectrum import ModelSpectrum

FOLDER = "analysis"
"""Folder of the figure and its data beside the report."""
_NAME = "spectrum"


@dataclass(frozen=True)
class Spectra:
    """What is added to a report.

    Attributes:
        section: What it says.
        files: Figure and data by path in the report's folder.
    """

    section: Section
    files: Mapping[str, bytes]

    def added_to(self, told: Document) -> Document:
        """Return a report with the section at its end."""
        return replace(told, sections=(*told.sections, self.section))


def spectra(found: Gathered, images: Sequence[str]) -> Spectra:
    """Measure the best checkpoint of each arm, or of a search.

    Args:
        found: The study, verified.
        images: Files and folders of photographs, as `spanet analyze --images` takes them.

    Raises:
        SpanetError: If no trial has a checkpoint any more, one can't be read, or there is no image.
    """
    from spanet_lightning.analysis import figures
    from spanet_lightning.analysis.figures import spectrum as drawing
    from spanet_lightning.analysis.images import list_images

    figures.require_matplotlib()
    chosen = {name: (trial, _checkpoint(trial)) for name, trial in _best(found).items()}
    lost = [f"{name} ({trial.record.folder})" for name, (trial, file) in chosen.items() if not file]
    files = {name: file for name, (_, file) in chosen.items() if file is not None}
    if not files:
        raise ConfigError(
            "--analysis: found no checkpoint, expected best.ckpt or last.ckpt in the folder of a "
            f"complete trial{': ' if lost else ''}{', '.join(lost[:3])}"
        )
    photographs = list_images(images)
    measured = [_measured(name, file, photographs) for name, file in files.items()]
    title = f"Relative log amplitude of the outputs of blocks, {len(photographs)} images"
    data = drawing.data(measured, radial=False, title=title)
    with tempfile.TemporaryDirectory() as folder:
        made = figures.save(Path(folder), _NAME, data)
        kept = {f"{FOLDER}/{path.name}": path.read_bytes() for path in made}
    blocks: list[Block] = [_picture(measured, kept), _table(measured)]
    if lost:
        blocks.append(f"Without a checkpoint, and so left out: {words.listed(lost)}.")
    return Spectra(Section("Spectra of features", tuple(blocks)), kept)


def _best(found: Gathered) -> dict[str, Trial]:
    """Return the best complete trial of each arm, or of a search, by the first objective."""
    sign = 1 if found.study.objectives[0].goal == "max" else -1
    best: dict[str, Trial] = {}
    for trial in found.complete:
        arm = trial.record.arm
        if arm not in best or sign * trial.values[0] > sign * best[arm].values[0]:
            best[arm] = trial
    return {
        f"{arm}, seed {one.record.seed}" if arm else f"trial {one.number}": one
        for arm, one in best.items()
    }


def _checkpoint(trial: Trial) -> Path | None:
    files = [Path(trial.record.folder) / name for name in ("best.ckpt", "last.ckpt")]
    return next((file for file in files if trial.record.folder and file.is_file()), None)


def _measured(name: str, file: Path, photographs: Sequence[Path | Image.Image]) -> ModelSpectrum:
    """Measure a checkpoint at the size of the images that it was trained on."""
    from spanet_lightning.analysis.images import batches
    from spanet_lightning.analysis.models import subject
    from spanet_lightning.analysis.spectrum import spectra

    found = spectra(subject(str(file)), batches(photographs, _image_size(file.parent)))
    return replace(found, label=name)


def _image_size(run: Path) -> int:
    """Return the side in pixels that a run's configuration states, or else 224."""
    try:
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        size = config["data"]["init_args"]["image_size"]
        return max(32, size if isinstance(size, int) else max(size))
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return 224


def _picture(measured: Sequence[ModelSpectrum], files: Mapping[str, bytes]) -> Picture:
    names = words.listed([one.label for one in measured])
    return Picture(
        file=f"{FOLDER}/{_NAME}.svg",
        png=files[f"{FOLDER}/{_NAME}.png"],
        alt=f"Log amplitude by frequency, a line for each block, a panel for each of: {names}.",
        caption=(
            f"Of the best checkpoint of each, on {words.counted(measured[0].images, 'image')} "
            "at the size that it was trained at. The figure's data "
            f"is in `{FOLDER}/{_NAME}.npz`; `spanet analyze redraw` draws it again."
        ),
    )


def _table(measured: Sequence[ModelSpectrum]) -> Table:
    stages = sorted({one.tap.stage for model in measured for one in model.drawn()})
    rows = []
    for model in measured:
        cells = [Cell(model.label)]
        for stage in stages:
            curves = [one.relative for one in model.drawn() if one.tap.stage == stage]
            # A map of one pixel has no frequency but 0.
            ends = [curve[-1] for curve in curves if len(curve) > 1]
            cells.append(Cell(words.number(float(np.mean(ends)), 2) if ends else "–"))
        rows.append(tuple(cells))
    return Table(
        caption="Log amplitude at the highest frequency, less that at 0, mean over blocks",
        columns=(Column("checkpoint", numeric=False), *(Column(f"stage {s}") for s in stages)),
        rows=tuple(rows),
        notes=("Nearer to 0 is more of the high frequencies.",),
    )
