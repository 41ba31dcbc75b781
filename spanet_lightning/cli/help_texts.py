"""Help texts of `lightning`, made from source code: they take no import of torch."""

from __future__ import annotations

import argparse
import glob
import re
import shutil
import types
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from spanet_lightning import LAZY
from spanet_lightning import __all__ as public
from spanet_lightning.cli import check, config_files, options, signatures
from spanet_lightning.cli.signatures import Configurable, Group, Parameter
from spanet_lightning.errors import ConfigError, invalid_choice
from spanet_lightning.launcher import lightning_command
from spanet_lightning.trust import is_trusted

_BACKBONES = ("SPANet", "SPANetV2")
_MODEL = "--model TASK --model.backbone BACKBONE --model.head HEAD --model.KEY VALUE"
_TASKS = {
    "ClassificationTask": "data ImageClassificationDataModule, DigitsDataModule",
    "DetectionTask": "heads RetinaNet, FasterRCNN, MaskRCNN, CascadeMaskRCNN; "
    "data CocoDataModule, DigitScenesDataModule",
    "SegmentationTask": "heads SemanticFPN, UPerNet; "
    "data SegmentationFoldersDataModule, DigitScenesDataModule",
}
"""The tasks with their heads and data modules."""
_COMMON = {
    "checkpoint": "monitor mode save_top_k every_n_train_steps train_time_interval",
    "trainer": "max_epochs max_steps accelerator devices strategy num_nodes precision "
    "accumulate_grad_batches gradient_clip_val callbacks logger default_root_dir "
    "log_every_n_steps check_val_every_n_epoch limit_train_batches fast_dev_run",
}
"""What is usually set of a group."""


def overview() -> str:
    """Return what `lightning --help` prints."""
    commands = "\n".join(f"    {name:<10}{text}" for name, text in options.COMMANDS.items())
    return f"""\
usage: {lightning_command()} COMMAND [--config FILE ...] [--KEY VALUE ...]

Train and evaluate the experiment that configurations describe.

commands:
{commands}

A configuration is a YAML file, or the name of a packaged one: digits/spanetv2;
`spanet configs list` lists those. Later files and keys win.

{lightning_command()} COMMAND --help lists the keys. Everything else: spanet --help"""


def command(name: str) -> str:
    """Return what `lightning COMMAND --help` prints: the keys by group, and where the others are.

    Args:
        name: A command, such as "fit".
    """
    start = f"{lightning_command()} {name}"
    keys = options.schema(name)
    parser = _parser(
        f"{options.COMMANDS[name].capitalize()}. Files are layered, later files and keys win. A "
        "class is named by its class_path, or one of this project or of Lightning by its name "
        "alone; its arguments are keys below it.",
        usage=f"{start} [--config FILE ...] [--KEY VALUE ...]",
    )
    own = {k: v for k, v in keys.items() if k not in (*options.BASES, *options.GROUPS)}
    own = {"config": Parameter(str, "", "File, or packaged name: digits/spanetv2."), **own}
    run = parser.add_argument_group("run")
    _add(run, own)
    run.add_argument("--print_config", action="store_true", help="Print the configuration.")
    model = parser.add_argument_group("model", _MODEL)
    for backbone in _BACKBONES:
        listed = ", ".join(key for key in _arguments_of(backbone) if key != "num_classes")
        model.add_argument(f"--model.backbone {backbone}", metavar="", help=listed)
    data = parser.add_argument_group("data", "--data DATAMODULE --data.KEY VALUE")
    for task, parts in _TASKS.items():
        data.add_argument(f"--model {task}", metavar="", help=parts)
    for group in options.GROUPS:
        parameters = signatures.known(check.classes_in(keys[group].hint)[0].path).parameters
        common = _COMMON.get(group, " ".join(parameters)).split()
        more = ", ".join(key for key in parameters if key not in common)
        section = parser.add_argument_group(group, more and f"also {more}")
        _add(section, {f"{group}.{key}": parameters[key] for key in common if key in parameters})
    return f"""{parser.format_help()}
All keys of a part, with their meaning:
  {start} --trainer.help
  {start} --model.help ClassificationTask
  {start} --model.backbone.help SPANetV2
  {start} --model.head.help MaskRCNN
  {start} --data.help CocoDataModule
  {start} --trainer.callbacks.help EarlyStopping"""


def key(name: str, dotted: str, cls: str | None) -> str:
    """Return what `lightning COMMAND --KEY.help [CLASS]` prints.

    Args:
        name: The command.
        dotted: The key.
        cls: The class whose arguments are asked for; None takes that of the group, or lists those
            that there are.

    Raises:
        ConfigError: If there is no such key or class.
    """
    parameter = _find(options.schema(name), dotted.split("."))
    if parameter is None:
        raise ConfigError(f"--{dotted}.help: there is no such key; see {name} --help")
    classes = check.classes_in(parameter.hint)
    below, summary = {dotted: parameter}, ""
    if classes:
        if issubclass(classes[0], Group):
            path = classes[0].path
        elif cls is None:
            known = check.known_classes(classes)
            return "\n".join([f"--{dotted}: a class, such as", *(f"  {path}" for path in known)])
        elif "." in cls and not is_trusted(cls):
            raise ConfigError(f"{dotted}: got {cls!r}, expected a class of a trusted package")
        else:
            path = check.real_path(cls)
        found = signatures.signature(path)
        if found is None:
            known = [one.rpartition(".")[2] for one in check.known_classes(classes)]
            raise invalid_choice(dotted, cls, known)
        below = {f"{dotted}.{item}": value for item, value in found.parameters.items()}
        summary = found.summary
    parser = _parser(summary)
    _add(parser, {k: v for k, v in below.items() if k not in options.LINKED})
    return parser.format_help().rstrip()


def complete(words: Sequence[str]) -> Collection[str]:
    """Return what may follow on a command line of `lightning`, for the shell.

    Args:
        words: What was typed after the program's name, the last word being unfinished.
    """
    *before, last = words or [""]
    if not before:
        return [*options.COMMANDS, "--help", "--version"]
    if before[-1] in config_files.CONFIG_OPTIONS:
        return [*config_files.names(), *glob.glob(f"{last}*")]  # noqa: PTH207 - as it was typed
    found = ["--config", "--print_config", "--help"]
    for name, parameter in options.schema(before[0]).items():
        paths = [group.path for group in check.classes_of(parameter.hint, Group)]
        if check.classes_of(parameter.hint, Configurable):
            paths = [f"{LAZY[n]}.{n}" for n in public if n in LAZY and n in " ".join(before)]
        below = [key for path in paths for key in _parameters(path)]
        found += [f"--{name}", *(f"--{name}.{key}" for key in below)]
    found += [f"--model.backbone.{k}" for n in _BACKBONES for k in _arguments_of(n)]
    return dict.fromkeys(found)


def _parameters(path: str) -> Mapping[str, Parameter]:
    found = signatures.signature(path)
    return found.parameters if found else {}


def _arguments_of(name: str) -> Iterable[str]:
    return _parameters(f"{LAZY[name]}.{name}")


def _find(parameters: Mapping[str, Parameter], parts: Sequence[str]) -> Parameter | None:
    """Return the parameter at a dotted key, below any class that may be there."""
    first, *rest = parts
    if first not in parameters or not rest:
        return parameters.get(first)
    for hint in check.classes_in(parameters[first].hint):
        paths = [hint.path]
        if issubclass(hint, Configurable):
            paths = [check.real_path(path) for path in check.known_classes([hint])]
        for path in paths:
            if found := _find(_parameters(path), rest):
                return found
    return None


# -- layout


def _parser(description: str, usage: str = argparse.SUPPRESS) -> argparse.ArgumentParser:
    width = max(60, min(shutil.get_terminal_size((80, 24)).columns, 100))
    return argparse.ArgumentParser(
        usage=usage,
        description=description,
        add_help=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, 2, 6, width),
    )


def _add(to: argparse._ActionsContainer, parameters: Mapping[str, Parameter]) -> None:
    for name, parameter in parameters.items():
        default, kind = parameter.default, _kind(parameter.hint)
        kind = kind if len(kind) < 42 else f"{kind[:41]}…"
        if default and default != "None" and not re.search(r"[(_]", default):
            kind += f" (default: {default.strip(chr(39))})"
        elif default is None and name.count(".") > 1:
            kind += " (required)"
        to.add_argument(f"--{name}", metavar=kind, help=_first_sentence(parameter.help))


_KINDS: dict[Any, str] = {
    bool: "BOOL",
    int: "INT",
    float: "FLOAT",
    str: "TEXT",
    Path: "PATH",
    Any: "VALUE",
}


def _kind(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "|".join(map(str, args))
    if origin in (Union, types.UnionType):
        return "|".join(dict.fromkeys(_kind(arg) for arg in args if arg is not type(None)))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "KEYS"
    if args:
        return f"[{', '.join(_kind(arg) for arg in args if arg is not ...)}]"
    return _KINDS.get(hint) or str(getattr(hint, "__name__", hint))


def _first_sentence(text: str) -> str:
    """Return the first sentence of a help text as plain words."""
    plain = re.sub(r":\w+:`~?([^`]*)`", lambda m: m[1].rpartition(".")[2], text).replace("``", "")
    plain = re.split(r" Default: | \.\. |(?<=\w\.) (?=[A-Z])", plain)[0].replace("`", "")
    return plain.strip().replace("%", "%%")
