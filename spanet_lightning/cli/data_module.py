"""The data module of a configuration, without its model and trainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError
from lightning import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser

from spanet_lightning.errors import ConfigError
from spanet_lightning.trust import restrict_imports


def build_data(files: Sequence[str], overrides: Sequence[str] = ()) -> LightningDataModule:
    """Build the data module that `lightning fit` would build, and nothing else.

    Args:
        files: Configuration files; what a later one says counts.
        overrides: `--data.KEY=VALUE` or `--data.KEY VALUE`, as for `lightning fit`; keys of other
            parts are ignored.

    Raises:
        ConfigError: If a file or a key is wrong.
    """
    restrict_imports()
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
    arguments: list[str] = []
    for file in files:
        try:
            content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"--config: {file}: {' '.join(str(error).split())}") from error
        section = content.get("data") if isinstance(content, dict) else None
        if section is None:
            continue
        if "class_path" in section:
            arguments.append(f"--data={section['class_path']}")
        for key, value in (section.get("init_args") or {}).items():
            text = yaml.safe_dump(value, default_flow_style=True, width=1_000_000)
            arguments.append(f"--data.{key}={text.removesuffix('...' + chr(10)).strip()}")
    arguments += [
        one for i, one in enumerate(overrides) if "--data" in (one[:6], (overrides[i - 1])[:6])
    ]
    if not arguments:
        raise ConfigError(f"data: is missing in {', '.join(files)}")
    try:
        config = parser.parse_args(arguments)
        found: Any = parser.instantiate(config)
    except ArgumentError as error:
        raise ConfigError(" ".join(str(error).split())) from None
    data: LightningDataModule = found.data
    return data
