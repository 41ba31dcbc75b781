"""Overrides of the experiment in the YAML of a study: their keys, values and labels."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from spanet_lightning.errors import ConfigError, invalid
from spanet_lightning.sweep.reading import OVERRIDE, Section, items, mapping, named, place
from spanet_lightning.sweep.sources import Node

_RESERVED = {
    "seed_everything": "ablation.seeds or search.train_seed say the seeds",
    "name": "the sweep names each run",
    "ckpt_path": "the sweep resumes each trial by itself",
    "resume": "the sweep resumes each trial by itself",
    "config": "configurations stand under 'config'",
    "trainer.default_root_dir": "the sweep gives each trial its folder",
}


def overrides_of(section: Section, where: dict[str, str], name: str) -> dict[str, Any]:
    """Return what `set` says, by dotted key; where it stands goes to `where` under `name`/KEY."""
    if not section.has("set"):
        return {}
    found: dict[str, Any] = {}

    def add(children: Mapping[str, Node], outer: str) -> None:
        for written, child in children.items():
            at = place(child.where, f"{section.key('set')}.{outer}{written}")
            key = override_key(f"{outer}{written}", at)
            # {trainer: {max_epochs: 8}} is trainer.max_epochs; a class with its arguments is one
            # value.
            if isinstance(child.value, dict) and child.value and not child.is_class:
                add(child.value, f"{outer}{written}.")
                continue
            if key in found:
                raise ConfigError(f"{at}: {key} is set twice; expected each key once")
            found[key] = plain_value(child, at)
            where[f"{name}/{key}"] = child.where

    accepted = "overrides of the experiment by dotted key ({trainer.max_epochs: 8})"
    node = section.children["set"]
    add(mapping(node, section.key("set"), accepted), "")
    return found


def override_key(written: str, at: str) -> str:
    """Return a key as the command line spells it, without `init_args`."""
    key = re.sub(r"\.(init_args|class_path)(?=\.|$)", "", written.removeprefix("--"))
    if not OVERRIDE.fullmatch(key):
        raise invalid(at, written, "a dotted key of the experiment, such as model.backbone.srf")
    if key in _RESERVED:
        raise ConfigError(f"{at}: is not for a study to set: {_RESERVED[key]}")
    return key


def plain_value(node: Node, at: str) -> Any:
    """Return a plain value that a command line can carry."""
    value = node.plain()
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        raise invalid(at, value, "a finite number") from None
    return value


def labelled(node: Node, name: str) -> dict[str, Any]:
    """Return values by label: a mapping as it is, a list by what its values look like."""
    if isinstance(node.value, dict):
        children = list(node.value.items())
    else:
        accepted = "values by label ({small: [3, 5]}), or a list"
        children = [(label_of(item.plain()), item) for item in items(node, name, accepted)]
    found: dict[str, Any] = {}
    for label, child in children:
        at = place(child.where, name)
        named(label, at, "a value")
        value = plain_value(child, at)
        for other, known in found.items():
            if label == other or (known == value and type(known) is type(value)):
                raise ConfigError(f"{at}: {label!r} is the same value as {other!r}")
        found[label] = value
    if not found:
        raise invalid(place(node.where, name), {}, "at least one value")
    return found


def label_of(value: Any) -> str:
    """Return the name of a value that was given none: itself, or what JSON makes of it."""
    return value if isinstance(value, str) else json.dumps(value)
