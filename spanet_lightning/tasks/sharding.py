"""Fully sharded training: each device keeps a part of weights, gradients and optimizer state.

Lightning's "fsdp" is FSDP1, which flattens the weights: decay, which spares what has one dimension,
would spare them all. It also refuses CPUs, where this can be tried out.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import nn

from spanet_lightning.backbones.metaformer import MetaFormerBlock

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
        """
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

    def _sharded(self) -> list[Any]:
        from torch.distributed.fsdp import FSDPModule

        return [m for m in self.model.modules() if isinstance(m, FSDPModule)] if self.model else []


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
