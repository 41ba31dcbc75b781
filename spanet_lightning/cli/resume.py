"""What a run resumes from, and whether it is still the same run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from spanet_lightning import checkpoints
from spanet_lightning.cli import keys
from spanet_lightning.errors import CheckpointError, ConfigError, invalid
from spanet_lightning.launcher import lightning_command
from spanet_lightning.run_dir import CONFIG_FILE, RESUMED_FILE

Mode = Literal["auto", "must", "never"]

# Keys, with all below them, that do not affect what is learned: where a run is, how long, on what
# and how it is monitored.
_ASIDE = (
    "ckpt_path",
    "resume",
    "resume_fallback",
    "allow_changes",
    "finite_every",
    "name",
    "num_visualizations",
    "tracking",
    "checkpoint",
    "compute",
    "model.weights_set",
    "trainer.accelerator",
    "trainer.barebones",
    "trainer.check_val_every_n_epoch",
    "trainer.default_root_dir",
    "trainer.detect_anomaly",
    "trainer.devices",
    "trainer.enable_autolog_hparams",
    "trainer.enable_checkpointing",
    "trainer.enable_model_summary",
    "trainer.enable_progress_bar",
    "trainer.inference_mode",
    "trainer.limit_predict_batches",
    "trainer.limit_test_batches",
    "trainer.limit_val_batches",
    "trainer.log_every_n_steps",
    "trainer.logger",
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.max_time",
    "trainer.model_registry",
    "trainer.num_nodes",
    "trainer.num_sanity_val_steps",
    "trainer.plugins",
    "trainer.profiler",
    "trainer.strategy",
    "trainer.val_check_interval",
    "data.num_workers",
    "data.root",  # the same data may lie elsewhere on another machine
    "data.pin_memory",
    "data.persistent_workers",
    "data.prefetch_factor",
    "data.predict_root",
    "model.weights",  # what it began from: the checkpoint has what became of it
)
# Of those, what is reported: the schedule spans the new length, and sums are rounded differently on
# another number of devices.
_TOLD = (
    "compute.",
    "trainer.max_",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "data.root",
)
_SHARED = ("data.batch_size", "trainer.accumulate_grad_batches")
_CALLBACKS = re.compile(r"trainer\.callbacks(\.\d+)?")
# Of a command line, what the command that resumes says in its own words.
_REPLACED = ("--ckpt_path", "--resume", "--name", "--allow_changes", "--resume_fallback")


@dataclass(frozen=True)
class Resume:
    """What a run starts from.

    Attributes:
        checkpoint: The checkpoint to resume from; None starts fresh.
        folder: Folder of the resumed run; None reserves a new one.
        says: A line for the user; may be empty.
    """

    checkpoint: str | None = None
    folder: Path | None = None
    says: str = ""


def choose(mode: Mode, folder: Path, *, fallback: bool = False) -> Resume:
    """Choose what a run resumes from.

    Args:
        mode: "must" and "auto" resume in the folder; "never" ignores it.
        folder: The run's own folder.
        fallback: Whether to take the next checkpoint where the last one is damaged.

    Raises:
        CheckpointError: If the last checkpoint is damaged and no other may be taken, or if there is
            none and there must be.
    """
    if mode == "never":
        return Resume()
    there = checkpoints.list_checkpoints(folder)
    if not there:
        if mode == "must":
            raise CheckpointError(
                f"resume: got 'must', but {folder} has no checkpoint; expected that of a run to go "
                "on with (--name, --trainer.default_root_dir), or 'auto' to begin where none is"
            )
        # One that was killed before it saved anything is taken over, or each attempt would have
        # a folder of its own and the next one never find it.
        known = (folder / CONFIG_FILE).is_file()
        return Resume(
            folder=folder if known else None,
            says=f"resume: {folder} has no checkpoint: starting fresh",
        )
    last = there[0]
    try:
        info = checkpoints.read_info(last)
        problem = "" if info.resumable else f"{last}: holds weights alone"
    except CheckpointError as error:
        problem = str(error)
    if not problem:
        return Resume(str(last), folder, f"resume: {last}, epoch {info.epoch}, step {info.step:,}")
    rest = checkpoints.latest(there[1:])
    if rest is None:
        raise CheckpointError(
            f"resume: {problem}, and {folder} has no other checkpoint to resume from; move the "
            "folder away to start again"
        )
    if not fallback:
        raise CheckpointError(
            f"resume: {problem}; {offer(rest)}, or --resume_fallback=true takes it by itself"
        )
    return Resume(
        str(rest.path),
        folder,
        f"resume: {problem}; resumes from {rest.path}, epoch {rest.epoch}, step {rest.step:,}",
    )


def check_root(root: Path) -> None:
    """Refuse a folder of runs with a file that Lightning would resume from without being asked.

    Under SLURM it takes `hpc_ckpt_N.ckpt`, whatever run that is of, for a run that begins.

    Args:
        root: The folder of all runs.

    Raises:
        ConfigError: If there is one.
    """
    there = sorted(root.glob("hpc_ckpt_*.ckpt")) if SLURMEnvironment.detect() else []
    if there:
        accepts = (
            f"a folder without {there[0].name}, which Lightning would resume from under SLURM; "
            "move it away, or give it as ckpt_path"
        )
        raise invalid("trainer.default_root_dir", str(root), accepts)


def offer(found: checkpoints.CheckpointInfo) -> str:
    """Return how an error names a checkpoint that may be taken instead.

    Args:
        found: The checkpoint.
    """
    return f"{found.path.name} of epoch {found.epoch} loads: --ckpt_path={found.path}"


def compare(source: Path, now: Mapping[str, Any], *, allowed: bool) -> list[str]:
    """Compare the configuration of a run with the one that it would resume with.

    Args:
        source: Folder that the checkpoint is in; without a configuration there, nothing is
            compared.
        now: The configuration by dotted keys.
        allowed: Whether it may differ in what is learned.

    Returns:
        What differs, a line for each key.

    Raises:
        ConfigError: If a key differs that has a say in what is learned.
    """
    then = _saved(source)
    if then is None:
        return []
    lines, refused = [], []
    for key in sorted({*then, *now}):
        if key == "seed_everything" and key not in now:
            continue  # none was given: the run resumes with its own
        old, new = then.get(key), now.get(key)
        if old == new or (key in then and key in now and str(old) == str(new)):
            continue
        if key in _SHARED and then.get("global_batch_size") and now.get("global_batch_size"):
            continue  # the global batch is compared, they follow from it and the devices
        line = f"{key}: {_shown(key, then)} → {_shown(key, now)}"
        if not _is_aside(key):
            refused.append(line)
            lines.append(line)
        elif key.startswith(_TOLD):
            lines.append(line)
    if refused and not allowed:
        raise ConfigError(
            f"resume: {source} was trained with another configuration: {'; '.join(refused)}; go "
            "back to it, or allow it with --allow_changes=true"
        )
    return [f"resume, changed: {line}" for line in lines]


def _saved(folder: Path) -> dict[str, Any] | None:
    """Return the configuration that a run was last trained with, by dotted keys."""
    for name in (RESUMED_FILE, CONFIG_FILE):
        try:
            found = yaml.safe_load((folder / name).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            continue
        if isinstance(found, dict) and "model" in found:
            return keys.flatten(found)
    return None


def _is_aside(key: str) -> bool:
    # Which callbacks there are has a say in what is learned; most of their arguments are paths.
    if key.startswith("trainer.callbacks"):
        return not _CALLBACKS.fullmatch(key)
    return any(key == name or key.startswith(f"{name}.") for name in _ASIDE)


def _shown(key: str, config: Mapping[str, Any]) -> str:
    return repr(config[key]) if key in config else "not there"


def command(args: Sequence[str], name: str) -> str:
    """Return the command line that resumes a run.

    Args:
        args: The one that began it.
        name: The run, below `trainer.default_root_dir`.
    """
    words, skip = [], False
    for word in args:
        option, given, _ = word.partition("=")
        if skip and not word.startswith("--"):
            skip = False
            continue
        skip = False
        if option in _REPLACED:
            skip = not given
            continue
        words.append(word)
    return f"{lightning_command()} {shlex.join([*words, f'--name={name}', '--resume=must'])}"
