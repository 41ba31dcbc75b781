"""Configurations as they are written: YAML files, by path or by name, and `--key value` pairs.

A plain scalar stays text until the type of its key says what it means: `007`, `off` or `12:30:45`
are a name where a name is expected. jsonargparse then gets one typed configuration to parse.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from spanet_lightning.errors import ConfigError, did_you_mean

CONFIG_OPTIONS = ("-c", "--config")

_TAGS = {
    f"tag:yaml.org,2002:{name}"
    for name in ("map", "seq", "str", "int", "float", "bool", "null", "merge", "value", "timestamp")
}
_MOST_VALUES = 20_000
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
    """A mapping; merged ones hold the arguments of a class beside its `class_path`.

    Attributes:
        where: "FILE:LINE" of each key that a file sets.
        replaced: The class that was configured here before, where another has taken its place.
        inherited: Keys that were set for that class.
        text: How the command line spells the whole mapping.
    """

    def __init__(self, items: Any = (), where: dict[str, str] | None = None) -> None:
        super().__init__(items)
        self.where = where or {}
        self.replaced = ""
        self.inherited: set[str] = set()
        self.text: str | None = None


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
        node = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: {path} can't be read as text ({error})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ConfigError(f"{path}{line}: not valid YAML: {problem}") from None
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply, expected keys and values") from None
    if node is not None and not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path}: expected keys and values, as in 'trainer: {{max_epochs: 1}}'")
    tree: Tree = Tree() if node is None else _Converter(path).convert(node)
    return tree


class _Converter:
    """Turns PyYAML's nodes into trees; refuses all but plain values.

    Args:
        path: The file; "" for the command line.
    """

    def __init__(self, path: str = "") -> None:
        self.path = path
        self.open: set[int] = set()
        self.count = 0

    def convert(self, node: yaml.Node) -> Any:
        self.count += 1  # an alias counts each time that it is used
        if self.count > _MOST_VALUES:
            raise self._error(node, f"its aliases stand for more than {_MOST_VALUES} values")
        if node.tag not in _TAGS:
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            raise self._error(node, f"the tag {tag} is refused; expected plain YAML values")
        if isinstance(node, yaml.ScalarNode):
            if node.style is None:
                return Text(node.value) if node.value else None
            return node.value
        if id(node) in self.open:
            raise self._error(node, "the value contains itself (an anchor inside its alias)")
        self.open.add(id(node))
        sequence = isinstance(node, yaml.SequenceNode)
        value = [self.convert(item) for item in node.value] if sequence else self._mapping(node)
        self.open.discard(id(node))
        return value

    def _mapping(self, node: yaml.Node) -> Tree:
        tree, merged = Tree(), Tree()
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._error(key_node, "a key must be a text, not a list or a mapping")
            key, value = str(key_node.value), self.convert(value_node)
            if key_node.tag == "tag:yaml.org,2002:merge":
                for parent in value if isinstance(value, list) else [value]:
                    if not isinstance(parent, Tree):
                        raise self._error(key_node, "'<<' merges mappings only")
                    merged.update({k: v for k, v in parent.items() if k not in merged})
                    merged.where = {**parent.where, **merged.where}
                continue
            if key in tree:
                line = tree.where.get(key, "").rpartition(":")[2]
                first = f" (first in line {line})" if line else ""
                raise self._error(key_node, f"{key}: given twice in one mapping{first}")
            tree[key] = value
            if self.path:
                tree.where[key] = f"{self.path}:{key_node.start_mark.line + 1}"
        return Tree({**merged, **tree}, {**merged.where, **tree.where})

    def _error(self, node: yaml.Node, text: str) -> ConfigError:
        place = f"{self.path}:{node.start_mark.line + 1}" if self.path else "command line"
        return ConfigError(f"{place}: {text}")


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


def collect(
    args: Sequence[str], defaults: Tree, check: Callable[[Tree], object] = lambda _: None
) -> Tree:
    """Merge the files and keys of a command line, later ones winning.

    Args:
        args: What follows the subcommand.
        defaults: What they are merged into.
        check: Is called after each file, with what is configured so far.

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
            root = merge(root, Tree({k: v for k, v in layer.items() if "." not in k}, layer.where))
            for key in filter(lambda key: "." in key, layer):
                root = merge(root, _nested(key, layer[key], layer.where[key]))
            check(root)
        elif name.startswith("--"):
            root = merge(root, _nested(name.removeprefix("--"), parse(text)))
        else:
            raise ConfigError(f"unrecognized arguments: {name}; a key begins with --")
    return root


def parse(text: str) -> Any:
    """Return a value of the command line: a list or a mapping, where it is written as one."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError):
        return Text(text)
    if node is None or (isinstance(node, yaml.ScalarNode) and node.style is None):
        return Text(text)
    value = _Converter().convert(node)
    if isinstance(value, Tree):
        value.text = text
    return value


def _nested(key: str, value: Any, where: str = "") -> Tree:
    """Return the tree that sets a dotted key, in which `init_args` may be left out."""
    for name in reversed([part for part in key.split(".") if part != "init_args"]):
        value = Tree({name: value}, {name: where})
    tree: Tree = value
    return tree


def merge(base: Any, new: Any, where: str = "") -> Any:
    """Return `base` overlaid by `new`: mappings key by key, anything else as a whole.

    Keys that are set for the last item of a list, as `--trainer.callbacks.patience` is, go there. A
    class that takes the place of another inherits what was set for that.

    Args:
        base: What is there.
        new: What is set.
        where: "FILE:LINE" that sets it.
    """
    if isinstance(new, list):
        return [merge(None, item) for item in new]
    if isinstance(base, list) and base and isinstance(new, Tree) and "class_path" not in new:
        return [*base[:-1], merge(base[-1], new)]
    if isinstance(base, Tree) and "class_path" in base and isinstance(plain(new), str):
        new = Tree({"class_path": new}, {"class_path": where})
    if not isinstance(new, Tree):
        return new
    if isinstance(plain(base), str):  # a class by its name alone
        base = Tree({"class_path": base})
    new, base = _flat(new), base if isinstance(base, Tree) else Tree()
    before, after = (str(tree.get("class_path", "")).rpartition(".")[2] for tree in (base, new))
    replaces = bool(before and after and before != after)
    joined = Tree(base, {**base.where, **new.where})
    joined.text = None if base else new.text
    joined.replaced = before if replaces else base.replaced
    joined.inherited = (set(base) if replaces else base.inherited) - set(new)
    for key, child in new.items():
        name = key.removesuffix("+")
        old = None if replaces else joined.get(name)
        if key != name:
            joined[name] = [*as_list(old), *as_list(merge(None, child))]
            joined.where[name] = new.where.get(key, "")
        else:
            joined[key] = merge(old, child, new.where.get(key, ""))
    return joined


def _flat(tree: Tree) -> Tree:
    """Return a mapping with the arguments of its class beside the `class_path`."""
    arguments = tree.get("init_args")
    if "init_args" not in tree or not isinstance(arguments, Tree | None):
        return tree
    found = Tree({k: v for k, v in tree.items() if k != "init_args"}, dict(tree.where))
    if arguments is not None:
        found.update(arguments)
        found.where.update(arguments.where)
    return found


def as_list(value: Any) -> list[Any]:
    """Return the items that a value of a list stands for: several, one, or none."""
    return list(value) if isinstance(value, list) else [] if value is None else [value]
