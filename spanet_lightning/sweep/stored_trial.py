"""One trial in the storage: its point of the space, which attempt it is, and its record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from spanet_lightning.sweep.records import TrialRecord

# How the reason of a failure begins which nobody was left to write.
WORKER_DIED = "its worker"


def key_of(params: Mapping[str, Any]) -> str:
    """Return the parameters of a trial as text that is the same for the same point."""
    return json.dumps(dict(params), sort_keys=True)


def point_of(trial: FrozenTrial) -> str:
    """Return the point of a trial, whether it was started or waits."""
    return key_of(trial.params or trial.system_attrs.get("fixed_params", {}))


def attempt_of(
    attrs: Mapping[str, Any], system: Mapping[str, Any], earlier: TrialRecord
) -> tuple[int, int | None]:
    """Return which attempt a trial is, and the number of the one before.

    Args:
        attrs: Its attributes.
        system: Its attributes of Optuna's.
        earlier: What is known of the attempt before.
    """
    history = system.get("retry_history", [])
    requeued = attrs.get("requeued", {"of": -1, "attempt": 1})
    killed = history[-1] if history else -1
    if killed > requeued["of"]:  # put back by Optuna's callback, with all attributes
        return earlier.attempt + 1, killed
    return requeued["attempt"], requeued["of"] if requeued["of"] >= 0 else None


def pruned_values(trial: FrozenTrial) -> list[float] | None:
    """Return what Optuna makes the value of a pruned trial: its last point."""
    step = trial.last_step
    if step is None:
        return None
    value = trial.intermediate_values[step]
    return None if value != value else [value]


def write_record(
    storage: RDBStorage, trial_id: int, number: int, record: TrialRecord, digest: str | None = None
) -> None:
    """Write the fields that are not stored as they are; each is a transaction of its own.

    Args:
        storage: Where to.
        trial_id: The storage's number of the trial.
        number: The study's.
        record: What is known of it.
        digest: Its fingerprint; None is that of a failed trial.
    """
    stored = storage.get_trial(trial_id).user_attrs
    known = TrialRecord.from_attrs(stored).as_attrs()
    for name, value in record.as_attrs().items():
        if known[name] != value:
            storage.set_trial_user_attr(trial_id, name, value)
    digest = digest or record.digest(number, TrialState.FAIL.name, None)
    write_attr(storage, trial_id, stored, "digest", digest)


def write_attr(
    storage: RDBStorage, trial_id: int, stored: Mapping[str, Any], name: str, value: Any
) -> None:
    """Write an attribute that is not stored as it is.

    Args:
        storage: Where to.
        trial_id: The storage's number of the trial.
        stored: The attributes that it has.
        name: The attribute.
        value: The value.
    """
    if stored.get(name) != value:
        storage.set_trial_user_attr(trial_id, name, value)
