"""The data module of a configuration, without its model and trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentError
from lightning import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser

from spanet_lightning.cli.check import Check
from spanet_lightning.cli.config_files import Tree, collect
from spanet_lightning.cli.error_messages import one_line
from spanet_lightning.cli.options import schema
from spanet_lightning.errors import ConfigError
from spanet_lightning.trust import restrict_imports


def build_data(files: Sequence[str], overrides: Sequence[str] = ()) -> LightningDataModule:
    """Build the data module that `lightning fit` would build, and nothing else.

    Args:
        files: Configuration files, or names of packaged ones; later ones win.
        overrides: `--data.KEY=VALUE` or `--data.KEY VALUE`, as for `lightning fit`; keys of other
            parts are ignored.

    Raises:
        ConfigError: If a file or a key is wrong.
    """
    configured = collect([*(f"--config={file}" for file in files), *overrides], Tree())
    if "data" not in configured:
        raise ConfigError(f"data: is missing in {', '.join(files)}")
    section = Tree({"data": configured["data"]}, configured.where)
    config = Check({"data": schema("fit")["data"]}, {}, {}).run(section)
    restrict_imports()
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
    try:
        found: Any = parser.instantiate(parser.parse_object(config))
    except ArgumentError as error:
        raise ConfigError(one_line(str(error))) from None
    data: LightningDataModule = found.data
    return data
