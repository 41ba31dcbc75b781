"""`trainer.sync_batchnorm` with batch norms that also run on CPUs."""

from __future__ import annotations

from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from torch import nn

from spanet_lightning.heads.layers import SyncBatchNorm


class SyncBatchNorms(TorchSyncBatchNorm):
    """Turns every batch norm of a model into one over all devices.

    Lightning's own puts torch's in their place, which raises on CPUs, and takes them back by a
    class of its own. These need not be taken back: on one device they are plain batch norms.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace the batch norms within a model; names, weights and statistics stay."""
        for parent in list(model.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.BatchNorm2d) and not isinstance(child, SyncBatchNorm):
                    setattr(parent, name, _synced(child))
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Leave the model as it is."""
        return model


def _synced(norm: nn.BatchNorm2d) -> SyncBatchNorm:
    synced = SyncBatchNorm(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
    )
    synced.weight, synced.bias = norm.weight, norm.bias
    for name, buffer in norm.named_buffers():
        setattr(synced, name, buffer)
    return synced.train(norm.training)
