"""A classifier as an ONNX file that agrees with PyTorch, or no file at all.

`torch.onnx.export(dynamo=True)` translates what `torch.export` captures: the exporter that torch
develops, while the one for TorchScript is deprecated. The form that is captured (`fixed`) holds no
FFT: ONNX's DFT (opset 17, changed in 20) is missing in many runtimes.
"""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spanet_lightning.errors import ConfigError, SpanetError
from spanet_lightning.export.fixed import fixed

INPUT, OUTPUT = "images", "logits"
OPSET = 20  # the first with Gelu, which else is written with Erf
OLDEST_OPSET = 18  # of what torch translates to
TOLERANCE = 1e-4
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class ExportError(SpanetError, RuntimeError):
    """A file does not compute what the model does, and is not left behind."""


@dataclass(frozen=True)
class Written:
    """What became of an export.

    Attributes:
        path: The file.
        difference: Largest absolute difference from PyTorch's outputs, over all batches compared.
        largest: Largest absolute value of PyTorch's outputs.
        batches: Batch sizes that were compared.
        nodes: Nodes of the graph.
    """

    path: Path
    difference: float
    largest: float
    batches: tuple[int, ...]
    nodes: int


def require_packages(key: str = "--format") -> None:
    """Find the packages that ONNX needs before anything is done.

    Args:
        key: Option or key that asks for them, for the error.

    Raises:
        ConfigError: If one is not installed.
    """
    for name in _PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError:
            raise ConfigError(
                f"{key}: an ONNX file needs the package {name}, which is not installed: "
                "pip install 'spanet-lightning[export]'"
            ) from None


def to_onnx(
    model: nn.Module,
    path: str | Path,
    size: tuple[int, int],
    *,
    in_chans: int = 3,
    batch: int | None = None,
    opset: int = OPSET,
    metadata: Mapping[str, str] | None = None,
    tolerance: float = TOLERANCE,
) -> Written:
    """Write a model as ONNX, and compare the file's outputs in onnxruntime with PyTorch's.

    The file has one input, `images` (batch, in_chans, height, width) float32, normalised as in
    training, and one output, `logits`. It is there whole and checked, or not at all.

    Args:
        model: A backbone with a classifier, or another model of images built on one.
        path: File to write; replaced where it exists.
        size: Height and width of the images, in pixels: constants of the file.
        in_chans: Channels of the images.
        batch: Batch size of the file; None lets it take any.
        opset: Version of ONNX's operators.
        metadata: What the file says of itself.
        tolerance: Largest absolute difference of the outputs that passes.

    Raises:
        ConfigError: If a package is missing, or the size too small.
        ExportError: If the file's outputs differ from PyTorch's.
    """
    require_packages()
    path = Path(path)
    model = model.eval()
    proto = _translate(fixed(model, size, in_chans), size, in_chans, batch, opset)
    for key, value in (metadata or {}).items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(proto.SerializeToString())
            file.flush()
            os.fsync(file.fileno())
        batches = (1, 3) if batch is None else (batch,)
        shapes = [(n, in_chans, *size) for n in batches]
        difference, largest = compare(model, partial, shapes)
        if not difference <= tolerance:
            raise ExportError(
                f"{path}: not written: its outputs differ from PyTorch's by {difference:.1e} "
                f"(largest output: {largest:.3g}), which is more than {tolerance:.0e}"
            )
        partial.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: can't be written ({error.strerror or error})") from None
    finally:
        partial.unlink(missing_ok=True)
    return Written(path, difference, largest, batches, len(proto.graph.node))


def compare(
    model: nn.Module, path: str | Path, shapes: Sequence[Sequence[int]], seed: int = 0
) -> tuple[float, float]:
    """Return how far a file's outputs in onnxruntime are from a model's, on random images.

    Args:
        model: The model, in evaluation mode.
        path: The ONNX file; `onnx.checker` has to accept it.
        shapes: Shape of each batch of images.
        seed: Of the images, drawn from N(0, 1).

    Returns:
        The largest absolute difference, and the largest absolute value of the model's outputs.
        Outputs that are not finite, or of another shape, differ by infinity.
    """
    import onnx

    onnx.checker.check_model(str(path), full_check=True)
    session = _session(path)
    generator = torch.Generator().manual_seed(seed)
    difference = largest = 0.0
    for shape in shapes:
        images = torch.randn(tuple(shape), generator=generator)
        with torch.no_grad():
            expected: Tensor = model(images)
        (found,) = session.run([OUTPUT], {INPUT: images.numpy()})
        theirs = torch.from_numpy(found)
        if theirs.shape != expected.shape or not torch.isfinite(theirs).all():
            return float("inf"), largest
        difference = max(difference, float((theirs - expected).abs().max()))
        largest = max(largest, float(expected.abs().max()))
    return difference, largest


def _session(path: str | Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])


def _translate(
    model: nn.Module, size: tuple[int, int], in_chans: int, batch: int | None, opset: int
) -> Any:
    # A batch of 1 in a graph for any would be taken for a constant.
    images = torch.zeros(2 if batch is None else batch, in_chans, *size)
    shapes = ({0: torch.export.Dim("batch")},) if batch is None else None
    for name in ("onnxscript", "onnx_ir", "torch.onnx"):  # each step, and what it thinks of it
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's and onnxscript's, about themselves
        program = torch.onnx.export(
            model,
            (images,),
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=shapes,
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
        )
    assert program is not None  # noqa: S101 - for the type checker
    return program.model_proto
