"""Reading one mapping of a YAML key by key, where each mistake is one line that names its place."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

from spanet_lightning.errors import ConfigError, did_you_mean, invalid, invalid_choice
from spanet_lightning.sweep.sources import Node


class Section:
    """A mapping of the file, whose keys are known in advance.

    Args:
        node: What stands there.
        name: Its dotted key in the file; "" for the whole file.
        keys: The keys that it may have.

    Raises:
        ConfigError: If it is no mapping, or has another key.
    """

    def __init__(self, node: Node, name: str, keys: Sequence[str]) -> None:
        self.name = name
        self.where = node.where
        self.children = mapping(node, name, f"keys and values ({', '.join(keys)})")
        for key, child in self.children.items():
            if key not in keys:
                hint = did_you_mean(key, keys) or f"; accepted: {', '.join(keys)}"
                if "." in key and "set" in keys:
                    hint = "; overrides stand under 'set'"
                raise ConfigError(f"{self.at(key, child)}: there is no such key{hint}")

    def at(self, key: str, node: Node | None = None) -> str:
        """Return a key as errors show it, after its file and line."""
        node = node or self.children.get(key)
        return place(node.where if node else self.where, self.key(key))

    def key(self, key: str) -> str:
        """Return the whole dotted key of one of the keys."""
        return f"{self.name}.{key}" if self.name else key

    def has(self, key: str) -> bool:
        """Whether a key is given a value."""
        return key in self.children and self.children[key].value is not None

    def node(self, key: str, accepted: str) -> Node:
        """Return what a key holds.

        Raises:
            ConfigError: If it is not there, or null.
        """
        if not self.has(key):
            raise ConfigError(f"{self.at(key)}: is missing; expected {accepted}")
        return self.children[key]

    def text(self, key: str, default: str | None = None) -> str:
        """Return a text; without a default it is required."""
        if default is not None and not self.has(key):
            return default
        node = self.node(key, "a text")
        if not isinstance(node.value, str) or not node.value.strip():
            raise invalid(self.at(key), node.plain(), "a text")
        return " ".join(node.value.split())

    def choice(self, key: str, choices: Collection[str], default: str | None = None) -> Any:
        """Return one of some texts; without a default it is required."""
        if default is not None and not self.has(key):
            return default
        node = self.node(key, f"one of {', '.join(map(repr, choices))}")
        if node.value not in choices:
            raise invalid_choice(self.at(key), node.plain(), choices)
        return node.value

    def integer(self, key: str, default: int | None, least: int) -> int | None:
        """Return a whole number, or the default where none is given."""
        if not self.has(key):
            return default
        value = self.children[key].plain()
        if not is_integer(value) or value < least:
            raise invalid(self.at(key), value, f"an integer of at least {least}")
        return int(value)

    def number(self, key: str, default: float | None, above: float) -> float | None:
        """Return a finite number above a bound, or the default where none is given."""
        if not self.has(key):
            return default
        value = self.children[key].plain()
        if not is_number(value) or value <= above:
            bound = "" if above == -math.inf else f" above {above:g}"
            raise invalid(self.at(key), value, f"a number{bound}")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        """Return true or false, or the default where neither is given."""
        if not self.has(key):
            return default
        value = self.children[key].value
        if not isinstance(value, bool):
            raise invalid(self.at(key), value, "true or false")
        return value


def place(where: str, key: str) -> str:
    """Return a key as errors show it, after its file and line, where they are known."""
    return f"{where}: {key}" if where else key


def mapping(node: Node, name: str, accepted: str) -> dict[str, Node]:
    """Return the children of a node that must be a mapping.

    Raises:
        ConfigError: If it is none.
    """
    if not isinstance(node.value, dict):
        raise invalid(place(node.where, name or "the file"), node.plain(), accepted)
    return node.value


def items(node: Node, name: str, accepted: str) -> list[Node]:
    """Return the items of a node that must be a list, with at least one.

    Raises:
        ConfigError: If it is none, or empty.
    """
    if not isinstance(node.value, list) or not node.value:
        raise invalid(place(node.where, name), node.plain(), accepted)
    return node.value


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, and no boolean."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_integer(value: Any) -> bool:
    """Whether a value is a whole number, and no boolean."""
    return isinstance(value, int) and not isinstance(value, bool)


def unique(names: Sequence[Any], at: Callable[[int], str], what: str) -> None:
    """Refuse a value that stands twice.

    Args:
        names: The values.
        at: Returns the place of the one of that index, for the error.
        what: What they are, in the singular.

    Raises:
        ConfigError: If there is one.
    """
    for i, name in enumerate(names):
        if name in names[:i]:
            raise ConfigError(f"{at(i)}: got the {what} {name!r} twice; expected each once")


def named(name: str, where: str, what: str) -> str:
    """Return a name that tables, folders and dashboards can show.

    Args:
        name: As it is written.
        where: Its place, for the error.
        what: What it names.

    Raises:
        ConfigError: If it is empty, too long, or has characters that do not print.
    """
    if not name.strip() or name != name.strip() or len(name) > 100 or not name.isprintable():
        raise invalid(where, name, f"a name of {what}: one line of 1 to 100 characters")
    return name


OVERRIDE = re.compile(r"[A-Za-z_]\w*(\.\w+)*\+?")
"""What a key of an override looks like, as `lightning fit --KEY VALUE` takes it."""
