"""Read official mmdetection and mmsegmentation checkpoints into a whole dense model.

The model brings the rules of its own head: this package knows no heads. What differs from ours
beside names: official heads have the background as the last class, ours as the first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol, cast

from torch import Tensor, nn

from spanet_lightning.backbones.metaformer import Backbone
from spanet_lightning.backbones.official_fit import LoadReport, fit
from spanet_lightning.backbones.official_names import INDEX, Rules, renumber, translate
from spanet_lightning.errors import CheckpointError, invalid

_OURS = ("head.", "output_norms.")
_PER_CLASS = re.compile(r".*\b(classes|deltas)\.(weight|bias)")


class _Head(Protocol):
    first_level: int
    official_rules: Rules
    background_last: str


def load_dense(
    model: nn.Module, name: str, state: dict[str, Tensor], metadata: Mapping[str, str]
) -> LoadReport:
    """Load a checkpoint of a dense model, or of a backbone alone, into a dense model.

    From a checkpoint of a classifier the backbone is taken; norms of the levels and head stay as
    they were. Layers of a head for another number of classes are left out.

    Args:
        model: Has `backbone`, `output_norms` and `head`, as `spanet_lightning.heads.DenseModel`.
        name: What the checkpoint is called in messages.
        state: The checkpoint's tensors.
        metadata: Of the file, as `translate` takes it.

    Raises:
        CheckpointError: If a tensor has no place in the model, or the model needs one more.
        ConfigError: If `model` is no dense model.
    """
    backbone, head = getattr(model, "backbone", None), getattr(model, "head", None)
    if not (isinstance(backbone, Backbone) and hasattr(head, "official_rules")):
        raise invalid("model", type(model).__name__, "a Backbone or a DenseModel")
    head = cast("_Head", head)
    translated = translate(name, state, metadata)
    norms = {k: v for k, v in translated.tensors.items() if k.startswith("output_norms.")}
    kept = {k: v for k, v in translated.tensors.items() if k not in norms}
    tensors, report = fit(backbone, name, replace(translated, tensors=kept, ignored={}))
    wanted = {k: v for k, v in model.state_dict().items() if not k.startswith("backbone.")}

    found = dict(norms)
    sources = {key: translated.sources[key][0] for key in norms}
    for key in translated.ignored:
        ours = _our_name(key, head)
        if ours is None:
            kind = type(head).__name__.removesuffix("Layers")
            raise CheckpointError(f"{name}: key {key!r} has no place in a {kind}")
        background = head.background_last
        rolled = (
            not key.startswith(_OURS) and background and re.fullmatch(f"head.{background}", ours)
        )
        found[ours] = state[key].roll(1, 0) if rolled else state[key]
        sources[ours] = key

    ignored, missing = dict(report.ignored), dict(report.missing)
    whole = bool(translated.ignored)
    for key, value in wanted.items():
        if key not in found:
            missing[key] = _why_missing(name, key, whole=whole, first_level=head.first_level)
        elif found[key].shape != value.shape:
            if not _PER_CLASS.fullmatch(key) or found[key].shape[1:] != value.shape[1:]:
                raise CheckpointError(
                    f"{name}: tensor {sources[key]!r} has shape {tuple(found[key].shape)}, "
                    f"the model's {key} {tuple(value.shape)}"
                )
            ignored[sources[key]] = "for another number of classes"
            missing[key] = "for another number of classes; stays as it was"
            del found[key]
    extra = next((key for key in found if key not in wanted), None)
    if extra is not None:
        raise CheckpointError(
            f"{name}: tensor {sources[extra]!r} has no place in the model ({extra})"
        )
    backbone.load_state_dict(backbone.state_dict() | tensors)
    model.load_state_dict(model.state_dict() | found)
    used = (*report.used, *(sources[key] for key in found))
    return LoadReport(report.layout, used, ignored, dict(sorted(missing.items())))


def _our_name(key: str, head: _Head) -> str | None:
    if key.startswith(_OURS):
        return key
    for pattern, template in head.official_rules:
        if match := re.fullmatch(pattern, key):
            return "head." + INDEX.sub(renumber, match.expand(template))
    return None


def _why_missing(name: str, key: str, *, whole: bool, first_level: int) -> str:
    if not whole:
        return "not part of a classifier's checkpoint; stays as it was"
    match = re.match(r"output_norms\.(\d)\.", key)
    if match and int(match[1]) < first_level:
        return "norm of a level that this head does not read; stays as it was"
    raise CheckpointError(f"{name}: lacks a tensor for the model's {key}")
