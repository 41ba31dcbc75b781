"""Configurations as they are written: YAML files, by path or by name, and `--key value` pairs.

A plain scalar stays text until the type of its key says what it means: `007`, `off` or `12:30:45`
are a name where a name is expected. jsonargparse then gets one typed configuration to parse.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from spanet_lightning.errors import ConfigError, did_you_mean

CONFIG_OPTIONS = ("-c", "--config")
SPEC_KEYS = ("class_path", "init_args", "dict_kwargs")
"""How a class is written with its arguments."""

_TAGS = {
    f"tag:yaml.org,2002:{name}"
    for name in (
        *("map", "seq", "str", "int", "float", "bool", "null", "merge", "value", "timestamp"),
    )
}
_MOST_VALUES = 100_000
# YAML 1.1 reads these as numbers, in base 8 and 60: nobody who writes them means that.
_TEXT = re.compile(r"[-+]?0\d[\d_]*|[-+]?\d[\d_]*(:[0-5]?\d)+(\.\d*)?")


class Text(str):
    """A scalar without quotes."""

    __slots__ = ()

    def value(self) -> Any:
        """Return what YAML takes it for."""
        if _TEXT.fullmatch(self) or not self.strip():
            return str(self)
        try:
            return get_loader("yaml")(str(self))
        except yaml.YAMLError:
            return str(self)


class Tree(dict[str, Any]):
    """A mapping.

    Attributes:
        where: "FILE:LINE" of each key that a file sets.
        loose: Whether a class's own arguments may be among the keys, as on the command line, where
            `--model.backbone.srf` leaves out every `init_args`.
        replaced: The class that was configured here before, as it was written.
        overridden: Key, value and place of what a later layer overrides: it is to be right, too.
        text: How the command line spells the whole mapping.
    """

    def __init__(self, items: Any = (), *, loose: bool = False, text: str | None = None) -> None:
        super().__init__(items)
        self.where: dict[str, str] = {}
        self.loose = loose
        self.replaced: Tree | None = None
        self.overridden: list[tuple[str, Any, str]] = []
        self.text = text

    @property
    def is_class(self) -> bool:
        """Whether this is a class with arguments."""
        return "class_path" in self or "init_args" in self


def plain(value: Any) -> Any:
    """Return a value as YAML means it."""
    if isinstance(value, Text):
        return value.value()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


# -- files


def packaged(kind: str = "configs") -> Path:
    """Return the folder of the configurations or studies that come with the package.

    Args:
        kind: "configs" or "sweeps".
    """
    package = Path(__file__).resolve().parents[1]
    inside = package / kind
    return inside if inside.is_dir() else package.parent / kind


def find(name: str, kind: str = "configs") -> Path:
    """Return the file that a name stands for: one of that path, or else one that is packaged.

    Args:
        name: A path, or `digits/spanetv2` for a packaged file.
        kind: "configs" or "sweeps".
    """
    path = Path(name)
    if path.exists() or path.is_absolute() or ".." in path.parts:
        return path
    short = Path(*path.parts[1:]) if path.parts[:1] == (kind,) else path
    for candidate in (packaged(kind) / short, packaged(kind) / f"{short}.yaml"):
        if candidate.is_file():
            return candidate
    return path


def names(kind: str = "configs") -> list[str]:
    """Return the names of all packaged files."""
    folder = packaged(kind)
    return sorted(p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.yaml"))


def read(name: str, where: str = "--config", kind: str = "configs") -> Tree:
    """Read a YAML or JSON file.

    Args:
        name: Its path, or the name of a packaged one.
        where: The option or key that names it, for the error.
        kind: "configs" or "sweeps".

    Raises:
        ConfigError: If it is not there, not readable, not valid, or holds no mapping.
    """
    file = find(name, kind)
    if not file.is_file():
        problem = "is a folder" if file.is_dir() else "does not exist"
        near = [str(path) for path in sorted(file.parent.glob("*.y*ml"))]
        hint = did_you_mean(name, near) or did_you_mean(name.removesuffix(".yaml"), names(kind))
        raise ConfigError(f"{where}: got {name!r}, which {problem}; expected a YAML file{hint}")
    path = name if Path(name) == file else str(file)
    try:
        composed = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: {path} can't be read as text ({error})") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply, expected keys and values") from None
    if composed is None:
        return Tree()
    if not isinstance(composed, yaml.MappingNode):
        raise ConfigError(f"{path}: expected keys and values, as in 'trainer: {{max_epochs: 1}}'")
    tree: Tree = _Converter(path).convert(composed)
    return tree


class _Converter:
    """Turns PyYAML's nodes into trees, and refuses what is no plain value.

    Args:
        path: The file, for errors; "" for the command line.
    """

    def __init__(self, path: str = "") -> None:
        self.path = path
        self.open: set[int] = set()
        self.count = 0

    def convert(self, node: yaml.Node) -> Any:
        where = f"{self.path}:{node.start_mark.line + 1}"
        self.count += 1  # an alias counts each time that it is used
        if self.count > _MOST_VALUES:
            raise ConfigError(f"{where}: its aliases stand for more than {_MOST_VALUES} values")
        if node.tag not in _TAGS:
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            raise ConfigError(f"{where}: the tag {tag} is refused; expected plain YAML values")
        if isinstance(node, yaml.ScalarNode):
            if node.style is None and not node.value:
                return None
            return node.value if node.style else Text(node.value)
        if id(node) in self.open:
            raise ConfigError(f"{where}: the value contains itself (an anchor inside its alias)")
        self.open.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            found: Any = [self.convert(item) for item in node.value]
        else:
            found = self._mapping(node)
        self.open.discard(id(node))
        return found

    def _mapping(self, node: yaml.Node) -> Tree:
        tree, merged = Tree(), Tree()
        for key_node, value_node in node.value:
            where = f"{self.path}:{key_node.start_mark.line + 1}"
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(f"{where}: a key must be a text, not a list or a mapping")
            key, value = str(key_node.value), self.convert(value_node)
            if key_node.tag == "tag:yaml.org,2002:merge":
                for parent in value if isinstance(value, list) else [value]:
                    if not isinstance(parent, Tree):
                        raise ConfigError(f"{where}: '<<' merges mappings only")
                    merged.update({k: v for k, v in parent.items() if k not in merged})
                    merged.where = {**parent.where, **merged.where}
                continue
            if key in tree:
                first = tree.where[key].rpartition(":")[2]
                text = f"{where}: {key}: given twice in one mapping (first in line {first})"
                raise ConfigError(text)
            tree[key], tree.where[key] = value, where
        for key in merged.keys() - tree.keys():
            tree[key], tree.where[key] = merged[key], merged.where.get(key, "")
        return tree


# -- the command line


def options(args: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Yield (option, value) of a command line, in order; the value is None where none follows.

    Raises:
        ConfigError: If a value stands alone.
    """
    rest = list(args)
    while rest:
        item = rest.pop(0)
        if not item.startswith("-"):
            raise ConfigError(f"unrecognized arguments: {item}; a key begins with --")
        name, equals, value = item.partition("=")
        if equals:
            yield name, value
        elif rest and not rest[0].startswith("--") and rest[0] not in ("-c", "-h"):
            yield name, rest.pop(0)
        else:
            yield name, None


def collect(args: Sequence[str], defaults: Tree) -> Tree:
    """Merge the files and keys of a command line, later ones winning.

    Args:
        args: What follows the subcommand.
        defaults: What they are merged into.

    Raises:
        ConfigError: If a file can't be read, or an option has no value.
    """
    root = defaults
    for name, text in options(args):
        if name.startswith("--print_"):
            continue
        if text is None:
            if name in CONFIG_OPTIONS:
                raise ConfigError(f"{name}: is given without a value; expected a YAML file")
            raise ConfigError(f"{name}: expected one argument")
        if name in CONFIG_OPTIONS:
            layer = read(text)
            dotted = [key for key in layer if "." in key]
            root = merge(root, Tree({k: v for k, v in layer.items() if k not in dotted}), layer)
            for key in dotted:
                put(root, key.split("."), layer[key], layer.where[key])
        elif name.startswith("--"):
            put(root, name.removeprefix("--").split("."), _typed(text))
        else:
            raise ConfigError(f"unrecognized arguments: {name}; a key begins with --")
    return root


def _typed(text: str) -> Any:
    """Return a value of the command line: a list or a mapping, where it is written as one."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError):
        return Text(text)
    if node is None or isinstance(node, yaml.ScalarNode):
        quoted = isinstance(node, yaml.ScalarNode) and node.style
        return node.value if quoted and node is not None else Text(text)
    value = _Converter("command line").convert(node)
    if isinstance(value, Tree):
        _forget(value)
        value.text = text
    return value


def _forget(value: Any) -> None:
    """Drop the places of values that no file sets."""
    for item in value.values() if isinstance(value, Tree) else value:
        if isinstance(item, Tree | list):
            _forget(item)
    if isinstance(value, Tree):
        value.where.clear()


def merge(base: Any, new: Any, source: Tree | None = None) -> Any:
    """Return `base` overlaid by `new`: mappings key by key, anything else as a whole.

    Args:
        base: What is there.
        new: What is set.
        source: Where the places of the keys of `new` are; itself by default.
    """
    if isinstance(base, Tree) and "class_path" in base and isinstance(plain(new), str):
        new = Tree({"class_path": new})
    if isinstance(base, str) and isinstance(new, Tree) and (new.loose or "init_args" in new):
        base = Tree({"class_path": base})
    if not isinstance(base, Tree) or not isinstance(new, Tree):
        return new
    if "class_path" in new and "class_path" in base:
        before, after = (str(tree["class_path"]).rpartition(".")[2] for tree in (base, new))
        if before != after:
            new.replaced = base
            return new
    where = (source or new).where
    if base.loose and new.is_class and not base.is_class:  # arguments before their class
        base = Tree({"init_args": base}, loose=True)
    joined = Tree(base, loose=base.loose and new.loose)
    joined.where, joined.replaced = {**base.where, **where}, base.replaced
    joined.overridden = [*base.overridden, *new.overridden]
    for key, child in new.items():
        if key in base and not isinstance(base[key], Tree):
            joined.overridden.append((key, base[key], base.where.get(key, "")))
        name = key.removesuffix("+")
        if key != name:
            joined[name] = [*as_list(joined.get(name)), *as_list(child)]
            joined.where[name] = where.get(key, "")
        else:
            joined[key] = merge(joined[key], child) if key in joined else child
    return joined


def as_list(value: Any) -> list[Any]:
    """Return the items that a value of a list stands for: several, one, or none."""
    return list(value) if isinstance(value, list) else [] if value is None else [value]


def put(tree: Tree, parts: Sequence[str], value: Any, where: str = "") -> None:
    """Set the value of a key, in place.

    Args:
        tree: Where the key begins.
        parts: The key, split at its dots; `init_args` may be left out.
        value: What is set.
        where: File and line that set it.
    """
    first, *rest = parts
    if first == "init_args" and rest:
        put(tree, rest, value, where)
        return
    if tree.is_class and first not in SPEC_KEYS:
        arguments = tree.setdefault("init_args", Tree(loose=True))
        if isinstance(arguments, Tree):
            tree = arguments
    name = first.removesuffix("+")
    child = tree.get(name)
    if rest == ["class_path"]:
        rest = []
    if not rest:
        if name in tree and not isinstance(child, Tree | list):
            tree.overridden.append((name, child, tree.where.get(name, "")))
        tree.where[name] = where
        if name != first:
            tree[name] = [*as_list(child), *as_list(value)]
        else:
            tree[name] = merge(child, value) if child is not None else value
        return
    owner: Any = tree
    slot: Any = name
    if isinstance(child, list) and child:  # the arguments of the item that was added last
        tree[name] = owner = list(child)
        slot, child = len(owner) - 1, child[-1]
    if isinstance(plain(child), str):  # a class by its name alone
        child = Tree({"class_path": child})
    child = child if isinstance(child, Tree) else Tree(loose=True)
    owner[slot] = child
    put(child, rest, value, where)
