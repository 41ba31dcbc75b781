"""One batch of an experiment: data, a step, an evaluation, and a checkpoint written and read."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from spanet_lightning.doctor.finding import Finding
from spanet_lightning.errors import SpanetError
from spanet_lightning.exit import message, users_error


def dry_run(args: Sequence[str]) -> Iterator[Finding]:
    """Yield a line for the step and one for the checkpoint; nothing stays on disk.

    Args:
        args: What follows `lightning fit`.
    """
    from spanet_lightning.cli import checkpoints
    from spanet_lightning.cli.experiment import Experiment

    with tempfile.TemporaryDirectory() as folder:
        given = ["fit", *args, "--trainer.fast_dev_run=1", "--trainer.logger=false"]
        given += [f"--trainer.default_root_dir={folder}"]
        given += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
        began = time.perf_counter()
        try:
            experiment: Any = Experiment(given, show_results=False)
        except Exception as error:  # whatever it is, the run would end by it
            yield Finding("fault", "one batch", _reason(error), _advice(error))
            return
        seconds = time.perf_counter() - began
        metrics = experiment.trainer.callback_metrics
        lost = {k: v for k, v in metrics.items() if "loss" in k and not bool(torch.isfinite(v))}
        if lost:
            name, value = next(iter(lost.items()))
            advice = "lower model.optimizer.lr; look at the data; try trainer.precision=32-true"
            yield Finding("fault", "one batch", f"{name} is {float(value)}", advice)
        else:
            yield Finding("ok", "one batch", f"trained and evaluated in {seconds:.1f} s")
        file = Path(folder) / "dry_run.ckpt"
        try:
            experiment.trainer.save_checkpoint(file, weights_only=False)  # all of it: as a run
            checkpoints.check(file, experiment.model, folder)
            size = file.stat().st_size
        except (SpanetError, OSError, RuntimeError, TypeError) as error:
            advice = "see the disk above; the model has to save tensors and plain values alone"
            yield Finding("fault", "checkpoint", _reason(error), advice)
        else:
            yield Finding("ok", "checkpoint", f"written and read back, {size / 2**20:.1f} MiB")


def _reason(error: Exception) -> str:
    found = users_error(error)
    if found is not None:
        return message(found)
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]


def _advice(error: Exception) -> str:
    if users_error(error) is not None:
        return "correct the configuration or the data"
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "lower data.batch_size or the size of the images"
    return "run `lightning fit` with it to see where that comes from"
