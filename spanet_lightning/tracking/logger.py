"""The logger of a run: what Lightning, callbacks and the command line record in MLflow."""

from __future__ import annotations

import atexit
import getpass
import math
import os
import shutil
import socket
import sys
import uuid
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from spanet_lightning.tracking import delivery
from spanet_lightning.tracking.addresses import (
    DEFAULT_URI,
    absolute,
    complete,
    redact,
    without_secret,
)
from spanet_lightning.tracking.names import inside, key
from spanet_lightning.tracking.probe import probe
from spanet_lightning.tracking.refusals import installed
from spanet_lightning.tracking.spool import Sent, Writer, head, read
from spanet_lightning.tracking.watch import Watch, say

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient
    from PIL.Image import Image

DEFAULT_EXPERIMENT = "spanet"
FOLDER = "tracking"
"""Name of the spool in the folder of a run."""
_ELSEWHERE = Path("runs") / ".tracking"  # spools of runs without a folder
_STATUS = {"success": "FINISHED", "finished": "FINISHED", "failed": "FAILED"}
_LONGEST = 6000  # characters of a parameter's value that the server takes

# Spools that this process writes, by absolute path and process: their locks last as long as it.
_writers: dict[tuple[int, str], Writer] = {}


class MLflowLogger(Logger):
    """Records a run in MLflow: parameters, metrics, texts, pictures, files.

    Training never waits for MLflow: everything is written to a spool on disk, which a process of
    its own sends (`spanet_lightning.tracking.sender`). A store that is down, slow or hanging costs
    nothing but one line of warning; `spanet track sync` sends what is left.

    Nothing is opened or written before the first thing is logged, so that a mistake in the
    configuration leaves no trace.

    Args:
        experiment_name: Experiment that the run belongs to; created where it does not exist.
        tracking_uri: Database or server. The default is the environment's `MLFLOW_TRACKING_URI`,
            or else the file `mlflow.db` in the working directory. A password is better kept in the
            environment, by `MLFLOW_TRACKING_URI` or `MLFLOW_TRACKING_PASSWORD`.
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
        self._run_id = run_id or ""
        self._folder: Path | None = None
        self._writer: Writer | None = None
        self._watch: Watch | None = None
        self._away = ""
        self._probed = False
        self._lost = 0
        self._ended = ""
        self._closed = False
        self._given_up = False

    @property
    def name(self) -> str:
        """Name of the experiment."""
        return self.experiment_name

    @property
    def version(self) -> str:
        """Id of the run; empty before the store has told it."""
        if not self._run_id and self._folder is not None and self._writer is not None:
            self._run_id = Sent.load(self._folder).run_id
        return self._run_id

    @property
    def save_dir(self) -> str | None:
        """None: the files of a run are in its own folder, not in MLflow's."""
        return None

    @property
    def spool(self) -> Path | None:
        """Folder of the spool; None before anything is logged."""
        return None if self._writer is None else self._folder

    # Not called `experiment`: Lightning touches a property of that name before it reads the data.
    @property
    def client(self) -> MlflowClient:
        """A connection to the store, once that has all that was logged, or does not answer.

        Raises:
            ConfigError: If there is no such store.
        """
        from spanet_lightning.tracking.store import connect

        self.flush()
        return connect(complete(self.tracking_uri))

    @property
    def run_id(self) -> str:
        """Id of the run, which is created where it was not; empty while the store is away."""
        if not self.version:
            self._open()
            self._arrived(run_id=True)
        return self.version

    # -- where it is recorded

    def go_on(self, run_id: str) -> None:
        """Continue a run that was cut short, in place of a new one.

        Args:
            run_id: The run.
        """
        self._run_id = run_id

    def place(self, folder: Path) -> None:
        """Say where the spool is to be; one that is there already is continued, and its run.

        Args:
            folder: Folder of the spool. One of another store or experiment is left alone, and one
                beside it is taken.
        """
        if self._folder is not None:
            return
        candidate, number = folder, 1
        while (first := head(candidate)) is not None and not self._is_mine(first):
            number += 1
            candidate = folder.with_name(f"{folder.name}-{number}")
        self._folder = candidate

    def check(self) -> None:
        """Look whether the store can take a run; one that is only down can, later.

        Raises:
            ConfigError: If it never will.
        """
        if not self._probed:
            self._away = probe(complete(self.tracking_uri), self.experiment_name)
            self._probed = True

    def _is_mine(self, first: Mapping[str, Any]) -> bool:
        here = (_kept(self.tracking_uri), self.experiment_name)
        return (first.get("uri"), first.get("experiment")) == here

    def _open(self) -> Writer:
        """Return the spool, which is begun, or continued, and sent from now on."""
        if self._writer is not None:
            return self._writer
        self.check()
        if self._folder is None:
            self._folder = _ELSEWHERE / uuid.uuid4().hex
        self._folder = self._folder.absolute()
        where = (os.getpid(), str(self._folder))
        writer = _writers.get(where) or Writer(self._folder)
        _writers[where] = writer
        here = {"pid": os.getpid(), "host": socket.gethostname()}
        if not writer.sessions:
            writer.append(
                "run",
                **here,
                uid=uuid.uuid4().hex,
                uri=_kept(self.tracking_uri),
                cwd=str(Path.cwd()),
                experiment=self.experiment_name,
                name=self.run_name,
                run_id=self._run_id,
                tags=self._first_tags(),
            )
        else:
            writer.append("session", **here)
        writer.sessions += 1
        self._writer = writer
        self._watch = Watch(self._folder, self.tracking_uri)
        if not installed():
            say(
                "MLflow is not installed: what is logged waits in "
                f"{self._folder}, for `spanet track sync` where it is"
            )
            return writer
        if self._away:
            self._watch.away(self._away)
        delivery.deliver(self._folder, complete(self.tracking_uri))
        atexit.register(self._at_exit)
        return writer

    def _first_tags(self) -> dict[str, str]:
        try:
            user = getpass.getuser()
        except (OSError, KeyError, ImportError):
            user = "unknown"
        about = {
            "mlflow.user": user,
            "mlflow.source.name": sys.argv[0] or "<console>",
            "mlflow.source.type": "LOCAL",
        }
        return {**about, **{key(k): self._clean(str(v)) for k, v in self.tags.items()}}

    # -- what is recorded

    @rank_zero_only
    def log_hyperparams(
        self,
        params: Mapping[str, Any] | Namespace,
        *_: Any,
        **__: Any,
    ) -> None:
        """Record parameters, values as text.

        MLflow keeps the first value of a parameter; that of a run that goes on with another one is
        recorded as `NAME resumed`.
        """
        values = vars(params) if isinstance(params, Namespace) else params
        writer = self._open()
        entries: dict[str, str] = {}
        for name, value in values.items():
            entry, text = key(str(name)), self._clean(str(value))[:_LONGEST]
            number = 1
            while writer.known.get(entry, text) != text:
                number += 1
                again = "resumed" if number == 2 else f"resumed {number - 1}"
                entry = f"{key(str(name))} {again}"
            entries[entry] = text
        writer.known |= entries
        if entries:
            self._append("params", params=entries)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record metrics at an optimizer step; Lightning adds the epoch as a metric of its own.

        A run that goes on from a checkpoint trains the steps after it again. A point that comes out
        as it did before is recorded once; one that differs is recorded beside the first.
        """
        at = int(step or 0)
        points = {key(k): float(v) for k, v in metrics.items()}
        before = self._open().points
        if before:
            points = {k: v for k, v in points.items() if not _equal(before.get((k, at)), v)}
        if points:
            self._append("metrics", step=at, metrics=points)

    @rank_zero_only
    def log_text(self, text: str, file: str) -> None:
        """Record a text as an artifact of the run.

        Args:
            text: What the file holds.
            file: Path of the file among the artifacts.
        """
        clean = self._clean(text)
        self._artifact(file, lambda path: path.write_text(clean, encoding="utf-8"))

    @rank_zero_only
    def log_picture(self, picture: Image, file: str) -> None:
        """Record a picture as an artifact of the run.

        Args:
            picture: What the file shows.
            file: Path of the file among the artifacts, ending in .png.
        """
        self._artifact(file, picture.save)

    @rank_zero_only
    def log_file(self, path: str | Path, folder: str = "") -> None:
        """Record a file as an artifact of the run.

        Args:
            path: The file; it is copied.
            folder: Folder among the artifacts; empty is their root.

        Raises:
            FileNotFoundError: If there is no such file.
        """
        source = Path(path)
        if not source.is_file():
            raise FileNotFoundError(f"{source}: there is no such file")
        self._artifact(f"{folder}/{source.name}", lambda target: shutil.copyfile(source, target))

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
        self._append(
            "dataset",
            name=name,
            source=self._clean(source),
            digest=digest,
            profile=dict(profile),
            context=context,
        )

    @rank_zero_only
    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        self._append("tags", tags={key(k): self._clean(str(v)) for k, v in tags.items()})

    # -- how it ends

    @rank_zero_only
    def ended_by(self, error: BaseException) -> None:
        """Remember what ends the run, for `finalize`: Lightning tells that only "failed".

        Args:
            error: The exception; Ctrl-C and SIGTERM kill a run, everything else fails it.
        """
        if self._writer is None:
            return
        killed = isinstance(error, KeyboardInterrupt | SIGTERMException)
        self._ended = "KILLED" if killed else "FAILED"
        text = " ".join(str(error).split())
        name = type(error).__name__
        self.set_tags({"failure": (f"{name}: {text}" if text else name)[:500]})

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the run, where one was opened, and wait a little until the store has it all."""
        if self._writer is None:
            return
        found = _STATUS.get(status, "FAILED")
        if found != "FINISHED" and self._ended:
            found = self._ended
        self._close(found)
        self._leave()

    def flush(self) -> bool:
        """Wait until the store has all that was logged, as long as that gets on.

        Returns:
            Whether it has.
        """
        return self._writer is None or self._arrived()

    def _arrived(self, *, run_id: bool = False) -> bool:
        if self._watch is None or self._folder is None or not installed():
            return False
        delivery.revive(self._folder, complete(self.tracking_uri))
        return delivery.arrived(self._folder, before=self._watch.before, run_id=run_id)

    def _leave(self) -> None:
        if self._watch is None or self._folder is None or not installed():
            return
        if self.flush():
            self._given_up = False
            return
        self._watch.look_now()
        if not self._given_up:
            sent = Sent.load(self._folder).offset
            self._watch.left(sum(1 for _ in read(self._folder, sent)))
        self._given_up = True

    def _close(self, status: str) -> None:
        self._append("end", status=status)
        self._closed = True

    def _at_exit(self) -> None:
        if not self._closed:  # a script that did not say how it ended, but was not killed either
            self._close("FAILED" if hasattr(sys, "last_value") else "FINISHED")
        if not self._given_up:
            self._leave()

    # -- writing

    def _append(self, kind: str, **values: Any) -> None:
        writer = self._open()
        try:
            writer.append(kind, **values)
        except OSError as error:
            self._lose(error)
        if self._watch is not None:
            self._watch.look()

    def _artifact(self, file: str, write: Any) -> None:
        writer = self._open()
        path = PurePosixPath(inside(file))
        try:
            target = writer.payload(path.name)
            write(target)
        except OSError as error:
            self._lose(error)
            return
        folder = "" if str(path.parent) == "." else str(path.parent)
        self._append(
            "artifact", folder=folder, payload=target.relative_to(writer.folder).as_posix()
        )

    def _lose(self, error: OSError) -> None:
        """Say once that the disk does not take what is logged: no reason to end a training."""
        if not self._lost:
            say(f"{self._folder} can't be written ({error}); what is logged now is lost")
        self._lost += 1

    def _clean(self, text: str) -> str:
        return redact(text, complete(self.tracking_uri)) if "://" in text else text

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files to the process that opened them."""
        return {**self.__dict__, "_writer": None, "_watch": None}


def _equal(before: float | None, value: float) -> bool:
    return before is not None and (before == value or (math.isnan(before) and math.isnan(value)))


def _kept(uri: str) -> str:
    """Return an address as a spool keeps it."""
    return without_secret(absolute(uri))
