"""The command line of an experiment: its keys, checked and parsed before anything is built."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any

import yaml
from jsonargparse import ArgumentError
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

import spanet_lightning
from spanet_lightning import tracking
from spanet_lightning.callbacks.model_checkpoint import ModelCheckpoint
from spanet_lightning.cli import check, keys, resume, sources
from spanet_lightning.cli.compute import ComputeOptions
from spanet_lightning.cli.finite import EVERY
from spanet_lightning.cli.help import LineHelpFormatter, knobs, program
from spanet_lightning.cli.quiet import quieten
from spanet_lightning.cli.record import run_name
from spanet_lightning.cli.wording import one_line
from spanet_lightning.errors import ConfigError, invalid_choice
from spanet_lightning.tracking.options import TrackingOptions

# Where a model is told the number of classes: a classifier in its backbone, a dense task itself.
NUM_CLASSES = ("model.init_args.backbone.init_args.num_classes", "model.init_args.num_classes")
RUNS = "runs"
# Always true: with false, a checkpoint could run any code that it brings.
_NOT_OFFERED = {"weights_only"}

# Lightning's Timer has a member of an enum as a default; as YAML it is its text.
yaml.SafeDumper.add_multi_representer(Enum, lambda to, member: to.represent_data(member.value))


class CommandLine(LightningCLI):
    """What was typed, as a checked configuration.

    Args:
        args: What follows the program's name.

    Attributes:
        where: File and line that set each key.
        named: The run's name as it was given; None where it is named after its configuration.

    Raises:
        SpanetError: For whatever the user got wrong.
    """

    def __init__(self, args: Sequence[str]) -> None:
        self.args = list(args)
        self.where: dict[str, str] = {}
        self.named: str | None = None
        check.restrict_imports()
        for name in spanet_lightning.__all__:
            getattr(spanet_lightning, name)  # jsonargparse knows the short names of what is loaded
        strict = {"exit_on_error": False, "allow_abbrev": False}
        # Subcommands print their help in the main parser's format.
        main = {
            **strict,
            "prog": program(),
            "version": f"(spanet-lightning {spanet_lightning.__version__})",
            "description": "Train and evaluate the experiment that configurations describe.",
            "formatter_class": LineHelpFormatter,
        }
        commands = {name: {**strict, "epilog": knobs(name)} for name in self.subcommands()}
        quieten()
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,  # RunRecord saves it, once nothing can be wrong any more
            seed_everything_default=0,
            trainer_defaults={
                "logger": tracking.default_logger(),
                "default_root_dir": RUNS,
                # RunRecord logs the whole configuration, under its own keys.
                "enable_autolog_hparams": False,
            },
            parser_kwargs={**main, **commands},
            auto_configure_optimizers=False,
            args=self.args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the commands, each with the arguments of Trainer's method that are not offered."""
        return {name: skip | _NOT_OFFERED for name, skip in LightningCLI.subcommands().items()}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what a run needs beside model, data and trainer."""
        parser.add_argument(
            "--name",
            type=str | None,
            default=None,
            help="Name of the run and of its folder below trainer.default_root_dir; "
            "null names it after the first --config.",
        )
        parser.add_argument(
            "--pictures",
            type=int,
            default=0,
            help="Images to draw with what was found, beside what is there: with the "
            "predictions, or at each validation for the tracker. Boxes and masks only.",
        )
        parser.add_argument(
            "--global_batch",
            type=int | None,
            default=None,
            help="Images of one optimizer step, of all devices and accumulated batches. "
            "data.batch_size is then the most that a device takes at once; accumulation follows. "
            "Null takes data.batch_size on each device, and trainer.accumulate_grad_batches.",
        )
        parser.add_class_arguments(ComputeOptions, "compute")
        resume.add_arguments(parser)
        parser.add_argument(
            "--finite_every",
            type=int,
            default=EVERY,
            help="Steps between looks at the loss of an accelerator: a run whose loss is no number "
            "ends at most so many steps later, on a CPU at once. 0 does not look.",
        )
        parser.add_class_arguments(TrackingOptions, "tracking")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.monitor": "val/top1",
                "checkpoint.mode": "max",
                "checkpoint.filename": "best",
                "checkpoint.save_last": True,
                # One `best.ckpt` and one `last.ckpt`, whatever the epoch.
                "checkpoint.auto_insert_metric_name": False,
                "checkpoint.enable_version_counter": False,
            }
        )
        # The data knows how many classes there are; the model must not be told another number.
        for target in NUM_CLASSES:
            parser.link_arguments("data.num_classes", target, apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Check what was written, then let jsonargparse parse it.

        Raises:
            ConfigError: If a key or a value is wrong.
        """
        command, rest = self._command()
        found = None
        if command is not None and not _asks_for_help(rest):
            linked = {key.replace(".init_args", ""): "data.num_classes" for key in NUM_CLASSES}
            found = check.Check(check.value_keys(self._subcommand_parsers[command]), linked)
            tree = sources.collect(rest)
            found.run(tree)
            self.where = found.where
            for key in ("model", "data"):
                if key not in tree.value:
                    raise ConfigError(
                        f"{key}: is missing; give it in a file (--config FILE) or as --{key} CLASS"
                    )
        try:
            self.config = parser.parse_args(self.args)
        except ArgumentError as error:
            if found is not None:
                found.overridden(rest, str(error))
            raise ConfigError(one_line(str(error))) from None
        self.named = None if command is None else self.config[command]["name"]
        if command is not None and self.named is None:
            self.config[command]["name"] = run_name(_config_files(rest))

    def _command(self) -> tuple[str | None, list[str]]:
        """Return the subcommand and what follows it; None where the line only asks for help."""
        names = list(self.subcommands())
        if not self.args:
            raise ConfigError(f"command: is missing; expected one of {', '.join(names)}")
        first, *rest = self.args
        if first in ("-h", "--help", "--version"):
            return None, []
        if first not in names:
            raise invalid_choice("command", first, names)
        return first, rest

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


def _asks_for_help(args: Sequence[str]) -> bool:
    return any(
        name in ("-h", "--help") or name.endswith(".help") for name, _ in sources.options(args)
    )


def _config_files(args: Sequence[str]) -> list[str]:
    return [text for name, text in sources.options(args) if name in sources.CONFIG_OPTIONS and text]
