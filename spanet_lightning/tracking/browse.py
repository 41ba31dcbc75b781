"""Reading runs back, for `spanet runs` and for what is added to a run later."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
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
    from mlflow.entities import Run

ACCOUNT = "provenance/run.json"
"""What a run recorded of itself when it began, among its artifacts."""
_ID = re.compile(r"[0-9a-f]{4,32}")
_ALL = 100_000  # runs, of which names and beginnings of ids are searched


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
        """Return the tags that tell what the run was, not how MLflow stores it."""
        return {k: v for k, v in self.tags.items() if not k.startswith(("mlflow.", "spanet."))}

    def as_dict(self) -> dict[str, Any]:
        """Return the run for JSON."""
        keys = ("id", "name", "experiment", "status", "seconds", "params", "metrics")
        started = self.started.isoformat(timespec="seconds")
        values = {key: getattr(self, key) for key in keys}
        return {**values, "started": started, "tags": self.own_tags()}


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
        self.client = connect(self.uri)
        self.experiments = {e.experiment_id: e.name for e in self.client.search_experiments()}

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
        runs = self.search(limit=_ALL)
        found = [run for run in runs if run.name == text]
        if not found and _ID.fullmatch(text):
            found = [run for run in runs if run.id.startswith(text)]
        if not found:
            raise ConfigError(
                f"RUN: got {text!r}, expected a name or an id of one of {len(runs)} runs in "
                f"{self.shown}{did_you_mean(text, {run.name for run in runs})}"
            )
        if len(found) > 1:
            ids = ", ".join(run.id[:8] for run in found[:6])
            raise ConfigError(
                f"RUN: got {text!r}, which is that of {len(found)} runs; expected one of their "
                f"ids: {ids}{', …' if len(found) > 6 else ''}"
            )
        return found[0]

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
            condition: A filter in MLflow's language: `tags.arm = 'control'`.
            order: What they are sorted by, in MLflow's language: `metrics.x DESC`.
            limit: How many at most.

        Raises:
            ConfigError: If there is no such experiment, or MLflow refuses the filter.
        """
        from mlflow.exceptions import MlflowException

        names = self.experiments
        if experiment is not None and experiment not in names.values():
            raise ConfigError(
                f"--experiment: got {experiment!r}, expected one of "
                f"{', '.join(map(repr, names.values()))}{did_you_mean(experiment, names.values())}"
            )
        ids = [key for key, name in names.items() if experiment in (None, name)]
        found: list[Run] = []
        token: str | None = None
        try:
            while token != "" and len(found) < limit:
                page = self.client.search_runs(
                    ids, condition, max_results=min(limit, 1000), order_by=list(order),
                    page_token=token,
                )  # fmt: skip
                found += page
                token = page.token or ""
        except MlflowException as error:
            raise ConfigError(
                f"--filter: got {condition!r}, expected MLflow's language, such as "
                f"\"tags.study = 'x' and metrics.`val/top1` > 0.9\" ({_reason(error)})"
            ) from None
        return [self._view(run) for run in found[:limit]]

    def history(self, run: RunView, metric: str) -> list[tuple[int, float]]:
        """Return all points of a metric: its steps and values, in the order of steps and time."""
        points = self.client.get_metric_history(run.id, metric)
        points = sorted(points, key=lambda point: (point.step, point.timestamp))
        return [(point.step, point.value) for point in points]

    def text(self, run: RunView, file: str) -> str | None:
        """Return the text of an artifact; None where the run has none of that name."""
        from mlflow.exceptions import MlflowException

        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        with tempfile.TemporaryDirectory() as folder:
            try:
                path = self.client.download_artifacts(run.id, file, folder)
                return Path(path).read_text(encoding="utf-8")
            except (MlflowException, OSError):
                return None

    def account(self, run: RunView) -> dict[str, Any] | None:
        """Return what the run recorded of itself when it began; None where there is nothing."""
        try:
            found = json.loads(self.text(run, ACCOUNT) or "")
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    def _view(self, run: Run) -> RunView:
        info = run.info
        began, ended = info.start_time or 0, info.end_time
        return RunView(
            id=info.run_id,
            name=info.run_name or "",
            experiment=self.experiments.get(info.experiment_id, info.experiment_id),
            status=info.status,
            started=datetime.fromtimestamp(began / 1000).astimezone(),
            seconds=(ended - began) / 1000 if ended else None,
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
    pairs = {key: (first.get(key), second.get(key)) for key in {**first, **second}}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
