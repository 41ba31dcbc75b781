"""A command line as an experiment: checked before torch is imported, then parsed and built."""

from __future__ import annotations

import dataclasses
import os
import secrets
from collections.abc import Sequence
from enum import Enum
from typing import Any, get_type_hints

import yaml
from jsonargparse import ArgumentError
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from spanet_lightning import tracking, trust
from spanet_lightning.callbacks.compute import ComputeOptions
from spanet_lightning.callbacks.model_checkpoint import ModelCheckpoint
from spanet_lightning.callbacks.monitors import set_modes
from spanet_lightning.cli import keys
from spanet_lightning.cli.arguments import Arguments
from spanet_lightning.cli.error_messages import one_line
from spanet_lightning.cli.options import LINKED, RUNS, RunOptions
from spanet_lightning.cli.quiet import quieten
from spanet_lightning.errors import ConfigError
from spanet_lightning.run_dir import default_name
from spanet_lightning.tracking.options import TrackingOptions

# Lightning's Timer has a member of an enum as a default; as YAML it is its text.
yaml.SafeDumper.add_multi_representer(Enum, lambda to, member: to.represent_data(member.value))


SEED_VARIABLE = "PL_GLOBAL_SEED"  # where Lightning's seed_everything leaves the seed


class CommandLine(LightningCLI):
    """What was typed, as a parsed configuration.

    Args:
        args: What follows the program's name.

    Attributes:
        where: File and line that set each key.
        named: The run's name as it was given; None where it is named after its configuration.

    Raises:
        SpanetError: For whatever the user got wrong.
    """

    def __init__(self, args: Sequence[str]) -> None:
        self.arguments = args if isinstance(args, Arguments) else Arguments.parse(args)
        self.args = list(self.arguments)
        self.where: dict[str, str] = {}
        self.named: str | None = None
        trust.restrict_imports()
        quieten()
        skipped = LightningCLI.subcommands()[self.arguments.command]
        # Each subcommand is a parser that takes a third of a second to make.
        self.subcommands = lambda: {self.arguments.command: {*skipped, "weights_only"}}  # type: ignore[method-assign]
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,  # RunRecord saves it, once nothing can be wrong any more
            seed_everything_default=True,
            trainer_defaults={
                "logger": tracking.default_logger(),
                "default_root_dir": RUNS,
                # RunRecord logs the whole configuration, under its own keys.
                "enable_autolog_hparams": False,
            },
            parser_kwargs={"exit_on_error": False},
            auto_configure_optimizers=False,
            args=self.arguments,
        )

    drew_seed = False
    """Whether the seed was drawn because none was given."""

    def _set_seed(self) -> None:
        """Seed everything; without a seed, draw one, and record it as if it had been given."""
        if self._get(self.config, "seed_everything") is True and SEED_VARIABLE not in os.environ:
            os.environ[SEED_VARIABLE] = str(secrets.randbelow(2**32))
            self.drew_seed = True
        super()._set_seed()

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what a run needs beside model, data and trainer."""
        hints = get_type_hints(RunOptions)
        for item in dataclasses.fields(RunOptions):
            parser.add_argument(f"--{item.name}", type=hints[item.name], default=item.default)
        parser.add_class_arguments(ComputeOptions, "compute")
        parser.add_class_arguments(TrackingOptions, "tracking")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.monitor": "val/top1",
                "checkpoint.filename": "best",
                "checkpoint.save_last": True,
                # One `best.ckpt` and one `last.ckpt`, whatever the epoch.
                "checkpoint.auto_insert_metric_name": False,
                "checkpoint.enable_version_counter": False,
            }
        )
        # The data knows how many classes there are; the model must not be told another number.
        for target, source in LINKED.items():
            steps = target.split(".")
            nested = ".init_args.".join(steps)
            parser.link_arguments(source, nested, apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the typed configuration.

        Raises:
            ConfigError: If jsonargparse refuses what the check could not judge.
            SystemExit: After `--print_config`.
        """
        # A parser may be used again, for another line.
        self.arguments = args if isinstance(args, Arguments) else Arguments.parse(list(args or ()))
        self.where, command = self.arguments.where, self.arguments.command
        set_modes(self.arguments.config)
        try:
            self.config = parser.parse_object(
                {"subcommand": command, command: self.arguments.config}
            )
        except ArgumentError as error:
            raise ConfigError(one_line(str(error))) from None
        if self.arguments.printed is not None:
            flags = self.arguments.printed
            options = {f"skip_{what}": f"skip_{what}" in flags for what in ("default", "unset")}
            text = self._parser(command).dump(
                self.config[command], with_comments="comments" in flags, **options
            )
            print(text, end="")
            raise SystemExit(0)
        self.named = self.config[command]["name"]
        if self.named is None:
            self.config[command]["name"] = default_name(self.arguments.files)

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration alone.

        Lightning overrides the configured model by the hyperparameters that a checkpoint holds,
        class paths included: the file would decide what is imported and built.
        """

    def flat_config(self) -> dict[str, Any]:
        """Return the resolved configuration by dotted keys, as `--key value` takes them."""
        return keys.flatten(self._plain_config())

    def _plain_config(self) -> dict[str, Any]:
        text = self._parser(self.subcommand).dump(
            self.config[str(self.subcommand)], skip_unset=False
        )
        plain: dict[str, Any] = yaml.safe_load(text)
        return plain
