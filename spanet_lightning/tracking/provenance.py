"""Provenance of a run: code, command, packages, hardware, data, cost.

**Tags** (`study`, `arm`, `seed`, `task`, `backbone`, `dataset`, `commit`, …) are columns to filter,
group and compare by. **Parameters** are the resolved configuration by dotted keys. **Artifacts**
repeat the run: `config.yaml`, and under `provenance/` a machine-readable summary, the versions of
all packages, and what differed from the commit.
"""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import Logger

from spanet_lightning import machine
from spanet_lightning.cost import ModelCost
from spanet_lightning.data.manifest import DataIdentity
from spanet_lightning.tracking.addresses import redact
from spanet_lightning.tracking.browse import ACCOUNT
from spanet_lightning.tracking.logger import MLflowLogger

PACKAGES = "provenance/requirements.txt"
DIFF = "provenance/changes.diff"
CONFIG = "config.yaml"
LONGEST_DIFF = 1_000_000  # characters of a diff that are recorded
# What results depend on beside torch and what is near it.
_DECISIVE = ("lightning", "torchmetrics", "scikit_learn", "jsonargparse")

Parameters = Mapping[str, Any]


@dataclass(frozen=True)
class Provenance:
    """What a run was.

    Attributes:
        command: What to type to start it again; passwords are left out.
        commit: Commit of the checkout; empty for an installation without one.
        dirty: Whether tracked files differed from it.
        diff: How, as `git diff` shows it; cut after a million characters.
        seed: Seed of the run; None where it had none.
        hardware: Processor or accelerator, and how torch used it.
        versions: Versions of the packages that the results depend on.
        packages: Versions of all installed packages.
        data: What data it was on.
        cost: Parameters and MACs; None where they can't be counted.
        what: Short names to group by: task, backbone, head.
    """

    command: str
    commit: str
    dirty: bool
    diff: str
    seed: int | None
    hardware: Mapping[str, Any]
    versions: Mapping[str, str]
    packages: Mapping[str, str]
    data: DataIdentity | None
    cost: ModelCost | None
    what: Mapping[str, str]

    def tags(self) -> dict[str, str]:
        """Return what runs are found, grouped and compared by."""
        found = {
            **self.what,
            "seed": "" if self.seed is None else str(self.seed),
            "dataset": "" if self.data is None else self.data.name,
            "data_digest": "" if self.data is None else self.data.digest,
            "commit": self.commit,
            "mlflow.source.git.commit": self.commit,  # its table's column "version"
            "dirty": str(self.dirty).lower(),
            "device": str(self.hardware.get("device") or ""),
            "command": self.command[:5000],
        }
        return {name: value for name, value in found.items() if value}

    def account(self) -> dict[str, Any]:
        """Return all but the diff and the list of packages, for JSON."""
        found = asdict(self)
        for name in ("diff", "packages"):
            del found[name]
        return found


def gather(
    command: Sequence[str],
    device: torch.device,
    data: DataIdentity | None,
    cost: ModelCost | None,
    what: Mapping[str, str],
    *,
    seed: int | None,
    devices: int = 1,
) -> Provenance:
    """Describe code, packages and machine, in a tenth of a second.

    Args:
        command: Program and arguments that start such a run.
        device: Where the model is.
        data: What data it is on.
        cost: Parameters and MACs.
        what: Short names to group by.
        seed: Seed of the run.
        devices: Number of processes that train.
    """
    state = machine.commit() or {"id": "", "dirty": False}
    hardware = {**machine.machine(device), "devices": devices, "python": platform.python_version()}
    return Provenance(
        command=redact(shlex.join(command)),
        commit=state["id"],
        dirty=state["dirty"],
        diff=redact(changes()) if state["dirty"] else "",
        seed=seed,
        hardware=hardware,
        versions=versions(),
        packages=installed(),
        data=data,
        cost=cost,
        what=dict(what),
    )


def names(model: Any, params: Parameters) -> dict[str, str]:
    """Return what to group runs by: task `classification`, backbone `spanetv2_test`, head.

    Args:
        model: A task.
        params: The configuration by dotted keys.
    """
    found = {"task": type(model).__name__.removesuffix("Task").lower()}
    for part in ("backbone", "head"):
        module = getattr(model, part, None)
        if module is not None:
            found[part] = type(module).__name__
    variant = params.get("model.backbone.variant")
    if variant and "backbone" in found:
        found["backbone"] = f"{found['backbone'].lower()}_{variant}"  # as timm calls it
    return found


def record(loggers: Iterable[Logger], provenance: Provenance, *, resumed: bool = False) -> None:
    """Record what a run is, before it starts, in MLflow.

    Args:
        loggers: The loggers of the run; those that are not MLflow's are left alone.
        provenance: What there is to know.
        resumed: Whether the run resumes: its first record stays beside this one.
    """
    for logger in loggers:
        if not isinstance(logger, MLflowLogger):
            continue
        texts = {
            ACCOUNT: json.dumps(provenance.account(), indent=1, default=str),
            PACKAGES: requirements(provenance.packages),
            DIFF: provenance.diff,
        }
        for file, text in texts.items():
            stem, dot, suffix = file.rpartition(".")
            if text:
                logger.log_text(text, f"{stem}.resumed{dot}{suffix}" if resumed else file)
        if resumed:
            continue
        logger.set_tags(provenance.tags())
        asked = question(shlex.split(provenance.command))
        logger.describe(
            f"**Question**: {asked}" if asked else "", f"**Command**: `{provenance.command}`"
        )
        data = provenance.data
        if data is not None:
            logger.log_dataset(data.name, data.source, data.digest, data.profile(), "training")


def question(command: Sequence[str]) -> str:
    """Return the first sentence of the comment that heads a run's configuration; empty is none.

    Args:
        command: Program and arguments.
    """
    for word, value in zip(command, [*command[1:], ""], strict=True):
        name, equals, same = word.partition("=")
        if name not in ("--config", "-c"):
            continue
        lines = []
        with suppress(OSError, UnicodeDecodeError), Path(same if equals else value).open() as file:
            for line in file:
                if not line.startswith("#"):
                    break
                lines.append(line.lstrip("# ").strip())
        text = " ".join(lines)
        return text.partition(". ")[0][:300]
    return ""


def changes() -> str:
    """Return how tracked files differ from the commit, cut after `LONGEST_DIFF` characters."""
    command = ["git", "-C", str(machine.checkout()), "diff", "--no-color", "--no-ext-diff", "HEAD"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None  # noqa: S101
        # No more than is recorded: somebody may have changed a file of gigabytes.
        raw = process.stdout.read(LONGEST_DIFF + 1)
        process.kill()
    text = raw.decode("utf-8", errors="replace")
    return text if len(raw) <= LONGEST_DIFF else f"{text[:LONGEST_DIFF]}\n[cut off here]\n"


def versions() -> dict[str, str]:
    """Return the versions of what results depend on."""
    packages = installed()
    return {
        **machine.versions(),
        **{name: packages[name] for name in _DECISIVE if name in packages},
    }


def installed() -> dict[str, str]:
    """Return the versions of all installed packages, by the names of their folders of metadata."""
    found: dict[str, str] = {}
    for entry in dict.fromkeys(sys.path):
        folder = Path(entry)
        if folder.name not in ("site-packages", "dist-packages") or not folder.is_dir():
            continue
        # Reading each package's metadata would take a second; their names say it all (PEP 376).
        for path in folder.glob("*.dist-info"):
            name, _, version = path.name.removesuffix(".dist-info").rpartition("-")
            found.setdefault(name, version)
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def requirements(packages: Mapping[str, str]) -> str:
    """Return versions as pip takes them."""
    return "".join(f"{name}=={version}\n" for name, version in packages.items())
