"""The keys of the command line: what a run has beside model, data and trainer, and all together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

from spanet_lightning.cli import signatures
from spanet_lightning.cli.signatures import Parameter

COMMANDS = {
    "fit": "train, validating each epoch",
    "validate": "evaluate on the validation set",
    "test": "evaluate on the test set",
    "predict": "write predictions for images",
}
RUNS = "runs"
"""Folder of all runs."""
DEFAULT_LOGGER = "spanet_lightning.tracking.MLflowLogger"
CHECKPOINT = "spanet_lightning.callbacks.model_checkpoint.ModelCheckpoint"
GROUPS = {
    "compute": "spanet_lightning.callbacks.compute.ComputeOptions",
    "tracking": "spanet_lightning.tracking.options.TrackingOptions",
    "checkpoint": CHECKPOINT,
    "trainer": "lightning.pytorch.Trainer",
}
"""Keys that are groups of arguments, and the classes that take them."""
BASES = {
    "model": "lightning.pytorch.LightningModule",
    "data": "lightning.pytorch.LightningDataModule",
}
# Where a model is told the number of classes: a classifier in its backbone, a dense task itself.
LINKED = {"model.backbone.num_classes": "data.num_classes", "model.num_classes": "data.num_classes"}
# What Lightning's CLI passes itself; `weights_only` is always true, or a checkpoint could run code.
_NOT_OFFERED = {
    *("model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders"),
    "weights_only",
}


@dataclass(frozen=True)
class RunOptions:
    """What a run has beside model, data and trainer.

    Args:
        name: Name of the run and of its folder below trainer.default_root_dir; null names it after
            the first --config.
        global_batch_size: Images per optimizer step, over all devices and accumulated batches.
            data.batch_size is then the most that a device takes at once; accumulation follows. Null
            takes data.batch_size on each device, and trainer.accumulate_grad_batches.
        num_visualizations: Images to draw predictions on, beside the ground truth: with the
            predictions, or at each validation for the tracker.
        resume: Whether to resume the run of that name: 'must' refuses where it has no checkpoint,
            'auto' starts it there, 'never' starts a new one in a folder of its own. To resume from
            a certain file, give ckpt_path.
        resume_fallback: Whether `resume` takes the next checkpoint where the last one is damaged.
        allow_changes: Whether a run may resume with a configuration that learns something else.
        finite_every: Steps between checks of the loss on an accelerator: a run with a non-finite
            loss ends at most so many steps later, on a CPU at once. 0 does not check.
    """

    name: str | None = None
    global_batch_size: int | None = None
    num_visualizations: int = 0
    resume: Literal["auto", "must", "never"] = "never"
    resume_fallback: bool = False
    allow_changes: bool = False
    finite_every: int = 10


@cache
def schema(command: str) -> dict[str, Parameter]:
    """Return all keys of a command: name → parameter."""
    own = signatures.known(f"{__name__}.RunOptions")
    method = signatures.function(GROUPS["trainer"], command)
    return {
        "seed_everything": Parameter(
            bool | int, "0", "Seed of everything random; false sets none."
        ),
        **{key: Parameter(_stand_in(path, signatures.Group)) for key, path in GROUPS.items()},
        **{key: Parameter(_stand_in(path, signatures.Configurable)) for key, path in BASES.items()},
        **own.parameters,
        **{name: value for name, value in method.items() if name not in _NOT_OFFERED},
    }


def _stand_in(path: str, kind: type) -> type:
    return type(path.rpartition(".")[2], (kind,), {"path": path})
