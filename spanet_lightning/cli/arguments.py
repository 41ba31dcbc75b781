"""What follows `lightning`: its command, its files and keys, checked without importing torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from spanet_lightning import __version__
from spanet_lightning.cli import config_files
from spanet_lightning.cli.check import Check
from spanet_lightning.cli.config_files import Tree
from spanet_lightning.cli.options import COMMANDS, DEFAULT_LOGGER, LINKED, schema
from spanet_lightning.errors import ConfigError, invalid_choice
from spanet_lightning.exit import closed_pipe_allowed
from spanet_lightning.run_dir import check_name


class Arguments(list[str]):
    """A checked command line.

    Attributes:
        command: The subcommand.
        config: The configuration with typed values, without defaults.
        where: File and line that set each key.
        files: The configuration files.
        printed: The flags of `--print_config`; None where it is not given.
    """

    command: str
    config: dict[str, Any]
    where: dict[str, str]
    files: list[str]
    printed: str | None = None

    @classmethod
    def parse(cls, args: Sequence[str]) -> Arguments:
        """Check a command line.

        Args:
            args: What follows the program's name.

        Raises:
            ConfigError: For the first mistake.
            SystemExit: After a help text or the version.
        """
        parsed = cls(args)
        if not args:
            raise ConfigError(f"command: is missing; expected one of {', '.join(COMMANDS)}")
        parsed.command, *rest = args
        if parsed.command == "--version":
            _print(f"lightning (spanet-lightning {__version__})")
        if parsed.command in ("-h", "--help"):
            _print(_help().overview())
        if parsed.command not in COMMANDS:
            later = [name for name in rest if name in COMMANDS]
            if parsed.command.startswith("-") and later:
                raise ConfigError(
                    f"command: {later[0]} comes first, as in: lightning {later[0]} --config FILE"
                )
            raise invalid_choice("command", parsed.command, COMMANDS)
        options = list(config_files.options(rest))
        for name, text in options:
            if name in ("-h", "--help"):
                _print(_help().command(parsed.command))
            if name.endswith(".help"):
                _print(_help().key(parsed.command, name[2:].removesuffix(".help"), text))
            if name == "--name" and text:
                check_name(text)  # as typed: YAML folds a newline into a space
            if name == "--print_config":
                parsed.printed = text or ""
        given = (schema(parsed.command), LINKED, {"trainer.logger": DEFAULT_LOGGER})
        check = Check(*given)
        tree = config_files.collect(rest, Tree(), Check(*given, partial=True).run)
        parsed.config = check.run(tree)
        parsed.where = check.where
        parsed.files = [
            str(config_files.find(text))
            for name, text in options
            if name in config_files.CONFIG_OPTIONS and text
        ]
        for key in ("model", "data"):
            if parsed.config.get(key) is None:
                text = f"is missing; give it in a file (--config FILE) or as --{key} CLASS"
                raise ConfigError(f"{key}: {text}")
        for note in check.notes if os.environ.get("LOCAL_RANK", "0") == "0" else ():
            stream = sys.stdout if parsed.printed is None else sys.stderr
            stream.write(f"note: {note}\n")
        return parsed


def _help() -> ModuleType:
    from spanet_lightning.cli import help_texts

    return help_texts


def _print(text: str) -> None:
    with closed_pipe_allowed():
        print(text)
    raise SystemExit(0)
