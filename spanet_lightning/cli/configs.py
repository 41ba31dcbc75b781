"""Configurations and studies that come with the package.

  list [PATTERN]   names and descriptions, one per line
  show NAME        print one
  copy NAME [TO]   copy one into the working directory, to change it

`lightning fit --config digits/spanetv2` runs one by its name; a file of that path comes first.
"""

from __future__ import annotations

import argparse
import fnmatch
import re
import shutil
from pathlib import Path

from spanet_lightning.cli import config_files
from spanet_lightning.errors import ConfigError, did_you_mean

KINDS = ("configs", "sweeps")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions and their arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="their names")
    listing.add_argument("pattern", nargs="?", default="", help="part of a name: imagenet, s18")
    show = actions.add_parser("show", help="print one")
    show.add_argument("name", metavar="NAME", help="such as digits/spanetv2")
    copy = actions.add_parser("copy", help="copy one, to change it")
    copy.add_argument("name", metavar="NAME", help="such as digits/spanetv2")
    copy.add_argument(
        "to", metavar="TO", nargs="?", default=".", help="file or folder (default: .)"
    )


def run(args: argparse.Namespace) -> None:
    """List, print or copy.

    Raises:
        ConfigError: If there is none of that name, or the target exists.
    """
    if args.action == "list":
        _list(args.pattern)
        return
    kind, file = _find(args.name)
    if args.action == "show":
        print(file.read_text(encoding="utf-8"), end="")
        return
    target = Path(args.to)
    target = target / file.name if target.is_dir() else target
    if target.exists():
        raise ConfigError(f"TO: {target} exists; give another name")
    if not target.parent.is_dir():
        raise ConfigError(f"TO: got {args.to!r}, but there is no folder {target.parent}")
    shutil.copyfile(file, target)
    command = "lightning fit --config" if kind == "configs" else "spanet sweep run"
    print(f"wrote {target}; run it with: {command} {target}")


def _list(pattern: str) -> None:
    for kind in KINDS:
        names = [n for n in config_files.names(kind) if pattern in n or fnmatch.fnmatch(n, pattern)]
        if not names:
            continue
        print(f"{kind}:")
        width = max(map(len, names))
        for name in names:
            text = (config_files.packaged(kind) / f"{name}.yaml").read_text(encoding="utf-8")
            stated = re.search(r"^(?:#|question:) *(.+)", text, re.MULTILINE)
            about = stated[1].strip() if stated else ""
            space = max(20, shutil.get_terminal_size((80, 24)).columns - width - 4)
            about = about if len(about) <= space else f"{about[: space - 1]}…"
            print(f"  {name:<{width}}  {about}".rstrip())


def _find(name: str) -> tuple[str, Path]:
    for kind in KINDS:
        file = config_files.find(name.removeprefix(f"{kind}/"), kind)
        if file.is_file() and file.is_relative_to(config_files.packaged(kind)):
            return kind, file
    known = [one for kind in KINDS for one in config_files.names(kind)]
    hint = did_you_mean(name, known) or "; spanet configs list lists them"
    raise ConfigError(f"NAME: got {name!r}, expected a packaged configuration or study{hint}")
