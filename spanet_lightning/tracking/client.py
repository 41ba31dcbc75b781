"""MLflow, as events are sent to it. Only here, and where models are exported, is mlflow imported.

Everything may be sent twice: a run is looked up by its tag `spanet.uid` before it is created,
MLflow stores equal points (key, time, step and value) once, and the rest replaces itself.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import os
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spanet_lightning.errors import ConfigError
from spanet_lightning.tracking import names
from spanet_lightning.tracking.addresses import (
    CREDENTIALS,
    DEFAULT_URI,
    absolute,
    is_web,
    redact,
    sqlite_file,
    use_credentials,
    withheld,
    without_secret,
)
from spanet_lightning.tracking.event_log import Event, artifact_file

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

UID_TAG = "spanet.uid"
NOTE_TAG = "mlflow.note.content"
"""Tag that MLflow shows as the description of a run, in Markdown."""
# Or MLflow shows an experiment on its pages for language models.
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "file", "databricks", "")
_POINTS, _VALUES = 1000, 100  # metrics, and parameters or tags, that MLflow takes in one request
_LONGEST = {"params": 6000, "tags": 8000}  # characters of a value that MLflow takes
# Seconds, of a request that is tried once: MLflow's own are 120, eight times. For a process, as
# changing the environment while other threads read it is not safe.
_TIMEOUT = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
_DATABASE_SECONDS = 300.0  # that another process may take to create the tables of a database
# Answers of a server that will be the same the next time.
_REFUSALS = {
    "BAD_REQUEST",
    "ENDPOINT_NOT_FOUND",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "NOT_FOUND",
    "NOT_IMPLEMENTED",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}
_LOGIN_REFUSED = {"CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED", "UNAUTHENTICATED"}

_importing = threading.RLock()
_environment = threading.RLock()
# A process that is forked during an import would inherit its locks, and wait for them for ever.
os.register_at_fork(
    before=_importing.acquire,
    after_in_parent=_importing.release,
    after_in_child=_importing.release,
)


class UnavailableError(Exception):
    """MLflow can't be reached; it may be later."""


class RunRefusedError(Exception):
    """MLflow will not take this run."""


class EventRefusedError(Exception):
    """MLflow will not take this event."""


def installed() -> bool:
    """Whether MLflow is installed."""
    return importlib.util.find_spec("mlflow") is not None


def check_address(uri: str) -> None:
    """Refuse an address at which there can be no store, without opening it.

    Args:
        uri: Database or server.

    Raises:
        ConfigError: If it is none.
    """
    scheme, colon, rest = uri.partition(":")
    reason = ""
    if colon and scheme.partition("+")[0].lower() not in _SCHEMES:
        reason = f"there is no store of kind {scheme!r}"
    elif is_web(uri) and not rest.strip("/"):
        reason = "there is no host in it"
    file = sqlite_file(uri)
    if file is not None and file.is_file():
        with suppress(OSError), file.open("rb") as opened:
            start = opened.read(16)
            if start and start != b"SQLite format 3\0":
                reason = f"{file} is not a database"
    if reason:
        raise ConfigError(
            f"trainer.logger.tracking_uri: got {without_secret(uri)!r}, expected a database or a "
            f"server of MLflow's, such as {DEFAULT_URI} ({reason})"
        )


def connect(tracking_uri: str) -> MlflowClient:
    """Open a store, for a command.

    The credentials in the environment are reduced to those that may be sent there.

    Args:
        tracking_uri: Database or server.

    Raises:
        ConfigError: If it can't be opened, MLflow is not installed, or a login would be sent where
            it does not belong.
    """
    try:
        return open_store(tracking_uri)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"trainer.logger.tracking_uri: {without_secret(tracking_uri)!r} can't be opened "
            f"({_one_line(error, tracking_uri)})"
        ) from None


def open_store(tracking_uri: str) -> MlflowClient:
    """Open a store as `connect` does, with MLflow's own errors.

    Args:
        tracking_uri: Database or server.
    """
    check_address(tracking_uri)
    if not installed():
        raise ConfigError("mlflow: is not installed; pip install mlflow")
    clean = absolute(use_credentials(tracking_uri))
    # A run is its owner's business; set to "false" to allow it.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for key, value in _TIMEOUT.items():
        os.environ.setdefault(key, value)
    file = sqlite_file(clean)
    with _importing:
        importlib.import_module("mlflow.tracking")
        if file is not None:
            importlib.import_module("mlflow.store.tracking.sqlalchemy_store")
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):  # dozens of lines about tables while a database is created
        logging.getLogger(name).setLevel(logging.WARNING)
    with ExitStack() as stack:
        if file is not None:
            _lock_database(stack, file)
            if not file.exists():
                _create_database(file)
        return MlflowClient(clean)


def check_store(uri: str) -> str:
    """Return why a store can't be reached at present; empty where it can, or a run will create it.

    Args:
        uri: Database or server.

    Raises:
        ConfigError: If it never will take a run: there is no such store, or the login is refused.
    """
    check_address(uri)
    file = sqlite_file(uri)
    if file is not None and not file.exists():
        return ""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    try:
        connect(uri).search_experiments(max_results=1)
    except ConfigError:
        raise
    except Exception as raised:
        error = classify(raised, uri)
        if not isinstance(error, UnavailableError):
            raise ConfigError(
                f"trainer.logger.tracking_uri: got {without_secret(uri)!r} ({error})"
            ) from None
        return str(error)
    return ""


def study_note(name: str, question: str, storage: str) -> str:
    """Return the description of the run of a study, as MLflow shows it.

    Args:
        name: Name of the study.
        question: What it asks.
        storage: Address of its database, without credentials.
    """
    report = f"spanet report {name} --storage {storage}"
    return f"**Question**: {question}\n\n**Report**: `{report}`"


@contextmanager
def sending_to(uri: str) -> Iterator[None]:
    """Set the environment that MLflow reads to what holds for one store, for a few requests.

    Args:
        uri: The store, with its login.

    Raises:
        ConfigError: If a login would be sent where it does not belong.
    """
    with _environment:
        before = {key: os.environ.get(key) for key in CREDENTIALS}
        try:
            use_credentials(uri)
            yield
        finally:
            for key, value in before.items():
                if value is None:
                    os.environ.pop(key, None)
                elif os.environ.get(key) != value:
                    os.environ[key] = value


def experiment_id(client: MlflowClient, name: str, uri: str) -> str:
    """Return the id of an experiment, which is created where it does not exist.

    Args:
        client: The store.
        name: Name of the experiment.
        uri: Address of the store: artifacts of a database file are beside it.

    Raises:
        ConfigError: If the experiment was deleted.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        file = sqlite_file(uri)
        # MLflow's own default is relative to wherever the process happens to be.
        folder = None if file is None else file.absolute().parent / "mlruns" / uuid.uuid4().hex
        location = None if folder is None else folder.as_uri()
        try:
            return str(client.create_experiment(name, location, tags=_EXPERIMENT_TAGS))
        except MlflowException:  # another run was faster
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise ConfigError(
            f"trainer.logger.experiment_name: got {name!r}, which was deleted in MLflow; restore "
            "it there, or give another name"
        )
    return str(found.experiment_id)


def ensure_run(client: MlflowClient, head: Mapping[str, Any]) -> str:
    """Return the id of a run, which is created where it does not exist.

    Args:
        client: The store.
        head: `uri`, `uid`, `experiment`, `name`, `tags`, `time` (ms since 1970), and `run_id` of a
            run that is known already, or empty.

    Raises:
        ConfigError: If the experiment was deleted.
    """
    known = str(head.get("run_id") or "")
    if known:
        client.update_run(known, status="RUNNING")
        return known
    experiment = experiment_id(client, str(head["experiment"]), str(head["uri"]))
    found = _runs(client, experiment, str(head["uid"]))
    if not found:
        client.create_run(
            experiment,
            start_time=int(head["time"]),
            tags={**head["tags"], UID_TAG: str(head["uid"])},
            run_name=head["name"],
        )
        # A request whose answer was lost may have created one at the same time.
        found = _runs(client, experiment, str(head["uid"]))
    for duplicate in found[1:]:
        client.delete_run(duplicate)
    return found[0]


def delete_duplicates(client: MlflowClient, head: Mapping[str, Any], run_id: str) -> None:
    """Delete the empty runs that requests without an answer have created.

    Args:
        client: The store.
        head: As for `ensure_run`.
        run_id: The run that holds everything.
    """
    if not head.get("run_id"):
        experiment = experiment_id(client, str(head["experiment"]), str(head["uri"]))
        for duplicate in _runs(client, experiment, str(head["uid"])):
            if duplicate != run_id:
                client.delete_run(duplicate)


def send(client: MlflowClient, run_id: str, log: Path, events: Sequence[Event]) -> None:
    """Send events of one kind; several only of metrics.

    Args:
        client: The store.
        run_id: The run.
        log: The event log that they are from.
        events: What to send.

    Raises:
        EventRefusedError: If an artifact's file does not exist, or is not below the run's folder.
    """
    from mlflow.entities import Metric, Param, RunTag

    event = events[0]
    kind = event["kind"]
    if kind == "metrics":
        points = [
            Metric(key, value, one["time"], one["step"])
            for one in events
            for key, value in one["metrics"].items()
        ]
        for start in range(0, len(points), _POINTS):
            client.log_batch(run_id, metrics=points[start : start + _POINTS])
    elif kind in ("params", "tags"):
        pairs = [(key, value[: _LONGEST[kind]]) for key, value in event[kind].items()]
        for start in range(0, len(pairs), _VALUES):
            chunk = pairs[start : start + _VALUES]
            if kind == "params":
                client.log_batch(run_id, params=[Param(*pair) for pair in chunk])
            else:
                client.log_batch(run_id, tags=[RunTag(*pair) for pair in chunk])
    elif kind == "artifact":
        try:
            path = artifact_file(log, event)
        except ValueError as error:
            raise EventRefusedError(str(error)) from None
        folder = str(event.get("folder") or "")
        client.log_artifact(run_id, str(path), names.encode_path(folder) if folder else None)
    elif kind == "dataset":
        _send_dataset(client, run_id, event)
    elif kind == "session":
        client.update_run(run_id, status="RUNNING")
    elif kind == "end":
        client.set_terminated(run_id, str(event["status"]), end_time=event["time"])


def split(events: Sequence[Event]) -> list[Event]:
    """Return events as small as they get: one value of metrics, parameters and tags each."""
    found: list[Event] = []
    for event in events:
        kind: str = event["kind"]
        if kind in ("metrics", "params", "tags"):
            found += [{**event, kind: {key: value}} for key, value in event[kind].items()]
        else:
            found.append(event)
    return found


def classify(error: Exception, uri: str) -> Exception:
    """Return an error of MLflow's as one of the three above.

    Args:
        error: Raised by one of the functions of this module.
        uri: The store, whose login is left out of the message.
    """
    from mlflow.exceptions import MlflowException

    if isinstance(error, UnavailableError | RunRefusedError | EventRefusedError):
        return error
    if isinstance(error, ConfigError):
        return RunRefusedError(str(error))
    text = _one_line(error, uri)
    code = error.error_code if isinstance(error, MlflowException) else ""
    if code in _LOGIN_REFUSED:
        why = withheld(uri)
        return RunRefusedError(f"it refuses the login: {text}{why and f'; {why}'}")
    if code in _REFUSALS:
        # A run that was deleted takes nothing until it is restored.
        whole = "lifecycle" in text or "'active' state" in text or "Run with id=" in text
        return RunRefusedError(text) if whole else EventRefusedError(text)
    return UnavailableError(text)


def _send_dataset(client: MlflowClient, run_id: str, event: Event) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data = Dataset(
        name=str(event["name"]),
        digest=str(event["digest"])[:36],
        source_type="local",
        source=json.dumps({"uri": event["source"]}),
        profile=json.dumps(event["profile"]),
    )
    tags = [InputTag("mlflow.data.context", str(event["context"]))]
    client.log_inputs(run_id, [DatasetInput(data, tags)])


def _runs(client: MlflowClient, experiment: str, uid: str) -> list[str]:
    condition = f"tags.`{UID_TAG}` = '{uid.replace(chr(39), '')}'"
    found = client.search_runs([experiment], condition, max_results=10)
    return sorted(run.info.run_id for run in found)


def _lock_database(stack: ExitStack, file: Path) -> None:
    """Let one process at a time create the tables of a database.

    Raises:
        UnavailableError: If another process takes too long.
    """
    from filelock import FileLock, Timeout

    lock = file.with_name(f".{file.name}.lock")
    if file.is_symlink() or lock.is_symlink() or not os.access(file.parent, os.W_OK):
        return
    try:
        stack.enter_context(FileLock(lock, timeout=_DATABASE_SECONDS))
    except Timeout:
        raise UnavailableError(f"another process is creating {file}") from None
    except (OSError, NotImplementedError):  # a file system without locks
        return


def _create_database(file: Path) -> None:
    """Create a database beside its place, and move it there: killed, a process leaves no half."""
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    partial.unlink(missing_ok=True)
    store = SqlAlchemyStore(f"sqlite:///{partial}", DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH)  # type: ignore[no-untyped-call]
    store.engine.dispose()
    partial.replace(file)


def _one_line(error: Exception, uri: str) -> str:
    text = " ".join(redact(str(error), uri).split())
    return text[:300] or type(error).__name__
