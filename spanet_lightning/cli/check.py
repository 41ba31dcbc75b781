"""Checks a configuration key by key before torch is imported, and gives every value its type.

Signatures come from source code, types of values are judged by jsonargparse. The first mistake is
one line: key, value, what is accepted, the nearest name. What can't be judged without importing is
left to the parser, which gets the typed configuration.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

from jsonargparse import ArgumentError, ArgumentParser

import spanet_lightning
from spanet_lightning.cli import config_files, signatures
from spanet_lightning.cli.config_files import Text, Tree, plain
from spanet_lightning.cli.signatures import Configurable, Group, Parameter, Signature
from spanet_lightning.errors import ConfigError, did_you_mean, invalid
from spanet_lightning.renamed import REMOVED, current_name
from spanet_lightning.trust import TRUSTED, TRUSTED_VARIABLE, is_trusted

_Kind = TypeVar("_Kind", Configurable, Group)
_MOST_NAMES = 24  # names that an error lists at most
_SHORT_NAMES = tuple(
    f"lightning.pytorch.{name}"
    for name in ("callbacks", "loggers", "profilers", "strategies", "plugins", "accelerators")
)
"""Packages of Lightning whose classes may be named without them."""
_OWN_SHORT_NAMES = {"MLflowLogger": "spanet_lightning.tracking.MLflowLogger"}


class Check:
    """One pass over a configuration.

    Args:
        schema: The keys of the command.
        linked: Keys that are computed from others, and so neither required nor to be set.
        classes: Classes whose arguments may be given without naming them, by key.
        partial: Whether more is to come: then nothing is missing yet.

    Attributes:
        notes: What a user should know although nothing is wrong.
        where: File and line that set each key.
    """

    def __init__(
        self,
        schema: Mapping[str, Parameter],
        linked: Mapping[str, str],
        classes: Mapping[str, str],
        *,
        partial: bool = False,
    ) -> None:
        self.schema = schema
        self.linked = linked
        self.classes = classes
        self.partial = partial
        self.notes: list[str] = []
        self.where: dict[str, str] = {}

    def run(self, root: Tree) -> dict[str, Any]:
        """Return the configuration with typed values.

        Raises:
            ConfigError: For the first mistake.
        """
        return self._group(self.schema, root, "", "")

    def _group(
        self,
        parameters: Mapping[str, Parameter],
        tree: Tree,
        key: str,
        owner: str,
        is_open: bool = False,
    ) -> dict[str, Any]:
        typed: dict[str, Any] = {}
        dropped = []
        for name, value in tree.items():
            full, where = _join(key, name), tree.where.get(name, "")
            self.where[full] = where
            try:
                if full in self.linked:
                    text = f"it is always taken from {self.linked[full]}; remove it"
                    raise ConfigError(f"{_at(full, where)}: got {plain(value)!r}, but {text}")
                if name in parameters:
                    typed[name] = self._value(parameters[name].hint, value, full, where)
                elif is_open:
                    typed[name] = plain(value)
                else:
                    self._refuse_unknown(parameters, value, full, where, owner)
            except ConfigError:
                if name not in tree.inherited:
                    raise
                dropped.append(f"{name}={plain(value)!r}")
        if dropped:
            text = f"{owner} replaces {tree.replaced}; dropped {', '.join(dropped)}"
            self.notes.append(f"{key}: {text}")
        return typed

    def _refuse_unknown(
        self, parameters: Mapping[str, Parameter], value: Any, key: str, where: str, owner: str
    ) -> NoReturn:
        parent, _, name = key.rpartition(".")
        got = "" if isinstance(value, dict) else f"got {plain(value)!r}, but "
        of = f" of {owner}" if owner else ""
        if new := current_name(name, parameters):
            hint = f"it is called {_join(parent, new)!r} now"
        elif name in REMOVED:
            hint = f"it was removed: {REMOVED[name]}"
        else:
            full = [_join(parent, near) for near in get_close_matches(name, parameters, 1)]
            # The right name in the wrong place: `lr` belongs to the optimizer.
            full += [_join(parent, path) for path in _paths(parameters, name)]
            full += list(_paths(self.schema, name))
            hint = f"did you mean {full[0]!r}?" if full else f"accepted: {listed(parameters)}"
        raise ConfigError(f"{_at(key, where)}: {got}there is no such key{of}; {hint}")

    def _value(self, hint: Any, value: Any, key: str, where: str) -> Any:
        if hint is Any:
            return plain(value)
        groups, bases = classes_of(hint, Group), classes_of(hint, Configurable)
        items = [base for inner in _item_hints(hint) for base in classes_of(inner, Configurable)]
        if (groups or bases or items) and isinstance(value, Text) and _is_config(value):
            value = config_files.merge(None, config_files.read(str(value), key))
        if groups and (hint in groups or plain(value) is not None):
            found = signatures.known(groups[0].path)
            if not isinstance(value, Tree):
                keys = listed(found.parameters)
                raise invalid(_at(key, where), plain(value), f"keys and values ({keys})")
            return self._group(found.parameters, value, key, found.name if "." in key else "")
        if items and isinstance(value, list):
            return [self._item(items, v, f"{key}[{i}]", where) for i, v in enumerate(value)]
        is_name = isinstance(value, str) and isinstance(plain(value), str)
        is_name &= str not in _members(hint) and plain(value) not in _literals(hint)
        if (bases or items) and (is_name or isinstance(value, Tree)):
            tree = value if isinstance(value, Tree) else Tree({"class_path": value})
            spec = self._class([*bases, *items], tree, key, where)
            return spec if bases or spec is None else [spec]
        return self._leaf(hint, value, key, where)

    def _item(self, bases: Sequence[type[Configurable]], value: Any, key: str, where: str) -> Any:
        if isinstance(value, Text) and _is_config(value):
            value = config_files.merge(None, config_files.read(str(value), key))
        if isinstance(value, str) and isinstance(plain(value), str):
            value = Tree({"class_path": value})
        where = next(iter(value.where.values()), where) if isinstance(value, Tree) else where
        if not isinstance(value, Tree) or "class_path" not in value:
            raise invalid(_at(key, where), plain(value), f"a class_path of {bases[0].__name__}")
        return self._class(bases, value, key, where)

    def _class(
        self, bases: Sequence[type[Configurable]], tree: Tree, key: str, where: str
    ) -> dict[str, Any] | None:
        written = tree.get("class_path", self.classes.get(key))
        if written is None:
            if self.partial:
                return None
            classes = listed(known_classes(bases))
            text = f"arguments are given, but no class_path; expected one of {classes}"
            raise ConfigError(f"{_at(key, where)}: {text}")
        where = tree.where.get("class_path", where)
        path, found = self._resolve(bases, written, key, where)
        spec: dict[str, Any] = {"class_path": path}
        if further := tree.get("dict_kwargs"):
            if found is not None and not found.open:
                accepts = f"nothing: {found.name} names all its arguments, which go under init_args"
                shown = _at(f"{key}.dict_kwargs", tree.where.get("dict_kwargs", ""))
                raise invalid(shown, plain(further), accepts)
            spec["dict_kwargs"] = plain(further)
        if "init_args" in tree:
            shown = _at(f"{key}.init_args", tree.where.get("init_args", ""))
            accepts = f"keys and values of {path.rpartition('.')[2]}"
            raise invalid(shown, plain(tree["init_args"]), accepts)
        given = {k: v for k, v in tree.items() if k not in ("class_path", "dict_kwargs")}
        arguments = Tree(given, tree.where)
        arguments.inherited, arguments.replaced = tree.inherited, tree.replaced
        if found is None:
            return {**spec, "init_args": plain(arguments)}
        typed = self._group(found.parameters, arguments, key, found.name, found.open)
        for name, parameter in found.parameters.items() if not self.partial else ():
            full = f"{key}.{name}"
            if parameter.default is None and name not in typed and full not in self.linked:
                raise ConfigError(
                    f"{_at(full, where)}: is missing; expected {accepted(parameter.hint)}"
                )
        return {**spec, "init_args": typed}

    def _resolve(
        self, bases: Sequence[type[Configurable]], written: Any, key: str, where: str
    ) -> tuple[str, Signature | None]:
        """Return the path that a class is imported from, and its signature where it can be read."""
        shown = _at(key, where)
        if not isinstance(written, str):
            raise invalid(shown, plain(written), "the dotted name of a class")
        path = name = str(written)
        if "." not in name:
            path = _OWN_SHORT_NAMES.get(name) or _full_path(name)
        elif not is_trusted(name):
            top = name.split(".")[0]
            # Not for the standard library: there is no honest reason to build a class of `os`.
            own = f"; for a package of your own set {TRUSTED_VARIABLE}={top}"
            hint = _near_class(name, bases) or ("" if top in sys.stdlib_module_names else own)
            raise invalid(shown, name, f"a class of {listed(TRUSTED)}", hint)
        real = real_path(path)
        found = signatures.signature(real)
        home = path.rpartition(".")[0]
        if found is None and ("." not in name or home in (*_SHORT_NAMES, "spanet_lightning")):
            accepts = f"one of {listed(known_classes(bases))}"
            raise invalid(shown, name, accepts, _near_class(name, bases))
        if found is not None and all(
            signatures.is_subclass(real, base.path) is False for base in bases
        ):
            wanted = " or ".join(base.__name__ for base in bases)
            accepts = f"a subclass of {wanted}, such as {listed(known_classes(bases))}"
            raise invalid(shown, name, accepts)
        return path, found

    def _leaf(self, hint: Any, value: Any, key: str, where: str) -> Any:
        readings = [plain(value)]  # what it may mean, the likeliest first
        readings += [str(value)] if isinstance(value, Text) else []
        readings += [value.text] if isinstance(value, Tree) and value.text is not None else []
        for reading in readings:
            if _fits(hint, reading):
                return reading
        if isinstance(value, list):
            # Each item by its own type: text where a text is expected. Name the one that is wrong.
            for inner in _item_hints(hint):
                typed = [self._leaf(inner, v, f"{key}[{i}]", where) for i, v in enumerate(value)]
                if _fits(hint, typed):
                    return typed
        got = plain(value)
        choices = [choice for choice in _literals(hint) if isinstance(choice, str)]
        near = did_you_mean(got, choices) if isinstance(got, str) else ""
        raise invalid(_at(key, where), got, accepted(hint), near)


# -- classes


def known_classes(bases: Iterable[type[Configurable]]) -> list[str]:
    """Return the classes to suggest for a type: the project's own, or else Lightning's."""
    paths = [base.path for base in bases]
    own = [
        f"spanet_lightning.{name}"
        for name, module in spanet_lightning.LAZY.items()
        if name in spanet_lightning.__all__
        and f"{module}.{name}" not in paths
        and any(_inherits(f"{module}.{name}", path) for path in paths)
    ]
    return own or [
        f"{module}.{name}"
        for module in _SHORT_NAMES
        for name in sorted(signatures.exported(module))
        if any(_inherits(f"{module}.{name}", path) for path in paths)
    ]


def _inherits(path: str, base: str) -> bool:
    found = signatures.signature(path)
    return found is not None and found.path != base and signatures.is_subclass(path, base) is True


def _full_path(name: str) -> str:
    """Return the path of a class that is named without its package."""
    if name in spanet_lightning.LAZY:
        return f"spanet_lightning.{name}"
    paths = (f"{module}.{name}" for module in _SHORT_NAMES)
    return next((path for path in paths if signatures.signature(path) is not None), name)


def real_path(path: str) -> str:
    """Return where the class is that a configuration names, with or without its package."""
    package, _, name = (path if "." in path else _full_path(path)).rpartition(".")
    if package == "spanet_lightning" and name in spanet_lightning.LAZY:
        package = spanet_lightning.LAZY[name]
    return f"{package}.{name}"


def classes_in(hint: Any) -> list[Any]:
    """Return the classes with arguments in a type, also those of the items of its lists."""
    inner = [found for item in get_args(hint) for found in classes_in(item)]
    return [hint] if isinstance(hint, type) and issubclass(hint, Configurable | Group) else inner


def classes_of(hint: Any, kind: type[_Kind]) -> list[type[_Kind]]:
    """Return the members of a union that are classes of a kind: `Configurable` or `Group`."""
    return [one for one in _members(hint) if isinstance(one, type) and issubclass(one, kind)]


def _near_class(name: str, bases: Iterable[type[Configurable]]) -> str:
    """Suggest a class whose own name, whatever the package, is near."""
    known = {path.rpartition(".")[2]: path for path in known_classes(bases)}
    near = get_close_matches(name.rpartition(".")[2], known, n=1)
    return f"; did you mean {known[near[0]]!r}?" if near else ""


def _paths(parameters: Mapping[str, Parameter], name: str) -> Iterator[str]:
    """Yield where a key of that name is, in the groups below."""
    for key, parameter in parameters.items():
        for group in classes_of(parameter.hint, Group):
            found = signatures.signature(group.path)
            if found is not None and name in found.parameters:
                yield f"{key}.{name}"


# -- values


def _is_config(text: str) -> bool:
    return text.endswith((".yaml", ".yml", ".json")) and Path(text).is_file()


def _fits(hint: Any, value: Any) -> bool:
    """Whether jsonargparse takes a value for a type."""
    members = [one for one in _members(hint) if not classes_in(one)]
    if value is None or Any in members or not members:
        return (value is None and type(None) in members) or Any in members
    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_argument("--value", type=Union[tuple(members)])  # noqa: UP007
        parser.parse_object({"value": value})
    except ArgumentError:
        return False
    except ValueError:  # a type that jsonargparse does not support alone
        return True
    return True


def _members(hint: Any) -> list[Any]:
    if get_origin(hint) in (Union, types.UnionType):
        return [inner for member in get_args(hint) for inner in _members(member)]
    return [hint]


def _item_hints(hint: Any) -> list[Any]:
    """Return the types of the items, where a type has members that are lists of one type."""
    found = []
    for member in _members(hint):
        origin, args = get_origin(member), get_args(member)
        is_list = isinstance(origin, type) and issubclass(origin, Iterable)
        is_list = is_list and not issubclass(origin, Mapping)
        if is_list and (len(args) == 1 or args[1:] == (...,)):
            found.append(args[0])
    return found


def _literals(hint: Any) -> list[Any]:
    return [v for h in _members(hint) if get_origin(h) is Literal for v in get_args(h)]


_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a text",
    Path: "a path",
    timedelta: "a time as H:MM:SS",
    None: "null",
    type(None): "null",
    Any: "any value",
}
_MANY = {"an integer": "integers", "a number": "numbers", "a text": "texts", "a path": "paths"}


def accepted(hint: Any) -> str:
    """Describe the values that a type accepts: `int | None` is "an integer or null"."""
    if hint is Any or (isinstance(hint, type) and hint in _WORDS):
        return _WORDS[hint]
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, args))
    if origin in (Union, types.UnionType):
        choices = _literals(hint)
        words = ["one of " + ", ".join(map(repr, choices))] if choices else []
        others = [accepted(h) for h in _members(hint) if get_origin(h) is not Literal]
        return " or ".join(dict.fromkeys([*words, *others]))
    if origin is tuple and args and args[-1] is not Ellipsis:
        return f"a list of {len(args)} values: " + ", ".join(accepted(arg) for arg in args)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a mapping"
    if isinstance(origin, type) and args:
        inner = accepted(args[0])
        return "a list of " + _MANY.get(inner, f"values, each {inner}")
    if classes_of(hint, Group):
        return "keys and values"
    if isinstance(hint, type):
        known = issubclass(hint, Configurable)
        return f"a class_path of {hint.__name__}" if known else hint.__name__
    return str(hint).replace("typing.", "")


def listed(names: Iterable[str]) -> str:
    """Join names by commas; of very many, the first."""
    names = list(names)
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


def _join(parent: str, name: str) -> str:
    return f"{parent}.{name}" if parent else name


def _at(key: str, where: str) -> str:
    return f"{where}: {key}" if where else key
