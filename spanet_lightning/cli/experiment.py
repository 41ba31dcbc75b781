"""`lightning fit|validate|test|predict`: an experiment that a configuration describes."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter, Callback, Checkpoint, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from spanet_lightning import summary, tracking
from spanet_lightning.backbones import Backbone
from spanet_lightning.callbacks import global_batch, lost_process
from spanet_lightning.callbacks.bad_samples import skipped_samples
from spanet_lightning.callbacks.compute import Compute
from spanet_lightning.callbacks.defaults import default_callbacks, tracked
from spanet_lightning.callbacks.monitors import MonitorCheck
from spanet_lightning.callbacks.nan_guard import FiniteGuard
from spanet_lightning.callbacks.progress import ImagesPerSecond
from spanet_lightning.callbacks.run_record import RunRecord
from spanet_lightning.callbacks.signals import Interrupted, Interruption, name_of, requeue
from spanet_lightning.callbacks.weight_averaging import replace_stock_averages
from spanet_lightning.checkpoints import SafeCheckpointIO
from spanet_lightning.cli import (
    checkpoints,
    error_messages,
    faults,
    keys,
    resume,
)
from spanet_lightning.cli.command_line import CommandLine
from spanet_lightning.cli.error_messages import one_line
from spanet_lightning.cli.options import RUNS
from spanet_lightning.cost import ModelCost, model_cost
from spanet_lightning.data.info import check_channels, evaluated
from spanet_lightning.data.manifest import identify
from spanet_lightning.errors import ConfigError, SpanetError, invalid
from spanet_lightning.exit import users_error
from spanet_lightning.launcher import lightning_command
from spanet_lightning.run_dir import check_name
from spanet_lightning.tasks import Task, sharding
from spanet_lightning.tracking import provenance
from spanet_lightning.tracking.provenance import Provenance

_NOT_MONITORED = "Early stopping conditioned on metric"  # Lightning's, where it is never logged
_OVERLAYS = 4  # images of a dense task in the tracker, where `pictures` asks for none


class Experiment(CommandLine):
    """One command line, parsed, checked, built and run.

    Args:
        args: What follows the program's name.
        show_results: Whether to end training with a table of its results.

    Attributes:
        record: What the run's folder is, where there is one.
        throughput: The meter of training speed.

    Raises:
        SpanetError: For whatever the user got wrong.
    """

    def __init__(self, args: Sequence[str], show_results: bool = True) -> None:
        self.show_results = show_results
        self.record: RunRecord | None = None
        self.throughput = ImagesPerSecond()
        self.interruption = Interruption()
        super().__init__(args)

    # -- building

    def instantiate_classes(self) -> None:
        """Build data, model and trainer.

        Raises:
            SpanetError: If a constructor refuses what was configured.
        """
        saved = self._get(self.config, "ckpt_path")
        statement = None if self.subcommand == "fit" else checkpoints.info_in(saved)
        token = evaluated.set(statement)
        self.configured = self.config
        if saved is not None:
            self.config = self._without_initial_weights()
        try:
            super().instantiate_classes()
        except Exception as error:
            found = users_error(error)
            found = found or error_messages.of_constructor(error, self.flat_config(), self.where)
            if found is None:
                raise
            raise error_messages.with_full_key(found, self.flat_config(), self.where) from error
        finally:
            evaluated.reset(token)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with the default callbacks, where the user has not brought their own.

        Raises:
            ConfigError: If the trainer refuses its arguments.
            CheckpointError: If `ckpt_path` can't be resumed from.
        """
        self.config = self.configured
        config = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        check_channels(self.model, self.datamodule)
        # Lightning finds this one out by dividing by it.
        if config["accumulate_grad_batches"] < 1:
            key = "trainer.accumulate_grad_batches"
            raise invalid(key, config["accumulate_grad_batches"], "at least 1")
        going_on = self._resume(Path(config["default_root_dir"] or RUNS))
        if config["logger"] is True:  # "the default one": for us that is not TensorBoard
            config["logger"] = tracking.MLflowLogger(**tracking.default_logger()["init_args"])
        given = config["callbacks"] or []
        given = list(given) if isinstance(given, list) else [given]
        if config["fast_dev_run"]:
            # Lightning promises to save nothing here, but saves a last checkpoint all the same.
            given = [callback for callback in given if not isinstance(callback, ModelCheckpoint)]
            config["enable_checkpointing"] = False
        replace_stock_averages(given)
        saver = self._get(self.config_init, "checkpoint") if self.subcommand == "fit" else None
        compute = self._get(self.config_init, "compute")
        given += [Compute(compute)] if compute.asked else []
        callbacks = [*given, *default_callbacks(config, given, self.throughput, saver)]
        if self.subcommand == "fit" and not config["barebones"]:
            callbacks.append(MonitorCheck())
            callbacks.append(FiniteGuard(self._get(self.config_init, "finite_every")))
        if not (config["fast_dev_run"] or config["barebones"]):
            self.record = self._record(config, callbacks, going_on)
            callbacks.append(self.record)
            callbacks += skipped_samples(self.datamodule, self.record)
            loggers = config["logger"]
            loggers = loggers if isinstance(loggers, list) else [loggers]
            in_mlflow = any(isinstance(one, tracking.MLflowLogger) for one in loggers)
            callbacks += self._shown(self.record, given, in_mlflow)
            if config["logger"]:
                # After the record, which says where what is logged goes.
                options = self._get(self.config_init, "tracking")
                callbacks += tracked(options, saver, self.throughput, self.model)
        config["callbacks"] = callbacks
        config["plugins"] = _with_safe_checkpoints(config["plugins"])
        try:
            trainer = Trainer(**config)
        except (MisconfigurationException, ValueError, TypeError) as error:
            raise error_messages.trainer_error(str(error), config, self.where) from error
        sharding.check(trainer)
        self._share_batch(trainer)
        # The last of all: it may end a step, which the others are to have seen.
        if not config["barebones"]:
            trainer.callbacks.append(self.interruption)  # type: ignore[attr-defined]
        return trainer

    def _without_initial_weights(self) -> Namespace:
        """Return the configuration of a model whose weights all come from a checkpoint.

        The file, or the download, that training once began from may not be here any more.
        """
        config: Namespace = self.config.clone()
        model = self._get(config, "model")["init_args"]
        for key in ("weights", "weights_set"):
            if key in model:
                model[key] = None
        backbone = model.get("backbone")
        arguments = backbone.get("init_args") if isinstance(backbone, Namespace) else None
        if arguments is not None and "pretrained" in arguments:
            arguments["pretrained"] = False
        return config

    def _resume(self, root: Path) -> resume.Resume:
        """Return what the run goes on from, once that fits the model and the configuration.

        Raises:
            CheckpointError: If it can't be read, or is of another model.
            ConfigError: If the configuration has changed.
        """
        saved = self._get(self.config_init, "ckpt_path")
        mode: resume.Mode = "never"
        if self.subcommand == "fit":
            mode = self._get(self.config_init, "resume")
        name = self._name()
        if saved is None:
            fallback = self._get(self.config_init, "resume_fallback")
            found = resume.choose(mode, root / name, fallback=fallback)
            if found.checkpoint is None:
                resume.check_root(root)
            self.config_init[str(self.subcommand)]["ckpt_path"] = found.checkpoint
        elif mode != "never":
            raise invalid("resume", mode, "'never' beside ckpt_path, which says what to go on from")
        else:
            source = Path(saved).parent
            ours = source.resolve().parent == root.resolve() and self.named in (None, source.name)
            found = resume.Resume(saved, source if ours and self.subcommand == "fit" else None)
        lines = [found.says] if found.says else []
        if found.checkpoint is not None:
            checkpoints.check(found.checkpoint, self.model, root, self.datamodule)
            if self.subcommand == "fit":
                allowed = self._get(self.config_init, "allow_changes")
                source = Path(found.checkpoint).parent
                lines += resume.compare(source, self._given_config(), allowed=allowed)
        for line in lines:
            rank_zero_info(line)
        return found

    def _given_config(self) -> dict[str, Any]:
        """Return the configuration without a seed that was drawn: the checkpoint's is used."""
        config = self.flat_config()
        if self.drew_seed:
            config.pop("seed_everything", None)
        return config

    def _name(self) -> str:
        return check_name(self._get(self.config, "name"))

    def _share_batch(self, trainer: Trainer) -> None:
        """Derive the batch of a device and the accumulation, where the configuration leaves it."""
        images = self._get(self.config_init, "global_batch_size")
        if images is None or self.subcommand != "fit":
            return
        shared = global_batch.apply(images, trainer, self.datamodule)
        trainer.callbacks.append(global_batch.WholeSteps(shared))  # type: ignore[attr-defined]
        if self.record is not None:
            self.record.params = {**self.record.params, **shared.params()}
            self.record.config = f"# {shared}\n{self.record.config}"

    def _shown(
        self, record: RunRecord, given: Sequence[Callback], tracked_by_mlflow: bool
    ) -> list[Callback]:
        """Return what writes predictions and draws pictures, where the command makes any."""
        writes = self.subcommand == "predict" and not any(
            isinstance(callback, BasePredictionWriter) for callback in given
        )
        writer = None
        if writes:
            from spanet_lightning.cli.predictions import PredictionWriter

            writer = PredictionWriter(record.folder)
        found: list[Callback] = [] if writer is None else [writer]
        pictures = self._get(self.config_init, "num_visualizations")
        if pictures < 0:
            raise invalid("num_visualizations", pictures, "at least 0")
        every = self._get(self.config_init, "tracking").log_images_every_n_epochs
        module = sys.modules.get("spanet_lightning.tasks.dense")  # a classifier imports none
        dense = module is not None and isinstance(self.model, module.DenseTask)
        if pictures or (self.subcommand == "fit" and dense and every and tracked_by_mlflow):
            from spanet_lightning.cli.overlays import Overlays

            shown = Overlays(pictures, record, writer) if pictures else None
            found.append(shown or Overlays(_OVERLAYS, record, every=every))
        return found

    def _record(
        self, config: Mapping[str, Any], callbacks: Sequence[Callback], going_on: resume.Resume
    ) -> RunRecord:
        # Resuming from a folder of ours goes on in it; from anywhere else, it starts a new one.
        resumed = going_on.folder is not None
        folder = going_on.folder or Path(config["default_root_dir"] or RUNS) / self._name()
        if resumed:
            warnings.filterwarnings("ignore", message=".*exists and is not empty")
        return RunRecord(
            folder,
            config=self._config_text(),
            params=self._params(),
            provenance_of=self.provenance,
            checkpoints=[
                callback
                for callback in callbacks
                if isinstance(callback, ModelCheckpoint) and callback.dirpath is None
            ],
            resumed=resumed,
            named=self.subcommand == "fit" and self._get(self.config_init, "resume") == "auto",
        )

    def _config_text(self) -> str:
        """Return the resolved configuration as YAML, without the password of any address."""
        parser = self._parser(self.subcommand)
        text: str = parser.dump(self.config[str(self.subcommand)], skip_unset=False)
        for key, value in self.flat_config().items():
            if key.endswith("tracking_uri") and isinstance(value, str):
                text = text.replace(value, tracking.without_secret(value))
        return tracking.redact(text)

    def _params(self) -> dict[str, Any]:
        """Return what the tracker records as parameters: what was set, and what the model costs."""
        # An address may hold a password, and says where the record is, not what the run was.
        params = {
            key: tracking.redact(value) if isinstance(value, str) else value
            for key, value in self.flat_config().items()
            if value is not None and not key.startswith("trainer.logger.")
        }
        if self.cost is not None:
            params |= {f"cost.{key}": value for key, value in asdict(self.cost).items()}
        return params

    def provenance(self, trainer: Trainer) -> Provenance:
        """Look at what this run is, once its data is known.

        Args:
            trainer: The trainer, with the model on its device.
        """
        seed = os.environ.get("PL_GLOBAL_SEED")
        return provenance.gather(
            [*lightning_command().split(), *self.args],
            trainer.strategy.root_device,
            identify(self.datamodule),
            self.cost,
            provenance.names(self.model, self.flat_config()),
            seed=None if seed is None else int(seed),
            devices=trainer.world_size,
        )

    @cached_property
    def cost(self) -> ModelCost | None:
        """Parameters and MACs of the model at the size of the data; None where unknown."""
        backbone = getattr(self.model, "backbone", None)
        size = getattr(self.datamodule, "image_size", getattr(backbone, "img_size", None))
        if not isinstance(backbone, Backbone) or size is None:
            return None
        try:
            model = self.model.trained() if isinstance(self.model, Task) else backbone
            return model_cost(model, size, backbone.in_chans)
        except (NotImplementedError, RuntimeError):
            # An operation of somebody's own that can't be counted is no reason not to train.
            return None

    # -- running

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = {**super()._prepare_subcommand_kwargs(subcommand), "weights_only": True}
        if subcommand == "predict" and kwargs.get("return_predictions") is None:
            # They are written as they are made; the masks of a whole set would fill the memory.
            kwargs["return_predictions"] = False
        return kwargs

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            with self.interruption.listening():
                super()._run_subcommand(subcommand)
        except Interrupted as end:
            self._tell(end)
            if self.trainer.local_rank > 0:
                # Lightning kills the first process, which may still be at work, for any other code.
                raise SystemExit(0) from None
            raise
        except SpanetError as error:
            raise error_messages.with_full_key(error, self.flat_config(), self.where) from error
        except MisconfigurationException as error:
            # Raised late, by a callback that finds no such metric and the like.
            raise ConfigError(one_line(str(error))) from error
        except Exception as error:
            if isinstance(error, RuntimeError) and str(error).startswith(_NOT_MONITORED):
                raise ConfigError(f"trainer.callbacks: {one_line(str(error))}") from error
            device = str(self.trainer.strategy.root_device)
            if isinstance(error, TypeError):
                unknown = error_messages.of_argument(error, keys.passed_on(self._plain_config()))
                if unknown is not None:
                    raise unknown from error
            lost = lost_process.cause(error, self.trainer)
            found = (
                users_error(lost)
                or users_error(error)
                or faults.explain(error, self.flat_config(), device)
            )
            if found is None:
                raise
            raise found from error

    def _tell(self, end: Interrupted) -> None:
        """Say how to go on with a run that was told to end, or have SLURM do so."""
        if not self.trainer.is_global_zero or self.subcommand != "fit":
            return
        if end.saved is None or self.record is None:
            rank_zero_info(f"{name_of(end.number)}: ended, with no checkpoint to go on from")
            return
        root = Path(self.trainer.default_root_dir).resolve()
        again = resume.command(self.args, str(self.record.folder.resolve().relative_to(root)))
        rank_zero_info(f"{name_of(end.number)}: saved {relative(str(end.saved))}; resume: {again}")
        if end.number == self.interruption.announced_by:
            if self._get(self.config_init, "resume") != "auto":
                rank_zero_info("not put back into SLURM's queue: that needs --resume=auto")
            elif not requeue():
                rank_zero_info("SLURM did not put the job back into its queue")

    def after_fit(self) -> None:
        """Print what came out."""
        if self.show_results and self.record is not None and self.trainer.is_global_zero:
            summary.show("Training ended", self.results())

    def results(self) -> dict[str, str | None]:
        """Return the rows of the table that ends a run."""
        saver = self.trainer.checkpoint_callback
        path = getattr(saver, "best_model_path", "") or None
        cost = self.cost
        return {
            **best_results(saver, self.model),
            "parameters": None if cost is None else f"{cost.parameters:,}",
            "MACs": None if cost is None else summary.macs(cost),
            "images/s": f"{self.throughput.rate:.0f} in training",
            "checkpoint": None if path is None else relative(path),
            "run folder": None if self.record is None else str(self.record.folder),
            "dashboard": tracking.dashboard(self.trainer.loggers),
        }


def best_results(saver: Checkpoint | None, model: LightningModule) -> dict[str, str | None]:
    """Return the metrics of the best checkpoint: the monitored one and the task's main one.

    Args:
        saver: Of the run.
        model: The task.
    """
    score, name = getattr(saver, "best_model_score", None), str(getattr(saver, "monitor", None))
    if score is None:
        return {}
    metrics: dict[str, float] = getattr(saver, "best_metrics", {})
    epoch = f" (epoch {metrics['epoch'] + 1:.0f})" if "epoch" in metrics else ""
    rows: dict[str, str | None] = {f"best {name}": f"{float(score):.4f}{epoch}"}
    main = f"val/{getattr(model, 'headline', ('top1',))[0]}"
    if main != name and main in metrics:
        rows[f"{main} in that epoch"] = f"{metrics[main]:.4f}"
    return rows


def relative(path: str) -> str:
    """Return a path as seen from the working directory, where it is below it."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path


def _with_safe_checkpoints(plugins: Any) -> list[Any]:
    """Return the trainer's plugins with our way to write checkpoints, unless they bring one."""
    given = list(plugins) if isinstance(plugins, list) else [plugins] if plugins else []
    if any(isinstance(plugin, CheckpointIO) for plugin in given):
        return given
    return [*given, SafeCheckpointIO()]
