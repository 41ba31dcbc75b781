"""How a command ends on a mistake of the user's: one line, exit code 2, no traceback."""

from __future__ import annotations

import atexit
import gc
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from spanet_lightning.errors import EXIT_USER_ERROR, SpanetError

TRACEBACK_VARIABLE = "SPANET_TRACEBACK"
"""Environment variable: any value shows where a user's error was raised, for developers."""


def users_error(error: BaseException | None) -> SpanetError | None:
    """Return the user's error that an exception is, or was explicitly raised from, if any."""
    while error is not None:
        if isinstance(error, SpanetError):
            return error
        # Not __context__: what broke while an error was being handled is a bug of its own.
        error = error.__cause__
    return None


def message(error: SpanetError) -> str:
    """Return the one line that says what is wrong.

    An error from a loader's worker process arrives as the worker's whole traceback in one string;
    its last line is the error.
    """
    text = str(error).strip()
    if "Traceback (most recent call last)" in text:
        text = re.sub(r"^[\w.]+Error: ", "", text.splitlines()[-1])
    return " ".join(text.split())


@contextmanager
def closed_pipe_allowed() -> Iterator[None]:
    """Print to a reader that may have seen enough: `| head`."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """End the process with one line on stderr where a user's error comes up; leave bugs alone."""
    # The interpreter's last collection would visit all of torch, lightning and mlflow: two seconds.
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
    try:
        yield
    except Exception as error:
        found = users_error(error)
        if found is None or os.environ.get(TRACEBACK_VARIABLE):
            raise
        sys.stdout.flush()
        if not getattr(found, "shown", False):
            sys.stderr.write(f"error: {message(found)}\n")
        sys.exit(EXIT_USER_ERROR)
