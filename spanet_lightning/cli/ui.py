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
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from spanet_lightning.errors import ConfigError, invalid

if TYPE_CHECKING:
    from spanet_lightning.tracking.serve import Server

STORAGE = "sqlite:///sweeps.db"  # `sweep.storage.DEFAULT_URL`, without importing optuna for it
_PASSWORD = "MLFLOW_AUTH_ADMIN_PASSWORD"  # noqa: S105 - the name of a variable
_SECRET = "MLFLOW_FLASK_SERVER_SECRET_KEY"  # noqa: S105


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
    """Start the servers, tell their addresses, and stop them when asked to.

    Raises:
        ConfigError: If a store is missing, a port is taken, or a package is not installed.
    """
    from spanet_lightning.tracking import serve
    from spanet_lightning.tracking.addresses import is_web, without_secret
    from spanet_lightning.tracking.browse import existing

    uri = existing(args.tracking_uri)
    _check_host(args)
    if is_web(uri) and not args.optuna:
        print(f"MLflow is a server already: {without_secret(uri)}")
        return
    with contextlib.ExitStack() as stack:
        asked_to_stop = stack.enter_context(serve.stopped_by_signals())
        servers = []
        if is_web(uri):
            print(f"MLflow is a server already: {without_secret(uri)}")
        else:
            serve.check_free(args.host, args.port, "--port")
        if args.optuna:
            _check_optuna(args)
        if not is_web(uri):
            servers.append(_mlflow(args, uri))
            stack.callback(servers[-1].stop)
        if args.optuna:
            servers.append(_optuna(args))
            stack.callback(servers[-1].stop)
        print("Starting …", flush=True)
        if serve.wait_until_ready(servers, asked_to_stop):
            for server in servers:
                page = _runs_page(server.address) if server.name == "MLflow" else ""
                print(f"{server.name}: {server.address}{page}", flush=True)
            print("Ctrl-C stops.", flush=True)
        while not asked_to_stop:
            for server in servers:
                if server.process.poll() is not None:
                    raise ConfigError(f"spanet ui: {server.name} ended: {server.last_words()}")
            time.sleep(0.2)
    with contextlib.suppress(BrokenPipeError):  # who started it may be gone
        print("Stopped.", flush=True)


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
    users = Path("basic_auth.db")
    configured = users.exists() or os.environ.get("MLFLOW_AUTH_CONFIG_PATH")
    if not os.environ.get(_PASSWORD) and not configured:
        raise ConfigError(
            f"--auth: there is no user yet, expected the variable {_PASSWORD}, the password of the "
            "first one, admin"
        )
    if os.environ.get(_PASSWORD) and len(os.environ[_PASSWORD]) < 12:
        raise ConfigError(f"{_PASSWORD}: got a password of fewer than 12 characters")


def _check_optuna(args: argparse.Namespace) -> None:
    from spanet_lightning.tracking.browse import sqlite_file
    from spanet_lightning.tracking.serve import check_free

    if importlib.util.find_spec("optuna_dashboard") is None:
        raise ConfigError(
            "--optuna: needs the package optuna-dashboard, "
            "pip install 'spanet-lightning[dashboard]'"
        )
    file = sqlite_file(args.storage)
    if file is not None and not file.is_file():
        accepted = "a database of studies, which `spanet sweep run` makes"
        raise invalid("--storage", args.storage, accepted)
    check_free("127.0.0.1", args.optuna_port, "--optuna-port")


def _mlflow(args: argparse.Namespace, uri: str) -> Server:
    from spanet_lightning.tracking.addresses import absolute
    from spanet_lightning.tracking.browse import sqlite_file
    from spanet_lightning.tracking.serve import Server

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
    return Server(
        "MLflow",
        command,
        f"http://{host}:{args.port}",
        "/health",
        environment,
    )


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
    from spanet_lightning.tracking.serve import Server

    port = str(args.optuna_port)
    return Server(
        "Optuna",
        [sys.executable, "-m", "spanet_lightning.sweep.dashboard", "127.0.0.1", port],
        f"http://127.0.0.1:{port}",
        "/dashboard/",
        {"SPANET_OPTUNA_STORAGE": args.storage},
    )
