"""Whether two definitions or configurations of a study mean the same trials."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# A change of these changes no trial: the stored definition takes it over.
_FREE = ("question", "note", "method.trials", "method.hours")


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Return what differs between two definitions, a line for each key.

    Args:
        old: The stored one.
        new: The one that is to be run.
    """
    before, after = _flat(old), _flat(new)
    lines = {}
    for key in [*after, *(key for key in before if key not in after)]:
        if before.get(key, _NONE) != after.get(key, _NONE):
            lines[key] = f"{key} was {_text(before, key)}, is {_text(after, key)}"
    return lines


_NONE = object()


def _text(flat: Mapping[str, Any], key: str) -> str:
    return json.dumps(flat[key]) if key in flat else "absent"


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return plain values by dotted key; the arms of an ablation by their names."""
    if isinstance(value, Mapping) and value:
        pairs = [(str(key), inner) for key, inner in value.items()]
    elif isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        pairs = [
            (str(inner.get("name", i)) if isinstance(inner, Mapping) else str(i), inner)
            for i, inner in enumerate(value)
        ]
    else:
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, inner in pairs:
        found |= _flat(inner, f"{prefix}.{key}" if prefix else key)
    return found


def is_free(key: str) -> bool:
    """Whether a change of this key of a definition changes no trial."""
    published = key.startswith("method.arms.") and key.endswith(".published")
    return key in _FREE or published or _is_place(key.removeprefix("overrides."))


def _is_place(key: str) -> bool:
    """Whether a key says where data lies, which each machine knows for itself."""
    return key.startswith("data.") and key.rpartition(".")[2] == "root"


def comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a configuration says how a trial trains: not where it is recorded."""
    aside = ("trainer.logger", "trainer.default_root_dir", "name", "seed_everything", "ckpt_path")
    plain: dict[str, Any] = json.loads(json.dumps(dict(config), default=str))
    return {
        key: value
        for key, value in plain.items()
        if not key.startswith(aside) and not _is_place(key)
    }
