"""The experiment of a trial: that of `lightning fit`, with a reporter, and tested once.

What the study adds is not part of the configuration: `lightning fit` with the recorded command
trains the same, bit for bit.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from spanet_lightning.cli import Experiment
from spanet_lightning.machine import commit, cpu_name
from spanet_lightning.sweep.child import Link, Spec
from spanet_lightning.sweep.command import fingerprint
from spanet_lightning.sweep.records import Progress, read_events
from spanet_lightning.tracking import MLflowLogger


class Reporter(Callback):
    """Reports to the supervisor, and ends a trial that is to be pruned.

    Args:
        spec: What the supervisor asked for.
        link: Where to report.
        experiment: What is run.
    """

    def __init__(self, spec: Spec, link: Link, experiment: Experiment) -> None:
        self.link = link
        self.tags = spec.tags
        self.experiment = experiment
        self.pruned = False
        self._stepped = False
        self._started = 0.0
        self._validated = False
        self._has_run = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report what is known before the first step."""
        self._started = time.perf_counter()  # of a trial that is resumed within an epoch
        if not trainer.is_global_zero:
            return
        experiment, cost = self.experiment, self.experiment.cost
        state = commit() or {"id": "", "dirty": False}
        device = trainer.strategy.root_device
        on_cuda = device.type == "cuda"
        count = f"{trainer.world_size} × " if trainer.world_size > 1 else ""
        for logger in trainer.loggers:
            if isinstance(logger, MLflowLogger):
                logger.set_tags(self.tags)
        self.link.send(
            "model",
            parameters=None if cost is None else cost.parameters,
            # With spectral operators, which one arm has and another has not.
            macs=None if cost is None else cost.macs + cost.spectral_macs,
            data=_identity(trainer, experiment.datamodule),
            hardware=count + (torch.cuda.get_device_name(device) if on_cuda else cpu_name()),
            commit=state["id"],
            dirty=state["dirty"],
            config_hash=fingerprint(experiment.flat_config()),
            epochs=trainer.max_epochs if (trainer.max_epochs or 0) > 0 else None,
            folder=None if experiment.record is None else str(experiment.record.folder),
        )
        self.send_run(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
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
        """Report the first step, and end the trial where it is to be pruned."""
        if not self._stepped:
            self._stepped = True
            if trainer.is_global_zero:
                self.link.send("step")
        if trainer.world_size == 1 and self.link.prune.is_set():
            self._end_early(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember that the metrics are of this epoch."""
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the metrics of the epoch, after its validation."""
        self.send_run(trainer)
        # Read in all processes: they compute metrics together.
        found = trainer.callback_metrics
        if trainer.is_global_zero and not self.pruned:
            prefixes = ("train/", "val/") if self._validated else ("train/",)
            metrics = {
                name: float(value)
                for name, value in found.items()
                if name.startswith(prefixes) and not name.endswith(("_step", "_epoch"))
            }
            self.link.send(
                "epoch",
                epoch=trainer.current_epoch + 1,
                seconds=time.perf_counter() - self._started,
                images_per_second=self.experiment.throughput.rate,
                metrics=metrics,
            )
        if trainer.world_size > 1 and trainer.strategy.reduce_boolean_decision(
            self.link.prune.is_set(), all=False
        ):
            self._end_early(trainer)

    def send_run(self, trainer: Trainer) -> None:
        """Report the id of the run in MLflow as soon as it is known."""
        if self._has_run or not trainer.is_global_zero:
            return
        ids = [lg.version for lg in trainer.loggers if isinstance(lg, MLflowLogger) and lg.version]
        if ids:
            self.link.send("run", run_id=ids[0])
            self._has_run = True

    def _end_early(self, trainer: Trainer) -> None:
        self.pruned = True
        trainer.should_stop = True
        trainer.fit_loop.min_epochs = 0  # or Lightning trains until they are over


class TrialExperiment(Experiment):
    """The experiment of `lightning fit`, with a reporter and the study's tags, and tested once.

    Args:
        spec: What the supervisor asked for.
        link: Where to report.
    """

    def __init__(self, spec: Spec, link: Link) -> None:
        self.spec, self.link = spec, link
        self.reporter = Reporter(spec, link, self)
        resumed = [] if link.checkpoint is None else [f"--ckpt_path={link.checkpoint}"]
        super().__init__([*spec.command, *resumed], show_results=False)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with what the study adds."""
        trainer = super().instantiate_trainer(**kwargs)
        trainer.callbacks.append(self.reporter)  # type: ignore[attr-defined]
        for logger in trainer.loggers:
            if isinstance(logger, MLflowLogger) and self.spec.run_id and self.link.checkpoint:
                logger.resume_run(self.spec.run_id)
        return trainer

    @cached_property
    def _flat(self) -> dict[str, Any]:
        return super().flat_config()

    def flat_config(self) -> dict[str, Any]:
        """Return the resolved configuration by dotted keys; it takes a while, and never changes."""
        return dict(self._flat)

    def after_fit(self) -> None:
        """Test the best weights, once, and report the end.

        Raises:
            RuntimeError: If training was cut short.
        """
        trainer, link = self.trainer, self.link
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
                link.send("test", metrics={k: float(v) for k, v in found[0].items()})
        if trainer.is_global_zero:
            self._log_best()
            self.reporter.send_run(trainer)
            link.send("pruned" if self.reporter.pruned else "end")

    def _log_best(self) -> None:
        progress = Progress()
        for event in read_events(self.link.events):
            progress.add(event)
        epoch = progress.best_epoch(self.spec.metrics)
        best = {} if epoch is None else progress.metrics[epoch]
        metrics = {f"best/{name}": value for name, value in best.items()}
        metrics["train_seconds"] = sum(progress.seconds.values())
        for logger in self.trainer.loggers:
            if isinstance(logger, MLflowLogger):
                logger.log_metrics(metrics, self.trainer.global_step)
                logger.flush()


def run(spec: Spec, link: Link) -> None:
    """Run a trial in this process."""
    # The server has imported torch, which reads the variable at that time alone.
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal() and int(threads) > 0:
        torch.set_num_threads(int(threads))
    TrialExperiment(spec, link)


def _identity(trainer: Trainer, data: Any) -> str:
    """Return what data a run is on: the name of its split, or else its class and its sizes."""
    found = getattr(data, "split_id", None)
    if isinstance(found, str):
        return found
    sizes = []
    for loader in (trainer.train_dataloader, trainer.val_dataloaders):
        with suppress(TypeError, AttributeError):
            sizes.append(f"{len(loader.dataset):,}")  # type: ignore[union-attr]
    return f"{type(data).__name__} ({' + '.join(sizes)} images)" if sizes else type(data).__name__
