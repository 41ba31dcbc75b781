"""Types and parser messages in words that fit one line of an error."""

from __future__ import annotations

import types
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a text",
    Path: "a path",
    type(None): "null",
    Any: "any value",
}
_MANY = {"an integer": "integers", "a number": "numbers", "a text": "texts", "a path": "paths"}
_LONGEST = 300  # characters of a parser's message that are worth repeating


def accepted(hint: Any) -> str:
    """Describe the values that a type accepts: `int | None` is "an integer or null"."""
    if hint in _WORDS:
        return _WORDS[hint]
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, args))
    if origin in (Union, types.UnionType):
        members = [arg for arg in args if get_origin(arg) is not Literal]
        choices = literals(hint)
        words = ["one of " + ", ".join(map(repr, choices))] if choices else []
        return " or ".join(dict.fromkeys([*words, *map(accepted, members)]))
    if origin is tuple and args and args[-1] is not Ellipsis:
        return f"a list of {len(args)} values: " + ", ".join(accepted(arg) for arg in args)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a mapping"
    if isinstance(origin, type) and issubclass(origin, Collection) and args:
        inner = accepted(args[0])
        return "a list of " + _MANY.get(inner, f"values, each {inner}")
    if isinstance(hint, type):
        return f"a class_path of {hint.__name__}"
    return str(hint).replace("typing.", "")


def literals(hint: Any) -> list[Any]:
    """Return the values of every `Literal` in a type, but not of those inside its lists."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return [value for member in get_args(hint) for value in literals(member)]
    return []


def one_line(message: str) -> str:
    """Fold a message of several lines into one, and shorten it where it is very long."""
    folded = " ".join(message.split())
    return folded if len(folded) <= _LONGEST else folded[: _LONGEST - 1] + "…"
