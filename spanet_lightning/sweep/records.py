"""What the storage keeps of each trial, beside what Optuna itself keeps.

The engine writes it, the status table and the report read it. All of it is in the trial's user
attributes, one for each field, so that it is to be seen on Optuna's dashboard too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

Failure = Literal["error", "nan", "out-of-memory", "no-space", "killed", "stopped", "timeout"]


@dataclass(frozen=True)
class TrialRecord:
    """One attempt at one trial.

    Attributes:
        overrides: What the trial sets, by dotted key, the study's own overrides included.
        seed: `seed_everything`.
        arm: Arm of an ablation; empty in a search.
        attempt: 1, or 2 where a killed worker's trial is tried again.
        retry_of: Number of the trial that this one tries again.
        command: What repeats it, word by word: `lightning fit ...`.
        config_hash: Fingerprint of the resolved configuration.
        folder: Folder of the run.
        run_id: Run of MLflow's, child of the study's run.
        worker: `host:pid` of the worker.
        hardware: Processor or accelerator that it ran on.
        commit: Commit of the code; empty outside a repository.
        dirty: Whether the code differed from the commit.
        data: Identity of the data set.
        parameters: Of the model.
        macs: Of the model at the size of the data, for one image.
        images_per_second: Measured in training.
        train_seconds: From the first step to the end of training.
        best_epoch: Epoch of the best value of the first objective, from 1.
        best: Metrics at that epoch.
        last: Metrics of the last epoch.
        test: Metrics of the test split, of the best weights, evaluated once.
        failure: What went wrong; None where nothing did.
        reason: The same in a sentence.
    """

    overrides: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    arm: str = ""
    attempt: int = 1
    retry_of: int | None = None
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

    def digest(self, number: int, state: str, values: tuple[float, ...] | None) -> str:
        """Return a fingerprint of an ended trial, which shows whether it was changed since.

        Args:
            number: Number of the trial.
            state: Optuna's name of its state.
            values: Its objectives.
        """
        whole = {"number": number, "state": state, "values": values, **self.as_attrs()}
        text = json.dumps(whole, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
