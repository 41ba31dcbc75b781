"""What a sweep costs beside the training: the start of a trial, and its book-keeping.

A trial is a process of its own, which imports torch, lightning and mlflow before it does anything.
Python itself tells how long that takes (`-X importtime`, the sum over all modules); what is left
until the first step is the configuration, the model, the data, the run of the tracker, and the
sweep's own files. Book-keeping is measured with trials that do nothing at all.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

from optuna.trial import TrialState

from spanet_lightning.bench.timing import Row
from spanet_lightning.errors import ConfigError, invalid
from spanet_lightning.sweep.definition import Ablation, Arm, Objective, Study
from spanet_lightning.sweep.events import EventReader
from spanet_lightning.sweep.folders import trial_folder
from spanet_lightning.sweep.ledger import Budget, Ledger
from spanet_lightning.sweep.records import TrialRecord
from spanet_lightning.sweep.worker import RUNNER, Order, Worker

URL = "sqlite:///sweeps.db"
_IMPORT = re.compile(r"^import time:\s+(\d+) \|", re.MULTILINE)
_NOTHING = """
import json, sys
spec = json.load(open(sys.argv[1]))
with open(spec["events"], "a") as events:
    for event in (
        {"event": "epoch", "epoch": 1, "metrics": {"train/loss": 1.0}},
        {"event": "end"},
    ):
        events.write(json.dumps(event) + chr(10))
"""


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


def measure_sweep(config: Path, settings: SweepSettings, say: Callable[[str], None]) -> list[Row]:
    """Measure the start of trials, and what the storage costs.

    Args:
        config: The experiment, of which one step is taken.
        settings: What is measured.
        say: Tells how far it is.
    """
    config = config.resolve()
    with tempfile.TemporaryDirectory(prefix="spanet-bench-") as folder, chdir(folder):
        say("a trial that is not measured: files are read for the first time")
        _started(config, 1)
        say(f"{settings.rounds} trials")
        starts = _started(config, settings.rounds)
        say(f"{settings.trials} trials that do nothing")
        seconds = _bookkeeping(config, settings.trials)
    return [
        {"subject": name, "mode": "start", "seconds": [start[i] for start in starts]}
        for i, name in enumerate(("to the first step", "imports", "the rest"))
    ] + [
        {
            "subject": "book-keeping",
            "mode": "storage",
            "seconds": [seconds],
            "trials_per_minute": 60 / seconds,
        }
    ]


def _started(config: Path, count: int) -> list[tuple[float, float, float]]:
    """Return seconds of each trial to its first step, those of its imports, and the others."""
    study = _study(
        f"start-{count}-{time.monotonic_ns()}",
        config,
        count,
        {"trainer.max_steps": 1, "trainer.limit_val_batches": 0},
    )
    ledger = _run(study, (sys.executable, "-X", "importtime", *RUNNER[1:]))
    found = []
    for trial in ledger.study.get_trials():
        record = TrialRecord.from_attrs(trial.user_attrs)
        if trial.state != TrialState.COMPLETE:
            raise ConfigError(f"{config}: a trial failed: {record.reason}")
        folder = trial_folder(ledger.folder(), Path(record.folder).name)
        times = {event["event"]: event["time"] for event in EventReader(folder.events).read()}
        log = folder.log.read_text(encoding="utf-8", errors="replace")
        imports = sum(map(int, _IMPORT.findall(log))) / 1e6
        total = times["step"] - times["process"]
        found.append((total, imports, total - imports))
    return found


def _bookkeeping(config: Path, count: int) -> float:
    """Return seconds of a trial that does nothing, its process included."""
    script = Path("nothing.py")
    script.write_text(_NOTHING, encoding="utf-8")
    study = _study("nothing", config, count, {})
    began = time.perf_counter()
    _run(study, (sys.executable, "-S", str(script.resolve())))
    return (time.perf_counter() - began) / count


def _study(name: str, config: Path, count: int, overrides: dict[str, object]) -> Study:
    return Study(
        name=name,
        question="What does a trial cost beside its training?",
        configs=(str(config),),
        objectives=(Objective("train/loss", "min"),),
        method=Ablation(control="control", arms=(Arm("control"),), seeds=tuple(range(count))),
        overrides=overrides,
    )


def _run(study: Study, runner: tuple[str, ...]) -> Ledger:
    ledger = Ledger(URL, study)
    ledger.create()
    Worker(Order(URL, study, Budget(), runner=runner), lambda _: None).work()
    return ledger
