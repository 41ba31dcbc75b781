"""Checks a configuration key by key before torch is imported, and gives every value its type.

Signatures come from source code, types of values are judged by jsonargparse. The first mistake is
one line: key, value, what is accepted, the nearest name. What can't be judged without importing is
left to the parser, which gets the typed configuration.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from jsonargparse import ArgumentError, ArgumentParser

import spanet_lightning
from spanet_lightning.cli import config_files, signatures
from spanet_lightning.cli.config_files import SPEC_KEYS, Text, Tree, plain
from spanet_lightning.cli.signatures import Configurable, Group, Parameter, Signature
from spanet_lightning.errors import ConfigError, did_you_mean, invalid
from spanet_lightning.renamed import REMOVED, current_name
from spanet_lightning.trust import TRUSTED, TRUSTED_VARIABLE, is_trusted

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

    Attributes:
        notes: What a user should know although nothing is wrong.
        where: File and line that set each key.
    """

    def __init__(
        self,
        schema: Mapping[str, Parameter],
        linked: Mapping[str, str],
        classes: Mapping[str, str],
    ) -> None:
        self.schema = schema
        self.linked = linked
        self.classes = classes
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
        for name, value, where in tree.overridden:
            if name in parameters:
                self._value(parameters[name], value, _join(key, name), where)
        for written, value in tree.items():
            name = written.removesuffix("+")
            full, where = _join(key, name), tree.where.get(written, "")
            self.where[full] = where
            if full in self.linked:
                raise ConfigError(
                    f"{_at(full, where)}: got {plain(value)!r}, but it is always taken from "
                    f"{self.linked[full]}; remove it"
                )
            if name in parameters:
                value = config_files.as_list(value) if name != written else value
                typed[name] = self._value(parameters[name], value, full, where)
            elif is_open:
                typed[name] = plain(value)
            else:
                self._refuse_unknown(parameters, value, full, where, owner)
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
            hint = f"did you mean {full[0]!r}?" if full else f"accepted: {_listed(parameters)}"
        raise ConfigError(f"{_at(key, where)}: {got}there is no such key{of}; {hint}")

    def _value(self, parameter: Parameter, value: Any, key: str, where: str) -> Any:
        hint = parameter.hint
        members = list(_members(hint))
        bases = [h for h in members if isinstance(h, type) and issubclass(h, Configurable)]
        groups = [h for h in members if isinstance(h, type) and issubclass(h, Group)]
        if (bases or groups) and isinstance(value, Text) and _is_config(value):
            value = config_files.read(str(value), key)
        if hint is Any:
            return plain(value)
        if groups and not isinstance(value, Tree) and (plain(value) is not None or hint in groups):
            keys = _listed(signatures.known(groups[0].path).parameters)
            raise invalid(_at(key, where), plain(value), f"keys and values ({keys})")
        if groups and isinstance(value, Tree):
            found = signatures.known(groups[0].path)
            return self._group(found.parameters, value, key, found.name if "." in key else "")
        if bases and isinstance(value, Tree) and (value.is_class or value.loose):
            return self._class(bases, value, key, where)
        items = [inner for h in members for inner in _item_hints(h)]
        classes = [h for i in items for h in _members(i)]
        classes = [h for h in classes if isinstance(h, type) and issubclass(h, Configurable)]
        if classes and isinstance(value, list):
            return [self._item(classes, v, f"{key}[{i}]", where) for i, v in enumerate(value)]
        if classes and isinstance(value, Tree) and (value.is_class or value.loose):
            return [self._class(classes, value, key, where)]
        both = [*bases, *classes]
        is_name = isinstance(value, str) and isinstance(plain(value), str) and str not in members
        if both and is_name and plain(value) not in _literals(hint):
            spec = self._class(both, Tree({"class_path": value}), key, where)
            return spec if bases else [spec]
        return self._leaf(hint, value, key, where)

    def _item(self, bases: Sequence[type], value: Any, key: str, where: str) -> Any:
        if isinstance(value, Text) and _is_config(value):
            value = config_files.read(str(value), key)
        if isinstance(value, str) and isinstance(plain(value), str):
            value = Tree({"class_path": value})
        if isinstance(value, Tree) and value.is_class:
            where = next(iter(value.where.values()), where)
            return self._class(bases, value, key, where)
        if isinstance(value, Tree):
            where = next(iter(value.where.values()), where)
        raise invalid(_at(key, where), plain(value), f"a class_path of {bases[0].__name__}")

    def _class(self, bases: Sequence[type], tree: Tree, key: str, where: str) -> dict[str, Any]:
        if "class_path" not in tree and key in self.classes:
            tree["class_path"] = self.classes[key]
        if "class_path" not in tree:
            names = _listed(known_classes(bases))
            text = f"arguments are given, but no class_path; expected one of {names}"
            raise ConfigError(f"{_at(key, where)}: {text}")
        where = tree.where.get("class_path", where)
        path, found = self._resolve(bases, tree["class_path"], key, where)
        spec: dict[str, Any] = {"class_path": path}
        arguments = tree.get("init_args") or Tree()
        if not isinstance(arguments, Tree):
            shown = _at(f"{key}.init_args", tree.where.get("init_args", ""))
            owner = path.rpartition(".")[2]
            raise invalid(shown, plain(arguments), f"keys and values of {owner}")
        beside = [name for name in tree if name not in SPEC_KEYS]
        if beside and not tree.loose:
            shown = _at(f"{key}.{beside[0]}", tree.where.get(beside[0], ""))
            got = plain(tree[beside[0]])
            raise ConfigError(f"{shown}: got {got!r} beside class_path; put it under init_args")
        further = tree.get("dict_kwargs")
        if found is None:
            return {**spec, "init_args": plain(arguments), **_further(further)}
        if further and not found.open:
            accepts = f"nothing: {found.name} names all its arguments, which go under init_args"
            shown = _at(f"{key}.dict_kwargs", tree.where.get("dict_kwargs", ""))
            raise invalid(shown, plain(further), accepts)
        loose = Tree({name: tree[name] for name in beside})
        loose.update(arguments)
        loose.where = {**tree.where, **arguments.where}
        typed = self._group(found.parameters, loose, key, found.name, is_open=found.open)
        if tree.replaced is not None:
            typed = {**self._carried(found, tree.replaced, typed, key), **typed}
        for name, parameter in found.parameters.items():
            full = f"{key}.{name}"
            if parameter.default is None and name not in typed and full not in self.linked:
                shown, hint = _at(full, where), accepted(parameter.hint)
                raise ConfigError(f"{shown}: is missing; expected {hint}")
        return {**spec, "init_args": typed, **_further(further)}

    def _carried(
        self, found: Signature, before: Tree, given: Mapping[str, Any], key: str
    ) -> dict[str, Any]:
        """Return the arguments of a replaced class that the new one takes; note the others."""
        carried, dropped = {}, []
        arguments = before.get("init_args")
        for name, value in (arguments if isinstance(arguments, Tree) else {}).items():
            if name in given:
                continue
            try:
                carried[name] = self._value(found.parameters[name], value, f"{key}.{name}", "")
            except (KeyError, ConfigError):
                dropped.append(f"{name}={plain(value)!r}")
        if dropped:
            old = str(before["class_path"]).rpartition(".")[2]
            self.notes.append(f"{key}: {found.name} replaces {old}; dropped {', '.join(dropped)}")
        return carried

    def _resolve(
        self, bases: Sequence[type], written: Any, key: str, where: str
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
            raise invalid(shown, name, f"a class of {_listed(TRUSTED)}", hint)
        home = path.rpartition(".")[0]
        real = real_path(path)
        found = signatures.signature(real)
        if found is None and ("." not in name or home in (*_SHORT_NAMES, "spanet_lightning")):
            accepts = f"one of {_listed(known_classes(bases))}"
            raise invalid(shown, name, accepts, _near_class(name, bases))
        if found is not None and not any(
            signatures.is_subclass(real, base.path) is not False  # type: ignore[attr-defined]
            for base in bases
        ):
            wanted = " or ".join(base.__name__ for base in bases)
            names = _listed(known_classes(bases))
            raise invalid(shown, name, f"a subclass of {wanted}, such as {names}")
        return path, found

    def _leaf(self, hint: Any, value: Any, key: str, where: str) -> Any:
        for candidate in _readings(value):
            fits, typed = _fit(hint, candidate)
            if fits:
                return typed
        if isinstance(value, list):
            # Each item by its own type: text where a text is expected. Name the one that is wrong.
            for item_hint in (inner for h in _members(hint) for inner in _item_hints(h)):
                typed = [
                    self._leaf(item_hint, v, f"{key}[{i}]", where) for i, v in enumerate(value)
                ]
                fits, typed = _fit(hint, typed)
                if fits:
                    return typed
        got = plain(value)
        choices = [choice for choice in _literals(hint) if isinstance(choice, str)]
        near = did_you_mean(got, choices) if isinstance(got, str) else ""
        raise invalid(_at(key, where), got, accepted(hint), near)


def check_call(cls: type, arguments: Mapping[str, Any]) -> None:
    """Check the names of the arguments that Python code passes to a class.

    Args:
        cls: The class.
        arguments: The keyword arguments.

    Raises:
        ConfigError: For one that it does not take, as the command line says it.
    """
    found = signatures.signature(f"{cls.__module__}.{cls.__qualname__}")
    if found is None or found.open:
        return
    for name, value in arguments.items():
        if name not in found.parameters:
            near = did_you_mean(name, found.parameters)
            hint = near or f"; accepted: {_listed(found.parameters)}"
            text = f"{name}: got {value!r}, but there is no such key of {found.name}{hint}"
            raise ConfigError(text)


# -- classes


def known_classes(bases: Iterable[type]) -> list[str]:
    """Return the classes to suggest for a type: the project's own, or else Lightning's."""
    paths = [base.path for base in bases]  # type: ignore[attr-defined]
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
    for module in _SHORT_NAMES:
        if signatures.signature(f"{module}.{name}") is not None:
            return f"{module}.{name}"
    return name


def real_path(path: str) -> str:
    """Return where the class is that a configuration names, with or without its package."""
    package, _, name = (path if "." in path else _full_path(path)).rpartition(".")
    if package == "spanet_lightning" and name in spanet_lightning.LAZY:
        package = spanet_lightning.LAZY[name]
    return f"{package}.{name}"


def classes_in(hint: Any) -> list[type]:
    """Return the classes with arguments in a type, also those of the items of its lists."""
    inner = [found for item in get_args(hint) for found in classes_in(item)]
    return [hint] if isinstance(hint, type) and issubclass(hint, Configurable | Group) else inner


def _near_class(name: str, bases: Iterable[type]) -> str:
    """Suggest a class whose own name, whatever the package, is near."""
    known = {path.rpartition(".")[2]: path for path in known_classes(bases)}
    near = get_close_matches(name.rpartition(".")[2], known, n=1)
    return f"; did you mean {known[near[0]]!r}?" if near else ""


def _paths(parameters: Mapping[str, Parameter], name: str) -> Iterator[str]:
    """Yield where a key of that name is, in the groups below."""
    for key, parameter in parameters.items():
        for hint in _members(parameter.hint):
            if isinstance(hint, type) and issubclass(hint, Group):
                found = signatures.signature(hint.path)
                if found is not None and name in found.parameters:
                    yield f"{key}.{name}"


def _further(given: Any) -> dict[str, Any]:
    return {"dict_kwargs": plain(given)} if given else {}


# -- values


def _is_config(text: str) -> bool:
    return text.endswith((".yaml", ".yml", ".json")) and Path(text).is_file()


def _readings(value: Any) -> Iterator[Any]:
    """Yield what a value may mean, the likeliest first."""
    yield plain(value)
    if isinstance(value, Text):
        yield str(value)
    if isinstance(value, Tree) and value.text is not None:
        yield value.text


def _fit(hint: Any, value: Any) -> tuple[bool, Any]:
    """Return whether jsonargparse takes a value for a type, and the value as it takes it."""
    if value is None:
        return type(None) in _members(hint), None
    members = [h for h in _members(hint) if not _names_class(h)]
    if not members:
        return False, None
    if Any in members:
        return True, value
    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_argument("--value", type=Union[tuple(members)])  # noqa: UP007
        parser.parse_object({"value": value})
    except ArgumentError:
        return False, None
    except ValueError:  # a type that jsonargparse does not support alone
        return True, value
    return True, value


def _names_class(hint: Any) -> bool:
    if isinstance(hint, type):
        return issubclass(hint, Configurable | Group)
    return any(_names_class(inner) for inner in get_args(hint))


def _members(hint: Any) -> list[Any]:
    if get_origin(hint) in (Union, types.UnionType):
        return [inner for member in get_args(hint) for inner in _members(member)]
    return [hint]


def _item_hints(hint: Any) -> list[Any]:
    """Return the type of the items, where a type is a list of one type."""
    origin, args = get_origin(hint), get_args(hint)
    is_list = isinstance(origin, type) and issubclass(origin, Collection)
    if is_list and not issubclass(origin, Mapping) and (len(args) == 1 or args[1:] == (...,)):
        return [args[0]]
    return [args[0]] if str(origin) == "<class 'collections.abc.Iterable'>" else []


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
    if isinstance(hint, type) and issubclass(hint, Group):
        return "keys and values"
    if isinstance(hint, type):
        known = issubclass(hint, Configurable)
        return f"a class_path of {hint.__name__}" if known else hint.__name__
    return str(hint).replace("typing.", "")


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


def _join(parent: str, name: str) -> str:
    return f"{parent}.{name}" if parent else name


def _at(key: str, where: str) -> str:
    return f"{where}: {key}" if where else key
