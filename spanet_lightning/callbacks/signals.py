"""Ends a run on a signal: after a whole optimizer step, with a checkpoint.

SIGTERM and SIGINT (Ctrl-C) end it, and so does the signal by which SLURM announces the end of a
job's time: SIGUSR1, or what `SLURMEnvironment` states. A second Ctrl-C ends the process at once.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from spanet_lightning.checkpoints import LAST, discard_partial_files

_ENDS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(SIGTERMException):
    """A signal ended the run; as every `SystemExit` it carries the exit code, 128 + its number.

    Args:
        number: The signal.
        saved: The checkpoint that was written; None where there was nothing to save.
    """

    def __init__(self, number: int, saved: Path | None = None) -> None:
        super().__init__(128 + number)
        self.number = number
        self.saved = saved

    def __str__(self) -> str:
        where = "before its first step" if self.saved is None else f"saved {self.saved.name}"
        return f"{name_of(self.number)}, {where}"


class Interruption(Callback):
    """Collects signals, and acts on them where the run can resume exactly.

    Attributes:
        number: The first signal received; 0 is none.
        announced_by: SLURM's signal that the time of a job ends; 0 outside of SLURM.
    """

    def __init__(self) -> None:
        self.number = 0
        self.announced_by = 0
        self._training = False
        self._pid = os.getpid()
        self._step = 0
        self._active = False

    # -- signals

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals of this process, and restore their handlers afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {one: signal.getsignal(one) for one in (*_ENDS, signal.SIGUSR1)}
        self._active = True
        self._listen()
        try:
            yield
        finally:
            self._active = False
            for one, handler in before.items():
                if handler is not None:
                    signal.signal(one, handler)

    def _listen(self) -> None:
        if self._active:
            for one in _ENDS:
                signal.signal(one, self._on_signal)
            if self.announced_by:
                signal.signal(self.announced_by, self._on_signal)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._pid:
            self._in_copy(number)
            return
        again, self.number = self.number, self.number or number
        if again and number == signal.SIGINT:
            discard_partial_files()
            _say("left at once; what was saved before is whole")
            os._exit(128 + number)
        if not self._training:
            raise Interrupted(number)
        if not again:
            more = "; Ctrl-C again leaves at once" if number == signal.SIGINT else ""
            _say(f"{name_of(number)}: ends after this step, with a checkpoint{more}")

    def _in_copy(self, number: int) -> None:
        """Ignore all but SIGTERM in a data worker, whose batch the main process still needs.

        A terminal and SLURM send their signals to all processes of a job.
        """
        if number == signal.SIGTERM:
            os._exit(128 + number)

    # -- where a run can end

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Replace what Lightning does on SLURM's signal.

        It saves within the handler, in the middle of a step, to a file that the runs of a folder
        share, and resumes from that without being asked.
        """
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment):
            environment.auto_requeue = False
            self.announced_by = int(environment.requeue_signal or signal.SIGUSR1)
        self._listen()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let signals wait for the end of a step from now on."""
        self._listen()  # Lightning has put its own handler before ours
        # Ours asks all processes, at the same cost; Lightning's only ever asks the first one.
        if hasattr(trainer.fit_loop.epoch_loop, "_broadcast_sigterm_tensor"):
            setattr(trainer.fit_loop.epoch_loop, "_broadcast_sigterm_tensor", _nothing)  # noqa: B010
        self._step = trainer.global_step
        self._training = True

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save and end the run if a signal was received and the optimizer has taken its step.

        A validation that would follow is done when the run resumes.

        Raises:
            Interrupted: In all processes alike.
        """
        if trainer.global_step == self._step:
            return  # the gradients of a step to come would be lost
        self._step = trainer.global_step
        if self._asked(trainer):
            raise Interrupted(self.number, self._save(trainer))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Save and end the run amid a validation, which is repeated when the run resumes.

        Not with several processes, whose validations may differ in length.

        Raises:
            Interrupted: If a signal was received.
        """
        if self._training and trainer.world_size == 1 and self.number:
            raise Interrupted(self.number, self._save(trainer))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End a run that received a signal since its last step.

        Raises:
            Interrupted: In all processes alike.
        """
        if self._asked(trainer):
            raise Interrupted(self.number, self._save(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End a run that received a signal during its last epoch.

        Raises:
            Interrupted: In all processes alike.
        """
        asked = self._asked(trainer)
        self._training = False
        if asked:
            saver = _saver(trainer)
            last = Path(saver.last_model_path) if saver and saver.last_model_path else None
            raise Interrupted(self.number, last)

    def _asked(self, trainer: Trainer) -> bool:
        """Return whether any process received a signal, in all of them at the same step."""
        if trainer.world_size == 1:
            return bool(self.number)
        if trainer.strategy.reduce_boolean_decision(bool(self.number), all=False):
            self.number = self.number or signal.SIGTERM
        return bool(self.number)

    def _save(self, trainer: Trainer) -> Path | None:
        """Save `last.ckpt`, unless the run saves no checkpoints."""
        saver = _saver(trainer)
        if saver is None or saver.dirpath is None:
            return None
        path = Path(saver.dirpath) / f"{LAST}{saver.FILE_EXTENSION}"
        saver.last_model_path = str(path)
        trainer.save_checkpoint(path, weights_only=False)
        return path


def name_of(number: int) -> str:
    """Return the name of a signal: "SIGTERM".

    Args:
        number: The signal.
    """
    return signal.Signals(number).name


def requeue() -> bool:
    """Put this job of SLURM's back into the queue; return whether SLURM took it."""
    job, array = os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_ARRAY_JOB_ID")
    if array is not None:
        job = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}"
    if not re.fullmatch(r"[0-9_]+", job):
        return False
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(["scontrol", "requeue", job], check=False, timeout=60).returncode == 0
    return False


def _saver(trainer: Trainer) -> ModelCheckpoint | None:
    savers = [one for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint)]
    return savers[0] if savers else None  # a development run has none


def _nothing() -> None:
    pass


def _say(line: str) -> None:
    # Not print: a handler may run in the middle of another print.
    with suppress(OSError):
        os.write(2, f"\n{line}\n".encode())
