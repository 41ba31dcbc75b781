"""The logger of a run: what Lightning, callbacks and the command line record, and MLflow gets."""

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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from spanet_lightning.tracking import client, event_log, names
from spanet_lightning.tracking.addresses import (
    DEFAULT_URI,
    absolute,
    complete,
    credentials,
    is_web,
    redact,
    without_secret,
)
from spanet_lightning.tracking.event_log import ARTIFACTS, EventLog
from spanet_lightning.tracking.sender import Sender, say

if TYPE_CHECKING:
    from PIL.Image import Image

DEFAULT_EXPERIMENT = "spanet"
_ELSEWHERE = Path("runs") / ".tracking"  # event logs of runs without a folder
_STATUS = {"success": "FINISHED", "finished": "FINISHED"}
_LONGEST = 6000  # characters of a parameter's value that MLflow takes
_RESULTS = ("val/", "test/")  # what the metrics of a run's description begin with


class MLflowLogger(Logger):
    """Records a run in `metrics.jsonl` in its folder, which a thread sends to MLflow.

    Training never waits for MLflow: a server that is down, slow or hanging costs one message, and
    `spanet track sync` sends what is left. Lightning's own `MLFlowLogger` opens its store when it
    is built and calls it in every step, so that nothing of it is of use here.

    Nothing is opened or written before the first thing is logged, so that a mistake in the
    configuration leaves no trace.

    Args:
        experiment_name: Experiment that the run belongs to; created where it does not exist.
        tracking_uri: Database or server. The default is the environment's `MLFLOW_TRACKING_URI`,
            or else the file `mlflow.db` in the working directory. A password is better left to the
            environment, by `MLFLOW_TRACKING_URI` or `MLFLOW_TRACKING_PASSWORD`.
        run_name: Name of the run; null takes that of the run's folder.
        run_id: Run to resume; null starts a new one.
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
        self._path: Path | None = None
        self._log: EventLog | None = None
        self._sender: Sender | None = None
        self._description: list[str] = []
        self._results: dict[str, float] = {}
        self._failure = ""
        self._ended = False
        self._losses = 0

    @property
    def name(self) -> str:
        """Name of the experiment."""
        return self.experiment_name

    @property
    def version(self) -> str:
        """Id of the run; empty before MLflow has created it."""
        if not self._run_id and self._path is not None:
            self._run_id = event_log.Progress.load(self._path).run_id
        return self._run_id

    @property
    def save_dir(self) -> str | None:
        """None: the files of a run are in its own folder."""
        return None

    @property
    def path(self) -> Path | None:
        """The event log, `metrics.jsonl`; None before anything is logged."""
        return None if self._log is None else self._path

    # Not called `experiment`: Lightning reads a property of that name before it reads the data.
    @property
    def client(self) -> Any:  # MlflowClient; jsonargparse runs imports for type checkers: 1.5 s
        """A connection to the store, once that has all that was logged, or is unavailable.

        Raises:
            ConfigError: If there is no such store.
        """
        self.flush()
        return client.connect(complete(self.tracking_uri))

    @property
    def run_id(self) -> str:
        """Id of the run, which is waited for; empty while the store is unavailable."""
        if not self.version:
            self._open()
            self._wait(for_run=True)
        return self.version

    def resume_run(self, run_id: str) -> None:
        """Resume a run in place of starting a new one.

        Args:
            run_id: The run in MLflow.
        """
        self._run_id = run_id

    def set_folder(self, folder: Path) -> None:
        """Set the folder of the run; the event log that is there already is continued.

        Args:
            folder: The folder. A log of another store or experiment is left alone, and one beside
                it is begun.
        """
        if self._folder is None:
            self._folder = folder

    def check(self) -> None:
        """Check the address of the store, which is not opened.

        Raises:
            ConfigError: If there can be none, or a login would be sent where it does not belong.
        """
        uri = complete(self.tracking_uri)
        client.check_address(uri)
        if is_web(uri):
            credentials(uri)

    @rank_zero_only
    def log_hyperparams(
        self,
        params: Mapping[str, Any] | Namespace,
        *_: Any,
        **__: Any,
    ) -> None:
        """Record parameters, values as text.

        MLflow has one value of a parameter; that of a run that is resumed with another one is
        recorded as `NAME resumed`.
        """
        values = vars(params) if isinstance(params, Namespace) else params
        known = self._open().params
        entries: dict[str, str] = {}
        for name, value in values.items():
            key, text = names.encode(str(name)), self._clean(str(value))[:_LONGEST]
            number = 1
            while known.get(key, text) != text:
                number += 1
                suffix = "resumed" if number == 2 else f"resumed {number - 1}"
                key = f"{names.encode(str(name))} {suffix}"
            entries[key] = text
        known |= entries
        if entries:
            self._append("params", params=entries)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record metrics at an optimizer step; Lightning adds the epoch as a metric of its own.

        A run that is resumed from a checkpoint trains the steps after it again: a point that comes
        out as before is recorded once, one that differs is recorded beside the first.
        """
        at = int(step or 0)
        values = {names.encode(key): float(value) for key, value in metrics.items()}
        self._results |= {k: v for k, v in values.items() if k.startswith(_RESULTS)}
        before = self._open().points
        if before:
            values = {k: v for k, v in values.items() if not _equal(before.get((k, at)), v)}
        if values:
            plain = {key: event_log.plain(value) for key, value in values.items()}
            self._append("metrics", step=at, metrics=plain)

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
    def log_image(self, image: Image, file: str) -> None:
        """Record an image as an artifact of the run.

        Args:
            image: What the file shows.
            file: Path of the file among the artifacts, ending in .png or .webp.
        """
        self._artifact(file, image.save)

    @rank_zero_only
    def log_artifact(self, path: str | Path, folder: str = "") -> None:
        """Record a file as an artifact of the run; one outside of the run's folder is copied there.

        Args:
            path: The file.
            folder: Folder among the artifacts; empty is their root.

        Raises:
            FileNotFoundError: If there is no such file.
        """
        source = Path(path).absolute()
        if not source.is_file():
            raise FileNotFoundError(f"{source}: there is no such file")
        root = self._open().path.parent
        if source.is_relative_to(root) and not source.is_symlink():
            self._append("artifact", file=source.relative_to(root).as_posix(), folder=folder)
        else:
            self._artifact(
                f"{folder}/{source.name}".lstrip("/"), lambda to: shutil.copyfile(source, to)
            )

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
        self._append("tags", tags={names.encode(k): self._clean(str(v)) for k, v in tags.items()})

    @rank_zero_only
    def describe(self, *paragraphs: str) -> None:
        """Set the description that MLflow shows of the run, which its result completes at the end.

        Args:
            paragraphs: Markdown: its question, its command.
        """
        self._description = [text for text in paragraphs if text]
        self._describe()

    @rank_zero_only
    def set_failure(self, error: BaseException) -> None:
        """Remember what ends the run, for `finalize`: Lightning says only "failed" there.

        Args:
            error: The exception; Ctrl-C and SIGTERM kill a run, everything else fails it.
        """
        if self._log is None:
            return
        killed = isinstance(error, KeyboardInterrupt | SIGTERMException)
        self._failure = "KILLED" if killed else "FAILED"
        text = " ".join(str(error).split())
        name = type(error).__name__
        self.set_tags({"failure": (f"{name}: {text}" if text else name)[:500]})

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the run, where one was begun, and wait a bounded time until MLflow has it all."""
        if self._log is None:
            return
        found = _STATUS.get(status, "FAILED")
        self._end(found if found == "FINISHED" else self._failure or found)

    def flush(self) -> bool:
        """Wait a bounded time until MLflow has all that was logged.

        Returns:
            Whether it has.
        """
        return self._log is None or self._wait()

    def _open(self) -> EventLog:
        """Return the event log, which is begun, or continued, and sent from now on."""
        if self._log is not None:
            return self._log
        self.check()
        folder = (self._folder or _ELSEWHERE / uuid.uuid4().hex).absolute()
        self._path = self._choose(folder)
        self._log = log = EventLog(self._path)
        process = {"pid": os.getpid(), "host": socket.gethostname()}
        if log.sessions:
            log.append("session", **process)
        else:
            log.append(
                "run",
                **process,
                uid=uuid.uuid4().hex,
                uri=_stored(self.tracking_uri),
                experiment=self.experiment_name,
                name=self.run_name,
                run_id=self._run_id,
                tags=self._first_tags(),
            )
        if not client.installed():
            say(
                f"MLflow is not installed. The run is recorded in {self._path}; to send it: "
                f"spanet track sync {folder}"
            )
        atexit.register(self._at_exit)
        return log

    def _choose(self, folder: Path) -> Path:
        event_log.convert_first_version(folder)
        here = (_stored(self.tracking_uri), self.experiment_name)
        path, number = folder / event_log.NAME, 1
        while (first := event_log.head(path)) is not None and (
            (first["uri"], first.get("experiment")) != here
        ):
            number += 1
            path = path.with_name(f"metrics-{number}.jsonl")
        return path

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
        return {**about, **{names.encode(k): self._clean(str(v)) for k, v in self.tags.items()}}

    def _append(self, kind: str, **values: Any) -> None:
        log = self._open()
        try:
            log.append(kind, **values)
        except OSError as error:
            self._lose(error)
        self._ended = kind == "end"
        if self._sender is None or self._sender.stopped:
            self._start()

    def _start(self) -> None:
        if self._path is not None and client.installed():
            self._sender = Sender(self._path, complete(self.tracking_uri))
            self._sender.start()

    def _artifact(self, file: str, write: Callable[[Path], Any]) -> None:
        path = names.encode_path(file)
        target = self._open().path.parent / ARTIFACTS / path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write(target)
        except OSError as error:
            self._lose(error)
            return
        self._append("artifact", file=f"{ARTIFACTS}/{path}", folder=file.rpartition("/")[0])

    def _lose(self, error: OSError) -> None:
        """Say once that the disk does not take what is logged: no reason to end a training."""
        if not self._losses:
            say(f"{self._path} can't be written ({error}); what is logged now is lost")
        self._losses += 1

    def _describe(self) -> None:
        results = [f"{names.decode(k)} {v:.4g}" for k, v in sorted(self._results.items())]
        parts = [*self._description, f"**Result**: {', '.join(results)}" if results else ""]
        self.set_tags({client.NOTE_TAG: "\n\n".join(part for part in parts if part)[:5000]})

    def _end(self, status: str) -> None:
        if self._description and self._results:
            self._describe()
        self._append("end", status=status)
        sender = self._sender
        if sender is None:
            return
        if not sender.wait(killed=status == "KILLED"):
            sender.report_left()
        sender.stop()

    def _wait(self, *, for_run: bool = False) -> bool:
        if self._sender is None or self._sender.stopped:
            self._start()
        return self._sender is not None and self._sender.wait(for_run=for_run)

    def _at_exit(self) -> None:
        if self._log is not None and not self._ended:  # of a script that did not say how it ended
            self._end("FAILED" if hasattr(sys, "last_value") else "FINISHED")

    def _clean(self, text: str) -> str:
        return redact(text, complete(self.tracking_uri)) if "://" in text else text

    def __getstate__(self) -> dict[str, Any]:
        """Leave files and threads to the process that opened them."""
        return {**self.__dict__, "_log": None, "_sender": None}


def _equal(before: float | None, value: float) -> bool:
    return before is not None and (before == value or (math.isnan(before) and math.isnan(value)))


def _stored(uri: str) -> str:
    """Return an address as files hold it: complete, and without its login."""
    return without_secret(absolute(uri))
