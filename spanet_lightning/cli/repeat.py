"""Runs again what a run of the tracker was, and says whether the same came out."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Trainer

from spanet_lightning import machine
from spanet_lightning.cli.experiment import Experiment
from spanet_lightning.cli.options import RUNS
from spanet_lightning.errors import ConfigError
from spanet_lightning.tracking import MLflowLogger
from spanet_lightning.tracking.addresses import URI_VARIABLE
from spanet_lightning.tracking.browse import RunView, Store, differences
from spanet_lightning.tracking.provenance import CONFIG, Provenance, versions
from spanet_lightning.tracking.telemetry import MEASURED

# What a sweep adds to the metrics of a trial, of which it is but a selection.
_SELECTED = ("best/",)
_TRIES = 20  # of waiting for the store
_COMMANDS = ("fit", "validate", "test")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Difference:
    """A metric that did not come out the same.

    Attributes:
        name: Name of the metric.
        then: Its last value in the run; None where it has none.
        now: Its last value in the repetition.
        points: Number of points that differ, or that one of both has not.
        total: Number of points of the longer one.
    """

    name: str
    then: float | None
    now: float | None
    points: int
    total: int


@dataclass(frozen=True)
class Comparison:
    """What came out of a repetition.

    Attributes:
        run_id: Run of the repetition.
        metrics: Number of metrics that were compared.
        points: Number of their points.
        different: Those that are not the same, bit for bit.
    """

    run_id: str
    metrics: int
    points: int
    different: tuple[Difference, ...]


class Repetition(Experiment):
    """The experiment of a run, which says where it is not on the same data.

    Args:
        args: What follows the program's name.
        account: What the run said of itself.
        say: Takes lines for the user.
    """

    def __init__(self, args: list[str], account: Mapping[str, Any], say: Say) -> None:
        self.account = account
        self.say = say
        super().__init__(args, show_results=False)

    def provenance(self, trainer: Trainer) -> Provenance:
        """Look at what this run is, and compare its data with those of the repeated one."""
        found = super().provenance(trainer)
        then = (self.account.get("data") or {}).get("digest")
        now = None if found.data is None else found.data.digest
        if then is not None:
            same = "the same" if then == now else f"OTHER DATA: digest {now}, it was {then}"
            self.say(f"data: {same}")
        return found


def repeat(store: Store, run: RunView, say: Say) -> Comparison:
    """Run again what a run was, in the same store, and compare all points of all metrics.

    Figures that no two runs share (times, memory) are left out. Metrics of a test are compared
    where the run was tested after training, on its best checkpoint.

    Args:
        store: Where the run is, and the repetition will be.
        run: The run.
        say: Takes lines for the user.

    Raises:
        ConfigError: If the run does not hold its configuration.
    """
    text = store.text(run, CONFIG)
    try:
        config = None if text is None else yaml.safe_load(text)
    except yaml.YAMLError:  # a tag that would build an object, too
        config = None
    if not isinstance(config, dict) or "model" not in config:
        raise ConfigError(
            f"RUN: {run.name} ({run.id[:8]}) holds no {CONFIG}, expected a run of `lightning`; a "
            "study's own run has none, its trials have"
        )
    account = store.account(run) or {}
    for line in changed(account):
        say(line)
    if run.status != "FINISHED":
        say(f"the run is {run.status}: it may hold only a part of what it would have come to")
    threads = (account.get("hardware") or {}).get("threads")
    if isinstance(threads, int):
        torch.set_num_threads(threads)  # how sums are split decides their last digits
    redirect(config, run, store.shown)
    # By the environment, so that a password is in no file.
    os.environ[URI_VARIABLE] = store.uri
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / CONFIG
        path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        experiment = Repetition([_command(account), "--config", str(path)], account, say)
    trainer = experiment.trainer
    tested = any(name.startswith("test/") for name in run.metrics)
    if tested and trainer.state.fn == "fit":
        best = getattr(trainer.checkpoint_callback, "best_model_path", "") or None
        trainer.test(
            experiment.model,
            datamodule=experiment.datamodule,
            ckpt_path=best,
            weights_only=True if best else None,
            verbose=False,
        )
    (again,) = [one for one in trainer.loggers if isinstance(one, MLflowLogger)][:1]
    # A store that is busy may need longer than a training that ends waits.
    if not any(again.flush() for _ in range(_TRIES)):
        raise ConfigError(f"--tracking-uri: {store.shown} does not take the repetition's metrics")
    return compare(store, run, store.find(again.run_id))


def redirect(config: dict[str, Any], run: RunView, uri: str) -> None:
    """Make the configuration of a run that of its repetition, which leaves the run as it is.

    Args:
        config: The configuration; it is changed.
        run: The run.
        uri: Store of the repetition, without credentials.

    Raises:
        ConfigError: If the run has no logger of MLflow's.
    """
    loggers = list(_loggers(config))
    if not loggers:
        raise ConfigError("RUN: its trainer.logger is not MLflow's; there is nothing to compare")
    for logger in loggers:
        given = logger.setdefault("init_args", {})
        given |= {"tracking_uri": uri, "run_id": None, "run_name": None}
        given["experiment_name"] = run.experiment
        given["tags"] = {"repeats": run.id}
    config["name"] = f"{config.get('name') or run.name}-repeat"
    config["resume"] = "never"
    config.get("trainer", {})["default_root_dir"] = RUNS
    if isinstance(config.get("tracking"), dict):  # a repetition is no new version of a model
        config["tracking"]["register"] = None


def compare(store: Store, first: RunView, second: RunView) -> Comparison:
    """Compare all points of all metrics but those that no two runs share.

    Args:
        store: Where both are.
        first: The run.
        second: The repetition.
    """
    names = sorted({*first.metrics, *second.metrics})
    names = [name for name in names if not name.startswith((*MEASURED, *_SELECTED))]
    different, points = [], 0
    for name in names:
        then, now = (
            store.history(run, name) if name in run.metrics else [] for run in (first, second)
        )
        total = max(len(then), len(now))
        points += total
        # As text, NaN equals itself, and every other number only what has all of its bits.
        pairs = [[(step, value.hex()) for step, value in history] for history in (then, now)]
        wrong = total - sum(a == b for a, b in zip(*pairs, strict=False))
        if wrong:
            last, again = (history[-1][1] if history else None for history in (then, now))
            different.append(Difference(name, last, again, points=wrong, total=total))
    return Comparison(second.id, len(names), points, tuple(different))


def changed(account: Mapping[str, Any]) -> list[str]:
    """Say what is not as it was: code, packages, hardware.

    Args:
        account: What the run said of itself when it began.
    """
    if not account:
        return ["the run says nothing of its code, packages and hardware"]
    lines = []
    state = machine.commit() or {"id": "", "dirty": False}
    then, now = account.get("commit") or "", state["id"]
    if then != now:
        lines.append(f"code: {now[:12] or 'no checkout'}, it was {then[:12] or 'no checkout'}")
    for dirty, where in ((account.get("dirty"), "the run's"), (state["dirty"], "this")):
        if dirty:
            more = "; it holds how: provenance/changes.diff" if where != "this" else ""
            lines.append(f"code: {where} checkout differs from its commit{more}")
    pairs = {
        **differences(account.get("versions") or {}, versions()),
        **{
            name: (value, found)
            for name, (value, found) in differences(
                account.get("hardware") or {}, machine.machine(torch.device("cpu"))
            ).items()
            if name in ("device", "cpu_capability", "system") and value and found
            if not (account.get("hardware") or {}).get("cuda")
        },
    }
    lines += [
        f"{name}: {now or 'absent'}, it was {then or 'absent'}"
        for name, (then, now) in pairs.items()
    ]
    return lines or ["code, packages and hardware: the same"]


def _loggers(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the parts of a configuration that are loggers of MLflow's."""
    found = (config.get("trainer") or {}).get("logger")
    many = found if isinstance(found, list) else [found]
    return [
        one
        for one in many
        if isinstance(one, dict) and str(one.get("class_path")).endswith("MLflowLogger")
    ]


def _command(account: Mapping[str, Any]) -> str:
    """Return the subcommand of `lightning` that the run was."""
    try:
        words = shlex.split(str(account.get("command") or ""))
    except ValueError:
        words = []
    return next((word for word in words if word in _COMMANDS), "fit")
