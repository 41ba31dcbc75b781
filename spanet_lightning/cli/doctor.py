"""Check whether this machine can train: packages, devices, disk, databases; try one batch.

Exit code: 0 without a fault, 1 with one. With --config, and whatever keys follow, the experiment
is tried: one batch is trained and evaluated, a checkpoint is written and read back; all of it in a
temporary folder and without the tracker.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

from packaging.requirements import Requirement
from packaging.version import Version

from spanet_lightning.errors import ConfigError, SpanetError
from spanet_lightning.exit import message, users_error

# Nothing else of the project is imported before it is needed: this has to work where torch,
# torchvision or lightning do not.
TAKES_OVERRIDES = True
_COLOURS = {"ok": "green", "warning": "yellow", "fault": "red"}
_GIB = 1 << 30
_DRIVER = Path("/proc/driver/nvidia/version")
_SHARED = Path("/dev/shm")  # noqa: S108 - where worker processes pass batches on


class Finding(NamedTuple):
    """A line: "fault" keeps a run from working, "warning" may; the advice says what to do."""

    status: Literal["ok", "warning", "fault"]
    what: str
    found: str
    advice: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `spanet doctor`."""
    text = "experiment to try with one batch; several are layered, --KEY=VALUE sets a key"
    parser.add_argument("--config", action="append", default=[], metavar="FILE", help=text)
    text = "database of runs (default: MLFLOW_TRACKING_URI, or sqlite:///mlflow.db)"
    parser.add_argument("--tracking-uri", default=None, metavar="URI", help=text)
    text = "database of studies to check, too"
    parser.add_argument("--storage", default=None, metavar="URL", help=text)
    parser.add_argument("--json", action="store_true", help="print a JSON list, for scripts")


def run(args: argparse.Namespace) -> None:
    """Print a line per check, and exit with 1 if one is a fault.

    Raises:
        ConfigError: If a file is not there, or keys are given without a file.
    """
    from spanet_lightning.cli import config_files

    for file in args.config:
        config_files.read(file)
    if args.overrides and not args.config:
        raise ConfigError(f"{args.overrides[0]}: is given without --config FILE, whose key it is")
    found = list(_checks(args))
    if args.json:
        print(json.dumps([finding._asdict() for finding in found], indent=1, ensure_ascii=False))
    else:
        _show(found)
    if any(finding.status == "fault" for finding in found):
        sys.exit(1)


def _checks(args: argparse.Namespace) -> Iterator[Finding]:
    yield from packages()
    fits = pair()
    yield fits
    if fits.status == "ok":
        yield from cuda()
        yield from processor()
    else:
        left = "not checked: CUDA, processor, databases, one batch"
        yield Finding("warning", "the rest", left, "repair torch first")
    yield disk(Path("runs"))
    if fits.status != "ok":
        return
    yield tracker(args.tracking_uri)
    if args.storage is not None:
        yield studies(args.storage)
    if args.config:
        configs = [item for file in args.config for item in ("--config", file)]
        yield from dry_run([*configs, *args.overrides])


def _show(found: list[Finding]) -> None:
    from rich.text import Text

    from spanet_lightning.summary import console

    out = console()
    for finding in found:
        line = Text(f"{finding.status:<8}", _COLOURS[finding.status])
        line.append(f"{finding.what}: {finding.found}", "default")
        out.print(line, soft_wrap=not out.is_terminal)
        if finding.advice:
            out.print(Text(f"{'':8}→ {finding.advice}"), soft_wrap=not out.is_terminal)
    counts = {name: sum(finding.status == name for finding in found) for name in _COLOURS}
    print(f"{counts['fault']} faults, {counts['warning']} warnings.")


# -- packages


def packages() -> Iterator[Finding]:
    """Yield a line for each package that is missing or out of its range, or one if none is."""
    ours = metadata.metadata("spanet-lightning")
    python, accepted = platform.python_version(), ours["Requires-Python"]
    wrong = []
    if not Requirement(f"python{accepted}").specifier.contains(python, prereleases=True):
        wrong.append(Finding("fault", "Python", python, f"install Python {accepted}"))
    requirements = list(map(Requirement, ours.get_all("Requires-Dist") or []))
    needed = [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    wrong += [finding for finding in map(_fits, needed) if finding is not None]
    found = f"{len(needed)} within their supported range, Python {python}"
    yield from wrong or [Finding("ok", "packages", found)]


def _fits(requirement: Requirement) -> Finding | None:
    name, accepted = requirement.name, str(requirement.specifier)
    advice = f"pip install '{name}{accepted}'"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding("fault", name, "is not installed", advice)
    if requirement.specifier.contains(version, prereleases=True):
        return None
    return Finding("fault", name, f"{version}, supported is {accepted}", advice)


def pair() -> Finding:
    """Check whether torch and torchvision fit: torchvision's operators are built for one torch."""
    what, versions = "torch and torchvision", {}
    for name in ("torch", "torchvision"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            return Finding("fault", what, f"no {name}", f"pip install {name}")
    shown = f"torch {versions['torch']}, torchvision {versions['torchvision']}"
    torch = Version(versions["torch"])
    advice = "install them as a pair, from one index"
    if torch.major == 2:  # torchvision 0.25 is that of 2.10, and so on
        local = f" of the same build ({torch.local})" if torch.local else ""
        advice += f": torchvision 0.{torch.minor + 15} is that of torch 2.{torch.minor}{local}"
    for requirement in map(Requirement, metadata.requires("torchvision") or []):
        if requirement.name == "torch" and torch not in requirement.specifier:
            return Finding("fault", what, f"{shown}, which asks for {requirement}", advice)
    try:
        importlib.import_module("torch")
        importlib.import_module("torchvision.ops").nms  # noqa: B018 - is not there in a broken one
    except Exception as error:  # a pair that does not fit raises anything
        text = f"{shown}: can't be imported together: {_reason(error)}"
        return Finding("fault", what, text, advice)
    return Finding("ok", what, shown)


# -- the machine


def cuda() -> Iterator[Finding]:
    """Yield a line for each CUDA device, or one that tells why there is none."""
    import torch

    build = torch.version.cuda
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield _device(index)
    elif not _DRIVER.is_file() and shutil.which("nvidia-smi") is None:
        yield Finding("ok", "CUDA", "no device: runs use the processor")
    elif build is None:
        found = f"none: torch {torch.__version__} is a build without CUDA, but there is a driver"
        yield Finding("warning", "CUDA", found, "install torch and torchvision built for CUDA")
    else:
        advice = "update the driver, or install torch for its CUDA; see CUDA_VISIBLE_DEVICES"
        found = f"none that torch can use (built for CUDA {build})"
        yield Finding("warning", "CUDA", found, advice)


def _device(index: int) -> Finding:
    import torch

    what, name = f"CUDA device {index}", torch.cuda.get_device_name(index)
    try:
        free, total = torch.cuda.mem_get_info(index)
    except RuntimeError as error:
        advice = "check whether another process holds it (nvidia-smi)"
        return Finding("fault", what, f"{name}: {' '.join(str(error).split())[:200]}", advice)
    found = f"{name}, {_gib(free)} of {_gib(total)} free, CUDA {torch.version.cuda}"
    if free >= total / 2:
        return Finding("ok", what, found)
    advice = "another process uses it; choose one by CUDA_VISIBLE_DEVICES"
    return Finding("warning", what, found, advice)


def processor() -> Iterator[Finding]:
    """Yield lines for processors with their threads, for memory, and for little shared memory."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    advice = "" if threads <= (cores or 1) else f"set OMP_NUM_THREADS={cores}"
    found = f"{cores} cores for this process, torch uses {threads} threads"
    yield Finding("warning" if advice else "ok", "processor", found, advice)
    free, total = memory()
    if total:
        low = free < 4 * _GIB
        advice = "lower data.batch_size and data.num_workers, or free some" if low else ""
        found = f"{_gib(free)} of {_gib(total)} available"
        yield Finding("warning" if low else "ok", "memory", found, advice)
    # Containers give 64 MiB, which a few workers' batches fill.
    if _SHARED.is_dir() and (size := shutil.disk_usage(_SHARED).total) < _GIB:
        found = f"{size / _GIB:.2f} GiB, by which worker processes pass batches on"
        advice = "data.num_workers=0, or a larger one: docker run --shm-size=8g"
        yield Finding("warning", "shared memory", found, advice)


def memory() -> tuple[int, int]:
    """Return the bytes of memory that are available, and of all; 0 where they are unknown."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        values = {line.partition(":")[0]: int(line.split()[1]) << 10 for line in lines}
        return values["MemAvailable"], values["MemTotal"]
    except (OSError, KeyError, ValueError, IndexError):
        return 0, 0


def disk(folder: Path) -> Finding:
    """Check whether a run can write its folder, which need not exist, and has space there."""
    what, there = f"disk of {folder}", folder.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        return Finding("fault", what, f"{there} is a file", "give trainer.default_root_dir")
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        advice = "give a folder that can be written: trainer.default_root_dir"
        return Finding("fault", what, f"can't be written: {error.strerror}", advice)
    free = shutil.disk_usage(there).free
    found = f"{_gib(free)} free"
    if free < _GIB:
        return Finding("fault", what, found, "free some: checkpoints would fill it")
    if free < 10 * _GIB:
        return Finding("warning", what, found, "free some: a large model's checkpoint is 1.3 GiB")
    return Finding("ok", what, found)


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"


# -- databases: no address is shown with its password


def tracker(uri: str | None) -> Finding:
    """Check the database of runs.

    Args:
        uri: Its address; None takes that of the environment, or else `mlflow.db` beside.
    """
    from spanet_lightning.tracking.addresses import DEFAULT_URI, URI_VARIABLE, without_secret
    from spanet_lightning.tracking.client import check_store, installed

    uri = uri or os.environ.get(URI_VARIABLE) or DEFAULT_URI
    what = f"tracker {without_secret(uri)}"
    if not installed():
        found = "mlflow is not installed: runs are trained, but not recorded"
        return Finding("warning", what, found, "pip install mlflow, or trainer.logger=false")
    try:
        error_text = check_store(uri)
    except ConfigError as error:
        advice = f"correct trainer.logger.tracking_uri, or {URI_VARIABLE}"
        return Finding("fault", what, str(error), advice)
    if error_text:
        advice = "start it, or send pending records later: spanet track sync"
        return Finding("warning", what, f"does not answer: {error_text}", advice)
    return Finding("ok", what, "can take runs")


def studies(url: str) -> Finding:
    """Check the database of studies.

    Args:
        url: Its address.
    """
    from spanet_lightning.sweep.storage import open_storage, refuse_tracker, safe_url

    what = f"studies {safe_url(url)}"
    try:
        refuse_tracker(url, None)
        open_storage(url, create=False)
    except ConfigError as error:
        text = str(error)
        if "no study yet" in text or "does not exist" in text:
            return Finding("ok", what, "holds no study yet: spanet sweep run creates it")
        return Finding("fault", what, text, "correct --storage")
    return Finding("ok", what, "can be read")


# -- one batch


def dry_run(args: Sequence[str]) -> Iterator[Finding]:
    """Yield a line for the step and one for the checkpoint; nothing stays on disk.

    Args:
        args: What follows `lightning fit`.
    """
    import torch

    from spanet_lightning.cli import checkpoints
    from spanet_lightning.cli.experiment import Experiment

    with tempfile.TemporaryDirectory() as folder:
        given = ["fit", *args, "--trainer.fast_dev_run=1", "--trainer.logger=false"]
        given += [f"--trainer.default_root_dir={folder}"]
        given += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
        began = time.perf_counter()
        try:
            experiment: Any = Experiment(given, show_results=False)
        except Exception as error:  # whatever it is, the run would end by it
            yield Finding("fault", "one batch", _reason(error), _advice(error))
            return
        seconds = time.perf_counter() - began
        metrics = experiment.trainer.callback_metrics
        lost = {k: v for k, v in metrics.items() if "loss" in k and not bool(torch.isfinite(v))}
        if lost:
            name, value = next(iter(lost.items()))
            advice = "lower model.optimizer.lr; check the data; try trainer.precision=32-true"
            yield Finding("fault", "one batch", f"{name} is {float(value)}", advice)
        else:
            yield Finding("ok", "one batch", f"trained and evaluated in {seconds:.1f} s")
        file = Path(folder) / "dry_run.ckpt"
        try:
            experiment.trainer.save_checkpoint(file, weights_only=False)  # all of it: as a run
            checkpoints.check(file, experiment.model, folder)
            size = file.stat().st_size / 2**20
        except (SpanetError, OSError, RuntimeError, TypeError) as error:
            advice = "see the disk above; the model has to save tensors and plain values alone"
            yield Finding("fault", "checkpoint", _reason(error), advice)
        else:
            yield Finding("ok", "checkpoint", f"written and read back, {size:.1f} MiB")


def _reason(error: Exception) -> str:
    found = users_error(error)
    text = message(found) if found is not None else " ".join(str(error).split())
    return (text if found is not None or not text else f"{type(error).__name__}: {text}")[:300]


def _advice(error: Exception) -> str:
    if users_error(error) is not None:
        return "correct the configuration or the data"
    if type(error).__name__ == "OutOfMemoryError":
        return "lower data.batch_size or the size of the images"
    return "run `lightning fit` with it for the whole error"
