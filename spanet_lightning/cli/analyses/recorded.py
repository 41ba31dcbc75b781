"""`--log` and `--run`: what was drawn becomes part of a run of MLflow's."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spanet_lightning.errors import ConfigError

if TYPE_CHECKING:
    from spanet_lightning.tracking.attach import Target


def targets(args: argparse.Namespace) -> list[Target]:
    """Find the runs that are to have the figures.

    Raises:
        SpanetError: If there is no such run, or none of the models is a checkpoint.
    """
    log, run = getattr(args, "log", False), getattr(args, "run", None)
    if not log and run is None:
        return []
    from spanet_lightning.tracking.attach import of_checkpoint, of_name

    found = []
    if run is not None:
        found.append(of_name(run, args.tracking_uri))
    if log:
        # NAME@FILE too: the weights of a run, whoever builds the model.
        files = [name.rpartition("@")[2] for name in getattr(args, "model", None) or ()]
        checkpoints = [Path(file) for file in files if file.endswith(".ckpt")]
        if not checkpoints:
            raise ConfigError(
                "--log: none of the models is a run's .ckpt; name the run that is to have the "
                "figures: --run RUN"
            )
        found += [of_checkpoint(file) for file in checkpoints]
    return list({target.run_id: target for target in found}.values())


def attach(args: argparse.Namespace, found: Sequence[Target], written: Sequence[Path]) -> None:
    """Add what was written to the runs, and say where it is.

    Raises:
        ConfigError: If a store does not take it.
    """
    if not found:
        return
    from spanet_lightning.tracking import attach

    root = Path(args.output)
    for target in found:
        place = attach.attach(target, written, root, root.resolve().name)
        print(f"logged {place} to run {target.name} ({target.run_id[:8]}) in {target.uri}")
