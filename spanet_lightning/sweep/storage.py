"""The database of the studies: Optuna's, in an SQLite file or on a PostgreSQL server."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import filelock
import optuna
import sqlalchemy as sa
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
    SQLAlchemyError,
)

from spanet_lightning.errors import ConfigError, did_you_mean
from spanet_lightning.sweep.study import Study, from_stored

DEFAULT_URL = "sqlite:///sweeps.db"
HEARTBEAT, GRACE = 15, 60
"""Seconds between two heartbeats of a running trial, and without one until it is given up."""
_ACCEPTED = f"{DEFAULT_URL} or postgresql://USER@HOST/DATABASE"
_DRIVERS = {"psycopg": "postgresql+psycopg", "psycopg2": "postgresql+psycopg2"}
# Tables that MLflow has and Optuna has not.
_MLFLOW_TABLES = {"experiments", "runs", "latest_metrics"}
_LOCK_SECONDS = 120


def is_outage(error: BaseException) -> bool:
    """Whether a database may answer the same request later: not if it is damaged."""
    if isinstance(error, filelock.Timeout):
        return True
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    if isinstance(cause, DBAPIError) and cause.connection_invalidated:
        return True
    return isinstance(cause, OperationalError | InterfaceError) and "not a database" not in str(
        cause
    )


def open_storage(
    url: str, *, create: bool = True, heartbeat: int = HEARTBEAT, grace: int = GRACE
) -> RDBStorage:
    """Connect to a database, which gets Optuna's tables where it has none.

    Args:
        url: `sqlite:///FILE` or `postgresql://USER:PASSWORD@HOST:PORT/DATABASE`.
        create: Whether to create what is missing.
        heartbeat: Seconds between heartbeats; on a server only.
        grace: Seconds without a heartbeat after which a trial's supervisor is dead.

    Raises:
        ConfigError: If it can't be reached, is MLflow's, or was made by another version of Optuna.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    target = _parse(url)
    _check_file(target, create)
    # Optuna replaces braces by its version.
    text = target.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    on_file = target.drivername == "sqlite"
    with one_line(url):
        engine = sa.create_engine(target, **_engine_settings(target))
        try:
            tables = set(sa.inspect(engine).get_table_names())
            if tables >= _MLFLOW_TABLES:
                raise _is_mlflows(target)
            if not create and "studies" not in tables:
                raise ConfigError(f"--storage: {_shown(target)} holds no study yet")
            # Two commands that create the tables at once collide; their version comes last.
            whole = "alembic_version" in tables and _has_version(engine)
            lock = nullcontext() if whole else exclusive(engine)
            with lock, warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)  # heartbeats
                return RDBStorage(
                    text,
                    engine_kwargs=_engine_settings(target),
                    heartbeat_interval=None if on_file else heartbeat,
                    grace_period=None if on_file else grace,
                )
        finally:
            engine.dispose()


@contextmanager
def exclusive(engine: sa.Engine) -> Iterator[None]:
    """Let one process at a time create, enqueue and claim: both locks end with their process."""
    if engine.dialect.name == "sqlite":
        with filelock.FileLock(f"{engine.url.database}.lock", timeout=_LOCK_SECONDS):
            yield
        return
    with engine.begin() as connection:
        connection.execute(sa.text(f"SET LOCAL lock_timeout = '{_LOCK_SECONDS}s'"))
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext('spanet-sweep'))"))
        yield


def supervisor_lock(storage: RDBStorage, name: str) -> filelock.FileLock | None:
    """Return the lock that allows one supervisor a study in an SQLite file; None on a server."""
    if storage.engine.dialect.name != "sqlite":
        return None
    file = Path(str(storage.engine.url.database))
    return filelock.FileLock(file.with_name(f".{file.name}.{name}.lock"), timeout=0)


def refuse_tracker(url: str, tracking_uri: str | None) -> None:
    """Refuse a database that MLflow uses: both keep their migrations in a table of the same name.

    Args:
        url: The storage.
        tracking_uri: Where runs are recorded.

    Raises:
        ConfigError: If both are the same database.
    """
    target = _parse(url)
    for uri in (tracking_uri, os.environ.get("MLFLOW_TRACKING_URI")):
        if not uri or "://" not in uri:
            continue
        try:
            other = make_url(uri)
        except ArgumentError:
            continue
        if _identity(other) == _identity(target):
            raise _is_mlflows(target)


def safe_url(url: str) -> str:
    """Return a URL without its password."""
    try:
        return _shown(make_url(url))
    except ArgumentError:
        return re.sub(r"//[^/@]*@", "//***@", url)


def names(storage: RDBStorage) -> list[str]:
    """Return the names of all studies."""
    return sorted(study.study_name for study in storage.get_all_studies())


def load(url: str, name: str) -> optuna.Study:
    """Return a study.

    Raises:
        ConfigError: If there is none of that name, or the storage can't be read.
    """
    storage = open_storage(url, create=False)
    with one_line(url):
        known = names(storage)
        if name not in known:
            there = ", ".join(map(repr, known)) or "no study"
            hint = did_you_mean(name, known)
            raise ConfigError(f"study: got {name!r}; {safe_url(url)} has {there}{hint}")
        return optuna.load_study(study_name=name, storage=storage)


def definition_of(study: optuna.Study) -> Study:
    """Return the definition that a study was created with.

    Raises:
        ConfigError: If `spanet sweep run` did not create it.
    """
    text = study.user_attrs.get("definition")
    if text is None:
        raise ConfigError(
            f"study: {study.study_name!r} has no definition: `spanet sweep run` did not create it"
        )
    try:
        return from_stored(json.loads(text))
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"study: the definition of {study.study_name!r} is damaged") from None


def reason(error: BaseException) -> str:
    """Return what a database said, in one line."""
    cause = error.__cause__ or error
    original = getattr(cause, "orig", None)
    return " ".join(str(original if original is not None else cause).split())[:200]


@contextmanager
def one_line(url: str) -> Iterator[None]:
    """Turn the errors of a database into one line without its password."""
    target = make_url(url)
    try:
        yield
    except ConfigError:
        raise
    except (NoSuchModuleError, ImportError) as error:
        raise ConfigError(f"--storage: {_shown(target)} needs a driver ({reason(error)})") from None
    except (SQLAlchemyError, StorageInternalError, RuntimeError, filelock.Timeout) as error:
        # A RuntimeError is Optuna's: the tables are of another version.
        text = reason(error)
        text = text.replace(str(target.password), "***") if target.password else text
        raise ConfigError(f"--storage: {_shown(target)} can't be used ({text})") from None


def _parse(url: str) -> URL:
    try:
        target = make_url(url)
    except (ArgumentError, ValueError):
        raise ConfigError(f"--storage: got {safe_url(url)!r}, expected {_ACCEPTED}") from None
    kind = target.drivername
    if kind == "sqlite":
        if not target.database or target.database == ":memory:":
            raise ConfigError(f"--storage: got {url!r}, which is no file; expected {_ACCEPTED}")
        return target
    if kind in ("postgresql", "postgres"):
        for module, driver in _DRIVERS.items():
            if importlib.util.find_spec(module) is not None:
                return target.set(drivername=driver)
        raise ConfigError(
            f"--storage: {_shown(target)} needs a driver; "
            "install one with: pip install 'spanet-lightning[postgresql]'"
        )
    if kind in _DRIVERS.values():
        return target
    raise ConfigError(f"--storage: got {_shown(target)!r}, expected {_ACCEPTED}")


def _check_file(target: URL, create: bool) -> None:
    if target.drivername != "sqlite":
        return
    file, shown = Path(str(target.database)), _shown(target)
    if not file.parent.is_dir():
        raise ConfigError(f"--storage: got {shown!r}, but there is no folder {file.parent}")
    if file.is_dir():
        raise ConfigError(f"--storage: got {shown!r}, which is a folder, expected a file")
    if not file.exists():
        if create:
            return
        text = "does not exist; give the storage of the study (--storage URL)"
        raise ConfigError(f"--storage: {shown} {text}")
    try:
        with file.open("rb") as opened:
            start = opened.read(16)
    except OSError as error:
        raise ConfigError(f"--storage: {shown} can't be read ({error.strerror})") from None
    if start and start != b"SQLite format 3\0":
        raise ConfigError(f"--storage: {shown} is damaged: it is not an SQLite database")


def _engine_settings(target: URL) -> dict[str, object]:
    if target.drivername == "sqlite":
        return {"connect_args": {"timeout": 60}}  # seconds that one writer waits for another
    alive = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
    # A connection is tried before each use, so that one to a restarted server is opened anew.
    return {"pool_pre_ping": True, "connect_args": {"connect_timeout": 10, **alive}}


def _has_version(engine: sa.Engine) -> bool:
    with engine.connect() as connection:
        found = connection.execute(sa.text("SELECT version_num FROM alembic_version")).first()
    return found is not None


def _shown(target: URL) -> str:
    hidden = {key: "***" for key in target.query if "pass" in key.lower()}
    if hidden:
        target = target.update_query_dict(hidden)
    return target.render_as_string(hide_password=True)


def _identity(target: URL) -> tuple[object, ...]:
    """Return what two URLs of the same database have in common."""
    kind = target.get_backend_name() if "+" in target.drivername else target.drivername
    if kind == "sqlite":
        return kind, os.path.realpath(str(target.database))
    kind = "postgresql" if kind == "postgres" else kind
    return kind, target.host, target.port or 5432, target.database, target.query.get("options")


def _is_mlflows(target: URL) -> ConfigError:
    return ConfigError(
        f"--storage: {_shown(target)} is MLflow's database; Optuna needs one of its own, such as "
        f"{DEFAULT_URL}"
    )
