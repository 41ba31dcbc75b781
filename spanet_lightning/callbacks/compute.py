"""How a run computes, whatever it trains: the keys `compute.…` of a configuration.

None of them changes what is computed, up to rounding, nor the names in a checkpoint: a run may be
resumed, exported and compared with any of them on or off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn

from spanet_lightning.backbones import Backbone
from spanet_lightning.errors import invalid, invalid_choice

CompileMode = Literal[
    "none", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"
]

_GRAPHS = 16  # of four stages, for a few sizes; whatever comes after runs eagerly


@dataclass(frozen=True)
class ComputeOptions:
    """How a run computes: faster, or in less memory.

    Args:
        compile: Mode of `torch.compile` for the stages of the backbone in training; "none" runs
            eagerly, as evaluation always does.
        channels_last: Whether the weights of convolutions lie channels-last in memory, as the
            features of the backbone do anyway.
        grad_checkpointing: Whether the backward pass recomputes the blocks of the backbone instead
            of keeping what they computed: less memory, about a third more time.

    Raises:
        ConfigError: If a value is none of those.
    """

    compile: CompileMode = "none"
    channels_last: bool = False
    grad_checkpointing: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        if self.compile not in get_args(CompileMode):
            raise invalid_choice("compute.compile", self.compile, get_args(CompileMode))

    @property
    def asked(self) -> bool:
        """Whether any of them is on."""
        return self.channels_last or self.grad_checkpointing or self.compile != "none"


class Compute(Callback):
    """Prepares the model before it is placed on its devices.

    Args:
        options: How to compute.
        backend: What compiles; `torch.compile`'s own default, but for tests.
    """

    def __init__(self, options: ComputeOptions, backend: str = "inductor") -> None:
        self.options = options
        self.backend = backend

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prepare the model, once for training and its validation, once for a test.

        Raises:
            ConfigError: If the model is not of the project's backbones.
        """
        options = self.options
        if options.channels_last:
            # Parameters alone: running statistics and the like have no such layout.
            pl_module.to(memory_format=torch.channels_last)
        if not (options.grad_checkpointing or options.compile != "none"):
            return
        backbone: Any = getattr(pl_module, "backbone", None)
        if not isinstance(backbone, Backbone):
            key = "grad_checkpointing" if options.grad_checkpointing else "compile"
            accepts = f"its default: {type(pl_module).__name__} has no backbone of this project"
            raise invalid(f"compute.{key}", getattr(options, key), accepts)
        backbone.set_grad_checkpointing(options.grad_checkpointing)
        if options.compile != "none":
            for part in compiled_parts(backbone):
                # In place: a wrapper would put `_orig_mod.` before the names of a checkpoint.
                part.compile(mode=options.compile, backend=self.backend, dynamic=False)
            # All stages count as one function: as many graphs as stages, for each size of batch.
            config: Any = torch._dynamo.config
            config.recompile_limit = max(config.recompile_limit, _GRAPHS)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate eagerly: images come in many sizes there, and each would be compiled anew."""
        if self.options.compile != "none":
            torch.compiler.set_stance("force_eager")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go back to what was compiled."""
        if self.options.compile != "none":
            torch.compiler.set_stance("default")

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end


def compiled_parts(backbone: Backbone) -> list[nn.Module]:
    """Return what is compiled: the stages, which classifiers and dense models call alike."""
    return [part for part in backbone.stages if isinstance(part, nn.Module)]
