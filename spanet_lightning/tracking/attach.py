"""Files that are added to a run after it was made: figures of an analysis, beside their data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from spanet_lightning.errors import CheckpointError, ConfigError
from spanet_lightning.tracking import client, event_log, names
from spanet_lightning.tracking.addresses import complete, without_secret

FOLDER = "analysis"
"""Folder of analyses among the artifacts of a run."""


@dataclass(frozen=True)
class Target:
    """A run that takes files.

    Attributes:
        run_id: The run.
        name: Name of the run.
        uri: Its store, without credentials.
    """

    run_id: str
    name: str
    uri: str


def of_checkpoint(file: Path) -> Target:
    """Return the run that wrote a checkpoint: the one whose folder it is in.

    Args:
        file: Such as `runs/digits-spanetv2/best.ckpt`.

    Raises:
        CheckpointError: If it is in no run's folder, or nothing of the run was sent yet.
        ConfigError: If its store no longer exists, or no longer has the run.
    """
    parent = file.resolve().parent
    logs = [log for folder in (parent, parent.parent) for log in folder.glob("metrics*.jsonl")]
    logs = [log for log in logs if event_log.head(log) is not None]
    if not logs:
        raise CheckpointError(
            f"--log: {file} is in no run's folder, so its run is not known; name it: --run RUN"
        )
    log = max(logs, key=lambda one: one.stat().st_mtime)
    first, progress = event_log.head(log), event_log.Progress.load(log)
    if first is None or not progress.run_id:
        raise CheckpointError(
            f"--log: the run of {file} was not sent to its store yet; first: spanet track sync "
            f"{log.parent}"
        )
    return _target(progress.run_id, str(first["uri"]))


def of_name(text: str, tracking_uri: str | None = None) -> Target:
    """Return the run of an id, of the beginning of one, or of a name.

    Args:
        text: What the user typed.
        tracking_uri: Its store; None takes that of the environment, or else `mlflow.db`.

    Raises:
        ConfigError: If there is no such store or run, or more than one.
    """
    return _target(text, tracking_uri)


def attach(target: Target, files: Iterable[Path], root: Path, folder: str) -> str:
    """Add files to a run; a file of the same path replaces the one that it has.

    Args:
        target: The run.
        files: Below `root`.
        root: What their paths among the artifacts are relative to.
        folder: Where they go, below `FOLDER`.

    Returns:
        Their folder among the artifacts.

    Raises:
        ConfigError: If the store does not take them; those that it took stay there.
    """
    uri = complete(target.uri)
    opened = client.connect(uri)
    goal = names.encode_path(f"{FOLDER}/{folder}")
    try:
        for file in files:
            part = file.relative_to(root).parent.as_posix()
            below = goal if part == "." else f"{goal}/{names.encode_path(part)}"
            opened.log_artifact(target.run_id, str(file), below)
    except Exception as error:
        raise ConfigError(
            f"--log: run {target.name!r} in {target.uri} did not take the figures, which are in "
            f"{root} ({client.classify(error, uri)})"
        ) from None
    return goal


def _target(text: str, uri: str | None) -> Target:
    from spanet_lightning.tracking.browse import Store

    store = Store(uri)
    run = store.find(text)
    return Target(run.id, run.name, without_secret(store.uri))
