"""What a sweep costs beside the training: the start of a trial, and its book-keeping.

Trials are forked from a server that has imported everything once. Measured are the start of that
server (once for each command), of a trial from its fork to its first step, and trials that do
nothing at all, which is what the storage and the process cost.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

from spanet_lightning.bench.timing import Row
from spanet_lightning.errors import ConfigError, invalid
from spanet_lightning.sweep.child import Link, Spec
from spanet_lightning.sweep.command import fit_command, resolve
from spanet_lightning.sweep.folders import trial_folder
from spanet_lightning.sweep.records import TrialRecord, read_events
from spanet_lightning.sweep.server import start_server
from spanet_lightning.sweep.store import StudyStore
from spanet_lightning.sweep.study import Study
from spanet_lightning.sweep.supervisor import Settings, Supervisor

URL = "sqlite:///sweeps.db"


@dataclass(frozen=True)
class SweepSettings:
    """What is measured.

    Attributes:
        rounds: Trials of the real experiment.
        trials: Trials that do nothing.
    """

    rounds: int = 5
    trials: int = 30

    def __post_init__(self) -> None:
        for name in ("rounds", "trials"):
            if getattr(self, name) < 1:
                raise invalid(f"--{name}", getattr(self, name), "at least 1")


def run(_: Spec, link: Link) -> None:
    """Be a trial that does nothing."""
    link.send("epoch", epoch=1, metrics={"train/loss": 1.0})
    link.send("end")


def measure_sweep(config: Path, settings: SweepSettings, say: Callable[[str], None]) -> list[Row]:
    """Measure the start of trials, and what the storage costs.

    Args:
        config: The experiment, of which one step is taken.
        settings: What is measured.
        say: Called with the progress.
    """
    config = config.resolve()
    with tempfile.TemporaryDirectory(prefix="spanet-bench-") as folder, chdir(folder):
        say("the server, and a trial that is not measured")
        start_server(configs=[str(config)])
        began = time.perf_counter()
        _first_steps(config, 1)
        server = time.perf_counter() - began
        say(f"{settings.rounds} trials")
        starts = _first_steps(config, settings.rounds)
        say(f"{settings.trials} trials that do nothing")
        study = _study("nothing", config, settings.trials, {})
        began = time.perf_counter()
        _run(study, __name__)
        seconds = (time.perf_counter() - began) / settings.trials
    return [
        {"subject": "server and first trial", "mode": "start", "seconds": [server]},
        {"subject": "trial to its first step", "mode": "start", "seconds": starts},
        {
            "subject": "book-keeping",
            "mode": "storage",
            "seconds": [seconds],
            "trials_per_minute": 60 / seconds,
        },
    ]


def _first_steps(config: Path, count: int) -> list[float]:
    """Return the seconds of each trial from its fork to its first step."""
    overrides: dict[str, object] = {"trainer.max_steps": 1, "trainer.limit_val_batches": 0}
    store = _run(_study(f"start-{time.monotonic_ns()}", config, count, overrides))
    found = []
    for trial in store.trials():
        record = TrialRecord.from_attrs(trial.user_attrs)
        if not trial.values:
            raise ConfigError(f"{config}: a trial failed: {record.reason}")
        folder = trial_folder(store.folder(), Path(record.folder).name)
        times = {event["event"]: event["time"] for event in read_events(folder.events)}
        found.append(times["step"] - times["process"])
    return found


def _study(name: str, config: Path, count: int, overrides: dict[str, object]) -> Study:
    # A key that changes nothing: equal points would be trained once.
    space = {"number": {"key": "trainer.log_every_n_steps", "int": [1, count + 1]}}
    plain = {
        "name": name,
        "question": "What does a trial cost beside its training?",
        "config": str(config),
        "objective": {"metric": "train/loss", "direction": "minimize"},
        "overrides": overrides,
        "search": {"sampler": "grid", "space": space, "trials": count},
    }
    return Study.model_validate(plain)


def _run(study: Study, entry: str = Settings.entry) -> StudyStore:
    resolved, _ = resolve(fit_command(study, {}, 0))
    store = StudyStore(URL, study).create(resolved)
    Supervisor(store, Settings(url=URL, entry=entry), lambda _: None, resolved).run()
    return store
