"""Files that are added to a run after it was made: figures of an analysis, beside their data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from spanet_lightning.errors import CheckpointError, ConfigError
from spanet_lightning.tracking.addresses import complete, redact, without_secret
from spanet_lightning.tracking.names import inside
from spanet_lightning.tracking.spool import SPOOL, Sent, head

FOLDER = "analysis"
"""Folder of analyses among the artifacts of a run."""
_SPOOLS = "tracking*"  # as `logger.FOLDER`, or with a number where another store has that


@dataclass(frozen=True)
class Target:
    """A run that takes files.

    Attributes:
        run_id: The run.
        name: What it is called.
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
        ConfigError: If its store is gone, or no longer has the run.
    """
    folder = next((one for one in _around(file) if list(one.glob(f"{_SPOOLS}/{SPOOL}"))), None)
    if folder is None:
        raise CheckpointError(
            f"--log: {file} is in no run's folder, so its run is not known; name it: --run RUN"
        )
    spools = [path.parent for path in folder.glob(f"{_SPOOLS}/{SPOOL}")]
    spool = max(spools, key=lambda one: (one / SPOOL).stat().st_mtime)
    first, sent = head(spool), Sent.load(spool)
    if first is None or not sent.run_id:
        raise CheckpointError(
            f"--log: the run of {file} was not sent to its store yet; first: spanet track sync "
            f"{folder}"
        )
    return _known(sent.run_id, str(first["uri"]))


def of_name(text: str, tracking_uri: str | None = None) -> Target:
    """Return the run of an id, of the beginning of one, or of a name.

    Args:
        text: What the user typed.
        tracking_uri: Its store; None takes that of the environment, or else `mlflow.db`.

    Raises:
        ConfigError: If there is no such store or run, or more than one.
    """
    return _known(text, tracking_uri)


def attach(target: Target, files: Iterable[Path], root: Path, folder: str) -> str:
    """Add files to a run; of those that it has already, by path, the new ones stay.

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
    from mlflow.exceptions import MlflowException

    from spanet_lightning.tracking.store import connect

    uri = complete(target.uri)
    client = connect(uri)
    place = inside(f"{FOLDER}/{folder}")
    try:
        for file in files:
            part = file.relative_to(root).parent.as_posix()
            client.log_artifact(target.run_id, str(file), inside(f"{place}/{part}"))
    except (MlflowException, OSError) as error:
        reason = redact(" ".join(str(error).split()), uri)[:300]
        raise ConfigError(
            f"--log: run {target.name!r} in {target.uri} did not take the figures, which are in "
            f"{root} ({reason})"
        ) from None
    return place


def _around(file: Path) -> tuple[Path, ...]:
    """Return the folder of a file and the one above."""
    parent = file.resolve().parent
    return parent, parent.parent


def _known(text: str, uri: str | None) -> Target:
    from spanet_lightning.tracking.browse import Store

    store = Store(uri)
    run = store.find(text)
    return Target(run.id, run.name, without_secret(store.uri))
