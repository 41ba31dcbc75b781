"""The process of one trial: `python -m spanet_lightning.sweep.trial SPEC.json`.

It runs the experiment that `lightning fit` runs, tells its worker how it goes (`events`), and knows
nothing of Optuna. It ends with its worker: nothing trains on that nobody watches.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from spanet_lightning.cli import Experiment
from spanet_lightning.machine import commit, cpu_name
from spanet_lightning.sweep import failures
from spanet_lightning.sweep.command import fingerprint
from spanet_lightning.sweep.events import EventReader, EventWriter, Progress
from spanet_lightning.sweep.spec import WATCHED, Spec
from spanet_lightning.tracking import MLflowLogger

EXIT_FAILED = 1
EXIT_ALONE = 3


class Reporter(Callback):
    """Writes events, and ends a trial that is to be pruned.

    Args:
        spec: What the worker told.
        experiment: What is run.
    """

    def __init__(self, spec: Spec, experiment: Experiment) -> None:
        self.events = EventWriter(Path(spec.events))
        self.prune = Path(spec.prune)
        self.tags = spec.tags
        self.experiment = experiment
        self.pruned = False
        self._stepped = False
        self._started = 0.0
        self._validated = False
        self._told_run = False

    def on_train_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
    ) -> None:
        """Tell what is known before the first step."""
        self._started = time.perf_counter()  # of a trial that is resumed amid an epoch
        if not trainer.is_global_zero:
            return
        experiment, cost = self.experiment, self.experiment.cost
        state = commit() or {"id": "", "dirty": False}
        device = trainer.strategy.root_device
        on_cuda = device.type == "cuda"
        count = f"{trainer.world_size} × " if trainer.world_size > 1 else ""
        loggers = [logger for logger in trainer.loggers if isinstance(logger, MLflowLogger)]
        for logger in loggers:
            logger.set_tags(self.tags)
        self.events.write(
            "model",
            parameters=None if cost is None else cost.parameters,
            # Those of spectral operators too: what one arm has and another has not.
            macs=None if cost is None else cost.macs + cost.spectral_macs,
            data=_identity(trainer, experiment.datamodule),
            hardware=count + (torch.cuda.get_device_name(device) if on_cuda else cpu_name()),
            commit=state["id"],
            dirty=state["dirty"],
            config_hash=fingerprint(experiment.flat_config()),
            epochs=trainer.max_epochs if (trainer.max_epochs or 0) > 0 else None,
            folder=None if experiment.record is None else str(experiment.record.folder),
        )
        self.tell_run(trainer)

    def on_train_epoch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
    ) -> None:
        """Start the clock of the epoch."""
        self._started, self._validated = time.perf_counter(), False

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Tell of the first step, and end the trial where it is to be pruned."""
        if not self._stepped:
            self._stepped = True
            if trainer.is_global_zero:
                self.events.write("step")
        if trainer.world_size == 1 and self.prune.exists():
            self._end_early(trainer)

    def on_validation_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
    ) -> None:
        """Remember that the metrics are of this epoch."""
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
    ) -> None:
        """Tell the metrics of the epoch; validation has come before."""
        self.tell_run(trainer)
        # Read in all processes: they compute metrics together.
        found = trainer.callback_metrics
        if trainer.is_global_zero and not self.pruned:
            prefixes = ("train/", "val/") if self._validated else ("train/",)
            metrics = {
                name: float(value)
                for name, value in found.items()
                if name.startswith(prefixes) and not name.endswith(("_step", "_epoch"))
            }
            self.events.write(
                "epoch",
                epoch=trainer.current_epoch + 1,
                seconds=time.perf_counter() - self._started,
                images_per_second=self.experiment.throughput.rate,
                metrics=metrics,
            )
        if trainer.world_size > 1 and trainer.strategy.reduce_boolean_decision(
            self.prune.exists(), all=False
        ):
            self._end_early(trainer)

    def tell_run(self, trainer: Trainer) -> None:
        """Tell the id of the tracker's run, as soon as the tracker has told it."""
        if self._told_run or not trainer.is_global_zero:
            return
        ids = [lg.version for lg in trainer.loggers if isinstance(lg, MLflowLogger) and lg.version]
        if ids:
            self.events.write("run", run_id=ids[0])
            self._told_run = True

    def _end_early(self, trainer: Trainer) -> None:
        self.pruned = True
        trainer.should_stop = True
        trainer.fit_loop.min_epochs = 0  # or Lightning goes on until they are over


class TrialExperiment(Experiment):
    """The experiment of `lightning fit`, with a reporter and the study's tags, and tested once.

    Args:
        spec: What the worker told.
    """

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.reporter = Reporter(spec, self)
        super().__init__(spec.command, show_results=False)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer; what the study adds is not part of the configuration."""
        trainer = super().instantiate_trainer(**kwargs)
        trainer.callbacks.append(self.reporter)  # type: ignore[attr-defined]
        for logger in trainer.loggers:
            if isinstance(logger, MLflowLogger) and self.spec.run_id:
                logger.resume_run(self.spec.run_id)
        return trainer

    def after_fit(self) -> None:
        """Test the best weights, once, and tell how it ended.

        Raises:
            RuntimeError: If training was cut short.
        """
        trainer, events = self.trainer, self.reporter.events
        if trainer.received_sigterm or trainer.interrupted:
            raise RuntimeError("training was interrupted by a signal")
        if not self.reporter.pruned and self.spec.test is not None:
            saver = trainer.checkpoint_callback
            best = getattr(saver, "best_model_path", "") or None
            found = trainer.test(
                self.model,
                datamodule=self.datamodule,
                ckpt_path=best,
                weights_only=True if best else None,
                verbose=False,
            )
            if trainer.is_global_zero:
                events.write("test", metrics={k: float(v) for k, v in found[0].items()})
        if trainer.is_global_zero:
            self._log_best()
            self.reporter.tell_run(trainer)
            events.write("pruned" if self.reporter.pruned else "end")

    def _log_best(self) -> None:
        progress = Progress()
        for event in EventReader(Path(self.spec.events)).read():
            progress.add(event)
        epoch = progress.best_epoch(self.spec.objectives)
        best = {} if epoch is None else progress.metrics[epoch]
        metrics = {f"best/{name}": value for name, value in best.items()}
        metrics["train_seconds"] = sum(progress.seconds.values())
        for logger in self.trainer.loggers:
            if isinstance(logger, MLflowLogger):
                logger.log_metrics(metrics, self.trainer.global_step)
                logger.flush()


def main() -> None:
    """Run the trial that a file describes; its failure is an event, and the exit code 1."""
    spec = Spec.load(Path(sys.argv[1]))
    if os.environ.get(WATCHED):
        threading.Thread(target=_end_with_worker, daemon=True).start()
    events = EventWriter(Path(spec.events))
    try:
        if int(os.environ.get("LOCAL_RANK", "0")) == 0:
            events.write("imported")
        TrialExperiment(spec)
    except BaseException as error:
        failure, reason = failures.of_error(error)
        with suppress(MemoryError, OSError):
            events.write("failed", failure=failure, reason=reason)
        traceback.print_exc()
        sys.stdout.flush()
        sys.exit(EXIT_FAILED)


def _end_with_worker() -> None:
    """End this process when the worker's end of standard input is closed, however it ended."""
    with suppress(OSError):
        while os.read(0, 1024):
            pass
    os._exit(EXIT_ALONE)


def _identity(trainer: Trainer, data: Any) -> str:
    """Return what data a run is on: the name of its split, or else its kind and its sizes."""
    found = getattr(data, "split_id", None)
    if isinstance(found, str):
        return found
    sizes = []
    for loader in (trainer.train_dataloader, trainer.val_dataloaders):
        with suppress(TypeError, AttributeError):
            sizes.append(f"{len(loader.dataset):,}")  # type: ignore[union-attr]
    return f"{type(data).__name__} ({' + '.join(sizes)} images)" if sizes else type(data).__name__


if __name__ == "__main__":
    main()
