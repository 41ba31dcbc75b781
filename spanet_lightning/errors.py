"""What a user can get wrong, as one family of errors.

Everything here is raised with a single line that names the key or file, the value received and what
is accepted. The command lines print that line without a stack trace and exit with
`EXIT_USER_ERROR`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_USER_ERROR = 2


class SpanetError(Exception):
    """Base of every error that a user, not a bug, causes."""


class ConfigError(SpanetError, ValueError):
    """A key or a value of a configuration, or an argument of a constructor, is wrong."""


class DataError(SpanetError, ValueError):
    """A data set or one of its files is missing, unreadable or inconsistent."""


class CheckpointError(SpanetError, ValueError):
    """A checkpoint can't be read safely, or does not fit the model."""


class NotFiniteError(SpanetError, RuntimeError):
    """The loss of a step, or a weight, is not a number, or infinite."""


class NoMemoryError(SpanetError, RuntimeError):
    """A device or the machine has no memory left for what was configured."""


class NoSpaceError(SpanetError, RuntimeError):
    """A disk is full, or takes nothing."""


def did_you_mean(value: object, choices: Iterable[str]) -> str:
    """Return `"; did you mean 'X'?"` for the nearest of `choices`, or `""` where none is near."""
    near = difflib.get_close_matches(str(value), list(choices), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def invalid(key: str, value: object, accepted: str, hint: str = "") -> ConfigError:
    """Build the one-line error for `key`: what was received and what is accepted."""
    return ConfigError(f"{key}: got {value!r}, expected {accepted}{hint}")


def invalid_choice(key: str, value: object, choices: Iterable[str]) -> ConfigError:
    """Build the error for a value outside `choices`, with a suggestion where one is near."""
    names = list(choices)
    return invalid(key, value, f"one of {', '.join(map(repr, names))}", did_you_mean(value, names))
