"""`spanet analyze shape-bias`: decisions that were read or made."""

from __future__ import annotations

import argparse
from pathlib import Path

from spanet_lightning.cli.analyses.common import say, show, subjects
from spanet_lightning.errors import ConfigError


def shape_bias(args: argparse.Namespace) -> list[Path]:
    """Count decisions, read or made."""
    from spanet_lightning.analysis import decisions, stimuli
    from spanet_lightning.analysis.figures import save
    from spanet_lightning.analysis.figures import shape_bias as drawing
    from spanet_lightning.analysis.shape_bias import by_subject

    if not args.decisions and not args.model:
        raise ConfigError("shape-bias: got neither CSV files nor --model with --stimuli")
    if args.model and not (args.stimuli and args.indices):
        raise ConfigError("--model: needs --stimuli FOLDER and --indices FILE")
    if args.stimuli and not args.model:
        raise ConfigError("--stimuli: needs --model")
    trials = decisions.read_all(decisions.csv_files(args.decisions)) if args.decisions else []
    folder, own, written = Path(args.output), [], []
    if args.model:
        indices = stimuli.read_indices(args.indices)
        shown = stimuli.find_stimuli(args.stimuli)
        for one in subjects(args):
            say(one.label)
            size = one.image_size(args.size)
            own += stimuli.decide(one, shown, indices, size, args.batch)
        say("")
    found = by_subject([*trials, *own], pool_humans=not args.each)
    data = drawing.data(found, "Shape bias on cue-conflict images")
    keys = ("name", "subjects", "trials", "shape", "texture", "shape_bias", "standard_error")
    show("shape bias", [{key: row[key] for key in keys} for row in data.table])
    number = {one.trials // max(one.subjects, 1) for one in found}
    if len(number) > 1:
        print(
            f"note: subjects decided about {min(number)} to {max(number)} images of conflicting "
            "cues each; values over unlike sets of images compare only roughly"
        )
    written += save(folder, "shape_bias", data)
    if own:
        path = folder / "decisions.csv"
        decisions.write_csv(path, own)
        written.append(path)
    return written
