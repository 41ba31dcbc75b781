"""A store of MLflow's, as the records of a spool are sent into it. Only here is mlflow imported.

Everything may be sent twice: a run is looked for by its `spanet.uid` before it is created, MLflow
keeps one of several equal points (key, time, step and value), and the rest replaces itself.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spanet_lightning.errors import ConfigError
from spanet_lightning.tracking.addresses import absolute, use_credentials
from spanet_lightning.tracking.names import inside
from spanet_lightning.tracking.refusals import deleted, installed, no_store
from spanet_lightning.tracking.spool import Record, payload_file

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

UID_TAG = "spanet.uid"
# Or MLflow's pages are those for language models.
_KIND = {"mlflow.experimentKind": "custom_model_development"}
POINTS = 1000  # of metrics that the server takes in one request
_BATCH = 100  # parameters or tags
_LONGEST = {"params": 6000, "tags": 8000}  # characters of a value that the server takes
# Answers that will be the same the next time.
_REFUSALS = {
    "BAD_REQUEST",
    "CUSTOMER_UNAUTHORIZED",
    "ENDPOINT_NOT_FOUND",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "NOT_FOUND",
    "NOT_IMPLEMENTED",
    "PERMISSION_DENIED",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
    "UNAUTHENTICATED",
}
# Of these, the ones that are about the whole run.
_LOCKED_OUT = {"CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED", "UNAUTHENTICATED"}


class AwayError(Exception):
    """The store does not answer; it may later."""


class WrongError(Exception):
    """The store will not take this run."""


class RefusedError(Exception):
    """The store will not take this record."""


def connect(tracking_uri: str) -> MlflowClient:
    """Open a store, quietly.

    Args:
        tracking_uri: Database or server.

    Raises:
        ConfigError: If there is no such store, MLflow is not installed, or a login would be sent
            where it does not belong.
    """
    if not installed():
        raise ConfigError("mlflow: is not installed here; pip install mlflow")
    # A run on a machine of its owner's is nobody's business; set to "false" to allow it.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # MLflow's own are 7 retries of 120 s.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):  # dozens of lines about tables while a database is created
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        return MlflowClient(absolute(use_credentials(tracking_uri)))
    except MlflowException as error:
        raise no_store(tracking_uri, error) from None


def ensure_run(client: MlflowClient, head: Mapping[str, Any]) -> str:
    """Return the id of a run, which is created where it was not.

    Args:
        client: The store.
        head: `uid`, `experiment`, `name`, `tags`, `t` (ms since 1970), and `run_id` of a run that
            is known already, or empty.

    Raises:
        ConfigError: If the experiment was deleted.
    """
    known = str(head.get("run_id") or "")
    if known:
        client.update_run(known, status="RUNNING")
        return known
    experiment = _experiment(client, str(head["experiment"]))
    uid = str(head["uid"])
    found = _runs(client, experiment, uid)
    if not found:
        client.create_run(
            experiment,
            start_time=int(head["t"]),
            tags={**head["tags"], UID_TAG: uid},
            run_name=head["name"],
        )
        # A request whose answer was lost may have created one at the same time.
        found = _runs(client, experiment, uid)
    for run_id in found[1:]:
        client.delete_run(run_id)
    return found[0]


def drop_twins(client: MlflowClient, head: Mapping[str, Any], run_id: str) -> None:
    """Delete runs that a lost answer has left behind: of the same uid, and empty.

    Args:
        client: The store.
        head: As for `ensure_run`.
        run_id: The run that holds everything.
    """
    if not head.get("run_id"):
        for twin in _runs(client, _experiment(client, str(head["experiment"])), str(head["uid"])):
            if twin != run_id:
                client.delete_run(twin)


def _experiment(client: MlflowClient, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, tags=_KIND))
        except MlflowException:  # another run was faster
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise deleted(name)
    return str(found.experiment_id)


def _runs(client: MlflowClient, experiment: str, uid: str) -> list[str]:
    found = client.search_runs([experiment], f"tags.`{UID_TAG}` = '{uid}'", max_results=10)
    return sorted(run.info.run_id for run in found)


def send(client: MlflowClient, run_id: str, folder: Path, records: list[Record]) -> None:
    """Send records of one kind; several only of points.

    Args:
        client: The store.
        run_id: The run.
        folder: The spool.
        records: What to send.

    Raises:
        RefusedError: If an artifact's file is gone, or is not in the spool.
    """
    from mlflow.entities import Param, RunTag

    record = records[0]
    kind = record["op"]
    if kind == "metrics":
        points = _points(records)
        for start in range(0, len(points), POINTS):
            client.log_batch(run_id, metrics=points[start : start + POINTS])
    elif kind == "params":
        for chunk in _chunks(record["params"], _LONGEST["params"]):
            client.log_batch(run_id, params=[Param(k, v) for k, v in chunk])
    elif kind == "tags":
        for chunk in _chunks(record["tags"], _LONGEST["tags"]):
            client.log_batch(run_id, tags=[RunTag(k, v) for k, v in chunk])
    elif kind == "artifact":
        try:
            path = payload_file(folder, record)
        except ValueError as error:
            raise RefusedError(str(error)) from None
        if not path.is_file():
            raise RefusedError(f"{path} is gone")
        where = inside(str(record["folder"])) if record["folder"] else None
        client.log_artifact(run_id, str(path), where)
    elif kind == "dataset":
        _send_dataset(client, run_id, record)
    elif kind == "session":
        client.update_run(run_id, status="RUNNING")
    elif kind == "end":
        client.set_terminated(run_id, record["status"], end_time=record["t"])


def _points(records: Iterable[Record]) -> list[Any]:
    from mlflow.entities import Metric

    return [
        Metric(key, value, record["t"], record["step"])
        for record in records
        for key, value in record["metrics"].items()
    ]


def _chunks(values: Mapping[str, str], longest: int) -> Iterable[list[tuple[str, str]]]:
    pairs = [(key, value[:longest]) for key, value in values.items()]
    for start in range(0, len(pairs), _BATCH):
        yield pairs[start : start + _BATCH]


def _send_dataset(client: MlflowClient, run_id: str, record: Record) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data = Dataset(
        name=record["name"],
        digest=record["digest"][:36],
        source_type="local",
        source=json.dumps({"uri": record["source"]}),
        profile=json.dumps(record["profile"]),
    )
    tags = [InputTag("mlflow.data.context", record["context"])]
    client.log_inputs(run_id, [DatasetInput(data, tags)])


def judged(error: Exception) -> Exception:
    """Return what an error of MLflow's means: away, wrong, or refused.

    Args:
        error: Raised by one of the functions above.
    """
    from mlflow.exceptions import MlflowException

    if isinstance(error, AwayError | WrongError | RefusedError):
        return error
    if isinstance(error, ConfigError):
        return WrongError(str(error))
    text = " ".join(str(error).split())[:300] or type(error).__name__
    code = error.error_code if isinstance(error, MlflowException) else ""
    if code in _LOCKED_OUT:
        return WrongError(text)
    if code in _REFUSALS:
        # A run that was deleted takes nothing; with `spanet track sync` it does once restored.
        whole = "lifecycle" in text or "'active' state" in text or "Run with id=" in text
        return WrongError(text) if whole else RefusedError(text)
    return AwayError(text)
