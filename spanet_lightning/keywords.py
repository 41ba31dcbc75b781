"""Wrong arguments in Python, answered as the command line answers wrong keys: in one line."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, Self

from spanet_lightning.errors import ConfigError, did_you_mean


def check_keywords(function: Callable[..., Any], owner: str, given: Mapping[str, Any]) -> None:
    """Refuse keyword arguments that a function or constructor does not take.

    Args:
        function: What is called.
        owner: What to call it in the message.
        given: The keyword arguments.

    Raises:
        ConfigError: For the first that it does not take, with the nearest that it does.
    """
    parameters = inspect.signature(function).parameters
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
        return
    known = [name for name in parameters if name != "self"]
    for name, value in given.items():
        if name not in known:
            hint = did_you_mean(name, known) or f"; accepted: {', '.join(known)}"
            got = f"{name}: got {reprlib.repr(value)}"
            raise ConfigError(f"{got}, but there is no such argument of {owner}{hint}")


class CheckedKeywords:
    """Base of classes that are built by keyword: a mistyped one is a `ConfigError`."""

    def __new__(cls, *_: Any, **given: Any) -> Self:
        """Check the keywords before `__init__` is called with them.

        Raises:
            ConfigError: If `__init__` has no such argument.
        """
        check_keywords(cls.__init__, cls.__name__, given)
        return super().__new__(cls)
