"""See what a model does to frequencies: figures, the numbers in them, and how to draw them again.

  response     graph frequency response of convolutions and attention, or of a model's own mixers
  spectrum     log-amplitude of feature maps by block, and their two-dimensional spectra
  filters      SRF gates and SPF masks, their balance of low and high, context maps
  shape-bias   decisions on cue-conflict images: from CSV files, or of models on stimuli
  cam          Score-CAM and Grad-CAM over photographs
  robustness   accuracy on low-pass and high-pass filtered images, and under noise in a band
  redraw       draw the figures of a folder again, from their data alone

Models go by timm's name ('spanetv2_s18_pure', 'vit_small'), 'NAME@WEIGHTS', or a run's '.ckpt'
alone. Each figure is written as SVG and PNG, beside its data as NPZ and CSV; --log adds them to the
MLflow run that wrote the checkpoint.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spanet_lightning.cli import analyses
from spanet_lightning.cli.analyses import DEFAULT_MODEL, recorded
from spanet_lightning.cli.convert import WEIGHTS_SET
from spanet_lightning.errors import invalid


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the analyses and their arguments."""
    found = parser.add_subparsers(dest="analysis", metavar="ANALYSIS", required=True)

    def add(name: str, text: str, run_it: Callable[[argparse.Namespace], list[Path]]) -> Any:
        one = found.add_parser(name, help=text, description=text, allow_abbrev=False)
        one.set_defaults(analyse=run_it)
        if name != "redraw":
            text = f"folder to write (default: analysis/{name})"
            one.add_argument("--output", metavar="FOLDER", default=f"analysis/{name}", help=text)
            _add_log(one)
        return one

    one = add("response", "what mixers do to the frequencies of their graph", analyses.response)
    _add_models(one, "of which the own mixers are measured (default: random mixers instead)")
    _add_images(one, limit=2)
    one.add_argument("--kernels", default="3,7,11,15", metavar="A,B", help="(default: %(default)s)")
    one.add_argument("--side", type=int, default=16, help="rows of tokens (default: %(default)s)")
    one.add_argument("--draws", type=int, default=64, help="random draws (default: %(default)s)")
    text = "test the figure's claim under every alternative to what its caption leaves open"
    one.add_argument("--claims", action="store_true", help=text)
    text = "one such choice, such as boundary=torus; see docs/analysis.md"
    one.add_argument("--choose", action="append", default=[], metavar="KEY=VALUE", help=text)
    one.add_argument("--modes", type=int, default=48, help="of a grid, of models (default: 48)")
    text = "linearise attention too, instead of taking its weights as they are"
    one.add_argument("--jacobian", action="store_true", help=text)

    one = add("spectrum", "relative log-amplitude of feature maps by block", analyses.spectrum)
    _add_models(one, f"(default: {DEFAULT_MODEL})")
    _add_images(one)
    one.add_argument("--radial", action="store_true", help="average over rings, not the diagonal")
    one.add_argument("--mixers", action="store_true", help="outputs of token mixers, not of blocks")

    one = add("filters", "SRF gates, SPF masks and context maps", analyses.filters)
    _add_models(one, f"(default: {DEFAULT_MODEL})")
    _add_images(one, limit=4)
    text = "stretch: a square; aspect: shorter side resized, nothing cut (default: %(default)s)"
    one.add_argument("--fit", default="stretch", metavar="stretch|aspect", help=text)

    one = add(
        "shape-bias", "shape bias from decisions, or of models on stimuli", analyses.shape_bias
    )
    text = "CSV files of decisions, or folders of them"
    one.add_argument("decisions", nargs="*", metavar="CSV", help=text)
    _add_models(one, "which decide about --stimuli")
    one.add_argument("--stimuli", metavar="FOLDER", help="cue-conflict images")
    text = "JSON: the ImageNet indices of each of the 16 classes"
    one.add_argument("--indices", metavar="FILE", help=text)
    one.add_argument("--each", action="store_true", help="each person alone, not pooled")
    one.add_argument("--size", type=int, default=224, help="pixels of a side (default: 224)")
    one.add_argument("--batch", type=int, default=32, help="images at once (default: 32)")

    one = add("cam", "class activation maps over photographs", analyses.cam)
    _add_models(one, f"(default: {DEFAULT_MODEL})")
    _add_images(one, limit=2)
    one.add_argument("--method", default="score", metavar="score|grad", help="(default: score)")
    one.add_argument("--target", type=int, help="index of the class (default: the most probable)")
    text = "Score-CAM over this many channels, those of the largest activations (default: all)"
    one.add_argument("--channels", type=int, help=text)

    one = add("robustness", "accuracy by the frequencies of the input", analyses.robustness)
    _add_models(one, f"(default: {DEFAULT_MODEL})")
    _add_images(one, text="a folder with a folder for each class, or any photographs")
    text = "cycles per image side (default: %(default)s)"
    one.add_argument("--radii", default="2,4,8,16,32,64", metavar="A,B", help=text)
    one.add_argument("--corruptions", default="low,high,noise", help="(default: %(default)s)")
    text = "standard deviation, of values in [0, 1] (default: %(default)s)"
    one.add_argument("--noise", type=float, default=0.1, help=text)

    one = add("redraw", "draw figures again from their data", analyses.redraw)
    one.add_argument("folder", metavar="FOLDER", help="with .npz files, or one such file")


def _add_log(parser: argparse.ArgumentParser) -> None:
    text = "add the figures and their data to the MLflow runs of the models that are checkpoints"
    parser.add_argument("--log", action="store_true", help=text)
    text = "add them to this run: its id, the beginning of it, or its name"
    parser.add_argument("--run", metavar="RUN", help=text)
    text = "store of --run (default: the environment's, or mlflow.db)"
    parser.add_argument("--tracking-uri", metavar="URI", help=text)


def _add_models(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--model", action="append", metavar="MODEL", help=f"any number {text}")
    parser.add_argument("--pretrained", action="store_true", help="download timm's weights")
    parser.add_argument("--weights-set", choices=("model", "ema"), help=WEIGHTS_SET)
    parser.add_argument("--seed", type=int, default=0, help="of random numbers (default: 0)")


def _add_images(
    parser: argparse.ArgumentParser, limit: int | None = None, text: str = "files or folders"
) -> None:
    text = f"{text} (default: two photographs of scikit-learn's)"
    parser.add_argument("--images", nargs="+", default=["sample"], metavar="PATH", help=text)
    shown = "all" if limit is None else limit
    text = f"take this many, evenly spread (default: {shown})"
    parser.add_argument("--limit", type=int, default=limit, help=text)
    parser.add_argument("--size", type=int, default=224, help="pixels of a side (default: 224)")
    parser.add_argument("--batch", type=int, default=8, help="images at once (default: 8)")


def run(args: argparse.Namespace) -> None:
    """Analyse, print the numbers, and write the figures.

    Raises:
        SpanetError: If an argument, an image or a file is wrong, or there is no such run.
    """
    from spanet_lightning.analysis.figures import require_matplotlib

    require_matplotlib()
    if hasattr(args, "output") and Path(args.output).is_file():
        raise invalid("--output", args.output, "a folder, not a file")
    targets = recorded.targets(args)  # before anything is measured
    written: list[Path] = args.analyse(args)
    for path in written:
        print(f"wrote {path}")
    recorded.attach(args, targets, written)
