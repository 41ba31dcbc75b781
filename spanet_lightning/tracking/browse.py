"""Reading runs back: find, list, compare. What `spanet runs` prints is made of this."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spanet_lightning.errors import ConfigError, did_you_mean
from spanet_lightning.tracking.addresses import (
    DEFAULT_URI,
    URI_VARIABLE,
    complete,
    sqlite_file,
    without_secret,
)
from spanet_lightning.tracking.client import connect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

_ID = re.compile(r"[0-9a-f]{4,32}")
_PAGE = 1000  # runs that a store gives at once


@dataclass(frozen=True)
class RunView:
    """A run as the store has it.

    Attributes:
        id: 32 hexadecimal digits.
        name: Name of the run.
        experiment: Name of its experiment.
        status: RUNNING, FINISHED, FAILED or KILLED.
        started: When it began, local time.
        seconds: How long it took; None while it runs.
        params: Its configuration by dotted keys.
        metrics: The last value of each metric.
        tags: Its tags, those of MLflow's own included.
        artifacts: Where its artifacts are.
    """

    id: str
    name: str
    experiment: str
    status: str
    started: datetime
    seconds: float | None
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    artifacts: str

    def own_tags(self) -> dict[str, str]:
        """Return the tags that say what the run was, not how MLflow keeps it."""
        return {k: v for k, v in self.tags.items() if not k.startswith(("mlflow.", "spanet."))}

    def as_dict(self) -> dict[str, Any]:
        """Return the run for JSON."""
        values = {name: getattr(self, name) for name in ("id", "name", "experiment", "status")}
        return {
            **values,
            "started": self.started.isoformat(timespec="seconds"),
            "seconds": self.seconds,
            "tags": self.own_tags(),
            "params": dict(self.params),
            "metrics": dict(self.metrics),
        }


class Store:
    """A store that is read from.

    Args:
        tracking_uri: Database or server; None takes that of the environment, or else `mlflow.db`
            in the working directory.

    Raises:
        ConfigError: If there is none.
    """

    def __init__(self, tracking_uri: str | None) -> None:
        self.uri = existing(tracking_uri)
        self.shown = without_secret(self.uri)
        self.client: MlflowClient = connect(self.uri)
        self._names: dict[str, str] = {}

    def find(self, text: str) -> RunView:
        """Return the run of an id, of the beginning of one, or of a name.

        Args:
            text: What the user typed.

        Raises:
            ConfigError: If there is no such run, or more than one.
        """
        from mlflow.exceptions import MlflowException

        if len(text) == 32 and _ID.fullmatch(text):
            try:
                return self._view(self.client.get_run(text))
            except MlflowException as error:
                raise ConfigError(f"RUN: got {text!r}: {_reason(error)}") from None
        runs = self._all()
        found = [r for r in runs if r.info.run_name == text]
        if not found and _ID.fullmatch(text):
            found = [r for r in runs if r.info.run_id.startswith(text)]
        if not found:
            names = {r.info.run_name for r in runs}
            raise ConfigError(
                f"RUN: got {text!r}, expected a name or an id of one of {len(runs)} runs in "
                f"{self.shown}{did_you_mean(text, names)}"
            )
        if len(found) > 1:
            ids = ", ".join(r.info.run_id[:8] for r in found[:6])
            raise ConfigError(
                f"RUN: got {text!r}, which is that of {len(found)} runs; expected one of their "
                f"ids: {ids}{', …' if len(found) > 6 else ''}"
            )
        return self._view(found[0])

    def search(
        self,
        experiment: str | None = None,
        condition: str = "",
        order: Sequence[str] = (),
        limit: int = 20,
    ) -> list[RunView]:
        """Return runs.

        Args:
            experiment: Name of their experiment; None takes all.
            condition: What they have to be, in MLflow's words: `tags.arm = 'control'`.
            order: What they are sorted by, in MLflow's words: `metrics.x DESC`.
            limit: How many at most.

        Raises:
            ConfigError: If there is no such experiment, or MLflow does not understand.
        """
        from mlflow.exceptions import MlflowException

        ids = self._experiments(experiment)
        try:
            found = self.client.search_runs(
                ids, filter_string=condition, order_by=list(order), max_results=limit
            )
        except MlflowException as error:
            raise ConfigError(
                f"--filter: got {condition!r}, expected MLflow's language, such as "
                f"\"tags.study = 'x' and metrics.`val/top1` > 0.9\" ({_reason(error)})"
            ) from None
        return [self._view(run) for run in found]

    def history(self, run: RunView, metric: str) -> list[tuple[int, float]]:
        """Return all points of a metric: its steps and values, in the order of steps and time."""
        points = self.client.get_metric_history(run.id, metric)
        points = sorted(points, key=lambda point: (point.step, point.timestamp))
        return [(point.step, point.value) for point in points]

    def text(self, run: RunView, file: str) -> str | None:
        """Return the text of an artifact; None where the run has none of that name."""
        from mlflow.exceptions import MlflowException

        with tempfile.TemporaryDirectory() as folder, _quiet_downloads():
            try:
                path = self.client.download_artifacts(run.id, file, folder)
                return Path(path).read_text(encoding="utf-8")
            except (MlflowException, OSError):
                return None

    def account(self, run: RunView) -> dict[str, Any] | None:
        """Return what the run said of itself when it began; None where it said nothing."""
        from spanet_lightning.tracking.provenance import ACCOUNT

        text = self.text(run, ACCOUNT)
        try:
            found = None if text is None else json.loads(text)
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    def _experiments(self, name: str | None) -> list[str]:
        known = {e.name: e.experiment_id for e in self.client.search_experiments()}
        self._names = {key: name for name, key in known.items()}
        if name is None:
            return list(known.values())
        if name not in known:
            raise ConfigError(
                f"--experiment: got {name!r}, expected one of {', '.join(map(repr, known))}"
                f"{did_you_mean(name, known)}"
            )
        return [known[name]]

    def _all(self) -> list[Run]:
        """Return all runs: names and beginnings of ids can't be asked for."""
        found: list[Run] = []
        ids = self._experiments(None)
        token: str | None = None
        while True:
            page = self.client.search_runs(ids, max_results=_PAGE, page_token=token)
            found += page
            token = page.token
            if not token:
                return found

    def _view(self, run: Run) -> RunView:
        info, key = run.info, run.info.experiment_id
        if key not in self._names:
            self._names[key] = self.client.get_experiment(key).name
        ended = info.end_time
        return RunView(
            id=info.run_id,
            name=info.run_name or "",
            experiment=self._names[key],
            status=info.status,
            started=datetime.fromtimestamp((info.start_time or 0) / 1000).astimezone(),
            seconds=None if not ended else (ended - (info.start_time or ended)) / 1000,
            params=dict(run.data.params),
            metrics=dict(run.data.metrics),
            tags=dict(run.data.tags),
            artifacts=info.artifact_uri or "",
        )


def existing(tracking_uri: str | None) -> str:
    """Return the address of a store that can be read.

    Args:
        tracking_uri: As given; None takes that of the environment, or else `mlflow.db` in the
            working directory.

    Raises:
        ConfigError: If it is a file that does not exist: MLflow would make a new one, with all its
            tables, only to find nothing in it.
    """
    uri = tracking_uri or os.environ.get(URI_VARIABLE) or DEFAULT_URI
    file = sqlite_file(uri)
    if file is not None and not file.is_file():
        raise ConfigError(
            f"--tracking-uri: found no file at {file}, expected a database of MLflow's; a run "
            "makes one"
        )
    return complete(uri)


def differences(
    first: Mapping[str, Any], second: Mapping[str, Any]
) -> dict[str, tuple[Any | None, Any | None]]:
    """Return what two mappings have different: each key with both values, None where missing."""
    keys = [*first, *(key for key in second if key not in first)]
    pairs = {key: (first.get(key), second.get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


@contextmanager
def _quiet_downloads() -> Iterator[None]:
    """Leave out MLflow's progress bar, which it draws for a single small file as well."""
    name = "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
