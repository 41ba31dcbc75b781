"""Exact resume: a run continues from a checkpoint as if it had never stopped.

Lightning 2.6 stores counters of its loops in a checkpoint and infers from them how far the run was.
The inference is right at some places alone: an epoch that had ended is started again or skipped, a
validation that was due is skipped, and what the epoch's metrics and accumulated gradients had
gathered is lost. Here the task records what is missing (`record`), brings the counters into the two
forms that Lightning resumes from exactly (`prepare`), and restores the rest once the loaders are
there (`finish`). With another number of images per batch, a run continues with the image that it
would have come to (`position`).

Private parts of Lightning and torchmetrics that this depends on, hence `lightning>=2.6.6,<2.7`
(tests/test_private_apis.py names whichever is gone):

- the counters in a checkpoint: `loops.fit_loop`, its `epoch_progress`, `epoch_loop.batch_progress`,
  `epoch_loop.val_loop.batch_progress` and `state_dict.combined_loader`;
- `fit_loop._data_fetcher` and `epoch_loop._should_check_val_fx`: whether a validation is due;
- `epoch_loop._batches_that_stepped`: the step that loggers get;
- `Metric._update_count`: a metric with restored state counts as updated.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import CombinedLoader, rank_zero_info, rank_zero_warn
from torch import Tensor
from torchmetrics import Metric

from spanet_lightning.data.loaders import BATCH
from spanet_lightning.data.samplers import GroupedShuffle
from spanet_lightning.tasks.sharding import FullyShardedStrategy, part, whole

if TYPE_CHECKING:
    from spanet_lightning.tasks.base import Task

KEY = "spanet_restart"
"""What a checkpoint holds beside Lightning's own."""
_TO_THE_END = 2**62  # batches: more than any epoch has
_Counters = dict[str, dict[str, int]]


class Batch(NamedTuple):
    """What a batch is.

    Attributes:
        images: Images per batch, over all processes.
        accumulated: Batches per optimizer step.
    """

    images: int
    accumulated: int


def batch_of(trainer: Trainer) -> Batch | None:
    """Return what a batch of a run is; None where the data does not tell its `batch_size`.

    Args:
        trainer: With the data that it trains on.
    """
    images = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
    if not isinstance(images, int) or images < 1:
        return None
    return Batch(images * trainer.world_size, trainer.accumulate_grad_batches)


def position(count: int, then: Mapping[str, int] | None, now: Batch | None) -> tuple[int, bool]:
    """Return how many batches hold the images that were trained on, and whether they do exactly.

    Where they do not, the position is that of the last optimizer step: its images, or as many of
    them as whole batches hold.

    Args:
        count: Batches of the epoch that were trained on.
        then: What those were, as `Batch`; None of a checkpoint that does not say it.
        now: What the batches to come are.
    """
    if then is None or now is None or then["images"] == now.images:
        return count, True
    seen = count * then["images"]
    if seen % now.images == 0:
        return seen // now.images, True
    updated = count // then["accumulated"] * then["accumulated"] * then["images"]
    return updated // now.images, False


class Restart(NamedTuple):
    """What is to be put back once a resumed run has its loaders.

    Attributes:
        amid_epoch: Whether the epoch was under way: some of its batches were trained on.
        last_batch: Whether all of them were.
        resized: Whether a batch has another number of images than it had.
        exact: Whether the batches to come begin with the next image.
        record: What the task wrote down.
    """

    amid_epoch: bool
    last_batch: bool
    resized: bool
    exact: bool
    record: Mapping[str, Any]


def record(task: Task, validated: bool) -> dict[str, Any]:
    """Return what a checkpoint has to hold beside Lightning's own: tensors and plain values.

    All processes have to call it together, as they do `Trainer.save_checkpoint`.

    Args:
        task: The task in its run.
        validated: Whether a validation has ended since the last training batch.
    """
    trainer = task.trainer
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    batches = progress.current
    seed = os.environ.get("PL_GLOBAL_SEED")
    within_step = batches.ready != batches.processed
    batch = batch_of(trainer)
    found: dict[str, Any] = {
        "seed": None if seed is None else int(seed),
        "validated": validated or within_step,
        "within_step": within_step,
        "share": None if batch is None else batch._asdict(),
        "seen": {name: value.cpu() for name, value in trainer.callback_metrics.items()},
    }
    if _is_amid_epoch(trainer):
        found["metrics"] = {
            name: _state(metric)
            for name, metric in sorted(task.epoch_metrics().items())
            if metric.update_count
        }
        amid_update = batches.processed % trainer.accumulate_grad_batches != 0
        if amid_update and not progress.is_last_batch and not within_step:
            found["gradients"] = _gradients(task)
    return found


def prepare(checkpoint: dict[str, Any], batch: Batch | None = None) -> Restart | None:
    """Bring the counters of a checkpoint into a form from which Lightning goes on exactly.

    Between epochs: all that counts within an epoch is zero, and no epoch is under way. Amid an
    epoch: every batch that was processed is completed as well, which Lightning takes for "written
    after the validation"; where one is still due, the validation is said to be under way with no
    batch done, so that Lightning begins it.

    Args:
        checkpoint: As it was read. It is changed.
        batch: What a batch is from now on; None takes it for what it was.

    Returns:
        What `finish` needs; None of a checkpoint without loops.
    """
    loops = checkpoint.get("loops", {}).get("fit_loop")
    if loops is None:
        return None
    noted: Mapping[str, Any] = checkpoint.get(KEY, {})
    epochs, batches = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    validation = loops["epoch_loop.val_loop.batch_progress"]
    count = batches["current"]["processed"]
    # `started` is raised before the first batch and `processed` after the last, before the hooks
    # of the epoch's end.
    amid = epochs["current"]["started"] > epochs["current"]["processed"] and count > 0
    # Raised before the step of the last batch; from within the step, that batch is to come.
    batches["is_last_batch"] &= amid and batches["current"]["ready"] == count
    last = bool(batches["is_last_batch"])
    done = epochs["current"]["processed"]
    then = noted.get("share")
    count, exact = position(count, then, batch) if amid else (count, True)
    # A checkpoint without our note (of before there was one) goes by Lightning's own.
    by_counters = batches["total"]["completed"] == batches["total"]["processed"]
    if amid:
        _set(epochs, ready=done + 1, started=done + 1, processed=done, completed=done)
        _set(batches, **dict.fromkeys(batches["current"], count))
        if noted.get("validated", by_counters):
            validation["total"] |= dict.fromkeys(validation["total"], validation["total"]["ready"])
        else:
            validation["current"] |= dict.fromkeys(validation["current"], 0)
            validation["total"] |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            validation["is_last_batch"] = False
    else:
        _set(epochs, **dict.fromkeys(epochs["current"], done))
        _set(batches, **dict.fromkeys(batches["current"], count))
        steps = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
        counters = (batches, loops["epoch_loop.scheduler_progress"], *steps.values())
        for counter in counters:
            counter["current"] |= dict.fromkeys(counter["current"], 0)
    for state in loops["state_dict"].get("combined_loader", []):
        if BATCH in state:
            state[BATCH] = (_TO_THE_END if last else count) if amid else 0
    resized = bool(then and batch and then["images"] != batch.images)
    return Restart(amid, last, resized, exact, noted)


def finish(task: Task, restart: Restart) -> None:
    """Put back what Lightning does not, at the start of training.

    Args:
        task: The task in its run, its loaders at hand.
        restart: What `prepare` returned.
    """
    trainer = task.trainer
    loop = trainer.fit_loop.epoch_loop
    noted = restart.record
    trainer.callback_metrics.update(noted.get("seen", {}))
    # Decided at the last validation, or the run would go on for an epoch more.
    if any(stop.wait_count >= max(1, stop.patience) for stop in trainer.early_stopping_callbacks):
        trainer.should_stop = True
    if not restart.amid_epoch:
        # With `max_steps` Lightning restarts each epoch, the ended one included.
        loop.restarting = False
        return
    if noted.get("within_step"):
        rank_zero_warn(
            "The checkpoint was written amid a training step: the resumed run does that step once "
            "more, and is not exactly the run that was interrupted."
        )
    fetcher: Any = trainer.fit_loop._data_fetcher
    if not loop._should_check_val_fx(fetcher):
        # Else Lightning counts the step once the validation is done or passed over.
        loop._batches_that_stepped = trainer.global_step
    for name, saved in noted.get("metrics", {}).items():
        metric = task.epoch_metric(name)
        _restore(metric, saved, trainer.is_global_zero)
        if restart.last_batch:  # no step will log it any more
            task.log_epoch_metric(name, metric)
    if restart.resized:
        _warn_of_batch(trainer, restart.exact)
    gradients = noted.get("gradients", {})
    for name, parameter in task.named_parameters():
        if name in gradients:
            parameter.grad = part(gradients[name].to(parameter.device, parameter.dtype), parameter)
    if not restart.last_batch:
        _warn_of_streams(trainer)


def restore_seed(checkpoint: Mapping[str, Any]) -> None:
    """Take the seed of the run that is resumed, which order and augmentation of the epoch use."""
    seed = checkpoint.get(KEY, {}).get("seed")
    given = os.environ.get("PL_GLOBAL_SEED")
    if seed is None or given == str(seed):
        return
    if given is not None:
        rank_zero_info(f"Resumed with the seed of the checkpoint, {seed}, not {given}.")
    os.environ["PL_GLOBAL_SEED"] = str(seed)


def _is_amid_epoch(trainer: Trainer) -> bool:
    epochs: Any = trainer.fit_loop.epoch_progress.current
    return bool(epochs.started > epochs.processed)


def _set(counters: _Counters, **values: int) -> None:
    """Set the counters of the epoch or the run; the totals go with them."""
    total, current = counters["total"], counters["current"]
    for name, value in values.items():
        total[name] += value - current[name]
        current[name] = value


def _state(metric: Metric) -> dict[str, Tensor]:
    """Return the state of a metric over all processes."""
    with metric.sync_context():
        return {
            name: value.detach().cpu().clone()
            for name, value in metric.metric_state.items()
            if isinstance(value, Tensor)
        }


def _restore(metric: Metric, saved: Mapping[str, Tensor], holds_it: bool) -> None:
    """Give the state to the first process: it is of all, and adds up to itself."""
    metric.reset()
    metric._update_count = 1  # torchmetrics warns of a metric that nothing was added to
    for name, value in saved.items():
        # The others begin with a zero of the same type: a double of one, a float of another can't
        # be gathered.
        state = value.to(metric.device)
        setattr(metric, name, state if holds_it else torch.zeros_like(state))


def _gradients(task: Task) -> dict[str, Tensor]:
    """Return the gradients that have been accumulated for the next update."""
    strategy = task.trainer.strategy
    if isinstance(strategy, FullyShardedStrategy):  # means over all processes already, in parts
        named = task.named_parameters()
        return {name: whole(p.grad) for name, p in named if p.grad is not None}
    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy):  # which hold whole tensors
        rank_zero_warn(
            "The checkpoint is written between two batches of one update, and this strategy can't "
            "save the gradients so far: a run resumed from it is not exactly this run."
        )
        return {}
    found = {
        name: parameter.grad.detach()
        for name, parameter in task.named_parameters()
        if parameter.grad is not None
    }
    if task.trainer.world_size > 1:  # each process has those of its own batches until the update
        found = {n: strategy.reduce(g.clone(), reduce_op="mean") for n, g in found.items()}
    return {name: gradient.cpu().clone() for name, gradient in found.items()}


def _loaders(trainer: Trainer) -> list[Any]:
    return CombinedLoader(trainer.train_dataloader).flattened


def _warn_of_batch(trainer: Trainer, exact: bool) -> None:
    if any(isinstance(getattr(one, "sampler", None), GroupedShuffle) for one in _loaders(trainer)):
        rank_zero_warn(
            "The run resumes within an epoch with another batch size. Batches of one aspect ratio "
            "are regrouped: until its end some images are seen twice and some not at all."
        )
    elif not exact:
        rank_zero_warn(
            "The run resumes within an epoch, between two batch boundaries: images since the last "
            "optimizer step, or since the last complete batch, are trained on again."
        )


def _warn_of_streams(trainer: Trainer) -> None:
    if not all(hasattr(one, "load_state_dict") for one in _loaders(trainer)):
        rank_zero_warn(
            "The run resumes within an epoch, but its training data can't: a stream, or a loader "
            "of your own without state_dict and load_state_dict. The rest of this epoch begins "
            "with its first images again; checkpoints between epochs resume exactly."
        )
