"""A log of what each training step saw and left behind, to compare two runs bit for bit.

In a child process it is one more callback of the command line:

    child = lightning_command(["fit", "--config", DIGITS, *step_log(tmp_path / "steps.jsonl")])
    subprocess.run(child, env=environment())
    seen = read(tmp_path / "steps.jsonl")
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor

ROOT = Path(__file__).parent.parent


class Step(NamedTuple):
    """One training step, as a line of the log tells it.

    Attributes:
        epoch: Counted from 0.
        batch: Its number within the epoch, from 0.
        global_step: Updates of the weights that were done once it had ended.
        loss: Of this process, every bit of it, as `float.hex` writes it.
        data: Digest of all tensors of the batch, before the model mixes it.
        weights: Digest of all parameters and buffers, once the step was done.
        lr: Learning rates that the step used, by parameter group, as `float.hex` writes them.
        process: Id of the process; a run that was killed and resumed has several.
    """

    epoch: int
    batch: int
    global_step: int
    loss: str
    data: str
    weights: str
    lr: tuple[str, ...]
    process: int

    @property
    def place(self) -> tuple[int, int]:
        """Which batch of which epoch."""
        return self.epoch, self.batch

    @property
    def found(self) -> tuple[Any, ...]:
        """All but the process, which is to be the same in every run."""
        return self[:-1]


class StepLog(Callback):
    """Appends a line of JSON after each training step, and hands it over before the next begins.

    A line that was written survives `kill -9` of its process.

    Args:
        file: Where to; processes but the first append their rank to its name.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self.data = ""
        self.lr: list[str] = []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Look at the batch before Mixup writes into it."""
        self.data = digest(batch)
        groups = [group for one in trainer.optimizers for group in one.param_groups]
        self.lr = [float(group["lr"]).hex() for group in groups]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the line."""
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        line = {
            "epoch": trainer.current_epoch,
            "batch": batch_idx,
            "global_step": trainer.global_step,
            "loss": float(loss).hex(),
            "data": self.data,
            "weights": digest([*pl_module.named_parameters(), *pl_module.named_buffers()]),
            "lr": self.lr,
            "process": os.getpid(),
        }
        with log_of(self.file, trainer.global_rank).open("a") as log:
            log.write(json.dumps(line) + "\n")


def log_of(file: str | Path, rank: int) -> Path:
    """Return the file that a process logs to."""
    return Path(f"{file}.{rank}" if rank else file)


def digest(value: Any) -> str:
    """Return sixteen digits that change with any bit of the tensors within, and their order."""
    sha = hashlib.sha256()
    for part in _parts(value):
        if isinstance(part, Tensor):
            part = part.to_local() if isinstance(part, DTensor) else part
            flat = part.detach().cpu().contiguous()
            sha.update(f"{flat.dtype}{tuple(flat.shape)}".encode())
            sha.update(flat.reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            sha.update(repr(part).encode())
    return sha.hexdigest()[:16]


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = list(value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        for one in value:
            yield from _parts(one)
    else:
        yield value


def read(file: str | Path) -> list[Step]:
    """Return the steps of a log in the order in which they were done."""
    found = []
    for text in Path(file).read_text().splitlines():
        line = json.loads(text)
        found.append(Step(**{**line, "lr": tuple(line["lr"])}))
    return found


def step_log(file: str | Path) -> list[str]:
    """Return the arguments that add the log to a command line, beside what callbacks it has."""
    spec = {"class_path": "tests.steps.StepLog", "init_args": {"file": str(file)}}
    return [f"--trainer.callbacks+={json.dumps(spec)}"]


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a child process that may name the log in its configuration."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "SPANET_TRUSTED_PACKAGES": "tests", **more}


def differences(unbroken: Sequence[Step], broken: Sequence[Step]) -> list[str]:
    """Return what a run that was killed and resumed did otherwise; nothing, if all is well.

    Each step is done by some process, with the very result of the unbroken run; what a process has
    done after the checkpoint is done again by the next. Within a process no step is missing or
    comes twice.

    Args:
        unbroken: The log of a run that nothing disturbed.
        broken: The log of the other, of all its processes one after the other.
    """
    wanted = {step.place: step for step in unbroken}
    order = [step.place for step in unbroken]
    found = []
    if len(wanted) != len(order):
        found.append("the unbroken run did a step twice")
    by_process: dict[int, list[Step]] = {}
    for step in broken:
        by_process.setdefault(step.process, []).append(step)
        expected = wanted.get(step.place)
        if expected is None:
            found.append(f"{step.place} is no step of the unbroken run")
        elif step.found != expected.found:
            pairs = zip(Step._fields, step.found, expected.found, strict=False)
            parts = [f"{name} {a} for {b}" for name, a, b in pairs if a != b]
            found.append(f"{step.place}: {', '.join(parts)}")
    for process, steps in by_process.items():
        places = [step.place for step in steps]
        start = order.index(places[0]) if places[0] in order else 0
        if places != order[start : start + len(places)]:
            found.append(f"process {process} did {places}")
    missing = set(wanted) - {step.place for step in broken}
    return found + [f"{place} was never done" for place in sorted(missing)]
