"""The database of the studies: one of Optuna's, in a file of SQLite's or on a PostgreSQL server."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna
import sqlalchemy as sa
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from spanet_lightning.errors import ConfigError, did_you_mean
from spanet_lightning.sweep import lock
from spanet_lightning.sweep.definition import Study
from spanet_lightning.sweep.stored import study_from_dict

DEFAULT_URL = "sqlite:///sweeps.db"
_ACCEPTED = f"{DEFAULT_URL} or postgresql://USER@HOST/DATABASE"
_DRIVERS = {"psycopg": "postgresql+psycopg", "psycopg2": "postgresql+psycopg2"}
# Tables that MLflow has and Optuna has not.
_MLFLOW_TABLES = {"experiments", "runs", "latest_metrics"}

Unreachable = (StorageInternalError, SQLAlchemyError, lock.LockError)
"""What is raised while a database is away; the same may succeed later."""


@dataclass(frozen=True)
class Pulse:
    """How a worker shows that it lives, in seconds.

    Attributes:
        interval: Between two signs of life.
        grace: Without a sign, after which a worker of another machine is given up.
    """

    interval: int = 15
    grace: int = 60


def open_storage(url: str, *, pulse: Pulse | None = None, create: bool = True) -> RDBStorage:
    """Connect to a database, which gets Optuna's tables where it has none.

    Args:
        url: `sqlite:///FILE` or `postgresql://USER:PASSWORD@HOST:PORT/DATABASE`.
        pulse: How workers show that they live.
        create: Whether to create what is missing.

    Raises:
        ConfigError: If it can't be reached, is MLflow's, or of another version of Optuna's.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    target = _parse(url)
    _check_file(target, create)
    pulse = pulse or Pulse()
    with _one_line(target):
        engine = sa.create_engine(target, **_engine_settings(target))
        try:
            tables = set(sa.inspect(engine).get_table_names())
            if tables >= _MLFLOW_TABLES:
                raise _shared(target)
            if _complete(engine, tables):
                return _connect(target, pulse)
            if not create:
                raise ConfigError(f"--storage: {_shown(target)} holds no study yet")
            with lock.exclusive(engine, "tables"):  # two that create them at once collide
                return _connect(target, pulse)
        finally:
            engine.dispose()


def refuse_tracker(url: str, tracking_uri: str | None) -> None:
    """Refuse a database that MLflow uses: the migrations of both are in one table of one name.

    Args:
        url: The storage.
        tracking_uri: Where runs are recorded.

    Raises:
        ConfigError: If both are the same database.
    """
    found = [tracking_uri, os.environ.get("MLFLOW_TRACKING_URI")]
    target = _parse(url)
    for uri in found:
        if not uri or "://" not in uri:
            continue
        try:
            other = make_url(uri)
        except ArgumentError:
            continue
        if _place(other) == _place(target):
            raise _shared(target)


def safe_url(url: str) -> str:
    """Return a URL without its password."""
    try:
        return _shown(make_url(url))
    except ArgumentError:
        return re.sub(r"//[^/@]*@", "//***@", url)


def load(url: str, name: str) -> optuna.Study:
    """Return a study.

    Args:
        url: The storage.
        name: Name of the study.

    Raises:
        ConfigError: If there is none of that name, or the storage can't be read.
    """
    storage = open_storage(url, create=False)
    with _one_line(make_url(url)):
        names = sorted(study.study_name for study in storage.get_all_studies())
        if name not in names:
            known = f"there is {', '.join(map(repr, names))}" if names else "there is none"
            raise ConfigError(
                f"study: got {name!r}, which is not in {safe_url(url)}: {known}"
                f"{did_you_mean(name, names)}"
            )
        return optuna.load_study(study_name=name, storage=storage)


def definition_of(study: optuna.Study) -> Study:
    """Return the definition that a study was created with.

    Raises:
        ConfigError: If it is no study of ours.
    """
    text = study.user_attrs.get("definition")
    if text is None:
        raise ConfigError(
            f"study: {study.study_name!r} was not made by `spanet sweep run`: it has no definition"
        )
    return study_from_dict(json.loads(text))


def reason(error: BaseException) -> str:
    """Return what a database said, in one line."""
    cause = error.__cause__ or error
    original = getattr(cause, "orig", None)
    text = str(original if original is not None else cause)
    return " ".join(text.split())[:200]


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
    file = Path(str(target.database))
    if not file.parent.is_dir():
        raise ConfigError(
            f"--storage: got {_shown(target)!r}, but there is no folder {file.parent}"
        )
    if file.is_dir():
        raise ConfigError(f"--storage: got {_shown(target)!r}, which is a folder, expected a file")
    if not create and not file.exists():
        raise ConfigError(
            f"--storage: {_shown(target)} does not exist; give the one of the study (--storage URL)"
        )


def _engine_settings(target: URL) -> dict[str, object]:
    if target.drivername == "sqlite":
        return {"connect_args": {"timeout": 60}}  # seconds that one writer waits for another
    alive = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
    # Asked for a sign of life before each use: a restarted server is noticed, and connected anew.
    return {"pool_pre_ping": True, "connect_args": {"connect_timeout": 10, **alive}}


def _complete(engine: sa.Engine, tables: set[str]) -> bool:
    """Whether Optuna's tables are all there: who creates them writes their version last."""
    if "alembic_version" not in tables:
        return False
    with engine.connect() as connection:
        found = connection.execute(sa.text("SELECT version_num FROM alembic_version")).first()
    return found is not None


def _connect(target: URL, pulse: Pulse) -> RDBStorage:
    # Optuna fills in a version where the text has braces.
    url = target.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # the heartbeat is called one
        return RDBStorage(
            url,
            engine_kwargs=_engine_settings(target),
            heartbeat_interval=pulse.interval,
            grace_period=pulse.grace,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=1),
        )


@contextmanager
def _one_line(target: URL) -> Iterator[None]:
    """Turn what a database complains of into one line without its password."""
    try:
        yield
    except (NoSuchModuleError, ImportError) as error:
        raise ConfigError(f"--storage: {_shown(target)} needs a driver ({reason(error)})") from None
    except RuntimeError as error:
        if isinstance(error, lock.LockError):
            raise ConfigError(f"--storage: {_shown(target)}: {error}") from None
        # Optuna's: the tables are of another version.
        text = _without_password(reason(error), target)
        raise ConfigError(f"--storage: {_shown(target)} can't be used ({text})") from None
    except (SQLAlchemyError, StorageInternalError) as error:
        text = _without_password(reason(error), target)
        raise ConfigError(f"--storage: {_shown(target)} can't be opened ({text})") from None


def _without_password(text: str, target: URL) -> str:
    return text.replace(str(target.password), "***") if target.password else text


def _shown(target: URL) -> str:
    hidden = {key: "***" for key in target.query if "pass" in key.lower()}
    if hidden:
        target = target.update_query_dict(hidden)
    return target.render_as_string(hide_password=True)


def _place(target: URL) -> tuple[object, ...]:
    """Return what two URLs of the same database have in common."""
    kind = target.get_backend_name() if "+" in target.drivername else target.drivername
    if kind == "sqlite":
        return kind, os.path.realpath(str(target.database))
    kind = "postgresql" if kind == "postgres" else kind
    return kind, target.host, target.port or 5432, target.database, target.query.get("options")


def _shared(target: URL) -> ConfigError:
    return ConfigError(
        f"--storage: {_shown(target)} is MLflow's database; Optuna needs one of its own, such as "
        f"{DEFAULT_URL}"
    )
