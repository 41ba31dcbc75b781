"""Write a classifier as a file for elsewhere, and check that file against PyTorch.

  onnx         for any runtime of ONNX; its outputs in onnxruntime are compared with PyTorch's
  safetensors  weights that say how their model is built
  pyfunc       a folder that `mlflow.pyfunc.load_model` reads: the ONNX file, checked as well

SOURCE is a checkpoint of a run, a file of --format safetensors, or the name of a variant. What does
not agree with PyTorch is not left behind.
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from spanet_lightning import summary
from spanet_lightning.cli.convert import WEIGHTS_SET
from spanet_lightning.errors import ConfigError, invalid

FORMATS = ("onnx", "safetensors", "pyfunc")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `spanet export`."""
    parser.add_argument(
        "source", metavar="SOURCE", help="best.ckpt, model.safetensors, or spanetv2_s18_pure"
    )
    parser.add_argument("--format", choices=FORMATS, required=True, help="what to write")
    parser.add_argument("--output", metavar="PATH", help="file, or folder of pyfunc, to write")
    parser.add_argument("--overwrite", action="store_true", help="replace PATH where it exists")
    text = "side, or HEIGHTxWIDTH, of the images, in pixels (default: the model's)"
    parser.add_argument("--size", metavar="S", help=text)
    text = "images that the file takes at once (default: any number)"
    parser.add_argument("--batch", type=int, metavar="N", help=text)
    parser.add_argument("--opset", type=int, metavar="N", help="version of ONNX's operators")
    text = "largest absolute difference from PyTorch that passes (default: %(default)s)"
    parser.add_argument("--tolerance", type=float, default=1e-4, metavar="D", help=text)
    text = "with a name: checkpoint, official or ours (default: random weights)"
    parser.add_argument("--weights", metavar="FILE", help=text)
    parser.add_argument("--weights-set", choices=("model", "ema"), help=WEIGHTS_SET)
    text = "with a name: classes of its head (default: 1000)"
    parser.add_argument("--num-classes", type=int, metavar="K", help=text)
    text = "pyfunc: also store the folder among the artifacts of this run"
    parser.add_argument("--run", metavar="RUN_ID", help=text)
    text = "pyfunc: also register it as the next version of this model; needs --run"
    parser.add_argument("--register", metavar="NAME", help=text)
    text = "where the run is (default: MLFLOW_TRACKING_URI, or sqlite:///mlflow.db)"
    parser.add_argument("--tracking-uri", metavar="URI", help=text)


def run(args: argparse.Namespace) -> None:
    """Export, and print what was written and how far it is from PyTorch.

    Raises:
        ConfigError: If an argument is wrong.
        CheckpointError: If the source can't be read safely, or holds no classifier.
        ExportError: If what was written does not compute what the model does.
    """
    target = _target(args)
    size = None if args.size is None else _size(args.size)

    from spanet_lightning import export
    from spanet_lightning.export import onnx_file

    opset = onnx_file.OPSET if args.opset is None else args.opset
    if opset < onnx_file.OLDEST_OPSET:
        raise invalid("--opset", opset, f"at least {onnx_file.OLDEST_OPSET}")
    if args.batch is not None and args.batch < 1:
        raise invalid("--batch", args.batch, "at least 1")
    if not args.tolerance > 0:
        raise invalid("--tolerance", args.tolerance, "a number above 0")
    if args.format != "safetensors":
        onnx_file.require_packages()
    source = export.read(
        args.source,
        weights=args.weights,
        weights_set=args.weights_set,
        num_classes=args.num_classes,
    )
    if source.model.num_classes == 0:
        raise invalid("--num-classes", 0, "at least 1: a classifier is exported")
    parameters = sum(p.numel() for p in source.model.parameters())
    rows: dict[str, str | None] = {
        "model": f"{source.name}, {parameters:,} parameters",
        "weights": source.weights,
    }
    if args.format == "safetensors":
        export.to_safetensors(source, target)
        summary.show("Exported", rows | _written(target))
        return
    height, width = size or source.size
    options = {"batch": args.batch, "opset": opset, "tolerance": args.tolerance}
    if args.format == "onnx":
        found = export.to_onnx(
            source.model,
            target,
            (height, width),
            in_chans=source.model.in_chans,
            metadata=source.metadata(),
            **options,
        )
    else:
        from spanet_lightning.tracking import pyfunc

        found = pyfunc.save(source, target, (height, width), **options)
    batch = "batch" if args.batch is None else args.batch
    rows |= {
        "input": f"images ({batch}, {source.model.in_chans}, {height}, {width}) float32",
        "output": f"logits ({batch}, {source.model.num_classes}) float32",
        "largest difference": f"{found.difference:.1e} from PyTorch's outputs, which reach "
        f"{found.largest:.3g}; batches of {' and '.join(map(str, found.batches))}",
        "graph": f"{found.nodes} nodes, opset {opset}",
    }
    rows |= _written(target)
    if args.run is not None:
        rows["model URI"] = pyfunc.store(
            target, args.run, _tracking_uri(args.tracking_uri), args.register
        )
    summary.show("Exported", rows)


def _target(args: argparse.Namespace) -> Path:
    """Return the path to write, which is looked at before anything is computed."""
    if args.format != "pyfunc":
        for key in ("run", "register"):
            if getattr(args, key) is not None:
                raise invalid(f"--{key}", getattr(args, key), "--format pyfunc with it")
    if args.register is not None and args.run is None:
        raise invalid("--register", args.register, "--run RUN_ID with it, whose model it is")
    if args.output is None:
        raise ConfigError("--output: is missing; expected the path to write")
    target = Path(args.output)
    suffix = {"onnx": ".onnx", "safetensors": ".safetensors"}.get(args.format)
    if suffix is not None and target.suffix != suffix:
        raise invalid("--output", args.output, f"a name that ends in {suffix}")
    if not target.parent.is_dir():
        raise ConfigError(f"--output: got {args.output!r}, but there is no folder {target.parent}")
    if (target.exists() or target.is_symlink()) and not args.overwrite:
        raise ConfigError(f"--output: {args.output} exists; --overwrite replaces it")
    wrong = target.is_file() if suffix is None else target.is_dir()
    if wrong:
        raise invalid("--output", args.output, "a folder" if suffix is None else "a file")
    if target.is_dir() and any(target.iterdir()) and not (target / "MLmodel").is_file():
        raise invalid("--output", args.output, "a folder that holds an MLflow model, or none yet")
    return target


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    height, width = (0, 0) if match is None else (int(match[1]), int(match[2] or match[1]))
    if min(height, width) < 32:
        raise invalid("--size", text, "a side, or HEIGHTxWIDTH, of at least 32 pixels")
    return height, width


def _written(target: Path) -> dict[str, str | None]:
    files = [target] if target.is_file() else [f for f in target.rglob("*") if f.is_file()]
    return {"written": f"{target} ({sum(f.stat().st_size for f in files) / 1e6:.1f} MB)"}


def _tracking_uri(given: str | None) -> str:
    from spanet_lightning.tracking import DEFAULT_URI

    return given or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
