"""Which key of the configuration an error is about, where whoever raised it could not know."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

from spanet_lightning.cli.wording import one_line
from spanet_lightning.errors import ConfigError, SpanetError


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


def of_constructor(error: BaseException | None) -> ConfigError | None:
    """Return the user's error for what a class of Lightning's says of its arguments, if it is one.

    Args:
        error: As jsonargparse passes it on.
    """
    while error is not None:
        if isinstance(error, MisconfigurationException):
            return ConfigError(one_line(str(error)))
        if isinstance(error, ModuleNotFoundError):
            return ConfigError(
                f"a class that is named needs another package: {one_line(str(error))}"
            )
        error = error.__cause__
    return None


def trainer_error(text: str, trainer: Mapping[str, Any], where: Mapping[str, str]) -> ConfigError:
    """Return the user's error for what Lightning's Trainer says of its arguments.

    Args:
        text: What it says: mostly `Trainer(argument=value)`, or the value alone.
        trainer: The arguments.
        where: The keys that were set, with the file and line of those that a file sets.
    """
    prefix = "trainer."
    given = {key: str(trainer.get(key[len(prefix) :])) for key in where if key.startswith(prefix)}
    likely = [key for key in given if f"{key[len(prefix) :]}=" in text]
    likely += [key for key in given if f"`{key[len(prefix) :]}`" in text]
    likely += [key for key, value in given.items() if value in text.split()]
    if not likely:
        return ConfigError(f"trainer: {one_line(text)}")
    key = likely[0]
    place = f"{where[key]}: " if where[key] else ""
    return ConfigError(f"{place}{key}: got {given[key]!r}: {one_line(text)}")
