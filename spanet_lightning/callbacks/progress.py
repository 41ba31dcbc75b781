"""What a run shows while it trains: a bar on a terminal, plain lines in a log file."""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import (
    Callback,
    ProgressBar,
    RichModelSummary,
    RichProgressBar,
)
from rich.console import Console
from rich.table import Table
from torch import Tensor

from spanet_lightning.summary import console


class ImagesPerSecond(Callback):
    """Measures training throughput: images/s over an epoch, all devices, validation left out.

    Attributes:
        rate: Images per second of the last epoch that was measured; 0 before the first.
    """

    def __init__(self) -> None:
        self.rate = 0.0
        self._images = 0
        self._started = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock: a run that is resumed within an epoch never starts that one."""
        self._images, self._started = 0, time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._images, self._started = 0, time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the images and read the clock: the last batch's reading stands for the epoch."""
        # Images come first in every task's batch; annotations have sizes of their own.
        images = batch if isinstance(batch, Tensor) else batch[0]
        self._images += len(images) * trainer.world_size
        self.rate = self._images / (time.perf_counter() - self._started)


class PlainProgress(ProgressBar):
    """Prints one line an epoch and one every so many steps: for logs, where a bar leaves nothing.

    Args:
        throughput: Measures images/s.
        every_n_steps: Steps between lines within an epoch; null is `trainer.log_every_n_steps`.
    """

    def __init__(self, throughput: ImagesPerSecond, every_n_steps: int | None = None) -> None:
        super().__init__()
        self.throughput = throughput
        self.every_n_steps = every_n_steps
        self._enabled = True

    def disable(self) -> None:
        """Print nothing, as Lightning asks of all but the first process."""
        self._enabled = False

    def enable(self) -> None:
        """Print again."""
        self._enabled = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print a line every so many steps; the last step is in the epoch's line."""
        step, steps = batch_idx + 1, self.total_train_batches
        every = self.every_n_steps or trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and step % every == 0 and step != steps:
            self._print(trainer, f"step {step}/{steps}", ("train/",))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the epoch's line; validation, if any, has come before."""
        self._print(trainer, "done", ("train/", "val/"))

    def _print(self, trainer: Trainer, what: str, prefixes: tuple[str, ...]) -> None:
        if not self._enabled:
            return
        epochs = f"/{trainer.max_epochs}" if (trainer.max_epochs or 0) > 0 else ""
        metrics = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith(prefixes) and not name.endswith(("_step", "_epoch"))
        }
        words = [f"epoch {trainer.current_epoch + 1}{epochs} {what}"]
        words += [f"{name} {value:.4g}" for name, value in sorted(metrics.items())]
        words += [f"{self.throughput.rate:.0f} images/s"]
        sys.stdout.write("  ".join(words) + "\n")
        sys.stdout.flush()


class ParameterTable(RichModelSummary):
    """Prints the parameters of the model's parts before training, those without any left out.

    Lightning's own table has a column of FLOPs that it can't fill; ours are in `spanet models`.
    """

    def __init__(self) -> None:
        super().__init__(max_depth=2)

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        *_: Any,
        **__: Any,
    ) -> None:
        """Print the table; Lightning calls it with more totals than are of use here."""
        columns = dict(summary_data)
        table = Table(title="Parameters", title_justify="left")
        table.add_column("part")
        table.add_column("type")
        table.add_column("parameters", justify="right")
        for row in zip(columns["Name"], columns["Type"], columns["Params"], strict=True):
            if row[-1].strip() != "0":
                table.add_row(*row)
        table.add_section()
        frozen = total_parameters - trainable_parameters
        note = f"{frozen:,} frozen" if frozen else "all trainable"
        table.add_row("total", note, f"{total_parameters:,}")
        console().print(table)


def progress_bar(throughput: ImagesPerSecond) -> ProgressBar:
    """Return what suits the output: Rich's bar on a terminal, plain lines anywhere else."""
    return RichProgressBar() if Console().is_terminal else PlainProgress(throughput)
