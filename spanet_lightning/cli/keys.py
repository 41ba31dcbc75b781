"""Dotted keys as a command line spells them: `model.backbone.srf`, without `init_args`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def passed_on(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return what stands under `dict_kwargs`, by its dotted key: `trainer.callbacks.0.foo`.

    Args:
        config: A nested configuration: what a YAML file holds.
        prefix: What the keys begin with.
    """
    found: dict[str, Any] = {}
    for name, value in config.items():
        if name == "dict_kwargs" and isinstance(value, Mapping):
            found.update({f"{prefix}{key}": inner for key, inner in value.items()})
        elif isinstance(value, Mapping):
            found.update(passed_on(value, prefix if name == "init_args" else f"{prefix}{name}."))
        elif isinstance(value, list):
            items = {str(i): item for i, item in enumerate(value) if isinstance(item, Mapping)}
            found.update(passed_on(items, f"{prefix}{name}."))
    return found


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return every value by its dotted key; a class stands under the key that it is given for.

    Args:
        config: A nested configuration: what a YAML file holds.
        prefix: What the keys begin with.
    """
    flat: dict[str, Any] = {}
    for name, value in config.items():
        key = f"{prefix}{name}"
        if name in ("init_args", "dict_kwargs") and isinstance(value, Mapping):
            flat.update(flatten(value, prefix))
        elif name == "class_path" and prefix:
            flat[prefix.removesuffix(".")] = value
        elif isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{key}."))
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            flat.update(flatten({str(i): item for i, item in enumerate(value)}, f"{key}."))
        else:
            flat[key] = value
    return flat
