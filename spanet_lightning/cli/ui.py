"""Open the dashboards: MLflow on the store of the runs, Optuna's on that of the studies.

Both listen on this machine alone, and end with Ctrl-C. MLflow's listens elsewhere with --host and
--auth, which asks for a user and a password; docs/tracking.md has the set-up.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from spanet_lightning.errors import ConfigError, invalid

STORAGE = "sqlite:///sweeps.db"  # `sweep.storage.DEFAULT_URL`, without importing optuna for it
_PASSWORD = "MLFLOW_AUTH_ADMIN_PASSWORD"  # noqa: S105 - the name of a variable
_SECRET = "MLFLOW_FLASK_SERVER_SECRET_KEY"  # noqa: S105
_START_SECONDS = 180.0  # that a server may take until it answers: imports, on a busy machine
# Runs a server, and ends it with all that it has started once standard input is closed: however the
# command ends, `kill -9` included.
_GUARD = """
import os, signal, subprocess, sys, threading, time
signal.signal(signal.SIGTERM, lambda *_: None)  # the server acts on it, then this ends as well
server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
def end_with_command():
    while os.read(0, 1024):
        pass
    os.killpg(0, signal.SIGTERM)
    time.sleep(10)
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=end_with_command, daemon=True).start()
server.wait()
os.killpg(0, signal.SIGKILL)  # what it has started
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `spanet ui`."""
    text = "database of the runs (default: MLFLOW_TRACKING_URI, or mlflow.db here)"
    parser.add_argument("--tracking-uri", default=None, metavar="URI", help=text)
    parser.add_argument("--port", type=int, default=5000, help="MLflow's (default: %(default)s)")
    text = "address to listen on (default: %(default)s); others than this machine's need --auth"
    parser.add_argument("--host", default="127.0.0.1", help=text)
    text = f"ask for a user and a password; {_PASSWORD} is that of the first user, admin"
    parser.add_argument("--auth", action="store_true", help=text)
    text = "names that the server is called by from elsewhere, by commas; MLflow's --allowed-hosts"
    parser.add_argument("--allowed-hosts", default=None, metavar="NAMES", help=text)
    parser.add_argument("--optuna", action="store_true", help="Optuna's dashboard as well")
    text = "database of the studies (default: %(default)s)"
    parser.add_argument("--storage", default=STORAGE, metavar="URL", help=text)
    text = "Optuna's, always on this machine alone (default: %(default)s)"
    parser.add_argument("--optuna-port", type=int, default=8080, help=text)


def run(args: argparse.Namespace) -> None:
    """Start the servers, print their addresses, and stop them on Ctrl-C or SIGTERM.

    Raises:
        ConfigError: If a store is missing, a port is taken, or a package is not installed.
    """
    from spanet_lightning.tracking.addresses import is_web, without_secret
    from spanet_lightning.tracking.browse import existing

    uri = existing(args.tracking_uri)
    _check_host(args)
    if is_web(uri):
        print(f"MLflow is a server already: {without_secret(uri)}")
    else:
        _check_free(args.host, args.port, "--port")
    if args.optuna:
        _check_optuna(args)
    elif is_web(uri):
        return
    with contextlib.ExitStack() as stack, _signals_as_interrupt():
        servers = [] if is_web(uri) else [stack.enter_context(_mlflow(args, uri))]
        if args.optuna:
            servers.append(stack.enter_context(_optuna(args)))
        with contextlib.suppress(KeyboardInterrupt):
            for server in servers:
                server.wait_until_ready()
                page = _runs_page(server.address) if server.name == "MLflow" else ""
                print(f"{server.name}: {server.address}{page}", flush=True)
            print("Ctrl-C stops.", flush=True)
            while True:
                for server in servers:
                    server.check_running()
                time.sleep(0.2)
    with contextlib.suppress(BrokenPipeError):  # whoever started it may be gone
        print("Stopped.", flush=True)


class Server:
    """A server that runs beside the command, and ends with it.

    Args:
        name: What it is called in messages.
        command: Program and arguments.
        address: Where it answers, such as http://127.0.0.1:5000.
        health: Path that answers with 200 once it is ready.
        environment: Variables beside those of this process: what is secret is no argument, which
            all users of a machine can see.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        address: str,
        health: str = "/",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.address = address
        self.health = health
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed at the end
        self.process = subprocess.Popen(
            [sys.executable, "-c", _GUARD, *command],
            stdin=subprocess.PIPE,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            # Unbuffered: else what it prints may come after the error that it ends with.
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            start_new_session=True,  # the terminal's Ctrl-C is for this process
        )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()
        self.log.close()

    def check_running(self) -> None:
        """Raise a `ConfigError` with its last line if it has ended."""
        if self.process.poll() is not None:
            raise ConfigError(f"spanet ui: {self.name} ended: {self.last_line()}")

    def wait_until_ready(self) -> None:
        """Wait until it answers.

        Raises:
            ConfigError: If it ends, or does not answer in time.
        """
        end = time.monotonic() + _START_SECONDS
        while time.monotonic() < end:
            self.check_running()
            try:
                with urllib.request.urlopen(f"{self.address}{self.health}", timeout=2):  # noqa: S310
                    return
            except urllib.error.HTTPError as error:
                if error.code == 401:  # it asks for a user
                    return
            except OSError:
                pass
            time.sleep(0.2)
        raise ConfigError(
            f"spanet ui: {self.name} did not answer at {self.address} within "
            f"{_START_SECONDS:.0f} s: {self.last_line()}"
        )

    def last_line(self) -> str:
        """Return the last line that it printed."""
        self.log.seek(0)
        text = self.log.read().decode("utf-8", errors="replace").strip()
        return text.rsplit("\n", maxsplit=1)[-1].strip()[:300] or "it printed nothing"


@contextlib.contextmanager
def _signals_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM and SIGHUP as Ctrl-C."""
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {one: signal.signal(one, signal.default_int_handler) for one in numbers}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _check_host(args: argparse.Namespace) -> None:
    """Refuse to show runs to others than this machine's users without asking who they are."""
    from spanet_lightning.tracking.addresses import is_loopback

    if not is_loopback(args.host) and not args.auth:
        raise ConfigError(
            f"--host: got {args.host!r}, which others reach, expected 127.0.0.1, or --auth with it "
            "(docs/tracking.md)"
        )
    if not args.auth:
        return
    if importlib.util.find_spec("flask_wtf") is None:
        raise ConfigError("--auth: needs the package Flask-WTF: pip install 'mlflow[auth]'")
    configured = Path("basic_auth.db").exists() or os.environ.get("MLFLOW_AUTH_CONFIG_PATH")
    password = os.environ.get(_PASSWORD)
    if not password and not configured:
        raise ConfigError(
            f"--auth: there is no user yet, expected the variable {_PASSWORD}, the password of the "
            "first one, admin"
        )
    if password and len(password) < 12:
        raise ConfigError(f"{_PASSWORD}: got a password of fewer than 12 characters")


def _check_optuna(args: argparse.Namespace) -> None:
    from spanet_lightning.tracking.addresses import sqlite_file

    if importlib.util.find_spec("optuna_dashboard") is None:
        raise ConfigError(
            "--optuna: needs the package optuna-dashboard, "
            "pip install 'spanet-lightning[dashboard]'"
        )
    file = sqlite_file(args.storage)
    if file is not None and not file.is_file():
        accepted = "a database of studies, which `spanet sweep run` makes"
        raise invalid("--storage", args.storage, accepted)
    _check_free("127.0.0.1", args.optuna_port, "--optuna-port")


def _check_free(host: str, port: int, key: str) -> None:
    """Refuse a port that another program has."""
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


def _mlflow(args: argparse.Namespace, uri: str) -> Server:
    from spanet_lightning.tracking.addresses import absolute, sqlite_file

    command = [sys.executable, "-m", "mlflow", "server", "--host", args.host]
    # One process: a dashboard of one person needs no more, and each takes a few hundred MB.
    command += ["--port", str(args.port), "--workers", "1"]
    environment = {
        "MLFLOW_BACKEND_STORE_URI": absolute(uri),
        "MLFLOW_DISABLE_TELEMETRY": os.environ.get("MLFLOW_DISABLE_TELEMETRY", "true"),
        # Jobs are for language models, and would be processes more.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    file = sqlite_file(uri)
    if file is not None:
        # Where the store is, not where the command is typed.
        environment["MLFLOW_ARTIFACTS_DESTINATION"] = str(file.parent / "mlartifacts")
    if args.auth:
        command += ["--app-name", "basic-auth"]
        environment[_SECRET] = os.environ.get(_SECRET) or secrets.token_hex(32)
    if args.allowed_hosts is not None:
        command += ["--allowed-hosts", args.allowed_hosts]
    host = f"[{args.host}]" if ":" in args.host else args.host
    host = "127.0.0.1" if host in ("0.0.0.0", "[::]") else host  # noqa: S104 - to ask it ourselves
    return Server("MLflow", command, f"http://{host}:{args.port}", "/health", environment)


def _runs_page(address: str) -> str:
    """Return the page of the newest experiment's runs; MLflow opens on those of language models."""
    request = urllib.request.Request(  # noqa: S310 - our own server
        f"{address}/api/2.0/mlflow/experiments/search",
        data=json.dumps({"max_results": 1, "order_by": ["last_update_time DESC"]}).encode(),
        headers={"Content-Type": "application/json"},
    )
    path = "experiments"
    with (
        contextlib.suppress(OSError, ValueError, LookupError),  # such as one that asks for a user
        urllib.request.urlopen(request, timeout=10) as answer,  # noqa: S310
    ):
        path += f"/{json.load(answer)['experiments'][0]['experiment_id']}/runs"
    return f"/#/{path}?workflowType=machine_learning"


def _optuna(args: argparse.Namespace) -> Server:
    port = str(args.optuna_port)
    return Server(
        "Optuna",
        [sys.executable, "-m", "spanet_lightning.sweep.dashboard", "127.0.0.1", port],
        f"http://127.0.0.1:{port}",
        "/dashboard/",
        {"SPANET_OPTUNA_STORAGE": args.storage},
    )
