"""Keys of the first version: what each is called now, or what its job went to.

Configurations are not translated, so that a file says what runs: each old key ends in one line that
names the new one. Checkpoints are, since nobody edits what is stored in them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

RENAMED: dict[str, tuple[str, ...]] = {
    "width": ("out_channels", "channels"),
    "hidden": ("fc_dim",),
    "train_proposals": ("rpn_post_nms_top_n_train",),
    "test_proposals": ("rpn_post_nms_top_n_test",),
    "samples": ("box_batch_size_per_image",),
    "per_level": ("topk_candidates",),
    "nms_iou": ("box_nms_thresh",),
    "max_detections": ("detections_per_img",),
    "head_width": ("channels",),
    "dropout": ("dropout_ratio",),
    "auxiliary_weight": ("auxiliary_loss_weight",),
    "auxiliary_width": ("auxiliary_channels",),
    "global_batch": ("global_batch_size",),
    "pictures": ("num_visualizations",),
    "pictures_every": ("log_images_every_n_epochs",),
}
"""Old key → new keys, of which the first that a class takes is meant."""

REMOVED: dict[str, str] = {
    "spectral_impl": "every filter has one implementation; delete the key, results are the same",
    "norm": "trainer.sync_batchnorm=true synchronises the batch norms of heads; delete the key",
}
"""Old key → what to do without it."""


def current_name(key: str, accepted: Collection[str]) -> str | None:
    """Return the new name of an old key, among those that are accepted."""
    return next((name for name in RENAMED.get(key, ()) if name in accepted), None)


def modernize(arguments: Mapping[str, Any], accepted: Collection[str]) -> dict[str, Any]:
    """Return arguments as stored by the first version under their present names.

    Args:
        arguments: Those of a backbone or a head.
        accepted: Names that the class takes now.
    """
    out = {}
    for key, value in arguments.items():
        if key in accepted or key not in REMOVED:
            name = None if key in accepted else current_name(key, accepted)
            out[name or key] = value
    return out
