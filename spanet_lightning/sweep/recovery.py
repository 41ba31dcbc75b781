"""Trials that failed: which of them go back into the queue, and how often.

Every method is called with the lock of the study taken.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from spanet_lightning.sweep import folders
from spanet_lightning.sweep.records import TrialRecord
from spanet_lightning.sweep.storage import Pulse
from spanet_lightning.sweep.stored_trial import WORKER_DIED, point_of, write_record


class Recovery:
    """What to do with the trials of workers that stopped, died or failed.

    Args:
        study: Optuna's.
        storage: Where it is.
        folder: Returns its folder on this machine.
        pulse: How workers show that they live.
    """

    def __init__(
        self, study: optuna.Study, storage: RDBStorage, folder: Callable[[], Path], pulse: Pulse
    ) -> None:
        self.study = study
        self.storage = storage
        self.folder = folder
        self.pulse = pulse
        self._connected = time.monotonic()

    def reconnected(self) -> None:
        """Remember that the storage was away: others may not have been able to show life either."""
        self._connected = time.monotonic()

    def settle(self) -> None:
        """Fail the trials whose workers are dead, and put them back into the queue, once."""
        running = [
            trial
            for trial in self.study.get_trials(deepcopy=False)
            if trial.state == TrialState.RUNNING
        ]
        for trial in running:
            token = str(trial.user_attrs.get("token", ""))
            if not token.startswith(f"{trial.number}:"):
                # We have the lock, so whoever began to claim it is dead: nothing was run.
                self.release(trial.number, "its worker was killed before it began")
                continue
            where = folders.trial_folder(self.folder(), str(trial.user_attrs["cell"]))
            alive = folders.lives(where.claim, token)
            if alive:
                self.storage.record_heartbeat(trial._trial_id)
            elif alive is False:
                self.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        # After an outage each worker gets the time to show that it lives.
        if time.monotonic() - self._connected > 2 * self.pulse.interval:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                optuna.storages.fail_stale_trials(self.study)
        for trial in running:
            if self.storage.get_trial(trial._trial_id).state == TrialState.FAIL:
                self._mark(trial.number)
        self.put_back()

    def put_back(self) -> None:
        """Put into the queue again what was stopped, and what died with its worker, once.

        Looked for each time anew: who failed a trial may have been killed before putting it back.
        """
        trials = self.study.get_trials(deepcopy=False)
        followed = {trial.user_attrs.get("requeued", {}).get("of") for trial in trials}
        for trial in trials:
            followed.update(trial.system_attrs.get("retry_history", []))
        for trial in trials:
            if trial.state != TrialState.FAIL or trial.number in followed:
                continue
            record = TrialRecord.from_attrs(trial.user_attrs)
            if record.failure in (None, "stopped"):  # None: killed before it could say anything
                self._requeue(trial, record.attempt)
            elif record.failure == "killed" and record.reason.startswith(WORKER_DIED):
                callback = self.storage.get_heartbeat_stale_trial_callback()
                if callback is not None:  # Optuna's, which counts how often it was tried
                    callback(self.study, self.storage.get_trial(trial._trial_id))

    def release(self, number: int, why: str) -> None:
        """Fail a trial of which nothing was run, and put it back into the queue."""
        trial = self.study.get_trials(deepcopy=False)[number]
        earlier = TrialRecord.from_attrs(trial.user_attrs)
        record = replace(earlier, failure="stopped", reason=why)
        write_record(self.storage, trial._trial_id, number, record)
        self._mark(number)
        self.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        self.put_back()

    def retry_failed(self) -> list[int]:
        """Put each trial back into the queue that failed and was not tried again since.

        Returns:
            Their numbers.
        """
        self.settle()
        trials = self.study.get_trials(deepcopy=False)
        last: dict[str, FrozenTrial] = {}
        for trial in trials:  # by number: the last attempt of each counts
            last[str(trial.user_attrs.get("cell", f"#{trial.number}"))] = trial
        waiting = {point_of(trial) for trial in trials if trial.state == TrialState.WAITING}
        failed = [
            trial
            for trial in last.values()
            if trial.state == TrialState.FAIL and point_of(trial) not in waiting
        ]
        for trial in failed:
            earlier = TrialRecord.from_attrs(trial.user_attrs)
            self._requeue(trial, earlier.attempt + 1, fresh=True)
        return [trial.number for trial in failed]

    def _mark(self, number: int) -> None:
        """Keep the fingerprint of a failed trial; a worker that was killed may have kept another.

        That is one which had written how well it ended, but not yet that it did.
        """
        attrs = self.study.get_trials(deepcopy=False)[number].user_attrs
        if "digest" in attrs:
            digest = TrialRecord.from_attrs(attrs).digest(number, TrialState.FAIL.name, None)
            self.study.set_user_attr(f"ended:{number}", digest)

    def _requeue(self, trial: FrozenTrial, attempt: int, *, fresh: bool = False) -> None:
        kept = {
            key: value
            for key, value in trial.system_attrs.items()
            if not (fresh and key in ("failed_trial", "retry_history"))
        }
        cell = trial.user_attrs.get("cell")
        attrs = {
            "requeued": {"of": trial.number, "attempt": attempt},
            "failure": trial.user_attrs.get("failure"),
            **({} if cell is None else {"cell": cell}),
        }
        run_id = trial.user_attrs.get("run_id")
        self.study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.WAITING,
                params=trial.params,
                distributions=trial.distributions,
                system_attrs=kept,
                user_attrs={**attrs, **({"run_id": run_id} if run_id else {})},
            )
        )
