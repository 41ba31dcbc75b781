"""Choose one set of weights of a file, and take the prefixes of wrappers off its names.

Trainers store weights beside their moving average, under many keys; torch.compile, DDP, FSDP and
Lightning put prefixes before the names, in any order and on any subset.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from spanet_lightning.backbones import checkpoint_file
from spanet_lightning.backbones.checkpoint_file import StandIn
from spanet_lightning.errors import CheckpointError, invalid_choice
from spanet_lightning.remote import download, is_address

WeightsSet = Literal["model", "ema"]
"""The trained weights, or their exponential moving average."""


@dataclass(frozen=True)
class Weights:
    """One set of weights of a file.

    Attributes:
        name: What the file is called in messages.
        tensors: Tensors by name, without the prefixes of wrappers.
        sources: The names that they have in the file.
        set_name: Which set it is, in words; empty where the file is a state dict.
        metadata: Of a safetensors file.
    """

    name: str
    tensors: dict[str, Tensor]
    sources: dict[str, str]
    set_name: str
    metadata: Mapping[str, str]


_SETS = ("state_dict", "model", "model_state_dict", "model_state", "net", "network", "module",
         "weights", "params", "current_model_state")  # fmt: skip
_EMA_SETS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "ema_model", "params_ema",
             "model_ema_state_dict", "ema_model_state_dict", "averaged_model")  # fmt: skip
# Of torch.compile, DDP, FSDP and activation checkpointing, at any depth of a name.
_WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_PREFIXES = {"model", "net", "backbone", *_EMA_SETS}


def read_weights(
    checkpoint: str | Path | Mapping[str, Any], weights_set: WeightsSet | None = None
) -> Weights:
    """Read one set of weights.

    Args:
        checkpoint: As `load_official` takes it.
        weights_set: Which set to take.

    Raises:
        CheckpointError: If it can't be had or read, or holds no such weights.
    """
    if isinstance(checkpoint, Mapping):
        return select("checkpoint", checkpoint, weights_set)
    if is_address(str(checkpoint)):
        checkpoint = download(str(checkpoint))
    init = re.search(r"spanet_(s24|s36|m36)_init", str(checkpoint))
    if init and not Path(checkpoint).exists():
        released = {"s24": "spanet_s", "s36": "spanet_m", "m36": "spanet_b"}[init[1]]
        raise CheckpointError(
            f"{checkpoint}: no such checkpoint file; it is the ImageNet checkpoint of {released} "
            "without its frozen masks: give that one, masks are left out on the way"
        )
    content, metadata = checkpoint_file.read(checkpoint)
    return select(str(checkpoint), content, weights_set, metadata)


def select(
    name: str,
    content: Any,
    weights_set: WeightsSet | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Weights:
    """Choose a set, and take the prefixes of wrappers off its names."""
    if weights_set not in (None, "model", "ema"):
        raise invalid_choice("weights_set", weights_set, ("model", "ema"))
    sets = list(_sets(content))
    if not sets:
        keys = ", ".join(map(repr, list(content)[:8])) if isinstance(content, Mapping) else ""
        what = f"a dictionary of {keys or 'nothing'}" if keys or content == {} else "no dictionary"
        raise CheckpointError(
            f"{name}: holds no tensors, expected a state dict; it is {what}: save "
            "model.state_dict() where it was made"
        )
    wanted = [s for s in sets if weights_set in (None, "ema" if s[1] else "model")]
    in_words = [f"{label or 'state dict'}{' (EMA)' * averaged}" for label, averaged, _ in sets]
    if not wanted:
        raise CheckpointError(
            f"{name}: weights_set: got {weights_set!r}, but it holds only {' and '.join(in_words)}"
        )
    taken = sets.index(wanted[0])
    set_name = in_words[taken] if len(sets) > 1 or sets[taken][1] or sets[taken][0] else ""
    if others := [words for i, words in enumerate(in_words) if i != taken]:
        other = "model" if sets[taken][1] else "ema"
        set_name += f"; the file also holds {', '.join(others)} (weights_set: {other})"
    tensors, sources = {}, {}
    for ours, (source, value) in sets[taken][2].items():
        sources[ours] = source
        tensors[ours] = value
    return Weights(name, tensors, sources, set_name, metadata or {})


_Set = tuple[str, bool, dict[str, tuple[str, Tensor]]]


def _sets(content: Any, label: str = "", averaged: bool = False) -> Iterator[_Set]:
    """Yield a label, whether it is a moving average, and names → (name in the file, tensor)."""
    if isinstance(content, StandIn) and not content:
        content = dict(checkpoint_file.module_state(content))  # a model that was pickled whole
    if not isinstance(content, Mapping):
        return
    inner = [k for k in (*_SETS, *_EMA_SETS) if isinstance(content.get(k), Mapping)]
    if inner:
        # What these call their state dict is the average: Lightning's and mmengine's callbacks
        # exchange both when they save.
        ema = content.get("ema_state_dict", {})
        mmengine = bool(ema) and ("steps" in ema or "message_hub" in content)
        exchanged = mmengine or "current_model_state" in content
        for key in inner:
            is_average = key in _EMA_SETS
            if exchanged and key in ("state_dict", "ema_state_dict", "current_model_state"):
                is_average = key == "state_dict"
            yield from _sets(content[key], f"{label}.{key}".lstrip("."), averaged or is_average)
        return
    parts: dict[bool, dict[str, tuple[str, Tensor]]] = {}
    for key, value in content.items():
        tensor = checkpoint_file.as_tensor(value)
        if isinstance(key, str) and tensor is not None and key not in ("steps", "n_averaged"):
            ours, is_average = _strip(key)
            part = parts.setdefault(is_average, {})
            if ours in part:
                raise CheckpointError(f"tensors {part[ours][0]!r} and {key!r} are both {ours!r}")
            part[ours] = (key, tensor)
    for is_average in sorted(parts):
        words = f"{label} ({'its EMA' if is_average else 'its model'})" if len(parts) > 1 else label
        yield words, averaged or is_average, parts[is_average]


def _strip(key: str) -> tuple[str, bool]:
    """Return a name without wrappers, `backbone.` before it where it was, and whether it is EMA."""
    parts = [part for part in key.split(".") if part not in _WRAPPERS]
    first = next((i for i, part in enumerate(parts) if part not in _PREFIXES), len(parts))
    prefixes = parts[:first]
    backbone = ["backbone"] if "backbone" in prefixes else []
    return ".".join(backbone + parts[first:]), any(part in _EMA_SETS for part in prefixes)
