"""Train a small model on embedded images and test it: a minute or two on two CPU cores.

The experiment is one that `lightning fit --config FILE` runs as well; further `--key value` pairs
change it.
"""

from __future__ import annotations

import argparse

from spanet_lightning import cli, launcher, summary

TAKES_OVERRIDES = True
CONFIG = "digits/spanetv2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `spanet demo`."""
    parser.add_argument(
        "-c", "--config", default=None, help=f"experiment to run (default: {CONFIG})"
    )


def run(args: argparse.Namespace) -> None:
    """Train, test the best checkpoint, and print a table of the results.

    Raises:
        SpanetError: If the configuration is wrong.
    """
    import torch

    # A model this small loses more to threads that wait for each other than it gains: measured, on
    # two busy cores, 1,400 images/s with one thread and 130 with two.
    torch.set_num_threads(1)
    config = args.config or CONFIG
    print(f"Running: {launcher.lightning_command()} fit --config {config}", flush=True)
    experiment = cli.run(["fit", "--config", config, *args.overrides], show_results=False)
    trainer = experiment.trainer
    # In the same run of the tracker, and on the checkpoint that validation chose.
    (tested,) = trainer.test(
        experiment.model,
        datamodule=experiment.datamodule,
        ckpt_path="best",
        weights_only=True,
        verbose=False,
    )
    if trainer.is_global_zero:
        accuracy = tested.get("test/top1")
        rows = {"test accuracy": None if accuracy is None else f"{100 * accuracy:.2f} %"}
        summary.show("Results", {**rows, **experiment.results()})
        note = launcher.foreign_lightning()
        if note:
            print(note)
