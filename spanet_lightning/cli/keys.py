"""Dotted keys as a command line spells them: `model.backbone.srf`, without `init_args`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from spanet_lightning.errors import SpanetError


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


def with_full_key(
    error: SpanetError, flat: Mapping[str, Any], where: Mapping[str, str]
) -> SpanetError:
    """Return the error of a constructor with the key as the user wrote it, and its file and line.

    A backbone knows that `kernel_sizes` is wrong, not that it stands under `model.backbone`.

    Args:
        error: Begins with the argument's name and a colon, where it is about an argument.
        flat: The configuration by dotted keys.
        where: File and line of the keys that a file sets.
    """
    match = re.match(r"([A-Za-z_][\w.]*)((?:\[\d+\])*): ", str(error))
    if match is None:
        return error
    name, index = match.groups()
    full = [key for key in flat if key == name or key.endswith(f".{name}")]
    if len(full) != 1:
        return error
    place = f"{where[full[0]]}: " if where.get(full[0]) else ""
    return type(error)(f"{place}{full[0]}{index}: {str(error)[match.end() :]}")
