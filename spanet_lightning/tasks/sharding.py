"""Fully sharded training: each device keeps a part of weights, gradients and optimizer state.

Lightning's "fsdp" is FSDP1, which flattens the weights: decay, which spares what has one dimension,
would spare them all. It also refuses CPUs, where this can be tried out.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.optim import Optimizer

from spanet_lightning.backbones.metaformer import MetaFormerBlock
from spanet_lightning.errors import invalid

NAME = "fsdp2"
"""What `trainer.strategy` calls it."""
_STEPS = ("training_step", "validation_step", "test_step", "predict_step")


class FullyShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all devices of all nodes, with checkpoints in one file, as on a single device."""

    def __init__(self, **options: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **options)

    def connect(self, model: LightningModule) -> None:
        """Have the model sharded when it is configured.

        Not a `configure_model` of the tasks: Lightning takes that for a sign of sharding, and warns
        who averages weights on a single device.

        Raises:
            ConfigError: If the trainer averages weights.
        """
        trainer: Any = None
        with suppress(RuntimeError):  # of a module that no trainer has
            trainer = model.trainer
        if trainer is not None:
            check(trainer)
        super().connect(model)

        def configure_model() -> None:
            shard(model, model.device_mesh["data_parallel"])  # type: ignore[index]

        setattr(model, "configure_model", configure_model)  # noqa: B010 - a method, to mypy

    def setup_environment(self) -> None:
        """Shard over all processes; Lightning's default is one part for each node."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def on_validation_start(self) -> None:
        """Gather the weights for the whole evaluation.

        Processes evaluate as many images as they have, and one may have a batch more than another:
        none may wait there for the others' part of a block.
        """
        for module in self._sharded():
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()

    def on_validation_end(self) -> None:
        """Give up what belongs to other devices."""
        for module in self._sharded():
            module.set_reshard_after_forward(module is not self.model, recurse=False)
            module.reshard()

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end

    # -- checkpoints: of whole tensors, as those of one device; each process takes its parts
    #
    # Lightning's own numbers an optimizer's parameters as the model lists them; torch, and so one
    # device, as the optimizer's groups do. With decay for some, states of one device would go to
    # other parameters. It also reads past the trainer's `CheckpointIO`. Hence `super` of it.

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Whether the optimizers are loaded from what `load_checkpoint` has read: always."""
        return True

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the state of an optimizer with whole tensors, in the first process.

        All processes have to call it together.

        Args:
            optimizer: Of this strategy.
        """
        found: dict[str, Any] = super(ModelParallelStrategy, self).optimizer_state(optimizer)
        states = {
            number: {name: whole(value) for name, value in state.items()}
            for number, state in found["state"].items()
        }
        return {**found, "state": states} if self.is_global_zero else {}

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint in each process; nothing is loaded yet.

        Args:
            checkpoint_path: The file; that of the first process counts.
            weights_only: As the trainer's `CheckpointIO` takes it.
        """
        path = self.broadcast(checkpoint_path)
        return super(ModelParallelStrategy, self).load_checkpoint(path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load the weights, of which each process takes its part.

        Args:
            checkpoint: As it was read.
            strict: Whether its tensors have to be all of those of the task.
        """
        held = self.model.state_dict() if self.model else {}
        weights = checkpoint["state_dict"]
        parts = {name: part(value, held.get(name)) for name, value in weights.items()}
        super(ModelParallelStrategy, self).load_model_state_dict({"state_dict": parts}, strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load the states of the optimizers, of which each process takes its part.

        Args:
            checkpoint: As it was read.
        """
        pairs = zip(checkpoint["optimizer_states"], self.optimizers, strict=False)
        states = [_part_of_state(state, optimizer) for state, optimizer in pairs]
        super(ModelParallelStrategy, self).load_optimizer_state_dict({"optimizer_states": states})

    def _sharded(self) -> list[Any]:
        from torch.distributed.fsdp import FSDPModule

        return [m for m in self.model.modules() if isinstance(m, FSDPModule)] if self.model else []


def whole(value: Any) -> Any:
    """Return all of a tensor that is sharded, on the CPU; other tensors and values as they are.

    All processes have to call it together.
    """
    from torch.distributed.tensor import DTensor

    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.detach().cpu() if isinstance(value, Tensor) else value


def part(value: Any, like: Any) -> Any:
    """Return a whole tensor in the way in which another of its shape is sharded.

    Each process takes its part of what it has; nothing is sent.

    Args:
        value: A whole tensor; others, and what is no tensor, stay as they are.
        like: What is sharded, or not.
    """
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    value = value.to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def _part_of_state(state: Mapping[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """Return this process's part of the whole state of an optimizer.

    torch's own loading goes by the place within a group, not by the numbers, which the state of
    a run under Lightning's strategy has otherwise.
    """
    held = {
        number: parameter
        for saved, group in zip(state["param_groups"], optimizer.param_groups, strict=False)
        for number, parameter in zip(saved["params"], group["params"], strict=False)
    }
    parts = {
        number: {name: part(value, held.get(number)) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    return {**state, "state": parts}


def check(trainer: Trainer) -> None:
    """Refuse to average sharded weights: the average is a copy, and parts can't be copied.

    Raises:
        ConfigError: If the trainer is to do both.
    """
    averages = StochasticWeightAveraging | WeightAveraging
    for callback in getattr(trainer, "callbacks", ()):
        if isinstance(trainer.strategy, FullyShardedStrategy) and isinstance(callback, averages):
            accepts = f"ddp, or no {type(callback).__name__}, which keeps whole copies of weights"
            raise invalid("trainer.strategy", NAME, accepts)


StrategyRegistry.register(NAME, FullyShardedStrategy, description="FSDP2 over all devices")


def shard(task: nn.Module, mesh: Any) -> None:
    """Shard a task over a mesh of devices, block by block.

    Weights keep their names and shapes, so that decay and rates by layer find the same parameters,
    and checkpoints are those of a single device. A task that is sharded already is left alone.

    Args:
        task: Is asked through its steps alone.
        mesh: The devices, one-dimensional.
    """
    # Imported late: most runs do without, and it takes a moment.
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    if isinstance(task, FSDPModule):
        return
    for module in task.modules():
        if isinstance(module, MetaFormerBlock):
            fully_shard(module, mesh=mesh)
    fully_shard(task, mesh=mesh)  # whatever is in no block: stem, norms, heads
    for step in _STEPS:
        register_fsdp_forward_method(task, step)
