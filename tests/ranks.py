"""Trainings of the same images on one process and on two, for `test_ddp`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from tests.helpers import CONFIGS
from tests.steps import environment

STEPS = 20
IMAGES = 4  # of a step
# Off: what draws from each process's own generator. The optimizer divides by the size of gradients,
# and where they are all but zero, rounding would be all that it sees.
SAME = (
    f"--trainer.limit_train_batches={STEPS}",
    "--trainer.max_epochs=1",
    "--trainer.precision=64-true",
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--model.optimizer.eps=1e-3",
)
# Odd numbers to evaluate: the 179 images of the digits' validation, and five scenes.
TASKS: Mapping[str, tuple[str, ...]] = {
    "spanetv2": (),
    "retinanet": ("--data.val_scenes=5", "--data.train_scenes=80"),
    "semantic_fpn": (
        "--data.val_scenes=5",
        "--data.train_scenes=80",
        "--model.head.dropout=0",
    ),
    "semantic_fpn, synced by the layer": (
        "--data.val_scenes=5",
        "--data.train_scenes=80",
        "--model.head.dropout=0",
        "--model.head.norm=batch",
        f"--config={CONFIGS / 'trainer' / 'sync_bn.yaml'}",
    ),
}


class Figures(Callback):
    """Writes the figures of a validation into a file, every bit of them.

    Args:
        file: Where to.
    """

    def __init__(self, file: str) -> None:
        self.file = file

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file; the last validation's stays."""
        if trainer.is_global_zero:
            found = trainer.callback_metrics.items()
            values = {name: float(v).hex() for name, v in found if name.startswith("val/")}
            Path(self.file).write_text(json.dumps(values))


class Snapshots(Checkpoint):
    """Saves checkpoints at places of the first epoch, named by them: after batch `0`, at its `end`.

    Args:
        folder: Where to.
        places: Where.
    """

    def __init__(self, folder: str, places: list[str]) -> None:
        self.folder = Path(folder)
        self.places = places

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Save after a batch."""
        self._save(trainer, str(trainer.fit_loop.batch_idx))

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        """Save after an epoch."""
        self._save(trainer, "end")

    def _save(self, trainer: Trainer, place: str) -> None:
        if trainer.current_epoch == 0 and place in self.places:
            trainer.save_checkpoint(self.folder / f"{place}.ckpt")


def snapshots(folder: Path, places: Iterable[str]) -> str:
    """Return the argument that adds the callback to a command line."""
    arguments = {"folder": str(folder), "places": list(places)}
    spec = {"class_path": "tests.ranks.Snapshots", "init_args": arguments}
    return f"--trainer.callbacks+={json.dumps(spec)}"


def command(name: str, folder: Path, command: str, *more: str) -> list[str]:
    """Return a command line of one of `TASKS`, which writes `figures.json` into a folder."""
    figures = {"class_path": "tests.ranks.Figures", "init_args": {"file": f"{folder}.json"}}
    return [
        command,
        f"--config={CONFIGS / 'digits' / name.partition(',')[0]}.yaml",
        *SAME,
        *TASKS[name],
        f"--trainer.default_root_dir={folder.parent}",
        f"--name={folder.name}",
        f"--trainer.callbacks+={json.dumps(figures)}",
        *more,
    ]


def run(args: list[str]) -> str:
    """Run a command in a process of its own, and return what it printed."""
    line = [sys.executable, "-m", "spanet_lightning", *args]
    done = subprocess.run(
        line, env=environment(), capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def weights(folder: Path) -> dict[str, Tensor]:
    """Return the weights and buffers that a run ended with."""
    state: dict[str, Any] = torch.load(folder / "last.ckpt", weights_only=True, map_location="cpu")
    return state["state_dict"]


def figures(folder: Path) -> dict[str, float]:
    """Return the figures of the last validation of a command."""
    written = json.loads(Path(f"{folder}.json").read_text())
    return {name: float.fromhex(value) for name, value in written.items()}


def distance(one: Path, two: Path) -> float:
    """Return the largest difference of any weight of two runs."""
    a, b = weights(one), weights(two)
    assert a.keys() == b.keys()
    return max(float((a[k].double() - b[k].double()).abs().max()) for k in a if a[k].numel())
