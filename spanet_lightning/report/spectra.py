"""Spectra of each arm's best checkpoint, where a report is asked for them.

The rest of a report is made from the study's storage; this reads checkpoints and images.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml

from spanet_lightning.errors import ConfigError
from spanet_lightning.report import formatting as fmt
from spanet_lightning.report.document import Block, Column, Figure, Section, Table
from spanet_lightning.report.results import Results, Trial

if TYPE_CHECKING:
    from spanet_lightning.analysis.spectrum import ModelSpectrum

_STEM = "analysis/spectrum"


def measure_spectra(results: Results, images: Sequence[str]) -> tuple[Section, Mapping[str, bytes]]:
    """Measure the best checkpoint of each arm, or of a search.

    Args:
        results: The study.
        images: Files and folders of photographs, as `spanet analyze --images` takes them.

    Returns:
        A section, and the figure's files by path in the report's folder.

    Raises:
        SpanetError: If no trial has a checkpoint, one can't be read, or there is no image.
    """
    from spanet_lightning.analysis import figures
    from spanet_lightning.analysis.images import batches, list_images
    from spanet_lightning.analysis.models import load_model
    from spanet_lightning.analysis.spectrum import spectra, spectrum_figure

    best = _best_trials(results)
    checkpoints = {name: _checkpoint(trial) for name, trial in best.items()}
    lost = [f"{name} ({best[name].record.folder})" for name, c in checkpoints.items() if c is None]
    found = {name: file for name, file in checkpoints.items() if file is not None}
    if not found:
        raise ConfigError(
            "--analysis: found no checkpoint, expected best.ckpt or last.ckpt in the folder of a "
            f"complete trial{': ' if lost else ''}{', '.join(lost[:3])}"
        )
    photographs = list_images(images)
    measured = []
    for name, file in found.items():
        inputs = batches(photographs, _image_size(file.parent))
        measured.append(replace(spectra(load_model(str(file)), inputs), label=name))
    title = f"Relative log amplitude of block outputs, {len(photographs)} images"
    drawn = spectrum_figure(measured, title)
    with tempfile.TemporaryDirectory() as folder:
        made = figures.save(Path(folder), "spectrum", drawn)
        files = {f"analysis/{path.name}": path.read_bytes() for path in made}
    figure = Figure(
        _STEM,
        files[f"{_STEM}.svg"],
        files[f"{_STEM}.png"],
        alt="Log amplitude by frequency, one line per block, one panel for each of "
        f"{fmt.listed([one.label for one in measured])}.",
        caption=f"Best checkpoint of each, {fmt.counted(len(photographs), 'image')} at the size it "
        f"was trained at. The data are in {_STEM}.npz.",
    )
    blocks: list[Block] = [figure, _table(measured)]
    if lost:
        blocks.append(f"Excluded, without a checkpoint: {fmt.listed(lost)}.")
    return Section("Spectra of features", blocks), files


def _best_trials(results: Results) -> dict[str, Trial]:
    """Return the best complete trial of each arm, or of a search, by the first objective."""
    sign = results.study.objectives[0].sign
    best: dict[str, Trial] = {}
    for trial in results.complete:
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


def _image_size(run: Path) -> int:
    """Return the side in pixels that a run's configuration states, or 224."""
    try:
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        size = config["data"]["init_args"]["image_size"]
        return max(32, size if isinstance(size, int) else max(size))
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return 224


def _table(measured: Sequence[ModelSpectrum]) -> Table:
    stages = sorted({one.stage for model in measured for one in model.drawn()})
    rows = []
    for model in measured:
        row = [model.label]
        for stage in stages:
            curves = [one.relative for one in model.drawn() if one.stage == stage]
            # A map of one pixel has no frequency but 0.
            ends = [curve[-1] for curve in curves if len(curve) > 1]
            row.append(fmt.number(float(np.mean(ends)), 2) if ends else fmt.NONE)
        rows.append(row)
    return Table(
        "Log amplitude at the highest frequency relative to that at 0, mean over blocks",
        [Column("checkpoint", numeric=False), *(Column(f"stage {s}") for s in stages)],
        rows,
        ["Closer to 0 means more high frequencies."],
    )
