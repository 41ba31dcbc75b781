"""Checks what a user wrote, key by key, before anything is imported for it, built or written.

jsonargparse finds the same mistakes, but reports them as a nest of paragraphs in which the key, the
file and the accepted values have to be searched for. This walk finds the common ones first and says
each in one line; what it can't judge it leaves to jsonargparse. It never accepts anything that
jsonargparse would refuse.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from argparse import Action, ArgumentError
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin

from jsonargparse import ArgumentParser

import spanet_lightning
from spanet_lightning.cli import sources
from spanet_lightning.cli.sources import SPEC_KEYS, Node
from spanet_lightning.cli.wording import accepted, literals
from spanet_lightning.errors import ConfigError, did_you_mean, invalid
from spanet_lightning.trust import TRUSTED, TRUSTED_VARIABLE, is_trusted, restrict_imports

__all__ = [
    "TRUSTED_VARIABLE",
    "Check",
    "class_keys",
    "is_trusted",
    "known_classes",
    "public_name",
    "restrict_imports",
    "value_keys",
]

_MOST_NAMES = 24  # names that an error lists at most
_Keys = Mapping[str, Action]


def value_keys(parser: Any) -> dict[str, Action]:
    """Return the keys of a jsonargparse parser that take a typed value, by dotted name."""
    return {
        action.dest: action
        for action in parser._actions
        if getattr(action, "_typehint", None) is not None and not action.dest.endswith(".help")
    }


@cache
def class_keys(cls: type) -> dict[str, Action]:
    """Return the arguments of a class as a configuration may set them, by dotted name."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, fail_untyped=False)
    return value_keys(parser)


class Check:
    """One walk over what was written.

    Args:
        keys: The keys of the command's parser.
        linked: Keys that are computed from others, and so neither required nor to be set.
    """

    def __init__(self, keys: _Keys, linked: Mapping[str, str]) -> None:
        self.keys = keys
        self.linked = linked
        self.where: dict[str, str] = {}

    def run(self, root: Node) -> None:
        """Check every value.

        Raises:
            ConfigError: For the first one that is wrong.
        """
        self._group(self.keys, root, outer="", inner="", owner="")

    def overridden(self, args: Sequence[str], message: str) -> None:
        """Look for a mistake that jsonargparse has found in a value which a later one overrides.

        Args:
            args: What follows the subcommand.
            message: What jsonargparse says.

        Raises:
            ConfigError: If it is there, with its file and line.
        """
        named = re.search(r'Parser key "([^"]+)"', message)
        for end in range(1, len(args)) if named else ():
            try:
                Check(self.keys, self.linked).run(sources.collect(args[:end]))
            except ConfigError as error:
                if named is not None and f"{named[1]}: got" in str(error):
                    raise

    def at(self, key: str, node: Node) -> str:
        """Return the key as an error shows it, after the file and line that set it."""
        return f"{node.where}: {key}" if node.where else key

    def _group(self, keys: _Keys, node: Node, outer: str, inner: str, owner: str) -> None:
        for name, child in node.value.items():
            dotted = f"{inner}{name}"
            full = f"{outer}{dotted}"
            self.where[full] = child.where
            if full in self.linked:
                raise ConfigError(
                    f"{self.at(full, child)}: got {child.plain()!r}, but it is always taken from "
                    f"{self.linked[full]}; remove it"
                )
            if dotted in keys:
                self._value(keys[dotted], child, full)
            elif dotted.removesuffix("+") in keys:  # `callbacks+` adds to the list
                added = replace(child, value=sources.items(child))
                self._value(keys[dotted.removesuffix("+")], added, full)
            elif any(key.startswith(f"{dotted}.") for key in keys):
                self._subgroup(keys, child, outer, dotted, owner)
            elif "." not in name:  # a dotted name in a file is jsonargparse's to resolve
                raise self._unknown(keys, child, outer, inner, name, owner)

    def _subgroup(self, keys: _Keys, node: Node, outer: str, dotted: str, owner: str) -> None:
        node = _from_file(node, f"{outer}{dotted}")
        if isinstance(node.value, dict):
            self._group(keys, node, outer, f"{dotted}.", owner)
        else:
            names = [key[len(dotted) + 1 :] for key in keys if key.startswith(f"{dotted}.")]
            accepts = f"keys and values ({_listed(names)})"
            raise invalid(self.at(f"{outer}{dotted}", node), node.plain(), accepts)

    def _unknown(
        self, keys: _Keys, node: Node, outer: str, inner: str, name: str, owner: str
    ) -> ConfigError:
        beside = dict.fromkeys(k[len(inner) :].split(".")[0] for k in keys if k.startswith(inner))
        near = get_close_matches(name, beside, n=1)
        full = [f"{outer}{inner}{match}" for match in near]
        # The right name in the wrong place: `lr` belongs to the optimizer.
        full += [f"{outer}{key}" for key in keys if key.rpartition(".")[2] == name]
        full += [key for key in self.keys if key.rpartition(".")[2] == name]
        hint = f"did you mean {full[0]!r}?" if full else f"accepted: {_listed(beside)}"
        got = "" if isinstance(node.value, dict) else f"got {node.plain()!r}, but "
        of = f" of {owner}" if owner else ""
        key = self.at(f"{outer}{inner}{name}", node)
        return ConfigError(f"{key}: {got}there is no such key{of}; {hint}")

    def _value(self, action: Action, node: Node, key: str) -> None:
        hint = action._typehint  # type: ignore[attr-defined]
        bases = tuple(_classes(hint))
        node = _from_file(node, key) if bases else node
        value = node.value
        if value is None and not _takes_null(hint) and (action.required or action.default):
            # jsonargparse takes a null for "not given", and the constructor gets it.
            raise invalid(self.at(key, node), None, accepted(hint))
        if bases and isinstance(value, dict) and (node.is_class or node.loose):
            self._class(bases, node, key, action.default)
        elif (
            bases
            and isinstance(value, list)
            and (any(item.is_class for item in value) or all(map(_is_class, _item_types(hint))))
        ):
            for i, item in enumerate(value):
                self._item(bases, _from_file(item, f"{key}[{i}]"), f"{key}[{i}]")
        elif bases and isinstance(value, str) and str not in (hint, *get_args(hint)):
            self._arguments(self._resolve(bases, node, key), {}, node, key)
        elif not (bases and isinstance(value, list)):
            self._leaf(hint, node, key)

    def _item(self, bases: tuple[type, ...], item: Node, key: str) -> None:
        if item.is_class:
            self._class(bases, item, key, None)
        elif isinstance(item.value, str):
            self._arguments(self._resolve(bases, item, key), {}, item, key)
        else:
            raise invalid(self.at(key, item), item.plain(), accepted(bases[0]))

    def _class(self, bases: tuple[type, ...], node: Node, key: str, default: Any) -> None:
        children = node.value
        path = children.get("class_path")
        if path is not None:
            # On the command line, `--model.backbone SPANet` is the usual way to say it.
            cls = self._resolve(bases, path, f"{key}.class_path" if path.where else key)
        else:
            # Only arguments are given: they are for the class that is there by default.
            inherited = getattr(default, "class_path", None)
            if inherited is None:
                names = _listed(map(public_name, known_classes(bases)))
                raise ConfigError(
                    f"{self.at(key, node)}: arguments are given, but no class_path; "
                    f"expected one of {names}"
                )
            cls = _import(inherited)
        arguments = children.get("init_args", Node({}, node.where))
        if not isinstance(arguments.value, dict | None):
            shown = self.at(f"{key}.init_args", arguments)
            raise invalid(shown, arguments.plain(), f"keys and values of {cls.__name__}")
        self._further(cls, children.get("dict_kwargs"), key)
        beside = {name: child for name, child in children.items() if name not in SPEC_KEYS}
        if beside and not node.loose:
            name, child = next(iter(beside.items()))
            raise ConfigError(
                f"{self.at(f'{key}.{name}', child)}: got {child.plain()!r} beside class_path; "
                f"put it under init_args"
            )
        self._arguments(cls, {**beside, **(arguments.value or {})}, node, key)

    def _further(self, cls: type, given: Node | None, key: str) -> None:
        """Check `dict_kwargs`, the arguments that a class takes without naming them."""
        kinds = {parameter.kind for parameter in inspect.signature(cls).parameters.values()}
        if given is None or not given.value or inspect.Parameter.VAR_KEYWORD in kinds:
            return
        accepts = f"nothing: {cls.__name__} names all its arguments, which go under init_args"
        raise invalid(self.at(f"{key}.dict_kwargs", given), given.plain(), accepts)

    def _arguments(self, cls: type, given: dict[str, Node], node: Node, key: str) -> None:
        keys = class_keys(cls)
        self._group(keys, Node(given), f"{key}.", "", cls.__name__)
        for name, action in keys.items():
            if f"{key}.{name}" in self.linked:
                continue
            if node.complete and action.required and name.split(".")[0] not in given:
                hint = accepted(action._typehint)  # type: ignore[attr-defined]
                raise ConfigError(f"{self.at(f'{key}.{name}', node)}: is missing; expected {hint}")

    def _resolve(self, bases: tuple[type, ...], node: Node, key: str) -> type:
        """Return the class that a value names, importing it only from where that is safe."""
        known = known_classes(bases)
        shown = self.at(key, node)
        name = node.value
        if not isinstance(name, str):
            raise invalid(shown, node.plain(), "the dotted name of a class")
        if "." not in name:
            by_name = {cls.__name__: cls for cls in known}
            if name not in by_name:
                raise self._no_such_class(shown, name, known)
            return by_name[name]
        if not is_trusted(name):
            top = name.split(".")[0]
            # Not for the standard library: there is no honest reason to build a class of `os`.
            own = f"; for a package of your own set {TRUSTED_VARIABLE}={top}"
            hint = _near_class(name, known) or ("" if top in sys.stdlib_module_names else own)
            raise invalid(shown, name, f"a class of {_listed(TRUSTED)}", hint)
        try:
            cls = _import(name)
        except (ImportError, AttributeError, ValueError):
            raise self._no_such_class(shown, name, known) from None
        if not (isinstance(cls, type) and issubclass(cls, bases)):
            wanted = " or ".join(base.__name__ for base in bases)
            names = _listed(map(public_name, known))
            raise invalid(shown, name, f"a subclass of {wanted}, such as {names}")
        return cls

    def _no_such_class(self, shown: str, name: str, known: list[type]) -> ConfigError:
        accepts = f"one of {_listed(map(public_name, known))}"
        return invalid(shown, name, accepts, _near_class(name, known))

    def _leaf(self, hint: Any, node: Node, key: str) -> None:
        got = node.plain()
        if _fits(hint, got) or (node.text is not None and _fits(hint, node.text)):
            return
        if isinstance(node.value, list):
            # Name the item that is wrong, where all items are of one type.
            for item_hint in _item_types(hint):
                for i, item in enumerate(node.value):
                    self._leaf(item_hint, item, f"{key}[{i}]")
        choices = [choice for choice in literals(hint) if isinstance(choice, str)]
        near = did_you_mean(got, choices) if isinstance(got, str) else ""
        raise invalid(self.at(key, node), got, accepted(hint), near)


def known_classes(bases: Iterable[type]) -> list[type]:
    """Return the classes to suggest for a type: the project's own, or else all imported ones."""
    bases = tuple(bases)
    own = [getattr(spanet_lightning, name) for name in spanet_lightning.__all__]
    public = [cls for cls in own if isinstance(cls, type) and issubclass(cls, bases)]
    imported = (cls for cls in _subclasses(bases) if not cls.__name__.startswith("_"))
    return [cls for cls in public if cls not in bases] or sorted(imported, key=public_name)


def public_name(cls: type) -> str:
    """Return the name that a configuration should use for a class."""
    if cls.__name__ in spanet_lightning.__all__:
        return f"spanet_lightning.{cls.__name__}"
    parts = cls.__module__.split(".")
    for end in range(1, len(parts)):  # the shortest package that exports it
        package = ".".join(parts[:end])
        if getattr(importlib.import_module(package), cls.__name__, None) is cls:
            return f"{package}.{cls.__name__}"
    return f"{cls.__module__}.{cls.__name__}"


def _near_class(name: str, known: Iterable[type]) -> str:
    """Suggest a class whose own name, whatever the package, is near."""
    names = {cls.__name__: public_name(cls) for cls in known}
    near = get_close_matches(name.rpartition(".")[2], names, n=1)
    return f"; did you mean {names[near[0]]!r}?" if near else ""


def _subclasses(bases: Iterable[type]) -> set[type]:
    found: set[type] = set()
    for base in bases:
        found.update(base.__subclasses__())
    return found | _subclasses(found) if found else found


def _import(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _from_file(node: Node, key: str) -> Node:
    """Return what the file that a value names holds, or the value where it names none."""
    if isinstance(node.value, str) and Path(node.value).is_file():
        return sources.read(node.value, key)
    return node


def _classes(hint: Any) -> Iterator[type]:
    """Yield the classes among a type's members that a `class_path` can build."""
    for member in (hint, *get_args(hint)):
        if get_args(member) and member is not hint:
            yield from _classes(member)
        elif isinstance(member, type) and _is_built(member):
            yield member


@cache
def _is_built(cls: type) -> bool:
    """Whether jsonargparse builds a value of this type from a `class_path`."""
    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_argument("--value", type=cls)
    except ValueError:
        return False
    # Plain values, such as Path or timedelta, have no help for their subclasses.
    return any(action.dest == "value.help" for action in parser._actions)


def _item_types(hint: Any) -> Iterator[Any]:
    """Yield the type of the items, where a type or a member of a union is a list of one type."""
    for member in (hint, *get_args(hint)):
        origin, args = get_origin(member), get_args(member)
        is_list = isinstance(origin, type) and issubclass(origin, Collection)
        if is_list and not issubclass(origin, Mapping) and (len(args) == 1 or args[1] is Ellipsis):
            yield args[0]


def _is_class(hint: Any) -> bool:
    return isinstance(hint, type) and _is_built(hint)


def _takes_null(hint: Any) -> bool:
    return hint in (Any, type(None)) or type(None) in get_args(hint)


def _fits(hint: Any, value: Any) -> bool:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    try:
        parser.parse_object({"value": value})
    except ArgumentError:
        return False
    return True


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
