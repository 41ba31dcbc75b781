"""A look at a store before training: what a user got wrong comes up, in about two seconds.

MLflow itself is not asked: importing it and creating its tables takes longer, and a server that
hangs would hold it up. A store that is only down is no mistake; its records wait in the spool.
"""

from __future__ import annotations

import base64
import configparser
import json
import os
import socket
import sqlite3
import ssl
import urllib.error
import urllib.request
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import quote, urlsplit

from spanet_lightning.tracking.addresses import (
    PASSWORD_VARIABLE,
    TOKEN_VARIABLE,
    USER_VARIABLE,
    credentials,
    is_trusted,
    is_web,
    redact,
    withheld,
    without_secret,
)
from spanet_lightning.tracking.refusals import deleted, installed, no_store

TIMEOUT = 2.0
"""Seconds that a store gets to answer."""
_DATABASES = ("postgresql", "mysql", "mssql")
# What logs in by other means than a name and a password.
_OTHER_LOGINS = (
    "MLFLOW_TRACKING_AUTH",
    "MLFLOW_TRACKING_AWS_SIGV4",
    "MLFLOW_TRACKING_CLIENT_CERT_PATH",
)
_QUERY = "SELECT lifecycle_stage FROM experiments WHERE name = "


def probe(uri: str, experiment: str) -> str:
    """Look whether a store can take a run.

    Args:
        uri: The store, with its credentials.
        experiment: Experiment of the run.

    Returns:
        Why the store does not answer at present; empty where it does, or where that takes MLflow
        itself to find out.

    Raises:
        ConfigError: If it never will: there is no such store, the login is refused, or the
            experiment was deleted.
    """
    scheme = uri.partition(":")[0].lower()
    if is_web(uri):
        stages, away = _ask_server(uri, experiment)
    elif scheme == "sqlite":
        stages, away = _ask_file(uri, experiment)
    elif scheme.partition("+")[0] in _DATABASES:
        stages, away = _ask_database(uri, experiment)
    else:
        if installed():
            from spanet_lightning.tracking.store import connect

            connect(uri)
        return ""
    if stages and "active" not in stages:
        raise deleted(experiment)
    return away


def _ask_server(uri: str, experiment: str) -> tuple[list[str], str]:
    clean = without_secret(uri)
    parts = urlsplit(clean)
    if not parts.hostname:
        raise no_store(uri, "there is no host in it")
    request = urllib.request.Request(  # noqa: S310  # http or https
        f"{clean.rstrip('/')}/api/2.0/mlflow/experiments/get-by-name"
        f"?experiment_name={quote(experiment, safe='')}",
    )
    if header := _authorization(uri):
        # Not among the headers that go on to wherever the server redirects to.
        request.add_unredirected_header("Authorization", header)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310
            found = json.loads(answer.read(1 << 20))["experiment"]["lifecycle_stage"]
        return [str(found)], ""
    except urllib.error.HTTPError as error:
        if error.code in (401, 403) and not any(os.environ.get(name) for name in _OTHER_LOGINS):
            why = withheld(uri)
            raise no_store(
                uri, f"it refuses the login: {error.code} {error.reason}{why and f'; {why}'}"
            ) from None
        if error.code == 404 and b"RESOURCE_DOES_NOT_EXIST" not in error.read(1 << 16):
            raise no_store(uri, "a server answers there, but it is not MLflow's") from None
        return [], f"{error.code} {error.reason}" if error.code >= 500 else ""
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLError):  # MLflow may be told of other certificates
            return [], ""
        if isinstance(error.reason, socket.gaierror):
            return [], f"there is no host {parts.hostname}"
        return [], str(getattr(error.reason, "strerror", None) or error.reason)
    except TimeoutError:
        return [], f"no answer in {TIMEOUT:.0f} s"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [], f"it answers what MLflow would not ({type(error).__name__})"


def _authorization(uri: str) -> str:
    """Return the header by which MLflow would log in, as far as it may."""
    found = credentials(uri)
    user, password = found.get(USER_VARIABLE), found.get(PASSWORD_VARIABLE)
    if is_trusted(uri) and not (user and password):
        parser = configparser.ConfigParser(interpolation=None)
        with suppress(configparser.Error, OSError, RuntimeError):
            parser.read(Path.home() / ".mlflow" / "credentials")
            user = user or parser.get("mlflow", USER_VARIABLE.lower())
            password = password or parser.get("mlflow", PASSWORD_VARIABLE.lower())
    if user and password:
        return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"
    token = found.get(TOKEN_VARIABLE)
    return f"Bearer {token}" if token else ""


def _ask_file(uri: str, experiment: str) -> tuple[list[str], str]:
    file = uri.partition("?")[0].removeprefix("sqlite:///")
    path = Path(file)
    if file.startswith((":memory:", "file:")) or file == uri or not path.is_file():
        return [], ""
    try:
        with closing(
            sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=TIMEOUT)
        ) as base:
            rows = base.execute(f"{_QUERY}?", (experiment,)).fetchall()
        return [str(stage) for (stage,) in rows], ""
    except sqlite3.OperationalError:  # no tables yet, or locked
        return [], ""
    except sqlite3.DatabaseError as error:
        raise no_store(uri, error) from None


def _ask_database(uri: str, experiment: str) -> tuple[list[str], str]:
    try:
        import sqlalchemy as sa
        from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
    except ImportError:
        return [], ""
    try:
        url = sa.make_url(uri)
        known = url.get_backend_name() in ("postgresql", "mysql")
        arguments = {"connect_timeout": int(TIMEOUT)} if known else {}
        engine = sa.create_engine(url, connect_args=arguments, poolclass=sa.NullPool)
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise no_store(uri, error) from None
    try:
        with engine.connect() as connection:
            rows = connection.execute(sa.text(f"{_QUERY}:name"), {"name": experiment}).fetchall()
        return [str(row[0]) for row in rows], ""
    except SQLAlchemyError as error:
        reason = " ".join(str(getattr(error, "orig", None) or error).split())[:200]
        if any(word in reason for word in ("authentication failed", "Access denied", "FATAL")):
            if "starting up" in reason or "shutting down" in reason or "too many" in reason:
                return [], redact(reason, uri)
            raise no_store(uri, reason) from None
        if "experiments" in reason:  # there are no tables yet
            return [], ""
        return [], redact(reason, uri)
    finally:
        engine.dispose()
