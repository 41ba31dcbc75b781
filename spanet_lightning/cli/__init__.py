"""The `lightning` command: `fit`, `validate`, `test` and `predict` for a configured experiment.

`main` is what the command calls, `run` the same for other code: it raises instead of exiting.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spanet_lightning import import_errors
from spanet_lightning.exit import closed_pipe_allowed, exit_on_user_error
from spanet_lightning.tracking.addresses import accept_typed

if TYPE_CHECKING:
    from spanet_lightning.cli.experiment import Experiment

__all__ = ["Experiment", "main", "run"]


def __getattr__(name: str) -> Any:
    if name != "Experiment":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from spanet_lightning.cli.experiment import Experiment

    return Experiment


def main(args: Sequence[str] | None = None) -> None:
    """Run a command line; a user's mistake ends it with one line and exit code 2.

    Args:
        args: What follows the program's name; None takes it from `sys.argv`.
    """
    given = sys.argv[1:] if args is None else list(args)
    accept_typed(given)
    with exit_on_user_error():
        run(given)


def run(args: Sequence[str], show_results: bool = True) -> Experiment:
    """Run a command line and return what it built.

    Args:
        args: What follows the program's name.
        show_results: Whether to end training with a table of its results.

    Raises:
        SpanetError: For whatever the user got wrong.
    """
    from spanet_lightning.cli.arguments import Arguments

    if args[:1] == ["--complete"]:  # what `spanet completion` makes the shell call
        from spanet_lightning.cli.help_texts import complete

        words = list(args[1:])
        with closed_pipe_allowed():
            print("\n".join(word for word in complete(words) if word.startswith(words[-1])))
        raise SystemExit(0)
    arguments = Arguments.parse(args)
    gc.disable()  # what torch and lightning create as they are imported stays: a second less
    try:
        with import_errors.explained():
            from spanet_lightning.cli.experiment import Experiment
    finally:
        gc.enable()
    return Experiment(arguments, show_results)
