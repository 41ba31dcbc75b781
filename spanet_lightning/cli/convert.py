"""Convert an official checkpoint of either generation to safetensors in this project's names.

Classification, detection (mmdet) and segmentation (mmseg) checkpoints are read, without running any
code that they may hold. Every tensor is used, or named with the reason why it is not.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from spanet_lightning.errors import ConfigError

WEIGHTS_SET = "of a file with two sets: the trained weights, or their moving average"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `spanet convert`."""
    parser.add_argument("source", metavar="OFFICIAL", help="checkpoint, of any format")
    parser.add_argument("target", metavar="OUT", help="file to write: .safetensors")
    parser.add_argument("--weights-set", choices=("model", "ema"), help=WEIGHTS_SET)
    parser.add_argument("--overwrite", action="store_true", help="replace OUT where it exists")


def run(args: argparse.Namespace) -> None:
    """Convert, and print how every tensor was handled.

    Raises:
        ConfigError: If the target can't be written there.
        CheckpointError: If the source can't be read, or is no official checkpoint.
    """
    from spanet_lightning.backbones.official import convert

    target = Path(args.target)
    if target.suffix != ".safetensors":
        raise ConfigError(f"OUT: got {args.target!r}, expected a name that ends in .safetensors")
    if not target.parent.is_dir():
        raise ConfigError(f"OUT: got {args.target!r}, but there is no folder {target.parent}")
    if target.exists() and not args.overwrite:
        raise ConfigError(f"OUT: {args.target} exists; --overwrite replaces it")

    report = convert(args.source, target, args.weights_set)
    print(report)
    print(f"wrote {target} ({target.stat().st_size / 1e6:.1f} MB)")
