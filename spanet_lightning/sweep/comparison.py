"""Whether two definitions or configurations of a study mean the same trials."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from spanet_lightning.sweep.definition import Ablation, Study

# The one list of what is not the experiment: a change of these keys changes no trial. Free text
# and the length of a search in a definition; where a run is stored, shown and recorded in a
# configuration.
_FREE = ("question", "note", "method.trials", "method.hours")
_NOT_THE_EXPERIMENT = (
    "name",
    "ckpt_path",
    "resume",
    "resume_fallback",
    "allow_changes",
    "finite_every",
    "num_visualizations",
    "tracking",
    "trainer.default_root_dir",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.logger",
    "trainer.log_every_n_steps",
)


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
    override = key.removeprefix("overrides.")
    return key in _FREE or published or (override != key and not is_experiment(override))


def is_experiment(key: str) -> bool:
    """Whether a key of a configuration says how a trial trains.

    Where data lies does not: each machine knows for itself.
    """
    if key.startswith("data.") and key.rpartition(".")[2] == "root":
        return False
    return not any(key == name or key.startswith(f"{name}.") for name in _NOT_THE_EXPERIMENT)


def comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a configuration all trials of a study share: the experiment less its seed."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(config), default=str))
    return {
        key: value
        for key, value in plain.items()
        if is_experiment(key) and not key.startswith("seed_everything")
    }


def with_free_keys(stored: Study, file: Study) -> Study:
    """Return the stored definition with the question, note and published figures of the file."""
    method = stored.method
    if isinstance(method, Ablation) and isinstance(file.method, Ablation):
        published = {arm.name: arm.published for arm in file.method.arms}
        arms = tuple(
            replace(arm, published=published.get(arm.name, arm.published)) for arm in method.arms
        )
        method = replace(method, arms=arms)
    return replace(stored, question=file.question, note=file.note, method=method)
