"""What the tests of the sweeps share: studies of fake trials, and how they are run."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from spanet_lightning.sweep.store import StudyStore
from spanet_lightning.sweep.study import Study
from spanet_lightning.sweep.supervisor import Outcome, Settings, Supervisor

URL = "sqlite:///sweeps.db"
FAKE = "tests.fake_trial"
TOP1 = {"metric": "val/top1", "direction": "maximize"}
# A study of the real experiment.
STUDY = """\
question: Does a trial resume where it was?
config: {config}
overrides:
  trainer.max_epochs: 6
  trainer.limit_train_batches: 4
objective: {{metric: val/top1, direction: maximize}}
test: test/top1
ablation:
  seeds: [0]
  control: with SRF
  arms:
    with SRF: {{}}
    without SRF: {{overrides: {{model.backbone.srf: false}}}}
"""


def ablation(
    arms: Mapping[str, Mapping[str, Any]],
    seeds: tuple[int, ...] = (0,),
    stop_losers: bool = False,
    **common: Any,
) -> Study:
    """Return an ablation of fake trials, the first arm its control."""
    given = {
        name: {"overrides": {f"fake.{k}": v for k, v in fake.items()}}
        for name, fake in ({**arms, "spare": {"epochs": 2}} if len(arms) < 2 else arms).items()
    }
    method = {"control": next(iter(arms)), "arms": given, "seeds": seeds}
    return _study(common, ablation={**method, "stop_losers": stop_losers})


def search(space: Mapping[str, Any], objective: Any = TOP1, **method: Any) -> Study:
    """Return a search of fake trials."""
    fake = {"epochs": 3, **method.pop("fake", {})}
    return _study(fake, objective=objective, search={"space": space, **method})


def _study(fake: Mapping[str, Any], **given: Any) -> Study:
    plain = {
        "name": "fake",
        "question": "Does the engine keep its promises?",
        "config": "none.yaml",
        "objective": TOP1,
        "test": "test/top1",
        "overrides": {f"fake.{key}": value for key, value in fake.items()},
    }
    return Study.model_validate({**plain, **given})


def run(
    study: Study, say: Callable[[str], None] = lambda line: None, url: str = URL, **values: Any
) -> Outcome:
    """Create a study, or open it, and run it."""
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).parents[1]))  # for the server
    given = {"entry": FAKE, "preload": FAKE, "heartbeat": 1, "grace": 4, **values}
    settings = Settings(url=url, **given)
    store = StudyStore(url, study, heartbeat=settings.heartbeat, grace=settings.grace).create()
    try:
        return Supervisor(store, settings, say, {"trainer.devices": 1}).run()
    finally:
        store.close()


def command(study: Study, **values: Any) -> BaseProcess:
    """Start a command in a process of its own."""
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_run_alone, args=(study,), kwargs=values)
    process.start()
    return process


def _run_alone(study: Study, **values: Any) -> None:
    # The server that the test's own process started is not this one's.
    server = forkserver._forkserver  # type: ignore[attr-defined]
    server._forkserver_pid = server._forkserver_alive_fd = server._forkserver_address = None
    run(study, **values)


def store(study: Study, url: str = URL) -> StudyStore:
    """Open a study."""
    return StudyStore(url, study).attach()


def trials(study: Study, url: str = URL) -> list[FrozenTrial]:
    """Return what the storage holds."""
    opened = store(study, url)
    found = opened.study.get_trials()
    opened.close()
    return found


def complete(study: Study, url: str = URL) -> list[tuple[Any, ...]]:
    """Return the parameters of the complete trials, in order."""
    found = [t for t in trials(study, url) if t.state == TrialState.COMPLETE]
    return sorted(tuple(trial.params.values()) for trial in found)


def started() -> list[list[str]]:
    """Return what the fake trials wrote when they started."""
    file = Path("started.txt")
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


def wait(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Wait for something, and return it."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)
    return found
