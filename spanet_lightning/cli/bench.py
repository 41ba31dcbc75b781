"""Measure speed and memory in alternation, so that results can be compared and repeated.

  models  whole models: evaluation and training step, time and memory
  ops     the token mixers alone, at each stage's shape, beside their floor
  heads   detectors and segmentation heads on one backbone, beside the backbone alone
  sweep   what a trial of a study costs beside its training

Models go by timm's name, 'spanet_s' or 'timm:convnext_tiny'; 'python:MODULE:FUNCTION' is the model
that a function of yours returns.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

from spanet_lightning.errors import ConfigError, invalid, invalid_choice

EXPERIMENT = "spanet-bench"
_MODES = ("eval", "train", "both")
_MODELS = ("spanet_s", "spanetv2_s18_pure", "spanetv2_s18_hybrid")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmarks and their arguments."""
    benchmarks = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)
    parsers: list[argparse.ArgumentParser] = []

    def add(name: str, text: str, measure: Callable[[argparse.Namespace], Any]) -> Any:
        one = benchmarks.add_parser(name, help=text, description=text, allow_abbrev=False)
        one.add_argument("--json", metavar="FILE", help="write settings, machine and all rounds")
        one.add_argument("--mlflow", action="store_true", help="record the result in MLflow")
        one.set_defaults(measure=measure)
        parsers.append(one)
        return one

    models = add("models", "evaluation and training step of whole models", _models)
    models.add_argument("--csv", metavar="FILE", help="write timm's benchmark columns")
    models.add_argument("--mode", default="both", metavar="|".join(_MODES))
    text = "compile the models only, not those they are compared with"
    models.add_argument("--against-eager", action="store_true", help=text)
    ops = add("ops", "the token mixers alone, at each stage's shape", _ops)
    for one in (models, ops):
        text = f"models to measure (default: {' '.join(_MODELS)})"
        one.add_argument("models", nargs="*", metavar="MODEL", default=list(_MODELS), help=text)
        text = "models that each of them is compared with"
        one.add_argument("--against", default="", metavar="A,B", help=text)
        _add_settings(one)
        text = "width and height of the images, in pixels (default: 224)"
        one.add_argument("--size", type=int, default=224, metavar="PIXELS", help=text)

    heads = add("heads", "detectors and segmentation heads on one backbone", _heads)
    heads.add_argument("heads", nargs="*", metavar="HEAD", help="heads to measure (default: all)")
    text = "backbone of every head (default: %(default)s)"
    heads.add_argument("--backbone", default="spanetv2_s18_pure", metavar="MODEL", help=text)
    text = "pixels of the images (default: %(default)s)"
    heads.add_argument("--size", default="640x480", metavar="WIDTHxHEIGHT", help=text)
    heads.add_argument("--mode", default="both", metavar="|".join(_MODES))
    _add_settings(heads, batch=2, compiled=False)

    sweep = add("sweep", "what a trial of a study costs beside its training", _sweep)
    sweep.add_argument("--rounds", type=int, default=5, help="trials that train (default: 5)")
    text = "trials that do nothing (default: 30)"
    sweep.add_argument("--trials", type=int, default=30, help=text)
    for one in parsers:  # what a record omits from the command line
        one.set_defaults(defaults=vars(one.parse_args([])))


def _add_settings(
    parser: argparse.ArgumentParser, *, batch: int = 8, compiled: bool = True
) -> None:
    add = parser.add_argument
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("--dtype", default="float32", metavar="float32|tf32|bfloat16|float16")
    add("--layout", default="channels_last", metavar="channels_last|contiguous")
    if compiled:
        text = "torch.compile, in default mode or max-autotune"
        add("--compile", nargs="?", default="none", const="default", metavar="MODE", help=text)
        add("--dynamic", action="store_true", help="compile for any batch size, height and width")
        add("--freeze", action="store_true", help="fold weights into compiled evaluation")
    add("--batch", type=int, default=batch, help="images per batch (default: %(default)s)")
    add("--threads", type=int, help="intra-op threads (default: torch's)")
    add("--rounds", type=int, default=7, help="measurements of each subject (default: 7)")
    text = "minimum seconds of a measurement (default: 0.3)"
    add("--seconds", type=float, default=0.3, help=text)


def run(args: argparse.Namespace) -> None:
    """Measure, print the tables, and write what was asked for.

    Raises:
        SpanetError: If an argument is wrong.
    """
    from spanet_lightning.bench import report

    csv = getattr(args, "csv", None)
    targets = {
        key: report.check_target(f"--{key}", file)
        for key, file in (("json", args.json), ("csv", csv))
        if file
    }
    document = args.measure(args)
    _progress("")
    report.show(document)
    for key, path in targets.items():
        (report.write_json if key == "json" else report.write_csv)(path, document)
        print(f"wrote {path}")
    if args.mlflow:
        _track(document)


def _models(args: argparse.Namespace) -> Any:
    from spanet_lightning.bench.models import measure_models

    if args.against_eager and (not args.against or args.compile == "none"):
        raise ConfigError("--against-eager: requires --against and --compile")
    modes = _modes(args.mode)
    return _with_ceiling(
        args, partial(measure_models, modes=modes, against_eager=args.against_eager)
    )


def _ops(args: argparse.Namespace) -> Any:
    from spanet_lightning.bench.ops import measure_ops

    return _with_ceiling(args, measure_ops)


def _with_ceiling(args: argparse.Namespace, measure: Callable[..., Any]) -> Any:
    from spanet_lightning.bench.models import resolve_name
    from spanet_lightning.bench.report import build_document
    from spanet_lightning.bench.timing import measure_ceiling
    from spanet_lightning.machine import machine

    names = [resolve_name(name) for name in args.models]
    listed = [name.strip() for name in args.against.split(",") if name.strip()]
    against = [resolve_name(name, "--against") for name in listed]
    settings = _settings(args)
    with settings.applied():
        where = machine(settings.torch_device)
        _progress("ceiling")
        ceiling = measure_ceiling(settings)
        results, ratios = measure(names, against, settings, ceiling, _progress)
    return build_document(
        args.benchmark, _command(args), settings, results, ratios, machine=where, ceiling=ceiling
    )


def _heads(args: argparse.Namespace) -> Any:
    from spanet_lightning.bench.heads import HEADS, measure_heads
    from spanet_lightning.bench.report import build_document
    from spanet_lightning.machine import machine

    width, _, height = args.size.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise invalid("--size", args.size, "WIDTHxHEIGHT in pixels, such as 640x480")
    settings, modes = _settings(args, size=int(width), height=int(height)), _modes(args.mode)
    with settings.applied():
        where = machine(settings.torch_device)
        results, ratios = measure_heads(
            args.heads or HEADS, args.backbone, modes, settings, _progress
        )
    return build_document("heads", _command(args), settings, results, ratios, machine=where)


def _sweep(args: argparse.Namespace) -> Any:
    import torch

    from spanet_lightning.bench.report import build_document
    from spanet_lightning.bench.sweep import SweepSettings, measure_sweep
    from spanet_lightning.cli.config_files import find
    from spanet_lightning.machine import machine

    settings = SweepSettings(rounds=args.rounds, trials=args.trials)
    where = machine(torch.device("cpu"))
    results = measure_sweep(find("digits/spanetv2"), settings, _progress)
    return build_document("sweep", _command(args), settings, results, [], machine=where)


def _settings(args: argparse.Namespace, **changes: Any) -> Any:
    from spanet_lightning.bench.settings import Settings

    names = {field.name for field in fields(Settings)}
    given = {key: value for key, value in vars(args).items() if key in names}
    return Settings(**{**given, **changes})


def _modes(mode: str) -> Sequence[str]:
    if mode not in _MODES:
        raise invalid_choice("--mode", mode, _MODES)
    return ("eval", "train") if mode == "both" else (mode,)


def _command(args: argparse.Namespace) -> list[str]:
    """Return the shortest command line that measures the same."""
    words = ["spanet", "bench", args.benchmark]
    for key, default in args.defaults.items():
        value = getattr(args, key)
        if value == default or key in ("json", "csv", "mlflow", "measure"):
            continue
        if key in ("models", "heads"):
            words += value
        else:
            option = f"--{key.replace('_', '-')}"
            words += [option] if value is True else [option, str(value)]
    return words


def _progress(line: str) -> None:
    """Tell a person at a terminal what is measured next."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{line}")
        sys.stderr.flush()


def _track(document: dict[str, Any]) -> None:
    """Record a document in MLflow: settings and machine, medians, and the document itself."""
    from spanet_lightning import tracking
    from spanet_lightning.bench.report import tracked_metrics

    uri = os.environ.get("MLFLOW_TRACKING_URI") or tracking.DEFAULT_URI
    logger = tracking.MLflowLogger(EXPERIMENT, uri, run_name=f"bench {document['benchmark']}")
    parts = {
        "": {"command": document["command"]},
        "commit.": document["commit"] or {},
        **{f"{key}.": document[key] for key in ("settings", "machine", "versions")},
    }
    params = {prefix + key: v for prefix, part in parts.items() for key, v in part.items()}
    logger.log_hyperparams(params)
    logger.log_metrics(tracked_metrics(document))
    logger.log_text(json.dumps(document, indent=1, ensure_ascii=False), "bench.json")
    logger.finalize("success")
    print(f"recorded in {tracking.without_secret(uri)}: {tracking.dashboard([logger])}")
