"""What a trial's process tells its worker: a file of JSON lines, which outlives both.

Each line is an object with `event` and `time` (seconds since 1970):

- `process`: the process began, before anything was imported; `imported`: all of it was.
- `model`: what is known before the first step: `parameters`, `macs`, `data`, `hardware`, `commit`,
  `dirty`, `config_hash`, `epochs`, `folder`.
- `run`: `run_id` of the tracker's run, once the tracker has told it.
- `step`: the first step of this attempt was taken.
- `epoch`: the number of an epoch from 1, its `seconds`, `images_per_second` and `metrics`.
- `test`: `metrics` of the test split.
- `end`, `pruned`, or `failed` with `failure` and `reason`: how it ended.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from spanet_lightning.sweep.definition import COSTS, Objective
from spanet_lightning.sweep.records import Failure, TrialRecord

Event = dict[str, Any]
_MODEL = (
    "parameters",
    "macs",
    "data",
    "hardware",
    "commit",
    "dirty",
    "config_hash",
)


class EventWriter:
    """Appends events to a file, each whole or not at all.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, event: str, **values: Any) -> None:
        """Append an event.

        Args:
            event: Its kind.
            values: What it tells.
        """
        line = json.dumps({"event": event, "time": time.time(), **values})
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            # An earlier attempt may have been killed in the middle of a line.
            os.write(descriptor, f"\n{line}\n".encode())
        finally:
            os.close(descriptor)


class EventReader:
    """Reads what was appended to a file since the last look.

    Args:
        path: The file, which need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0

    def read(self) -> Iterator[Event]:
        """Return the new events; a line that is not whole yet is left for the next look."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                text = file.read()
        except FileNotFoundError:
            return
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            try:
                event = json.loads(line) if line.strip() else None
            except ValueError:
                continue  # the torn end of an attempt that was killed
            if isinstance(event, dict) and "event" in event:
                yield event


@dataclass
class Progress:
    """What the events of a trial come to, over all its attempts.

    Attributes:
        epochs: Epochs of the whole trial; None where unknown.
        metrics: Metrics by epoch, from 1; an epoch that was trained again has its last ones.
        seconds: Seconds by epoch.
        rates: Images a second by epoch.
        model: What was told before the first step.
        test: Metrics of the test split.
        ended: "end", "pruned", "failed" or "".
        failure: What went wrong.
        reason: The same in a sentence.
        stepped: Whether this attempt has taken a step.
    """

    epochs: int | None = None
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)
    rates: dict[int, float] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    test: dict[str, float] = field(default_factory=dict)
    ended: str = ""
    failure: Failure | None = None
    reason: str = ""
    stepped: bool = False

    def add(self, event: Event) -> None:
        """Take an event into account.

        Args:
            event: As it was written.
        """
        kind = event["event"]
        if kind == "process":  # a new attempt: how the one before ended is over
            self.ended, self.failure, self.reason, self.stepped = "", None, "", False
        elif kind == "model":
            self.epochs = event.get("epochs", self.epochs)
            self.model |= {name: event[name] for name in _MODEL if event.get(name) is not None}
        elif kind == "run":
            self.model["run_id"] = event["run_id"]
        elif kind == "step":
            self.stepped = True
        elif kind == "epoch":
            number = int(event["epoch"])
            self.metrics[number] = dict(event["metrics"])
            self.seconds[number] = float(event.get("seconds", 0.0))
            self.rates[number] = float(event.get("images_per_second", 0.0))
        elif kind == "test":
            self.test = dict(event["metrics"])
        elif kind in ("end", "pruned", "failed"):
            self.ended = kind
            self.failure, self.reason = event.get("failure"), event.get("reason", "")

    def best_epoch(self, objectives: tuple[Objective, ...]) -> int | None:
        """Return the epoch of the best value of the first objective that is a metric.

        Of several epochs with that value it is the first.

        Args:
            objectives: The study's.
        """
        for objective in objectives:
            if objective.metric not in COSTS:
                values = self.curve(objective.metric)
                sign = -1 if objective.goal == "max" else 1
                return min(values, key=lambda epoch: (sign * values[epoch], epoch), default=None)
        return max(self.metrics, default=None)

    def curve(self, metric: str) -> dict[int, float]:
        """Return the finite values of a metric by epoch.

        Args:
            metric: Its name.
        """
        return {
            epoch: found[metric]
            for epoch, found in sorted(self.metrics.items())
            if metric in found and math.isfinite(found[metric])
        }

    def fill(self, record: TrialRecord, objectives: tuple[Objective, ...]) -> TrialRecord:
        """Return a record with all that is known by now.

        Args:
            record: What was known when the trial began.
            objectives: The study's.
        """
        best = self.best_epoch(objectives)
        rates = sorted(rate for rate in self.rates.values() if rate > 0)
        return replace(
            record,
            **self.model,
            best_epoch=best,
            best={} if best is None else self.metrics[best],
            last=self.metrics[max(self.metrics)] if self.metrics else {},
            test=self.test,
            images_per_second=rates[len(rates) // 2] if rates else None,
            train_seconds=sum(self.seconds.values()) if self.seconds else None,
        )


def value(record: TrialRecord, objective: Objective) -> float | None:
    """Return what a trial achieved of an objective; None where that is unknown.

    Args:
        record: The whole record.
        objective: One of the study's.
    """
    costs: Mapping[str, float | None] = {
        "cost/parameters": record.parameters,
        "cost/macs": record.macs,
        "cost/images_per_second": record.images_per_second,
        "cost/train_seconds": record.train_seconds,
    }
    if objective.metric in costs:
        found = costs[objective.metric]
    else:
        found = (record.best if objective.at == "best" else record.last).get(objective.metric)
    return float(found) if found is not None and math.isfinite(found) else None
