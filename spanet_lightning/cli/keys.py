"""Dotted keys as a command line spells them: `model.backbone.srf`, without `init_args`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flatten(config: Mapping[str, Any], prefix: str = "", *, unnamed: bool = True) -> dict[str, Any]:
    """Return every value by its dotted key; a class stands under the key that it is given for.

    Args:
        config: A nested configuration: what a YAML file holds.
        prefix: What the keys begin with.
        unnamed: Whether with `dict_kwargs`, the arguments that a class takes without naming them.
    """
    flat: dict[str, Any] = {}
    for name, value in config.items():
        key = f"{prefix}{name}"
        if name == "dict_kwargs" and not unnamed:
            continue
        if name in ("init_args", "dict_kwargs") and isinstance(value, Mapping):
            flat.update(flatten(value, prefix, unnamed=unnamed))
        elif name == "class_path" and prefix:
            flat[prefix.removesuffix(".")] = value
        elif isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{key}.", unnamed=unnamed))
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            items = {str(i): item for i, item in enumerate(value)}
            flat.update(flatten(items, f"{key}.", unnamed=unnamed))
        else:
            flat[key] = value
    return flat


def passed_on(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what stands under `dict_kwargs`, by its dotted key: `trainer.callbacks.0.foo`.

    Args:
        config: A nested configuration: what a YAML file holds.
    """
    named = flatten(config, unnamed=False)
    return {key: value for key, value in flatten(config).items() if key not in named}
