"""What the tests of the sweeps share: studies of fake trials, and how they are run."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from spanet_lightning.sweep import run as running
from spanet_lightning.sweep.definition import Ablation, Arm, Objective, Search, Study
from spanet_lightning.sweep.ledger import Ledger
from spanet_lightning.sweep.run import Outcome, Settings
from spanet_lightning.sweep.storage import Pulse

FAKE = (sys.executable, "-S", str(Path(__file__).with_name("fake_trial.py")))
URL = "sqlite:///sweeps.db"
TOP1 = (Objective("val/top1"),)
# A study of the real experiment.
STUDY = """\
question: Does a trial go on where it was?
config: {config}
set:
  trainer.max_epochs: 6
  trainer.limit_train_batches: 4
objective: {{metric: val/top1, goal: max}}
test: test/top1
ablation:
  seeds: [0]
  control: with SRF
  arms:
    with SRF: {{}}
    without SRF: {{set: {{model.backbone.srf: false}}}}
"""


def ablation(
    arms: Mapping[str, Mapping[str, Any]], seeds: tuple[int, ...] = (0,), **common: Any
) -> Study:
    """Return an ablation of fake trials, the first arm its control."""
    return Study(
        name="fake",
        question="Does the engine keep its promises?",
        configs=("none.yaml",),
        objectives=TOP1,
        method=Ablation(
            control=next(iter(arms)),
            arms=tuple(
                Arm(name, {f"fake.{k}": v for k, v in o.items()}) for name, o in arms.items()
            ),
            seeds=seeds,
        ),
        overrides={f"fake.{key}": value for key, value in common.items()},
        test="test/top1",
    )


def search(
    space: tuple[Any, ...], objectives: tuple[Objective, ...] = TOP1, **method: Any
) -> Study:
    """Return a search of fake trials."""
    return Study(
        name="fake",
        question="Does the engine keep its promises?",
        configs=("none.yaml",),
        objectives=objectives,
        method=Search(space=space, **method),
        overrides={"fake.epochs": 3},
    )


def settings(**values: Any) -> Settings:
    """Return settings of fake trials whose dead workers are noticed in seconds."""
    defaults = {"url": URL, "runner": FAKE, "method": "fork", "pulse": Pulse(1, 4)}
    return Settings(**{**defaults, **values})


def run(study: Study, say: Callable[[str], None] = lambda line: None, **values: Any) -> Outcome:
    """Create a study, or find it again, and run it."""
    chosen = settings(**values)
    ledger = Ledger(chosen.url, study, chosen.pulse, chosen.root)
    ledger.create()
    try:
        return running.run(study, ledger, chosen, say)
    finally:
        ledger.close()


def command(study: Study, **values: Any) -> BaseProcess:
    """Start a command in a process of its own."""
    process = multiprocessing.get_context("fork").Process(target=run, args=(study,), kwargs=values)
    process.start()
    return process


def trials(study: Study, url: str = URL) -> list[FrozenTrial]:
    """Return what the storage holds."""
    ledger = Ledger(url, study)
    found = ledger.attach().get_trials()
    ledger.close()
    return found


def complete(study: Study, url: str = URL) -> list[tuple[Any, ...]]:
    """Return the parameters of the complete trials."""
    found = [t for t in trials(study, url) if t.state == TrialState.COMPLETE]
    return [tuple(trial.params.values()) for trial in found]


def started() -> list[list[str]]:
    """Return what the fake trials said when they started."""
    file = Path("started.txt")
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


def wait(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Wait for something, and return it."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)
    return found
