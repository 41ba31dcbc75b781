"""The process that trials are forked from; imported before anything that takes seconds."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver

PRELOAD = "spanet_lightning.sweep.preload"
COMMAND_VARIABLE = "SPANET_SWEEP_COMMAND"
"""Environment variable: a command of the study, as JSON, which the server parses in advance."""


def start_server(preload: str = PRELOAD, configs: Sequence[str] = ()) -> None:
    """Start the server, where it does not run; it imports while this process does something else.

    Args:
        preload: Module that it imports.
        configs: Configurations of the experiment.
    """
    if configs:
        command = ["fit", *(f"--config={config}" for config in configs)]
        os.environ[COMMAND_VARIABLE] = json.dumps(command)
    multiprocessing.get_context("forkserver").set_forkserver_preload([preload])
    # Ignored from the start: Ctrl-C is this process's to act on, and imports take seconds.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with safe_path():
            forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def safe_path() -> Iterator[None]:
    """Start a process without the working directory on its path, and without our main module.

    A file such as `./yaml.py` is not to be imported, and a script that calls the engine is not to
    be run again in each of its trials.
    """
    before, main = os.environ.get("PYTHONSAFEPATH"), sys.modules["__main__"]
    os.environ["PYTHONSAFEPATH"] = "1"
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
