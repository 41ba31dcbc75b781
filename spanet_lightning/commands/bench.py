"""Measure speed and memory, in alternation, so that the results can be compared and repeated.

  models      whole models: evaluation and training step, time and memory, beside others
  ops         the token mixers alone, at each stage's shape, beside their floor
  heads       detectors and segmentation heads on one backbone, beside the backbone alone
  data        our loaders beside timm's and torchvision's, on the same files
  resolution  time of an image from 112 to 896 px, beside the predicted growth
  sweep       what a trial of a sweep costs beside its training

Models go by timm's name: 'spanet_s', 'timm:convnext_tiny'; 'spanet_s:fft' is one of ours with that
spectral_impl; 'python:MODULE:FUNCTION' is what a function of yours returns.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from spanet_lightning.bench import report, tables
from spanet_lightning.bench.ceiling import measure_ceiling
from spanet_lightning.bench.models import MODES, measure_models
from spanet_lightning.bench.report import Document
from spanet_lightning.bench.settings import Settings
from spanet_lightning.bench.subjects import DEFAULTS, IMPLS, parse, parse_against, parse_ours
from spanet_lightning.errors import ConfigError, invalid, invalid_choice
from spanet_lightning.machine import machine

EXPERIMENT = "spanet-bench"
_AGAINST = "models, and any of " + ", ".join(IMPLS) + ": the same model with that spectral_impl"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmarks and their arguments."""
    benchmarks = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)

    def add(name: str, text: str, run_it: Callable[[argparse.Namespace], Document]) -> Any:
        one = benchmarks.add_parser(name, help=text, description=text, allow_abbrev=False)
        one.set_defaults(measure=run_it)
        one.add_argument("--json", metavar="FILE", help="write the whole record there")
        one.add_argument("--mlflow", action="store_true", help="record the run in MLflow")
        added.append(one)
        return one

    added: list[argparse.ArgumentParser] = []

    models = add("models", "evaluation and training step of whole models", _models)
    _add_models(models)
    models.add_argument("--against", default="", metavar="A,B", help=_AGAINST)
    text = "compile the models alone, not what they are compared with"
    models.add_argument("--against-eager", action="store_true", help=text)
    models.add_argument("--mode", default="both", metavar="|".join((*MODES, "both")))
    _add_settings(models)

    ops = add("ops", "the token mixers alone, at each stage's shape", _ops)
    _add_models(ops)
    ops.add_argument(
        "--impl",
        default=",".join(IMPLS),
        metavar="A,B",
        help="spectral_impl: the first is compared with the others (default: %(default)s)",
    )
    _add_settings(ops)

    dense = add("heads", "detectors and segmentation heads on one backbone", _heads)
    text = "what to measure (default: all)"
    dense.add_argument("heads", nargs="*", metavar="HEAD", default=[], help=text)
    text = "of every head (default: %(default)s)"
    dense.add_argument("--backbone", default="spanetv2_s18_pure", metavar="MODEL", help=text)
    text = "pixels of the images (default: %(default)s)"
    dense.add_argument("--size", default="640x480", metavar="WIDTHxHEIGHT", help=text)
    dense.add_argument("--mode", default="both", metavar="|".join((*MODES, "both")))
    _add_settings(dense, size=False, batch=2, compiled=False)

    data = add("data", "our loaders beside timm's and torchvision's, on the same files", _data)
    data.add_argument(
        "root",
        nargs="?",
        metavar="ROOT",
        help="folder with train and val, each with a folder for each class; or with train2017, "
        "val2017 and annotations (default: made-up JPEG files of the usual size)",
    )
    data.add_argument(
        "--layout",
        metavar="folders|coco",
        help="of ROOT, or of what is made up (default: coco where ROOT has a folder annotations)",
    )
    data.add_argument("--masks", action="store_true", help="draw COCO's instance masks as well")
    data.add_argument("--images", type=int, default=256, help="made-up images (default: 256)")
    data.add_argument("--workers", default="0,2", metavar="A,B", help="processes (default: 0,2)")
    data.add_argument("--batch", type=int, help="images in a batch (default: 32; of COCO 2)")
    text = "pixels of a side (default: 224), of COCO the shorter side's limit (default: 800)"
    data.add_argument("--size", type=int, help=text)
    data.add_argument("--rounds", type=int, default=5, help="measurements of each (default: 5)")
    data.add_argument("--mode", default="both", metavar="|".join((*MODES, "both")))

    resolution = add("resolution", "time of an image against its pixels", _resolution)
    _add_models(resolution)
    resolution.add_argument("--against", default="", metavar="A,B", help=_AGAINST)
    resolution.add_argument("--sizes", metavar="A,B", help="pixels of a side (default: 112 to 896)")
    resolution.add_argument(
        "--plot", metavar="STEM", help="write STEM.svg, STEM.png and the data in STEM.csv"
    )
    _add_settings(resolution, size=False)

    sweep = add("sweep", "what a trial of a sweep costs beside its training", _sweep)
    sweep.add_argument("--rounds", type=int, default=5, help="trials that train (default: 5)")
    text = "trials that do nothing (default: 30)"
    sweep.add_argument("--trials", type=int, default=30, help=text)

    track = add(
        "tracking", "what logging costs a training step, with the tracker up or down", _tracking
    )
    text = "blocks of each, in alternation (default: 9)"
    track.add_argument("--rounds", type=int, default=9, help=text)
    track.add_argument("--epochs", type=int, default=2, help="epochs of a block (default: 2)")
    for one in added:  # what a record leaves out of the command line
        one.set_defaults(defaults=vars(one.parse_args([])))


def run(args: argparse.Namespace) -> None:
    """Measure, print the tables, and write what was asked for.

    Raises:
        SpanetError: If an argument is wrong.
    """
    target = report.check_target("--json", args.json) if args.json else None
    found: Document = args.measure(args)
    _say("")
    tables.show(found)
    if target is not None:
        report.write_json(target, found)
        print(f"wrote {target}")
    if args.mlflow:
        _track(found)


def _models(args: argparse.Namespace) -> Document:
    subjects = [parse(name) for name in args.models]
    pairs = parse_against(args.against, subjects)
    settings, modes = _settings(args), _modes(args.mode)
    if args.against_eager and (not pairs or settings.compile == "none"):
        raise ConfigError("--against-eager: needs --against and --compile default or max-autotune")
    with settings.applied():
        where = machine(settings.torch_device)
        _say("ceiling")
        ceiling = measure_ceiling(settings)
        results, ratios = measure_models(
            subjects, pairs, modes, settings, ceiling, _say, others_eager=args.against_eager
        )
    command = _command(args)
    return report.document(
        "models", command, settings, results, ratios, machine=where, ceiling=ceiling
    )


def _ops(args: argparse.Namespace) -> Document:
    from spanet_lightning.bench.ops import measure_ops

    subjects = [parse_ours(name) for name in args.models]
    impls = _listed(args.impl)
    for impl in impls:
        if impl not in IMPLS:
            raise invalid_choice("--impl", impl, IMPLS)
    if not impls:
        raise invalid("--impl", args.impl, f"one or more of {', '.join(IMPLS)}")
    settings = _settings(args)
    with settings.applied():
        where = machine(settings.torch_device)
        _say("ceiling")
        ceiling = measure_ceiling(settings)
        results, ratios = measure_ops(subjects, impls, settings, ceiling, _say)
    command = _command(args)
    return report.document(
        "ops", command, settings, results, ratios, machine=where, ceiling=ceiling
    )


def _heads(args: argparse.Namespace) -> Document:
    # torchvision takes seconds to import.
    from spanet_lightning.bench.dense import HEADS, DenseSettings, measure_dense

    width, _, height = args.size.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise invalid("--size", args.size, "WIDTHxHEIGHT in pixels, such as 640x480")
    names = {field.name for field in fields(DenseSettings)}
    given = {key: value for key, value in vars(args).items() if key in names}
    settings = DenseSettings(**{**given, "size": int(width), "height": int(height)})
    modes = _modes(args.mode)
    with settings.applied():
        where = machine(settings.torch_device)
        results, ratios = measure_dense(args.heads or HEADS, modes, settings, _say)
    return report.document("heads", _command(args), settings, results, ratios, machine=where)


def _data(args: argparse.Namespace) -> Document:
    # Lightning takes seconds to import, and only the data modules need it.
    from spanet_lightning.bench.coco_loaders import coco_loaders
    from spanet_lightning.bench.loaders import LoaderSettings, folder_loaders, measure_loaders
    from spanet_lightning.bench.photos import make_coco, make_photos

    modes = _modes(args.mode)
    layout = args.layout
    if layout is None:
        found = args.root is not None and (Path(args.root) / "annotations").is_dir()
        layout = "coco" if found else "folders"
    coco = layout == "coco"
    settings = LoaderSettings(
        layout=layout,
        masks=args.masks,
        batch=args.batch if args.batch is not None else 2 if coco else 32,
        size=args.size if args.size is not None else 800 if coco else 224,
        workers=tuple(_integers("--workers", args.workers)),
        rounds=args.rounds,
    )
    where = machine(torch.device("cpu"))
    with tempfile.TemporaryDirectory(prefix="spanet-bench-") as folder:
        root = Path(args.root or folder)
        if args.root is None:
            if args.images < 4:
                raise invalid("--images", args.images, "at least 4, one for each class")
            _say(f"making {2 * args.images} images")
            (make_coco if coco else make_photos)(root, args.images)
        loaders = coco_loaders if coco else folder_loaders
        results, ratios = measure_loaders(loaders, root, modes, settings, _say)
    return report.document("data", _command(args), settings, results, ratios, machine=where)


def _resolution(args: argparse.Namespace) -> Document:
    from spanet_lightning.bench.plot import plot_resolution, require_matplotlib
    from spanet_lightning.bench.resolution import SIZES, measure_resolution, write_csv

    subjects = [parse(name) for name in args.models]
    pairs = parse_against(args.against, subjects)
    sizes = SIZES if args.sizes is None else _integers("--sizes", args.sizes)
    for size in sizes:
        if size < 32:
            raise invalid("--sizes", size, "at least 32")
    settings = _settings(args)
    if args.plot:
        require_matplotlib()
        report.check_target("--plot", args.plot)
    with settings.applied():
        where = machine(settings.torch_device)
        results, ratios, fits = measure_resolution(subjects, pairs, sizes, settings, _say)
    command = _command(args)
    found = report.document(
        "resolution", command, settings, results, ratios, machine=where, fits=fits
    )
    if args.plot:
        stem = Path(args.plot)
        table = stem.with_name(f"{stem.name}.csv")
        write_csv(table, results, fits)
        plots = plot_resolution(stem, results, fits, found["settings"], where["device"])
        print(f"wrote {', '.join(map(str, [table, *plots]))}")
    return found


def _sweep(args: argparse.Namespace) -> Document:
    from spanet_lightning.bench.sweep import SweepSettings, measure_sweep
    from spanet_lightning.commands.demo import default_config

    settings = SweepSettings(rounds=args.rounds, trials=args.trials)
    where = machine(torch.device("cpu"))
    results = measure_sweep(default_config(), settings, _say)
    return report.document("sweep", _command(args), settings, results, [], machine=where)


def _tracking(args: argparse.Namespace) -> Document:
    from spanet_lightning.bench.tracking import TrackingSettings, measure_tracking
    from spanet_lightning.commands.demo import default_config

    settings = TrackingSettings(rounds=args.rounds, epochs=args.epochs)
    # As the demo does: so small a model loses more to threads than it gains.
    torch.set_num_threads(1)
    where = machine(torch.device("cpu"))
    results, ratios = measure_tracking(default_config(), settings, _say)
    return report.document("tracking", _command(args), settings, results, ratios, machine=where)


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        default=list(DEFAULTS),
        help=f"what to measure (default: {' '.join(DEFAULTS)})",
    )


def _add_settings(
    parser: argparse.ArgumentParser, *, size: bool = True, batch: int = 8, compiled: bool = True
) -> None:
    add, default = parser.add_argument, Settings(device="cpu", batch=batch)
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("--dtype", default=default.dtype, metavar="float32|tf32|bfloat16|float16")
    add("--layout", default=default.layout, metavar="channels_last|contiguous")
    if compiled:
        add("--compile", default=default.compile, metavar="none|default|max-autotune")
        add("--dynamic", action="store_true", help="compile for any batch size, height and width")
        add("--freeze", action="store_true", help="weights as constants of compiled evaluation")
    at = "" if size or not compiled else " of 224 px, fewer of larger ones"
    text = f"images in a batch{at} (default: {default.batch})"
    add("--batch", type=int, default=default.batch, help=text)
    if size:
        text = f"pixels of a side (default: {default.size})"
        add("--size", type=int, default=default.size, help=text)
    add("--threads", type=int, help="threads of an operator (default: torch's)")
    text = f"measurements of each subject (default: {default.rounds})"
    add("--rounds", type=int, default=default.rounds, help=text)
    text = f"least seconds of a measurement (default: {default.seconds})"
    add("--seconds", type=float, default=default.seconds, help=text)


def _settings(args: argparse.Namespace) -> Settings:
    names = {field.name for field in fields(Settings)}
    return Settings(**{key: value for key, value in vars(args).items() if key in names})


def _modes(mode: str) -> Sequence[str]:
    if mode not in (*MODES, "both"):
        raise invalid_choice("--mode", mode, (*MODES, "both"))
    return MODES if mode == "both" else (mode,)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _integers(key: str, text: str) -> list[int]:
    try:
        values = [int(part) for part in _listed(text)]
    except ValueError as error:
        raise invalid(key, text, "integers, separated by commas") from error
    if not values:
        raise invalid(key, text, "one integer or more, separated by commas")
    return values


def _command(args: argparse.Namespace) -> list[str]:
    """Return the shortest command line that measures the same."""
    words = ["spanet", "bench", args.benchmark]
    for key, default in args.defaults.items():
        value = getattr(args, key)
        if value == default or key in ("json", "mlflow", "measure"):
            continue
        if key in ("models", "root", "heads"):
            words += value if isinstance(value, list) else [value]
        else:
            option = f"--{key.replace('_', '-')}"
            words += [option] if value is True else [option, str(value)]
    return words


def _say(line: str) -> None:
    """Tell a person at a terminal how far it is, between measurements alone."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{line}")
        sys.stderr.flush()


def _track(found: Document) -> None:
    """Record a document in MLflow: settings and machine, medians, and the document itself."""
    import json

    from spanet_lightning import tracking

    uri = os.environ.get("MLFLOW_TRACKING_URI") or tracking.DEFAULT_URI
    logger = tracking.MLflowLogger(EXPERIMENT, uri, run_name=f"bench {found['benchmark']}")
    parts = {
        "": {"command": found["command"]},
        "commit.": found["commit"] or {},
        **{f"{key}.": found[key] for key in ("settings", "machine", "versions")},
    }
    params = {prefix + key: v for prefix, part in parts.items() for key, v in part.items()}
    logger.log_hyperparams(params)
    logger.log_metrics(report.metrics(found))
    logger.log_text(json.dumps(found, indent=1, ensure_ascii=False), "bench.json")
    logger.finalize("success")
    print(f"recorded in {tracking.without_secret(uri)}: {tracking.dashboard([logger])}")
