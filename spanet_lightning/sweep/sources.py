"""What a user wrote, value by value, with the place where each value stands.

jsonargparse merges files and command line into one configuration and forgets where a value came
from. An error that names the line needs that, so the files are read here a second time, into a tree
of `Node`s that is merged by the same rules. Nothing is imported or built here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from spanet_lightning.cli import config_files
from spanet_lightning.errors import ConfigError, did_you_mean

CONFIG_OPTIONS = ("-c", "--config")
SPEC_KEYS = ("class_path", "init_args", "dict_kwargs")
"""What a class with its arguments is written with."""

_SAFE_TAGS = {
    f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "str", "int", "float", "bool", "null")
}
# `<<` (merge) and `=` (value) are keys that YAML gives a meaning; dates stay text for jsonargparse.
_MOST_VALUES = 100_000
_SAFE_TAGS |= {f"tag:yaml.org,2002:{name}" for name in ("merge", "value", "timestamp")}


@dataclass
class Node:
    """One value of a configuration.

    Attributes:
        value: A scalar, a list of nodes, or a mapping of names to nodes.
        where: "FILE:LINE", or "" for the command line.
        text: How the command line spelled it: `5` is a number there unless a text is expected.
        loose: Whether the keys of the mapping may be the class's own arguments, as on the command
            line, where `--model.backbone.srf` leaves out every `init_args`.
        complete: Whether all arguments of a class are here; false where those of an earlier class,
            left out here, may still apply.
    """

    value: Any
    where: str = ""
    text: str | None = None
    loose: bool = field(default=False, kw_only=True)
    complete: bool = field(default=True, kw_only=True)

    @property
    def is_class(self) -> bool:
        """Whether this is written as a class with arguments."""
        return isinstance(self.value, dict) and bool(
            {"class_path", "init_args"} & self.value.keys()
        )

    def plain(self) -> Any:
        """Return the value without places."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value


def read(path: str, where: str = "--config") -> Node:
    """Read a YAML or JSON file into nodes.

    Args:
        path: The file.
        where: The option or key that names it, for the error.

    Raises:
        ConfigError: If it is not there, not readable, not valid, or holds no mapping.
    """
    file = config_files.find(path)
    if not file.is_file():
        problem = "is a folder" if file.is_dir() else "does not exist"
        raise ConfigError(
            f"{where}: got {path!r}, which {problem}; expected a YAML file{_nearest_file(file)}"
        )
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: {path} can't be read as text ({error})") from None
    try:
        composed = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply, expected keys and values") from None
    if composed is None:
        return Node({}, path)
    if not isinstance(composed, yaml.MappingNode):
        raise ConfigError(f"{path}: expected keys and values, as in 'trainer: {{max_epochs: 1}}'")
    return _Converter(path).convert(composed)


class _Converter:
    """Turns PyYAML's nodes into ours. Anchored values are converted once and shared."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.scalar = get_loader("yaml")  # jsonargparse's own reading of `1e-3` and the like
        self.done: dict[int, Node | None] = {}
        self.sizes: dict[int, int] = {}  # values below each, as often as its alias is used

    def convert(self, source: yaml.Node) -> Node:
        where = f"{self.path}:{source.start_mark.line + 1}"
        if source.tag not in _SAFE_TAGS:
            tag = source.tag.replace("tag:yaml.org,2002:", "!!")
            raise ConfigError(f"{where}: the tag {tag} is refused; expected plain YAML values")
        if id(source) in self.done:
            shared = self.done[id(source)]
            if shared is None:
                raise ConfigError(
                    f"{where}: the value contains itself (an anchor inside its alias)"
                )
            return shared
        self.done[id(source)] = None
        node = Node(self._value(source, where), where)
        self.sizes[id(source)] = size = 1 + sum(self.sizes[id(child)] for child in _below(source))
        if size > _MOST_VALUES:
            raise ConfigError(f"{where}: its aliases stand for more than {_MOST_VALUES} values")
        self.done[id(source)] = node
        return node

    def _value(self, source: yaml.Node, where: str) -> Any:
        if isinstance(source, yaml.SequenceNode):
            return [self.convert(item) for item in source.value]
        if isinstance(source, yaml.MappingNode):
            return self._mapping(source)
        if not isinstance(source, yaml.ScalarNode):
            raise ConfigError(f"{where}: expected a value")
        return (
            self.scalar(source.value)
            if source.style is None and source.value
            else (source.value if source.style else None)
        )

    def _mapping(self, source: yaml.MappingNode) -> dict[str, Node]:
        merged: dict[str, Node] = {}
        own: dict[str, Node] = {}
        for key_node, value_node in source.value:
            where = f"{self.path}:{key_node.start_mark.line + 1}"
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(f"{where}: a key must be a text, not a list or a mapping")
            child = self.convert(value_node)
            if key_node.tag == "tag:yaml.org,2002:merge":
                for parent in child.value if isinstance(child.value, list) else [child]:
                    if not isinstance(parent.value, dict):
                        raise ConfigError(f"{where}: '<<' merges mappings only")
                    merged = {**parent.value, **merged}
                continue
            key = str(key_node.value)
            if key in own:
                first = own[key].where.rpartition(":")[2]
                raise ConfigError(
                    f"{where}: {key}: given twice in one mapping (first in line {first})"
                )
            # The line of the key, not of a block that begins below it.
            own[key] = Node(child.value, where)
        return {**merged, **own}


def _below(source: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(source, yaml.MappingNode):
        yield from (value for _, value in source.value)
    elif isinstance(source, yaml.SequenceNode):
        yield from source.value


def merge(base: Node, new: Node) -> Node:
    """Return `base` overlaid by `new`: mappings key by key, anything else as a whole.

    Where `new` names another class, the earlier arguments were meant for the earlier class: they
    are left out here. jsonargparse keeps those that both classes accept, and checks them itself.
    """
    if base.is_class and isinstance(new.value, str):
        new = Node({"class_path": Node(new.value, new.where)}, new.where)
    if not isinstance(base.value, dict) or not isinstance(new.value, dict):
        return new
    if "class_path" in new.value and "class_path" in base.value:
        before, after = base.value["class_path"].value, new.value["class_path"].value
        if str(before).rpartition(".")[2] != str(after).rpartition(".")[2]:
            return replace(new, complete=False)
    joined = dict(base.value)
    for key, child in new.value.items():
        if key.endswith("+") and key in joined:  # each file adds to the list
            joined[key] = replace(child, value=[*items(joined[key]), *items(child)])
        else:
            joined[key] = merge(joined[key], child) if key in joined else child
    return Node(joined, new.where, loose=base.loose and new.loose, complete=base.complete)


def items(node: Node) -> list[Node]:
    """Return what `key+` adds to a list: several items, or a single one."""
    return node.value if isinstance(node.value, list) else [node]


def put(node: Node, parts: Sequence[str], value: Node) -> Node:
    """Return `node` with a value at a key of the command line, which leaves out every `init_args`.

    Args:
        node: Where the key begins.
        parts: The key, split at its dots.
        value: What is set.
    """
    if isinstance(node.value, str):  # a class by its name alone
        node = Node({"class_path": Node(node.value, node.where)}, node.where)
    children = dict(node.value) if isinstance(node.value, dict) else {}
    first, *rest = parts
    if node.is_class and first not in SPEC_KEYS:
        first, rest = "init_args", list(parts)
    if rest and f"{first}+" in children:  # arguments of the class that was added last
        first = f"{first}+"
    child = children.get(first)
    if rest and child is not None and isinstance(child.value, list) and child.value:
        *before, last = child.value
        children[first] = replace(child, value=[*before, put(last, rest, value)])
    elif rest:
        children[first] = put(child or Node({}, loose=True), rest, value)
    elif first.endswith("+"):
        children[first] = replace(value, value=[*(items(child) if child else []), *items(value)])
    else:
        children.pop(f"{first}+", None)  # what was added before is replaced as well
        children[first] = merge(child, value) if child else value
    return replace(node, value=children, loose=node.loose or not isinstance(node.value, dict))


def options(args: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Yield (option, value) of a command line, in order; the value is None where none follows."""
    rest = list(args)
    while rest:
        item = rest.pop(0)
        if not item.startswith("-"):
            continue
        name, equals, value = item.partition("=")
        if equals:
            yield name, value
        elif rest and not rest[0].startswith("--") and rest[0] not in ("-c", "-h"):
            yield name, rest.pop(0)
        else:
            yield name, None


def collect(args: Sequence[str]) -> Node:
    """Merge the files and overrides of a command line, later ones winning, into one tree.

    Args:
        args: What follows the subcommand.

    Raises:
        ConfigError: If a file can't be read.
    """
    root = Node({})
    load = get_loader("yaml")
    for name, text in options(args):
        if name in CONFIG_OPTIONS:
            if text is None:
                raise ConfigError(f"{name}: is given without a value; expected a YAML file")
            root = merge(root, read(text))
            continue
        if text is None or not name.startswith("--"):
            continue
        key = name.removeprefix("--")
        if key.startswith("print_") or not key:
            continue
        try:
            value = load(text)
        except yaml.YAMLError:
            value = text
        root = put(root, key.split("."), _plain_node(value, text))
    return root


def _plain_node(value: Any, text: str | None = None) -> Node:
    if isinstance(value, dict):
        return Node({str(key): _plain_node(child) for key, child in value.items()})
    if isinstance(value, list):
        return Node([_plain_node(child) for child in value], text=text)
    return Node(value, text=text)


def _nearest_file(path: Path) -> str:
    """Suggest a file beside `path`, or below `configs/`, whose name is near."""
    nearby = [
        str(candidate)
        for folder, pattern in ((path.parent, "*.y*ml"), (Path("configs"), "**/*.y*ml"))
        if folder.is_dir()
        for candidate in sorted(folder.glob(pattern))
    ]
    return did_you_mean(path, nearby)
