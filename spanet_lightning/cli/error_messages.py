"""What libraries and constructors raise, as one line with the key of the configuration."""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

from spanet_lightning.errors import ConfigError, SpanetError
from spanet_lightning.trust import TRUSTED

_LONGEST = 300  # characters of a library's message that are worth repeating
_LIBRARIES = {name.partition(".")[0] for name in TRUSTED} - {"spanet_lightning"}


def one_line(message: str) -> str:
    """Fold a message of several lines into one, and shorten it where it is very long."""
    folded = " ".join(message.split())
    return folded if len(folded) <= _LONGEST else folded[: _LONGEST - 1] + "…"


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


def of_constructor(
    error: BaseException | None, flat: Mapping[str, Any], where: Mapping[str, str]
) -> ConfigError | None:
    """Return the user's error for what a class of a library says of its arguments, if it is one.

    What a class of ours or the user's raises, other than a `SpanetError`, is a bug and stays one.

    Args:
        error: As jsonargparse passes it on.
        flat: The configuration by dotted keys.
        where: File and line of the keys that a file sets.
    """
    while error is not None:
        key, cls = _built(error, flat)
        theirs = cls is not None and cls.__module__.partition(".")[0] in _LIBRARIES
        if isinstance(error, MisconfigurationException) or (
            theirs and isinstance(error, ValueError | TypeError)
        ):
            return _of_argument(one_line(str(error)), key, flat, where)
        if isinstance(error, ModuleNotFoundError):
            return ConfigError(
                f"a class that is named needs another package: {one_line(str(error))}"
            )
        error = error.__cause__
    return None


def of_argument(error: TypeError, passed_on: Mapping[str, Any]) -> ConfigError | None:
    """Return the user's error for an argument of `dict_kwargs` that nobody takes, if it is one.

    A class may pass such arguments on, much later than it is built.

    Args:
        error: That was raised while the run was prepared.
        passed_on: What stands under `dict_kwargs`, by dotted keys.
    """
    named = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    for key, value in passed_on.items():
        if named and key.rpartition(".")[2] == named[1]:
            return _at(key, {}, f"got {value!r}: {one_line(str(error))}")
    return None


def _built(error: BaseException, flat: Mapping[str, Any]) -> tuple[str | None, type | None]:
    """Return the key of the class in whose constructor an error was raised, and the class."""
    classes = {
        value.rpartition(".")[2]: key
        for key, value in flat.items()
        if isinstance(value, str) and value.rpartition(".")[2].isidentifier()
    }
    for frame, _ in traceback.walk_tb(error.__traceback__):
        cls = type(frame.f_locals.get("self"))
        if frame.f_code.co_name == "__init__" and cls.__name__ in classes:
            return classes[cls.__name__], cls
    return None, None


def _of_argument(
    text: str, built: str | None, flat: Mapping[str, Any], where: Mapping[str, str]
) -> ConfigError:
    """Return what a class says of an argument, after the key of that: one whose name it says."""
    words = set(re.findall(r"\w+", text))
    likely = [key for key in flat if key.rpartition(".")[2] in words]
    if built is not None:
        likely = [key for key in likely if key.startswith(f"{built}.")]
    if len(likely) != 1:
        likely = [key for key in likely if str(flat[key]) in re.split(r"[\s,=]+|\.\s", text)]
    if len(likely) == 1:
        return _at(likely[0], where, f"got {flat[likely[0]]!r}: {text}")
    return ConfigError(text) if built is None else _at(built, where, text)


def _at(key: str, where: Mapping[str, str], text: str) -> ConfigError:
    place = f"{where[key]}: " if where.get(key) else ""
    shown = re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", key)  # an item of a list
    return ConfigError(f"{place}{shown}: {text}")


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
    likely += [key for key, v in given.items() if v in text.split() or f"'{v}'" in text]
    if not likely:
        return ConfigError(f"trainer: {one_line(text)}")
    key = likely[0]
    place = f"{where[key]}: " if where[key] else ""
    return ConfigError(f"{place}{key}: got {given[key]!r}: {one_line(text)}")
