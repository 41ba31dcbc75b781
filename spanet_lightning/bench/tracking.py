"""What tracking costs a training step: five metrics a step, beside a step that logs nothing.

One training of the demo's model, in which blocks of epochs take turns: without a tracker, with one
on SQLite, with a server that is down, and with one that takes connections and never answers. The
process that sends goes on during the blocks of the others, as it would: what is compared is what
the training process itself has to do. How long the call alone takes is measured as well.
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import chdir, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from spanet_lightning.bench.models import Row, ratio
from spanet_lightning.cli import Experiment
from spanet_lightning.errors import invalid
from spanet_lightning.tracking import MLflowLogger
from spanet_lightning.tracking.delivery import WAIT_VARIABLE

WITHOUT = "no tracker"
_METRICS = 5


@dataclass(frozen=True)
class TrackingSettings:
    """What is measured.

    Attributes:
        rounds: Blocks of each subject.
        epochs: Epochs of a block.
    """

    rounds: int = 9
    epochs: int = 2

    def __post_init__(self) -> None:
        for name in ("rounds", "epochs"):
            if getattr(self, name) < 1:
                raise invalid(f"--{name}", getattr(self, name), "at least 1")


class _Turns(Callback):
    """Measures blocks of epochs, each of one subject, in reverse order every second round."""

    def __init__(
        self,
        loggers: dict[str, MLflowLogger],
        settings: TrackingSettings,
        say: Callable[[str], None],
    ) -> None:
        self.loggers = loggers
        self.settings = settings
        self.say = say
        order = [WITHOUT, *loggers]
        self.blocks = [
            name
            for number in range(settings.rounds)
            for name in (order if number % 2 == 0 else reversed(order))
        ]
        self.steps: dict[str, list[float]] = {name: [] for name in order}
        self.calls: dict[str, list[float]] = {name: [] for name in loggers}
        self._began = 0.0
        self._in_calls = 0.0
        self._first = 0

    @property
    def epochs(self) -> int:
        """Epochs of the whole training: the first one is not measured."""
        return 1 + len(self.blocks) * self.settings.epochs

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of a block."""
        block, rest = divmod(trainer.current_epoch - 1, self.settings.epochs)
        if trainer.current_epoch > 0 and rest == 0:
            self.say(f"block {block + 1} of {len(self.blocks)}")
            self._first, self._in_calls = trainer.global_step, 0.0
            self._began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log, where it is the turn of a logger."""
        if trainer.current_epoch == 0:
            return
        name = self.blocks[(trainer.current_epoch - 1) // self.settings.epochs]
        if name == WITHOUT:
            return
        loss = float(outputs["loss"].detach())
        began = time.perf_counter()
        values = {f"train/metric_{i}": loss + i for i in range(_METRICS)}
        self.loggers[name].log_metrics(values, trainer.global_step)
        self._in_calls += time.perf_counter() - began

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock at the end of a block."""
        block, rest = divmod(trainer.current_epoch - 1, self.settings.epochs)
        if trainer.current_epoch > 0 and rest == self.settings.epochs - 1:
            seconds = time.perf_counter() - self._began
            steps = trainer.global_step - self._first
            self.steps[self.blocks[block]].append(seconds / steps)
            if self.blocks[block] != WITHOUT:
                self.calls[self.blocks[block]].append(self._in_calls / steps)


class _Experiment(Experiment):
    def __init__(self, args: list[str], turns: _Turns) -> None:
        self.turns = turns
        super().__init__(args, show_results=False)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        trainer.callbacks.append(self.turns)  # type: ignore[attr-defined]
        return trainer


def measure_tracking(
    config: Path, settings: TrackingSettings, say: Callable[[str], None]
) -> tuple[list[Row], list[Row]]:
    """Measure steps that log and steps that do not, in alternation.

    Args:
        config: The experiment.
        settings: What is measured.
        say: Tells how far it is.

    Returns:
        Results, whose `seconds` are those of a step (mode "step") or of the call that logs (mode
        "call"); and ratios of the time without a tracker over that with one.
    """
    config = config.resolve()
    with (
        tempfile.TemporaryDirectory(prefix="spanet-bench-", ignore_cleanup_errors=True) as folder,
        chdir(folder),
        closing(socket.create_server(("127.0.0.1", 0), backlog=128)) as silent,
        closing(socket.create_server(("127.0.0.1", 0))) as closed,
    ):
        down = closed.getsockname()[1]
        closed.close()
        loggers = {
            "SQLite": MLflowLogger(tracking_uri="sqlite:///mlflow.db"),
            "server down": MLflowLogger(tracking_uri=f"http://127.0.0.1:{down}"),
            "server hanging": MLflowLogger(
                tracking_uri=f"http://127.0.0.1:{silent.getsockname()[1]}"
            ),
        }
        turns = _Turns(loggers, settings, say)
        say("the tracker's first run, which is not measured")
        for logger in loggers.values():
            logger.log_metrics({"started": 1.0}, 0)
        before = os.environ.get(WAIT_VARIABLE)
        os.environ[WAIT_VARIABLE] = "120"  # MLflow creates its tables
        loggers["SQLite"].flush()
        os.environ[WAIT_VARIABLE] = before or "1"
        _Experiment(
            [
                *("fit", "--config", str(config), f"--trainer.max_epochs={turns.epochs}"),
                *("--trainer.logger=false", "--trainer.enable_progress_bar=false"),
                *("--trainer.enable_checkpointing=false", "--trainer.limit_val_batches=0"),
                "--trainer.enable_model_summary=false",
            ],
            turns,
        )
        for logger in loggers.values():
            logger.finalize("success")
    results = [
        {"subject": name, "mode": "step", "seconds": seconds}
        for name, seconds in turns.steps.items()
    ] + [
        {"subject": name, "mode": "call", "seconds": seconds}
        for name, seconds in turns.calls.items()
    ]
    ratios = [
        ratio(name, WITHOUT, "step", turns.steps[name], turns.steps[WITHOUT]) for name in loggers
    ]
    return results, ratios
