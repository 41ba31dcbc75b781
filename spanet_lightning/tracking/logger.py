"""The logger of a run: what Lightning, callbacks and the command line record in MLflow."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger

from spanet_lightning.errors import ConfigError

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient
    from PIL.Image import Image

DEFAULT_URI = "sqlite:///mlflow.db"
DEFAULT_EXPERIMENT = "spanet"
_BATCH = 100  # parameters that the server takes in one request
_LONGEST = 6000  # characters of a parameter's value that the server takes
_STATUS = {"success": "FINISHED", "finished": "FINISHED", "failed": "FAILED"}


class MLflowLogger(Logger):
    """Records a run in MLflow: parameters, metrics, texts.

    Nothing is opened or written before the first thing is logged. Lightning's own logger creates
    the database when it is constructed, and a run before the data is looked at, so that a mistake
    in the configuration leaves both behind.

    Args:
        experiment_name: Experiment that the run belongs to; created where it does not exist.
        tracking_uri: Database or server. The default is the environment's `MLFLOW_TRACKING_URI`,
            or else the file `mlflow.db` in the working directory.
        run_name: Name of the run; null takes that of the run's folder.
        run_id: Run to continue; null starts a new one.
        tags: Tags of a new run.
    """

    def __init__(
        self,
        experiment_name: str = DEFAULT_EXPERIMENT,
        tracking_uri: str = DEFAULT_URI,
        run_name: str | None = None,
        run_id: str | None = None,
        tags: dict[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.experiment_name = experiment_name
        self.tracking_uri = tracking_uri
        self.run_name = run_name
        self.tags = dict(tags or {})
        self._run_id = run_id
        self._client: MlflowClient | None = None

    @property
    def name(self) -> str:
        """Name of the experiment."""
        return self.experiment_name

    @property
    def version(self) -> str:
        """Id of the run; empty before anything is logged."""
        return self._run_id or ""

    @property
    def save_dir(self) -> str | None:
        """None: the files of a run are in its own folder, not in MLflow's."""
        return None

    # Not called `experiment`: Lightning touches a property of that name before it reads the data.
    @property
    def client(self) -> MlflowClient:
        """The connection to the store; opening it creates the run.

        Raises:
            ConfigError: If there is no such store.
        """
        if self._client is None:
            client = connect(self.tracking_uri)
            self._run_id = self._run_id or self._create_run(client)
            self._client = client
        return self._client

    @property
    def run_id(self) -> str:
        """Id of the run, which is created where it was not."""
        _ = self.client
        return self.version

    def go_on(self, run_id: str) -> None:
        """Continue a run that was cut short, in place of a new one.

        Args:
            run_id: The run.
        """
        self._run_id = run_id
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]  # Lightning sets it
            self.client.update_run(run_id, status="RUNNING")

    def _create_run(self, client: MlflowClient) -> str:
        from mlflow.tracking.context.registry import resolve_tags

        experiment = client.get_experiment_by_name(self.experiment_name)
        if experiment is None:
            experiment_id = client.create_experiment(self.experiment_name)
        elif experiment.lifecycle_stage == "deleted":
            raise ConfigError(
                f"trainer.logger.experiment_name: got {self.experiment_name!r}, which was deleted "
                "in MLflow; restore it there, or give another name"
            )
        else:
            experiment_id = experiment.experiment_id
        # What MLflow adds by itself: user, command, commit.
        tags = resolve_tags(self.tags)
        run = client.create_run(experiment_id, tags=tags, run_name=self.run_name)
        return str(run.info.run_id)

    @rank_zero_only
    def log_hyperparams(
        self,
        params: Mapping[str, Any] | Namespace,
        *_: Any,
        **__: Any,
    ) -> None:
        """Record parameters, values as text."""
        from mlflow.entities import Param

        values = vars(params) if isinstance(params, Namespace) else params
        entries = [Param(_key(name), str(value)[:_LONGEST]) for name, value in values.items()]
        for start in range(0, len(entries), _BATCH):
            self.client.log_batch(self.run_id, params=entries[start : start + _BATCH])

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record metrics at an optimizer step; Lightning adds the epoch as a metric of its own."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entries = [Metric(_key(k), float(v), now, step or 0) for k, v in metrics.items()]
        self.client.log_batch(self.run_id, metrics=entries)

    @rank_zero_only
    def log_text(self, text: str, file: str) -> None:
        """Record a text as an artifact of the run.

        Args:
            text: What the file holds.
            file: Name of the file.
        """
        self.client.log_text(self.run_id, text, file)

    @rank_zero_only
    def log_picture(self, picture: Image, file: str) -> None:
        """Record a picture as an artifact of the run.

        Args:
            picture: What the file shows.
            file: Path of the file among the artifacts, ending in .png.
        """
        self.client.log_image(self.run_id, picture, file)

    @rank_zero_only
    def log_file(self, path: str | Path, folder: str = "") -> None:
        """Record a file as an artifact of the run.

        Args:
            path: The file; it is copied.
            folder: Folder among the artifacts; empty is their root.
        """
        self.client.log_artifact(self.run_id, str(path), folder or None)

    @rank_zero_only
    def log_dataset(
        self,
        name: str,
        source: str,
        digest: str,
        profile: Mapping[str, Any],
        context: str = "training",
    ) -> None:
        """Record a data set that the run reads, as an input in MLflow's sense.

        Args:
            name: Name of the data set.
            source: Where it is.
            digest: What identifies its content, at most 36 characters.
            profile: What is known of it, such as counts; written as JSON.
            context: What it is read for: "training", "validation" or "test".
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        entity = Dataset(
            name=name,
            digest=digest,
            source_type="local",
            source=json.dumps({"uri": source}),
            profile=json.dumps(dict(profile)),
        )
        tags = [InputTag("mlflow.data.context", context)]
        self.client.log_inputs(self.run_id, [DatasetInput(entity, tags)])

    @rank_zero_only
    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        for name, value in tags.items():
            self.client.set_tag(self.run_id, name, value)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the run, where one was opened."""
        if self._client is not None:
            self._client.set_terminated(self.version, _STATUS.get(status, "FAILED"))


def connect(tracking_uri: str) -> MlflowClient:
    """Open a store, quietly.

    Args:
        tracking_uri: Database or server.

    Raises:
        ConfigError: If there is no such store.
    """
    # A run on a machine of its owner's is nobody's business; set to "false" to allow it.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):  # dozens of lines about tables while a database is created
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        return MlflowClient(_absolute(tracking_uri))
    except MlflowException as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"trainer.logger.tracking_uri: got {tracking_uri!r}, expected a database or a server "
            f"of MLflow's, such as {DEFAULT_URI} ({reason})"
        ) from error


def default_logger() -> dict[str, Any]:
    """Return the logger of a run that names none, as a configuration states it."""
    arguments = {
        "experiment_name": DEFAULT_EXPERIMENT,
        "tracking_uri": os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI,
    }
    return {"class_path": "spanet_lightning.tracking.MLflowLogger", "init_args": arguments}


def record(
    loggers: Iterable[Logger], params: Mapping[str, Any], config: str, tags: Mapping[str, str]
) -> None:
    """Record what a run is before it starts.

    Args:
        loggers: The loggers of the run; those that are not MLflow's get the parameters alone.
        params: The configuration by dotted keys, and what the model costs.
        config: The resolved configuration as YAML, which `--config` takes.
        tags: What to find the run by.
    """
    for logger in loggers:
        logger.log_hyperparams(dict(params))
        if isinstance(logger, MLflowLogger):
            logger.log_text(config, "config.yaml")
            logger.set_tags(tags)


def dashboard(loggers: Iterable[Logger]) -> str | None:
    """Return the command that opens the dashboard of what was recorded, if it was in MLflow."""
    uri = next((lg.tracking_uri for lg in loggers if isinstance(lg, MLflowLogger)), None)
    if uri is None:
        return None
    if uri.startswith(("http://", "https://")):
        return re.sub(r"//[^/@]*@", "//", uri)  # the address is enough, and may hold a password
    return f"mlflow ui --host 127.0.0.1 --backend-store-uri {uri}"


def _absolute(uri: str) -> str:
    """Return a store's address with a full path: MLflow keeps stores open by their address."""
    path = uri.removeprefix("sqlite:///")
    if path == uri or path.startswith((":memory:", "file:")) or not path:
        return uri
    return f"sqlite:///{Path(path).absolute().as_posix()}"


def _key(name: str) -> str:
    """Return a name in the characters that MLflow takes."""
    return re.sub(r"[^\w./ :-]", "_", name)
