"""Help texts of `lightning`, made from source code: they take no import of torch."""

from __future__ import annotations

import glob
import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence

from spanet_lightning import LAZY
from spanet_lightning import __all__ as public
from spanet_lightning.cli import check, config_files, options, signatures
from spanet_lightning.cli.signatures import Configurable, Group, Parameter
from spanet_lightning.errors import ConfigError, invalid_choice
from spanet_lightning.launcher import lightning_command
from spanet_lightning.trust import is_trusted

_BACKBONES = ("SPANet", "SPANetV2")
_TASKS = {
    "ClassificationTask": ("", "ImageClassificationDataModule, DigitsDataModule"),
    "DetectionTask": (
        "RetinaNet, FasterRCNN, MaskRCNN, CascadeMaskRCNN",
        "CocoDataModule, DigitScenesDataModule",
    ),
    "SegmentationTask": (
        "SemanticFPN, UPerNet",
        "SegmentationFoldersDataModule, DigitScenesDataModule",
    ),
}
"""The tasks with their heads and data modules."""
_COMMON = {
    "checkpoint": ("monitor", "mode", "save_top_k", "every_n_train_steps", "train_time_interval"),
    "trainer": (
        *(
            "max_epochs",
            "max_steps",
            "accelerator",
            "devices",
            "strategy",
            "num_nodes",
            "precision",
        ),
        *(
            "accumulate_grad_batches",
            "gradient_clip_val",
            "callbacks",
            "logger",
            "default_root_dir",
        ),
        *("log_every_n_steps", "check_val_every_n_epoch", "limit_train_batches", "fast_dev_run"),
    ),
}
"""What is usually set of a group."""


def width() -> int:
    """Return the columns that help is written in."""
    return max(60, min(shutil.get_terminal_size((80, 24)).columns, 100))


def overview() -> str:
    """Return what `lightning --help` prints."""
    program = lightning_command()
    lines = [
        f"usage: {program} COMMAND [--config FILE ...] [--KEY VALUE ...]",
        "",
        "Train and evaluate the experiment that configurations describe.",
        "",
        "commands:",
        *(f"    {name:<10}{text}" for name, text in options.COMMANDS.items()),
        "",
        *_wrapped("A configuration is a YAML file, or the name of a packaged one: digits/spanetv2; "
                  "`spanet configs list` lists those. Later files and keys win."),
        "",
        f"{program} COMMAND --help lists the keys. Everything else: spanet --help",
    ]  # fmt: skip
    return "\n".join(lines)


def command(name: str) -> str:
    """Return what `lightning COMMAND --help` prints: the keys by group, and where the others are.

    Args:
        name: A command, such as "fit".
    """
    start = f"{lightning_command()} {name}"
    keys = options.schema(name)
    own = {
        key: value
        for key, value in keys.items()
        if key not in (*options.BASES, *options.GROUPS)
    }  # fmt: skip
    lines = [
        f"usage: {start} [--config FILE ...] [--KEY VALUE ...]",
        "",
        *_wrapped(
            f"{options.COMMANDS[name].capitalize()}. Files are layered, later files and keys win. "
            "A class is named by its class_path, or one of this project or of Lightning by its "
            "name alone; its arguments are keys below it."
        ),
        "",
        "run:",
        *_described({"config": Parameter(str, "", "File, or packaged name: digits/spanetv2.")}),
        *_described({"print_config": Parameter(Ellipsis, "", "Print the configuration and exit.")}),
        *_described(own),
        "",
        "model: --model TASK --model.backbone BACKBONE --model.head HEAD --model.KEY VALUE",
    ]
    for backbone in _BACKBONES:
        found = signatures.known(f"{LAZY[backbone]}.{backbone}")
        linked = [key for key in found.parameters if key != "num_classes"]
        lines += _wrapped(f"{backbone}, --model.backbone.KEY: {', '.join(linked)}", "  ")
    lines += ["", "data: --data DATAMODULE --data.KEY VALUE"]
    for task, (heads, data) in _TASKS.items():
        parts = [f"heads {heads}"] if heads else []
        lines += _wrapped(f"{task}: {'; '.join([*parts, f'data {data}'])}", "  ")
    for group in options.GROUPS:
        lines += _summary(group, keys[group])
    lines += [
        "",
        "All keys of a part, with their meaning:",
        f"  {start} --trainer.help",
        f"  {start} --model.help ClassificationTask",
        f"  {start} --model.backbone.help SPANetV2",
        f"  {start} --model.head.help MaskRCNN",
        f"  {start} --data.help CocoDataModule",
        f"  {start} --trainer.callbacks.help EarlyStopping",
    ]
    return "\n".join(lines)


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
    classes = [h for h in _flat(parameter.hint) if issubclass(h, Configurable | Group)]
    if not classes:
        return "\n".join(_described({dotted: parameter}))
    if issubclass(classes[0], Group):
        path = classes[0].path
    elif cls is None:
        known = check.known_classes(classes)
        return "\n".join([f"--{dotted}: a class, such as", *(f"  {path}" for path in known)])
    else:
        if "." in cls and not is_trusted(cls):
            raise ConfigError(f"{dotted}: got {cls!r}, expected a class of a trusted package")
        path = check.real_path(cls)
    found = signatures.signature(path)
    if found is None:
        known = [one.rpartition(".")[2] for one in check.known_classes(classes)]
        raise invalid_choice(dotted, cls, known)
    below = {f"{dotted}.{item}": value for item, value in found.parameters.items()}
    for target in options.LINKED:
        below.pop(target, None)
    return "\n".join([*_wrapped(found.summary), "", *_described(below)])


def _find(parameters: Mapping[str, Parameter], parts: Sequence[str]) -> Parameter | None:
    """Return the parameter at a dotted key, below any class that may be there."""
    first, *rest = parts
    if first not in parameters or not rest:
        return parameters.get(first)
    for hint in _flat(parameters[first].hint):
        paths = [hint.path] if issubclass(hint, Group) else []
        if issubclass(hint, Configurable):
            paths = [check.real_path(path) for path in check.known_classes([hint])]
        for path in paths:
            signature = signatures.signature(path)
            found = signature and _find(signature.parameters, rest)
            if found:
                return found
    return None


def _flat(hint: object) -> list[type]:
    """Return the classes in a type, also those of the items of its lists."""
    found = check.classes_in(hint)
    return [one for one in found if issubclass(one, Configurable | Group)]


def _summary(group: str, parameter: Parameter) -> list[str]:
    (kind,) = _flat(parameter.hint)
    found = signatures.known(kind.path)  # type: ignore[attr-defined]
    listed = found.parameters
    common = [name for name in _COMMON.get(group, listed) if name in listed]
    more = ", ".join(name for name in listed if name not in common)
    lines = _described({f"{group}.{name}": listed[name] for name in common})
    return ["", f"{group}:", *lines, *_wrapped(more and f"and {more}", "  ")]


def _described(parameters: Mapping[str, Parameter]) -> list[str]:
    lines = []
    for name, parameter in parameters.items():
        kind = "" if parameter.hint is Ellipsis else f" {_kind(parameter.hint)}"
        default = parameter.default
        if default and default != "None" and not re.search(r"[(_]", default):
            kind += f" (default: {default.strip(chr(39))})"
        elif default is None and name.count(".") > 1:
            kind += " (required)"
        lines += _wrapped(f"--{name}{kind}", "  ")
        lines += _wrapped(_first_sentence(parameter.help), "      ")
    return lines


_SHORT = {
    r"a list of values, each (\w+)": r"[\1]",
    "a list of integers": "[INT]",
    "a list of numbers": "[FLOAT]",
    "a list of texts": "[TEXT]",
    "a class_path of |one of ": "",
    "true or false": "BOOL",
    "an integer": "INT",
    "a number": "FLOAT",
    "a text": "TEXT",
    "a path": "PATH",
    "keys and values": "KEYS",
    " or null$": "",
    " or |, ": "|",
    "'": "",
}


def _kind(hint: object) -> str:
    text = check.accepted(hint)
    for words, short in _SHORT.items():
        text = re.sub(words, short, text)
    return text if len(text) < 70 else f"{text[:66]}…"


def _first_sentence(text: str) -> str:
    """Return the first sentence of a help text as plain words."""
    plain = re.sub(r":\w+:`~?([^`]*)`", lambda m: m[1].rpartition(".")[2], text).replace("``", "")
    plain = re.split(r" Default: | \.\. |(?<=\w\.) (?=[A-Z])", plain)[0].replace("`", "")
    return plain.strip()


def _wrapped(text: str, indent: str = "") -> list[str]:
    if not text:
        return []
    return textwrap.wrap(
        text,
        width=width(),
        initial_indent=indent,
        subsequent_indent=indent + ("  " if indent == "  " else ""),
        break_long_words=False,
        break_on_hyphens=False,
    )


def complete(words: Sequence[str]) -> Iterable[str]:
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
        found.append(f"--{name}")
        for kind in _flat(parameter.hint):
            paths = [kind.path]  # type: ignore[attr-defined]
            if issubclass(kind, Configurable):
                paths = [f"{LAZY[n]}.{n}" for n in public if n in LAZY and n in " ".join(before)]
            for path in paths:
                signature = signatures.signature(path)
                found += [f"--{name}.{k}" for k in signature.parameters] if signature else []
    found += [f"--model.backbone.{k}" for n in _BACKBONES for k in _arguments_of(n)]
    return list(dict.fromkeys(found))


def _arguments_of(name: str) -> list[str]:
    found = signatures.signature(f"{LAZY[name]}.{name}")
    return list(found.parameters) if found else []
