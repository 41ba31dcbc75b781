"""Fit a translated checkpoint into a backbone: every tensor used, or left out with a reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from spanet_lightning.backbones.metaformer import Backbone
from spanet_lightning.backbones.official_names import Translated, architecture
from spanet_lightning.backbones.spectral import resize_logits
from spanet_lightning.errors import CheckpointError

_MASK_REASON = "frozen SPF mask; equal to the one the model builds for each size"
_CLASSIFIER = ("norm.", "head.")


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor.

    Attributes:
        layout: Where the checkpoint came from, in words.
        used: Names in the checkpoint whose tensors are now in the model.
        ignored: Names in the checkpoint that were left out, with the reason.
        missing: Names in the model that the checkpoint does not have, with the reason.
    """

    layout: str
    used: tuple[str, ...]
    ignored: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.layout}: {len(self.used)} tensors used"]
        for title, names in (("left out", self.ignored), ("not in the checkpoint", self.missing)):
            for reason in dict.fromkeys(names.values()):
                group = [name for name, why in names.items() if why == reason]
                more = f" and {len(group) - 1} more" if len(group) > 1 else ""
                lines.append(f"{title}: {group[0]}{more} ({reason})")
        return "\n".join(lines)


def check_fit(model: Backbone, name: str, translated: Translated) -> None:
    """Refuse a checkpoint of another generation, size or head layout, saying which."""
    state = model.state_dict()
    generation = 2 if "stem.norm.weight" in state else 1
    if generation != translated.generation:
        raise CheckpointError(
            f"{name}: holds SPANet{'V2' * (translated.generation - 1)} weights, "
            f"the model is SPANet{'V2' * (generation - 1)}"
        )
    theirs, ours = architecture(translated.tensors), architecture(state)
    if theirs != ours:
        raise CheckpointError(
            f"{name}: depths {theirs[0]} and dims {theirs[1]}, "
            f"the model has depths {ours[0]} and dims {ours[1]}"
        )
    layouts = {m.head_layout for m in model.modules() if hasattr(m, "head_layout")}
    if translated.head_layout and layouts and layouts != {translated.head_layout}:
        raise CheckpointError(
            f"{name}: head_layout {translated.head_layout!r}, the model has {layouts.pop()!r}"
        )


def resized(model: Backbone, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring SRF logits to the size that the model stores; give linear layers their 1×1."""
    state = model.state_dict()
    out = {}
    for key, value in tensors.items():
        if key in state and ".srf.logits." in key and value.ndim == 3:
            value = resize_logits(value, *state[key].shape[-2:])
        elif key in state and value.ndim == 2 and state[key].ndim == 4:
            value = value[..., None, None]
        out[key] = value
    return out


def fit(model: Backbone, name: str, translated: Translated) -> tuple[dict[str, Tensor], LoadReport]:
    """Return the tensors that the model takes, and what became of every one; load nothing yet.

    Raises:
        CheckpointError: If a tensor has no place in the model, or the model needs one more.
    """
    check_fit(model, name, translated)
    state = model.state_dict()
    tensors = resized(model, translated.tensors)
    ignored = dict(translated.ignored)
    for key in list(tensors):
        reason = _why_ignored(model, key, tensors[key], state)
        if reason:
            del tensors[key]
            ignored |= dict.fromkeys(translated.sources[key], reason)
    for key, value in tensors.items():
        theirs = (translated.sources[key] or [key])[0]
        if key not in state:
            raise CheckpointError(f"{name}: tensor {theirs!r} has no place in the model ({key})")
        if value.shape != state[key].shape:
            raise CheckpointError(
                f"{name}: tensor {theirs!r} has shape {tuple(value.shape)}, "
                f"the model's {key} {tuple(state[key].shape)}"
            )
    missing = {}
    for key in state.keys() - tensors.keys():
        reason = _why_missing(key, translated, ignored)
        if not reason:
            raise CheckpointError(f"{name}: lacks a tensor for the model's {key}")
        missing[key] = reason
    ignored |= _check_masks(model, name, translated)
    used = tuple(source for key in tensors for source in translated.sources[key])
    return tensors, LoadReport(translated.layout, used, ignored, dict(sorted(missing.items())))


def _why_ignored(
    model: Backbone, key: str, value: Tensor, state: Mapping[str, Tensor]
) -> str | None:
    if key.startswith("output_norms.") and key not in state:
        return "norm of a dense model's feature level; this model has none"
    if key.startswith("norm.") and isinstance(model.norm, nn.Identity):
        return "final norm; this model has none"
    if key.startswith("head.") and model.num_classes == 0:
        return "classifier; this model has none"
    last_layer = key.removesuffix(".weight").removesuffix(".bias") in ("head", "head.fc2")
    if last_layer and key in state and value.shape[0] != model.num_classes:
        return f"classifier of {value.shape[0]} classes; this model has {model.num_classes}"
    if ".mixer.srf." in key and not any(".mixer.srf." in k for k in state):
        return "SRF filter; this model is built with srf off"
    if key.endswith(".srf.alpha") and key not in state:
        return "scale of the sigmoid, unused by the plain sigmoid gate"
    return None


def _why_missing(key: str, translated: Translated, ignored: Mapping[str, str]) -> str | None:
    if key.endswith(".srf.alpha"):
        return "scale of the sigmoid; stays as it was"
    if key.startswith(_CLASSIFIER):
        dense = any("not part of the backbone" in reason for reason in ignored.values())
        replaced = any(k.startswith("head.") for k in translated.tensors)
        headless = not any(k.startswith(_CLASSIFIER) for k in translated.tensors)
        if dense or replaced or headless:
            return "classifier; stays as it was"
    return None


def _check_masks(model: Backbone, name: str, translated: Translated) -> dict[str, str]:
    """Compare the checkpoint's masks with those that the model would build at their size."""
    reasons = {}
    for where, (source, mask) in translated.masks.items():
        path, gate = where.split("@")
        gates: Any = model.get_submodule(path)
        if gates.radius is None:
            reasons[source] = "frozen SPF mask; this model is built with spf off"
            continue
        expected = gates.mask(int(gate), *mask.shape[-2:])
        if not torch.allclose(mask.float().squeeze(0), expected, atol=1e-6):
            raise CheckpointError(
                f"{name}: the mask {source!r} differs from the model's: radius={gates.radius}, "
                f"gates={gates.gates} are not the checkpoint's"
            )
        reasons[source] = _MASK_REASON
    return reasons
