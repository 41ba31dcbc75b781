"""What a worker tells the process of a trial, in a file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from spanet_lightning.sweep.definition import Objective

WATCHED = "SPANET_SWEEP_WATCHED"
"""Environment variable of the process: the worker holds the other end of its standard input."""


@dataclass(frozen=True)
class Spec:
    """What a worker tells the process of a trial.

    Attributes:
        command: What follows `lightning`.
        events: File of events.
        prune: File that is there once the trial is to end early.
        objectives: The study's.
        test: Metric of the test split, where the best weights are to be tested.
        tags: Tags of the run.
        run_id: Run of an earlier attempt, which is gone on with; empty begins one.
    """

    command: tuple[str, ...]
    events: str
    prune: str
    objectives: tuple[Objective, ...]
    test: str | None
    tags: dict[str, str]
    run_id: str = ""

    def save(self, path: Path) -> None:
        """Write it to a file."""
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Spec:
        """Read it from a file."""
        plain = json.loads(path.read_text(encoding="utf-8"))
        objectives = tuple(Objective(**objective) for objective in plain["objectives"])
        return cls(**{**plain, "command": tuple(plain["command"]), "objectives": objectives})
