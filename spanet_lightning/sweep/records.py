"""What is known of a trial: its attributes in the storage, and the events it is put together from.

A trial's process appends events to `trials/CELL/events.jsonl` and sends them to its supervisor. The
file outlives both; a resumed trial continues it. Each line is an object with `event` and `time`:

- `process`: an attempt began.
- `model`: what is known before the first step: `parameters`, `macs`, `data`, `hardware`, `commit`,
  `dirty`, `config_hash`, `epochs`, `folder`.
- `run`: `run_id` in MLflow. `step`: the first step of this attempt was taken.
- `epoch`: the number of an epoch from 1, its `seconds`, `images_per_second` and `metrics`.
- `test`: `metrics` of the test split.
- `end`, `pruned`, `stopped`, or `failed` with `failure` and `reason`: how the attempt ended.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from spanet_lightning.sweep.study import COSTS, Objective

Failure = Literal["error", "nan", "out-of-memory", "no-space", "killed", "stopped", "dropped"]
Event = dict[str, Any]
_MODEL = ("parameters", "macs", "data", "hardware", "commit", "dirty", "config_hash")


@dataclass(frozen=True)
class TrialRecord:
    """What the storage keeps of a trial beside what Optuna itself keeps: a user attribute a field.

    Attributes:
        overrides: What the trial sets, by dotted key, the study's own overrides included.
        seed: `seed_everything`.
        arm: Arm of an ablation; empty in a search.
        attempt: Counts from 1; a trial that died is tried again once.
        retry_of: Number of the failed trial that this one tries again.
        duplicate_of: Number of the trial with equal parameters whose result this one has.
        command: The command that repeats it: `lightning fit ...`.
        config_hash: Fingerprint of the resolved configuration.
        folder: Folder of the run.
        run_id: Run in MLflow, child of the study's run.
        worker: `host:pid` of the supervisor.
        hardware: Processor or accelerator that it ran on.
        commit: Commit of the code; empty outside a repository.
        dirty: Whether the code differed from the commit.
        data: Identity of the data set.
        parameters: Of the model.
        macs: Of the model at the size of the data, per image.
        images_per_second: Measured in training.
        train_seconds: Of all epochs.
        best_epoch: Epoch of the best value of the first objective, from 1.
        best: Metrics at that epoch.
        last: Metrics of the last epoch.
        test: Metrics of the test split, of the best weights, evaluated once.
        failure: The kind of failure; None without one.
        reason: The same in a sentence.
    """

    overrides: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    arm: str = ""
    attempt: int = 1
    retry_of: int | None = None
    duplicate_of: int | None = None
    command: tuple[str, ...] = ()
    config_hash: str = ""
    folder: str = ""
    run_id: str = ""
    worker: str = ""
    hardware: str = ""
    commit: str = ""
    dirty: bool = False
    data: str = ""
    parameters: int | None = None
    macs: int | None = None
    images_per_second: float | None = None
    train_seconds: float | None = None
    best_epoch: int | None = None
    best: Mapping[str, float] = field(default_factory=dict)
    last: Mapping[str, float] = field(default_factory=dict)
    test: Mapping[str, float] = field(default_factory=dict)
    failure: Failure | None = None
    reason: str = ""

    def as_attrs(self) -> dict[str, Any]:
        """Return the fields as user attributes of a trial."""
        named: dict[str, Any] = json.loads(
            json.dumps({f.name: getattr(self, f.name) for f in fields(self)})
        )
        return named

    @classmethod
    def from_attrs(cls, attrs: Mapping[str, Any]) -> TrialRecord:
        """Return the record that user attributes hold; what they lack has its default."""
        known = {f.name: attrs[f.name] for f in fields(cls) if f.name in attrs}
        if "command" in known:
            known["command"] = tuple(known["command"])
        return cls(**known)


def read_events(path: Path) -> Iterator[Event]:
    """Yield the events of a file; an end that was torn by a kill is skipped."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "event" in event:
            yield event


@dataclass
class Progress:
    """The sum of a trial's events, over all its attempts.

    Attributes:
        epochs: Epochs of the whole trial; None where unknown.
        metrics: Metrics by epoch, from 1; of an epoch that was trained again, the last ones.
        seconds: Seconds by epoch.
        rates: Images per second by epoch.
        model: What is known before the first step.
        test: Metrics of the test split.
        ended: "end", "pruned", "stopped", "failed", or "" of an attempt that has not ended.
        failure: The kind of failure.
        reason: The same in a sentence.
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

    def add(self, event: Event) -> None:
        """Add an event."""
        kind = event["event"]
        if kind == "process":
            self.ended, self.failure, self.reason = "", None, ""
        elif kind == "model":
            self.epochs = event.get("epochs", self.epochs)
            self.model |= {name: event[name] for name in _MODEL if event.get(name) is not None}
        elif kind == "run":
            self.model["run_id"] = event["run_id"]
        elif kind == "epoch":
            number = int(event["epoch"])
            self.metrics[number] = dict(event["metrics"])
            self.seconds[number] = float(event.get("seconds", 0.0))
            self.rates[number] = float(event.get("images_per_second", 0.0))
        elif kind == "test":
            self.test = dict(event["metrics"])
        elif kind in ("end", "pruned", "stopped", "failed"):
            self.ended = kind
            self.failure, self.reason = event.get("failure"), event.get("reason", "")

    def best_epoch(self, objectives: tuple[Objective, ...]) -> int | None:
        """Return the first epoch with the best value of the first objective that is a metric."""
        for objective in objectives:
            if objective.metric not in COSTS:
                values = self.curve(objective.metric)
                return min(values, key=lambda e: (-objective.sign * values[e], e), default=None)
        return max(self.metrics, default=None)

    def curve(self, metric: str) -> dict[int, float]:
        """Return the finite values of a metric by epoch."""
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
    """Return the value of an objective in a whole record; None where it is unknown."""
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
