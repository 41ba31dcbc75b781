"""Servers that run beside a command, and end with it: the dashboards of `spanet ui`."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import IO

from spanet_lightning.errors import ConfigError

START_SECONDS = 180.0  # that a server may take until it answers: imports, on a busy machine
_STOP_SECONDS = 10.0  # that it gets to end by itself
# Runs a server, and ends it and what it started once standard input is closed: that happens however
# the command ends, by kill -9 too, which would leave the port taken.
_GUARD = """
import os, signal, subprocess, sys, threading, time
signal.signal(signal.SIGTERM, lambda *_: None)  # the server's to act on; then this ends as well
server = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL)
def end_with_command():
    while os.read(0, 1024):
        pass
    os.killpg(0, signal.SIGTERM)
    time.sleep(float(sys.argv[1]))
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=end_with_command, daemon=True).start()
sys.exit(server.wait())
"""
_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


class Server:
    """A server as a process group of its own.

    Args:
        name: What it is called in messages.
        command: Program and arguments.
        address: Where it answers, such as http://127.0.0.1:5000.
        health: Path that answers with 200 once it is ready.
        environment: Variables beside those of this process: what is secret is no argument, which
            all users of a machine can see.
        page: What to open, below the address.
        hint: What a person should know on that page.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        address: str,
        health: str = "/",
        environment: Mapping[str, str] | None = None,
        page: str = "",
        hint: str = "",
    ) -> None:
        self.name = name
        self.address = address
        self.health = health
        self.page = page
        self.hint = hint
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop
        self.process = subprocess.Popen(
            [sys.executable, "-c", _GUARD, str(_STOP_SECONDS), *command],
            stdin=subprocess.PIPE,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            # Unbuffered: else what it prints may come after the error that it ends with.
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            # The terminal's Ctrl-C is for us: we stop all that it has started, and its children.
            start_new_session=True,
        )

    def answers(self) -> bool:
        """Whether it is ready.

        Raises:
            ConfigError: If it has ended.
        """
        if self.process.poll() is not None:
            raise ConfigError(f"spanet ui: {self.name} ended at once: {self.last_words()}")
        try:
            with urllib.request.urlopen(f"{self.address}{self.health}", timeout=2) as answer:  # noqa: S310
                return bool(answer.status == 200)
        except urllib.error.HTTPError as error:
            return error.code == 401  # it asks who is there
        except OSError:
            return False

    def last_words(self) -> str:
        """Return the last line that it printed."""
        self.log.seek(0)
        text = self.log.read().decode("utf-8", errors="replace").strip()
        return text.rsplit("\n", maxsplit=1)[-1].strip()[:300] or "it said nothing"

    def stop(self) -> None:
        """End it and whatever it started."""
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_STOP_SECONDS)
        # The leader may be gone before those that it started.
        self._signal(getattr(signal, "SIGKILL", signal.SIGTERM))
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.log.close()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(self.process.pid, number)
            else:
                self.process.terminate()


def wait_until_ready(servers: Sequence[Server], asked_to_stop: list[int]) -> bool:
    """Wait until all answer.

    Args:
        servers: The servers.
        asked_to_stop: Signals that came in, as `stopped_by_signals` gives them.

    Returns:
        Whether they do; False where a signal came first.

    Raises:
        ConfigError: If one ends, or does not answer in time.
    """
    deadline = time.monotonic() + START_SECONDS
    waiting = list(servers)
    while waiting and not asked_to_stop:
        waiting = [server for server in waiting if not server.answers()]
        if waiting and time.monotonic() > deadline:
            raise ConfigError(
                f"spanet ui: {waiting[0].name} did not answer at {waiting[0].address} within "
                f"{START_SECONDS:.0f} s: {waiting[0].last_words()}"
            )
        if waiting:
            time.sleep(0.2)
    return not asked_to_stop


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[list[int]]:
    """Collect the signals that ask to end, in place of what they do by default."""
    caught: list[int] = []

    def catch(number: int, _: FrameType | None) -> None:
        caught.append(number)

    before = {one: signal.signal(one, catch) for one in _SIGNALS}
    try:
        yield caught
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def check_free(host: str, port: int, key: str) -> None:
    """Refuse a port that another program has.

    Args:
        host: Address to listen on.
        port: The port.
        key: Argument that gave it.

    Raises:
        ConfigError: If it is taken, or no port.
    """
    if not 0 < port < 65536:
        raise ConfigError(f"{key}: got {port}, expected a port from 1 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"{key}: got {port}, which can't be had on {host} ({error.strerror}); expected a "
                f"free port, such as {port + 1}"
            ) from None
