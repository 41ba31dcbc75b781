"""Look at a folder of images, say what it is, and write a configuration to train on it.

Recognised are COCO annotations, images with masks, and a folder for each class.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from spanet_lightning.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `spanet init`."""
    parser.add_argument("root", metavar="DATA", help="folder of the data set")
    text = "classification, detection or segmentation (default: what the folder is laid out for)"
    parser.add_argument("--task", default=None, help=text)
    parser.add_argument("--output", default=None, help="file to write (default: DATA.yaml, here)")
    parser.add_argument("--force", action="store_true", help="replace the file if there is one")


def run(args: argparse.Namespace) -> None:
    """Write the configuration.

    Raises:
        ConfigError: If the file exists.
        DataError: If there is no data set.
    """
    # Lightning takes seconds to import; the help needs none of it.
    from spanet_lightning.cli.data import show_summary
    from spanet_lightning.data.contents import contents_of, recognise
    from spanet_lightning.data.starter import write_starter
    from spanet_lightning.summary import console

    root = Path(args.root)
    file = Path(args.output or f"{root.resolve().name}.yaml")
    if file.exists() and not args.force:
        raise ConfigError(f"--output: {file} exists, expected a new file; --force replaces it")
    data = recognise(root)
    contents = contents_of(data, whole=False)
    show_summary(contents)
    starter = write_starter(data, contents, args.root, str(file), args.task)
    file.write_text(starter.text, encoding="utf-8")
    out = console()
    if contents.faults:
        out.print(f"{len(contents.faults)} faults, such as {contents.faults[0]}", markup=False)
    for line in (
        f"Wrote {file}, for {starter.task}. Next:",
        f"  spanet data check --config {shlex.quote(str(file))}",
        f"  lightning fit --config {shlex.quote(str(file))}",
    ):
        out.print(line, markup=False, highlight=False)
