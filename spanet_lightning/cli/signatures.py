"""Signatures of classes, read from their source code: nothing is imported, so nothing is run.

Help, completion and the check of a configuration need to know which arguments a class takes, of
which types, long before torch has been imported, and for a class that may not be imported at all.
What can't be read for certain has the type `Any`, or makes the signature open: jsonargparse judges
it later.
"""

from __future__ import annotations

import ast
import builtins
import collections.abc
import datetime
import importlib.util
import pathlib
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

_STANDARD = {
    module.__name__: module for module in (builtins, collections.abc, datetime, pathlib, typing)
} | {"typing_extensions": typing}
_MOST_STEPS = 20  # imports that lead from a public name to its definition


class Configurable:
    """Stands for a class that a `class_path` builds; subclasses of it are made for hints."""

    path = ""


class Group:
    """Stands for a dataclass, whose fields are keys; subclasses of it are made for hints."""

    path = ""


@dataclass(frozen=True)
class Parameter:
    """An argument of a class.

    Attributes:
        hint: Its type; classes in it are subclasses of `Configurable` and `Group`.
        default: Source text of its default; None where it is required.
        help: What its docstring says.
    """

    hint: Any = Any
    default: str | None = None
    help: str = ""


@dataclass(frozen=True)
class Signature:
    """What a class takes.

    Attributes:
        path: Dotted path of its definition.
        summary: First paragraph of its docstring.
        parameters: Its arguments.
        open: Whether it takes arguments that it does not name.
    """

    path: str
    summary: str
    parameters: dict[str, Parameter]
    open: bool

    @property
    def name(self) -> str:
        """The class's own name."""
        return self.path.rpartition(".")[2]


@dataclass
class _Module:
    name: str
    package: str
    names: dict[str, ast.AST | tuple[str, str]] = field(default_factory=dict)


class _UnreadableError(Exception):
    """The source is not there, or does something that is not understood."""


def signature(path: str) -> Signature | None:
    """Return the signature of the class at a dotted path, or None where it can't be read."""
    try:
        module, node = _class(path)
    except _UnreadableError:
        return None
    return _signature(module.name, node.name)


def known(path: str) -> Signature:
    """Return the signature of a class whose source is there.

    Raises:
        LookupError: If it is not.
    """
    found = signature(path)
    if found is None:
        raise LookupError(path)
    return found


def function(path: str, name: str) -> dict[str, Parameter]:
    """Return the arguments of a method by name, of the class at a dotted path."""
    module, node = _class(path)
    method = next(n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == name)
    return dict(_arguments(module, method, {}))


def is_subclass(path: str, base: str) -> bool | None:
    """Whether a class inherits from another, by their dotted paths; None where that is unknown."""
    try:
        module, node = _class(path)
        wanted = _class(base)
    except _UnreadableError:
        return None
    if (module.name, node.name) == (wanted[0].name, wanted[1].name):
        return True
    answers = [is_subclass(parent, base) for parent in _bases(module, node)]
    return True if True in answers else None if None in answers else False


def exported(module: str) -> list[str]:
    """Return the public names of a module whose source can be read."""
    found = _read(module)
    return [] if found is None else [name for name in found.names if not name.startswith("_")]


# -- classes


@cache
def _signature(module_name: str, name: str) -> Signature:
    module, node = _class(f"{module_name}.{name}")
    text = ast.get_docstring(node) or ""
    group = any("dataclass" in ast.unparse(item) for item in node.decorator_list)
    bases = _bases(module, node)
    parents = [found for found in map(signature, bases) if found is not None]
    inherited = {k: v for parent in reversed(parents) for k, v in parent.parameters.items()}
    unread = len(parents) < len(bases)
    method = next(
        (n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None
    )
    if method is not None:
        helps = {**_helps(text), **_helps(ast.get_docstring(method) or "")}
        parameters = dict(_arguments(module, method, helps))
        passes_on = method.args.kwarg is not None
        parameters |= {k: v for k, v in inherited.items() if passes_on and k not in parameters}
        to_parent = re.search(r"super\(.*\)\.__init__\(.*\*\*", ast.unparse(method))
        is_open = passes_on and (unread or not to_parent or any(one.open for one in parents))
    elif group:
        helps = _helps(text)
        parameters = inherited | {
            item.target.id: Parameter(
                _hint(module, item.annotation),
                None if item.value is None else ast.unparse(item.value),
                helps.get(item.target.id, ""),
            )
            for item in node.body
            if isinstance(item, ast.AnnAssign)
            and isinstance(item.target, ast.Name)
            and not ast.unparse(item.annotation).startswith("ClassVar")
        }
        is_open = False
    else:
        first = parents[0] if parents else None
        parameters = dict(first.parameters) if first else {}
        is_open = unread if first is None else first.open
    summary = " ".join(text.split("\n\n")[0].split())
    return Signature(f"{module.name}.{node.name}", summary, parameters, is_open)


def _arguments(
    module: _Module, method: ast.FunctionDef, helps: dict[str, str]
) -> Iterator[tuple[str, Parameter]]:
    named = [*method.args.posonlyargs, *method.args.args]
    missing = [None] * (len(named) - len(method.args.defaults))
    defaults = [*missing, *method.args.defaults, *method.args.kw_defaults]
    for argument, default in zip([*named, *method.args.kwonlyargs], defaults, strict=True):
        if argument.arg == "self":
            continue
        text = None if default is None else ast.unparse(default)
        hint = Any if argument.annotation is None else _hint(module, argument.annotation)
        if text == "None" and hint is not Any:
            hint = hint | None
        yield argument.arg, Parameter(hint, text, helps.get(argument.arg, ""))


def _helps(docstring: str) -> dict[str, str]:
    """Return what a docstring in Google's style says of each argument."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", docstring, re.DOTALL | re.MULTILINE)
    items = re.split(r"^    (?=\w)", section[1] if section else "", flags=re.MULTILINE)
    pairs = (item.partition(":") for item in items if ":" in item)
    return {name.split("(")[0].strip("* "): " ".join(text.split()) for name, _, text in pairs}


def _class(path: str) -> tuple[_Module, ast.ClassDef]:
    """Follow imports from a public dotted path to where the class is defined."""
    module, node = _definition(path)
    if not isinstance(node, ast.ClassDef):
        raise _UnreadableError(path)
    return module, node


def _bases(module: _Module, node: ast.ClassDef) -> list[str]:
    """Return the dotted paths of the base classes, as far as they are plain names."""
    found = []
    for base in node.bases:
        try:
            path = _path_of(module, base.value if isinstance(base, ast.Subscript) else base)
        except _UnreadableError:
            path = ""  # that it is not known counts
        if path not in ("builtins.object", "abc.ABC", "typing.Generic", "typing.Protocol"):
            found.append(path)
    return found


# -- names


def _definition(path: str, steps: int = 0) -> tuple[_Module, ast.AST]:
    if steps > _MOST_STEPS:
        raise _UnreadableError(path)
    module_name, _, name = path.rpartition(".")
    module = _read(module_name) if module_name else None
    if module is None or name not in module.names:
        raise _UnreadableError(path)
    found = module.names[name]
    if isinstance(found, tuple):
        return _definition(".".join(found), steps + 1)
    if isinstance(found, ast.Name | ast.Attribute):  # an alias
        return _definition(_path_of(module, found), steps + 1)
    return module, found


def _path_of(module: _Module, node: ast.expr) -> str:
    """Return the dotted path that a name or attribute stands for."""
    if isinstance(node, ast.Name):
        found = module.names.get(node.id)
        if isinstance(found, tuple):
            return ".".join(part for part in found if part)
        if found is None and hasattr(builtins, node.id):
            return f"builtins.{node.id}"
        return f"{module.name}.{node.id}"
    if isinstance(node, ast.Attribute):
        return f"{_path_of(module, node.value)}.{node.attr}"
    raise _UnreadableError(ast.unparse(node))


@cache
def _read(name: str) -> _Module | None:
    """Return the names that a module defines or imports, without importing it."""
    file = _file(name)
    if file is None:
        return None
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return None
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    module = _Module(name, package)
    _collect(module, tree.body)
    return module


def _collect(module: _Module, body: list[ast.stmt]) -> None:
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            module.names[node.name] = node
        elif isinstance(node, ast.ImportFrom):
            up = module.package.split(".")[: None if node.level < 2 else 1 - node.level]
            source = [*(up if node.level else []), *([node.module] if node.module else [])]
            for item in node.names:
                names = exported(".".join(source)) if item.name == "*" else [item.name]
                for name in names:
                    module.names[item.asname or name] = (".".join(source), name)
        elif isinstance(node, ast.Import):
            for item in node.names:
                top = item.name if item.asname else item.name.partition(".")[0]
                module.names[item.asname or top] = ("", top)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            module.names[node.targets[0].id] = node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            module.names[node.target.id] = node.value
        elif isinstance(node, ast.If | ast.Try):
            _collect(module, node.orelse)
            _collect(module, node.body)


@cache
def _file(name: str) -> pathlib.Path | None:
    """Return the source file of a module; packages on the way to it are not imported."""
    top, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest and spec.origin:
        return pathlib.Path(spec.origin)
    for folder in spec.submodule_search_locations or ():
        path = pathlib.Path(folder, *rest)
        for file in (path / "__init__.py", path.with_suffix(".py")):
            if file.is_file():
                return file
    return None


# -- types


def _hint(module: _Module, node: ast.expr) -> Any:
    """Return the type that an annotation means; `Any` where that can't be said."""
    try:
        return _type(module, node)
    except (_UnreadableError, TypeError, RecursionError):
        return Any


def _type(module: _Module, node: ast.expr) -> Any:
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            return _type(module, ast.parse(node.value, mode="eval").body)
        return node.value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return typing.Union[_type(module, node.left), _type(module, node.right)]  # noqa: UP007
    if isinstance(node, ast.Subscript):
        outer = _type(module, node.value)
        items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if outer is typing.Literal:
            return typing.Literal[tuple(ast.literal_eval(item) for item in items)]
        if outer is typing.Annotated:
            return _type(module, items[0])
        inner = tuple(... if _is_dots(item) else _type(module, item) for item in items)
        return outer[inner if len(inner) > 1 else inner[0]]
    path = _path_of(module, node)
    owner, _, name = path.rpartition(".")
    if owner in _STANDARD:
        return getattr(_STANDARD[owner], name)
    home, found = _definition(path)
    if isinstance(found, ast.ClassDef):
        return _placeholder(home.name, found.name)
    return _type(home, typing.cast("ast.expr", found))


def _is_dots(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is ...


@cache
def _placeholder(module: str, name: str) -> Any:
    _, node = _class(f"{module}.{name}")
    if any("Enum" in ast.unparse(base) or "Tuple" in ast.unparse(base) for base in node.bases):
        return Any
    if module.partition(".")[0] == "torch" and not module.startswith(("torch.nn", "torch.optim")):
        return Any  # Tensor, device, dtype
    group = any("dataclass" in ast.unparse(item) for item in node.decorator_list)
    return type(name, (Group if group else Configurable,), {"path": f"{module}.{name}"})
