"""Reports the samples that a run skips: a file, a count, one line per epoch."""

from __future__ import annotations

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info

from spanet_lightning import tracking
from spanet_lightning.callbacks.run_record import RunRecord
from spanet_lightning.data.bad_samples import FILE, BadSamples
from spanet_lightning.run_dir import write_text

METRIC = "data/bad_samples"
"""Logged once per split, as `data/bad_samples/SPLIT`: how many samples are skipped."""


def skipped_samples(data: LightningDataModule | None, record: RunRecord) -> list[Callback]:
    """Return the callback of a data module that skips samples; none for any other.

    Args:
        data: The data module.
        record: Knows the folder of the run.
    """
    samples = getattr(data, "bad_samples", None)
    return (
        [SkippedSamples(samples, record)]
        if isinstance(samples, BadSamples) and samples.skips
        else []
    )


class SkippedSamples(Callback):
    """Lists the skipped samples in the run's folder and its tracker, and prints how many.

    Args:
        samples: What the check of the data found.
        record: Knows the folder of the run; comes before this in the trainer's callbacks.
    """

    def __init__(self, samples: BadSamples, record: RunRecord) -> None:
        self.samples = samples
        self.record = record
        self._listed = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the list into the folder, which now exists, and into the tracker."""
        if trainer.is_global_zero:
            write_text(self.record.folder / FILE, self.samples.table())
        self._list(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print how many are skipped: no metric of an epoch should be read without."""
        rank_zero_info(self.samples.line())

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print it for a validation outside of training."""
        if trainer.state.fn == "validate":
            self._list(trainer)
            rank_zero_info(self.samples.line())

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print it for a test."""
        self._list(trainer)
        rank_zero_info(self.samples.line())

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print it for a prediction, where its split was checked."""
        if self.samples.found:
            rank_zero_info(self.samples.line())

    def _list(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero or self._listed:
            return
        self._listed = True
        counts = {
            f"{METRIC}/{name}": float(len(split.bad)) for name, split in self.samples.found.items()
        }
        for logger in trainer.loggers:
            logger.log_metrics(counts, step=trainer.global_step)
            if isinstance(logger, tracking.MLflowLogger):
                logger.log_text(self.samples.table(), FILE)
