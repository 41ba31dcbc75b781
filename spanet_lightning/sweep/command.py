"""A trial as the command that repeats it, and that command's configuration once it is resolved."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from copy import copy
from functools import cached_property, lru_cache
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from spanet_lightning.cli import error_messages
from spanet_lightning.cli.experiment import Experiment
from spanet_lightning.exit import users_error
from spanet_lightning.sweep.study import Study, is_experiment
from spanet_lightning.trust import TRUSTED_VARIABLE

# The rest of a Trainer's arguments can be checked without the hardware that they are for.
_PLAIN_TRAINER: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "num_nodes": 1,
    "strategy": "auto",
    "precision": None,
    "sync_batchnorm": False,
    "plugins": None,
    "profiler": None,
    "callbacks": None,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def fit_command(
    study: Study,
    overrides: Mapping[str, Any],
    seed: int,
    *,
    folder_root: str | None = None,
    name: str | None = None,
) -> list[str]:
    """Return what follows `lightning` on the command line of a trial.

    Args:
        study: The study; its own overrides apply as well.
        overrides: What the trial changes, by dotted key.
        seed: `seed_everything`.
        folder_root: Folder that the run's folder is made in; None is the experiment's own.
        name: Name of the run and of its folder; None names it after the configuration.
    """
    # A key before those below it: a class has to be chosen before its arguments are set.
    values = {**study.overrides, **overrides}
    ordered = sorted(values, key=lambda key: key.count("."))
    return [
        "fit",
        *(f"--config={config}" for config in study.configs),
        *(f"--{key}={argument(values[key])}" for key in ordered),
        f"--seed_everything={seed}",
        *([] if folder_root is None else [f"--trainer.default_root_dir={folder_root}"]),
        *([] if name is None else [f"--name={name}"]),
    ]


def argument(value: Any) -> str:
    """Return a value as a command line spells it: a text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def resolve(argv: Sequence[str]) -> tuple[dict[str, Any], str]:
    """Return the configuration that a command runs with; nothing is built, seeded or written.

    Args:
        argv: What follows `lightning`.

    Returns:
        Every value by its dotted key, and a fingerprint (64 hexadecimal digits) of those that say
        what is trained: not of the run's name and folder, nor of where it is logged.

    Raises:
        ConfigError: If a key or a value is wrong.
    """
    flat = resolver().parse(argv).flat
    return dict(flat), fingerprint(flat)


def fingerprint(flat: Mapping[str, Any]) -> str:
    """Return the SHA-256 of what a resolved configuration says of the training.

    Args:
        flat: Every value by its dotted key.
    """
    kept = {key: value for key, value in flat.items() if is_experiment(key)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


def resolver() -> Resolver:
    """Return this process's parser, which takes longer to build than to parse with."""
    # What the defaults and the allow-list are taken from, when the parser is built.
    return _resolver(*map(os.environ.get, ("MLFLOW_TRACKING_URI", TRUSTED_VARIABLE)))


@lru_cache(maxsize=1)
def _resolver(*_environment: str | None) -> Resolver:
    return Resolver()


class Resolver:
    """Parses and checks one command after the other as `lightning` does, and runs nothing."""

    def __init__(self) -> None:
        self._first: Resolved | None = None

    def parse(self, argv: Sequence[str]) -> Resolved:
        """Parse a command line.

        Args:
            argv: What follows `lightning`.

        Raises:
            ConfigError: If a key or a value is wrong.
        """
        if self._first is None:
            self._first = Resolved(argv)
            return self._first
        return self._first.again(argv)


class Resolved(Experiment):
    """An experiment that is parsed and checked, and built only on request, without its values."""

    def again(self, argv: Sequence[str]) -> Resolved:
        """Return another command line as the same parser parses it."""
        other = copy(self)
        other.args = list(argv)
        for name in ("cost", "flat"):
            other.__dict__.pop(name, None)
        other.parse_arguments(self.parser, other.args)
        other.subcommand = other.config["subcommand"]
        return other

    @cached_property
    def flat(self) -> dict[str, Any]:
        """The resolved configuration by dotted keys."""
        return super().flat_config()

    def flat_config(self) -> dict[str, Any]:
        """Return the resolved configuration by dotted keys, which takes a while: only once."""
        return self.flat

    def _set_seed(self) -> None:
        """Leave the random generators of this process, and its environment, alone."""

    def instantiate_classes(self) -> None:
        """Build nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""

    def build(self, num_classes: int | None = None) -> None:
        """Build data and model without memory for its weights, for their checks of values.

        Args:
            num_classes: Classes to assume where the data is not here to count them; None reads it.

        Raises:
            SpanetError: If a constructor refuses what was configured.
        """
        config = self.config.clone()
        chosen = config[str(self.subcommand)]
        # What opens files or servers when it is built, and says nothing of the model.
        chosen.trainer.logger = chosen.trainer.profiler = None
        if num_classes is not None:
            chosen.data.init_args.num_classes = num_classes
        # Weights to start from have to be read to be checked; they need a place to go to.
        weights = chosen.model.get("init_args", {}).get("weights")
        place = nullcontext() if weights else torch.device("meta")
        try:
            with warnings.catch_warnings(), place:
                warnings.simplefilter("ignore")
                self.config_init = self.parser.instantiate(config)
        except Exception as error:
            found = users_error(error)
            if found is None:
                raise
            raise error_messages.with_full_key(found, self.flat_config(), self.where) from error
        self.datamodule = self._get(self.config_init, "data")
        self.model = self._get(self.config_init, "model")

    def check_trainer(self) -> None:
        """Let the Trainer check its arguments, on whatever hardware is here.

        Raises:
            ConfigError: If it refuses them.
        """
        given = self._get(self.config_init, "trainer")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                Trainer(**{**given.as_dict(), **_PLAIN_TRAINER})
        except (MisconfigurationException, ValueError, TypeError) as error:
            raise error_messages.trainer_error(str(error), given.as_dict(), self.where) from error
