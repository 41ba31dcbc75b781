"""The `spanet` command: everything but training.

A subcommand is a module with `add_arguments(parser)` and `run(args)`, listed once in `COMMANDS`. It
is imported only when it is called, so that none pays for what another needs.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

from spanet_lightning import __version__, import_errors
from spanet_lightning.cli import config_files
from spanet_lightning.errors import ConfigError, did_you_mean, invalid_choice
from spanet_lightning.exit import closed_pipe_allowed, exit_on_user_error
from spanet_lightning.launcher import foreign_lightning, lightning_command
from spanet_lightning.tracking.addresses import accept_typed


class Command(NamedTuple):
    """A subcommand.

    Attributes:
        module: Where it is implemented.
        help: What it does, in one line.
    """

    module: str
    help: str


COMMANDS = {
    "models": Command("models", "list the variants: parameters, MACs, published figures"),
    "convert": Command("convert", "convert an official checkpoint to safetensors"),
    "export": Command("export", "export a classifier to ONNX, safetensors or MLflow"),
    "bench": Command("bench", "measure time and memory: models, mixers, heads, trials"),
    "data": Command("data", "check a data set: all faults at once, each with its file"),
    "init": Command("init", "recognise the layout of a data set and write a configuration"),
    "sweep": Command("sweep", "run ablations and searches, each defined by a YAML file"),
    "configs": Command("configs", "list, show or copy the packaged configurations and studies"),
    "runs": Command("runs", "list, compare and repeat recorded runs"),
    "ui": Command("ui", "open the dashboards: MLflow, and Optuna with --optuna"),
    "report": Command("report", "report a study: tables, figures, statistics"),
    "track": Command("track", "list and send what the tracking server has not received yet"),
    "analyze": Command("analyze", "analyse frequencies: spectra, filters, biases"),
    "doctor": Command("doctor", "check whether this machine can train, and try one batch"),
    "completion": Command("completion", "print tab completion for bash or zsh"),
    "demo": Command("demo", "train and test a small model on embedded images, in minutes"),
}


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are the user's, in one line, without the usage in front."""

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong with the arguments.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(f"{self.prog}: {message}; see '{self.prog} --help'")


def main(args: Sequence[str] | None = None) -> None:
    """Run a subcommand; a user's mistake ends it with one line and exit code 2.

    Args:
        args: What follows the program's name; None takes it from `sys.argv`.
    """
    given = sys.argv[1:] if args is None else list(args)
    accept_typed(given)
    with exit_on_user_error():
        run(given)


def run(args: Sequence[str]) -> None:
    """Run a subcommand.

    Args:
        args: What follows the program's name.

    Raises:
        SpanetError: For whatever the user got wrong.
    """
    if not args or args[0] in ("-h", "--help"):
        with closed_pipe_allowed():
            print(overview())
        return
    name, *rest = args
    if name == "--version":
        print(f"spanet-lightning {__version__}")
        return
    if name == "--complete":  # what `spanet completion` makes the shell call
        with closed_pipe_allowed():
            print("\n".join(word for word in _complete(rest) if word.startswith(rest[-1])))
        return
    if name not in COMMANDS:
        raise invalid_choice("command", name, COMMANDS)
    module, parser = _parser(name)
    # What a command does not know is a key of the experiment that it runs, if it runs any.
    known, unknown = parser.parse_known_args(rest)
    if unknown and not getattr(module, "TAKES_OVERRIDES", False):
        hint = did_you_mean(unknown[0].partition("=")[0], parser._option_string_actions)
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    known.overrides = unknown
    with closed_pipe_allowed(), import_errors.explained():
        module.run(known)


def _parser(name: str) -> tuple[Any, OneLineParser]:
    """Return the module of a subcommand, and its parser."""
    with import_errors.explained():
        module = importlib.import_module(f"spanet_lightning.cli.{COMMANDS[name].module}")
    parser = OneLineParser(
        prog=f"spanet {name}",
        description=module.__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    return module, parser


def _complete(words: Sequence[str]) -> list[str]:
    """Return what may follow what was typed, the last word being unfinished."""
    name, *rest = words
    if not rest:
        return [*COMMANDS, "--help", "--version"]
    if name not in COMMANDS:
        return []
    parser: argparse.ArgumentParser = _parser(name)[1]
    found: list[str] = []
    for word in ["", *rest[:-1]]:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                found = list(action.choices)
                parser = action.choices.get(word, parser)
        if word in parser._option_string_actions or not found:
            found = []
    if name == "configs" and len(rest) > 1:
        found = [n for kind in ("configs", "sweeps") for n in config_files.names(kind)]
    return [*found, *parser._option_string_actions]


def overview() -> str:
    """Return the help: the subcommands, and how to train."""
    width = max(map(len, COMMANDS))
    lines = ["usage: spanet COMMAND [ARGUMENTS]", "", "commands:"]
    lines += [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    lines += [
        "",
        "spanet COMMAND --help lists the arguments of a command.",
        f"To train: {lightning_command()} fit --config FILE; {lightning_command()} --help",
    ]
    note = foreign_lightning()
    return "\n".join([*lines, *([note] if note else [])])


if __name__ == "__main__":
    main()
