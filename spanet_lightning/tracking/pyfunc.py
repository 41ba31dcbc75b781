"""A classifier as an MLflow model: `mlflow.pyfunc.load_model(uri).predict(images)["logits"]`.

The folder is of MLflow's own ONNX flavour. It holds the ONNX file and no pickle and no code; who
loads it needs MLflow and onnxruntime, but neither torch nor this project. That is why it is not
backed by weights and our classes: those would have to be installed where it is served, in the same
version, from a place that pip knows.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spanet_lightning.errors import ConfigError
from spanet_lightning.export.onnx_file import (
    OPSET,
    OUTPUT,
    TOLERANCE,
    ExportError,
    Written,
    to_onnx,
)
from spanet_lightning.export.source import Source
from spanet_lightning.tracking.addresses import complete, redact
from spanet_lightning.tracking.client import connect

FOLDER = "model"
"""Name of the model's folder among the artifacts of a run."""
_SERVED_WITH = ("onnx", "onnxruntime", "numpy")


def save(
    source: Source,
    folder: str | Path,
    size: tuple[int, int],
    *,
    batch: int | None = None,
    opset: int = OPSET,
    tolerance: float = TOLERANCE,
) -> Written:
    """Write a model as a folder that `mlflow.pyfunc.load_model` reads, checked, or not at all.

    The loaded model takes `images` (batch, in_chans, height, width) float32, normalised as in
    training, and returns a mapping with `logits`. Signature and an example are included.

    Args:
        source: The classifier.
        folder: Folder to write; replaced where it exists.
        size: Height and width of the images, in pixels.
        batch: Batch size that it takes; None is any.
        opset: Version of ONNX's operators.
        tolerance: Largest absolute difference from PyTorch's outputs that passes.

    Raises:
        ConfigError: If a package is missing, or the folder can't be written.
        ExportError: If what MLflow loads differs from PyTorch.
    """
    folder = Path(folder)
    try:
        with tempfile.TemporaryDirectory(
            prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent
        ) as scratch:
            file = Path(scratch) / "model.onnx"
            written = to_onnx(
                source.model,
                file,
                size,
                in_chans=source.model.in_chans,
                batch=batch,
                opset=opset,
                metadata=source.metadata(),
                tolerance=tolerance,
            )
            shape = (written.batches[0], source.model.in_chans, *size)
            made = Path(scratch) / "folder"
            _write(source, file, made, shape, batch)
            difference = max(written.difference, _difference(source, made, shape))
            if not difference <= tolerance:
                raise ExportError(
                    f"{folder}: not written: as MLflow loads it, its outputs differ from PyTorch's "
                    f"by {difference:.1e}, which is more than {tolerance:.0e}"
                )
            if folder.exists():
                folder.rename(Path(scratch) / "replaced")
            made.rename(folder)
    except OSError as error:
        raise ConfigError(f"{folder}: can't be written ({error.strerror or error})") from None
    return Written(folder, difference, written.largest, written.batches, written.nodes)


def _write(
    source: Source, file: Path, folder: Path, shape: tuple[int, ...], batch: int | None
) -> None:
    with _quiet():
        import mlflow.onnx
        import onnx
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

        n = -1 if batch is None else batch
        inputs = TensorSpec(np.dtype(np.float32), (n, *shape[1:]))
        outputs = TensorSpec(np.dtype(np.float32), (n, source.model.num_classes), OUTPUT)
        mlflow.onnx.save_model(
            onnx.load(str(file)),
            str(folder),
            signature=ModelSignature(Schema([inputs]), Schema([outputs])),
            input_example=example(shape),
            # Given, so that MLflow does not load the model in a process of its own to find out.
            pip_requirements=[f"{name}=={metadata.version(name)}" for name in _SERVED_WITH],
            # A provider that is not there is warned about with each load.
            onnx_execution_providers=["CPUExecutionProvider"],
            metadata=source.metadata(),
            save_as_external_data=False,
        )


def example(shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return images whose rows go from -2 to 2, in eighths: short in a text file.

    Args:
        shape: (batch, channels, height, width).
    """
    rows = np.round(np.linspace(-2, 2, shape[2]) * 8) / 8
    images = np.broadcast_to(rows[:, None], shape)
    return np.ascontiguousarray(images, dtype=np.float32)


def _difference(source: Source, folder: Path, shape: tuple[int, ...]) -> float:
    with _quiet():
        import mlflow.pyfunc

        loaded = mlflow.pyfunc.load_model(str(folder))
        images = example(shape)
        found = torch.from_numpy(loaded.predict(images)[OUTPUT])
    with torch.no_grad():
        return float((found - source.model(torch.from_numpy(images))).abs().max())


def store(folder: str | Path, run_id: str, tracking_uri: str, register: str | None = None) -> str:
    """Store a model's folder among the artifacts of a run, and register it.

    Args:
        folder: What `save` has written.
        run_id: The run.
        tracking_uri: Where that is.
        register: Name of the registered model that it becomes the next version of; it is created
            where it does not exist.

    Returns:
        The address that `mlflow.pyfunc.load_model` takes.

    Raises:
        ConfigError: If there is no such store or run, or it refuses the name.
    """
    client = connect(complete(tracking_uri))
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
        # A folder of its own each time: a registered version stays what it was.
        taken = {Path(entry.path).name for entry in client.list_artifacts(run_id)}
        name, number = FOLDER, 1
        while name in taken:
            number += 1
            name = f"{FOLDER}-{number}"
        client.log_artifacts(run_id, str(folder), name)
        if register is None:
            return f"runs:/{run_id}/{name}"
        return registered(client, register, f"{run.info.artifact_uri}/{name}", run_id)
    except MlflowException as error:
        reason = redact(" ".join(str(error).split()), tracking_uri)[:300]
        problem = f"--run: got {run_id!r}, where the model can't be stored: {reason}"
        raise ConfigError(problem) from None


def registered(client: Any, name: str, source: str, run_id: str) -> str:
    """Register what is stored as the next version of a model; return its address.

    Args:
        client: MLflow's client.
        name: Name of the registered model; created where it does not exist.
        source: Where the model's folder is.
        run_id: The run that it is of.
    """
    from mlflow.exceptions import MlflowException

    # Another run may create it at the same moment; then there is one.
    with contextlib.suppress(MlflowException):
        client.create_registered_model(name)
    version = client.create_model_version(name, source, run_id, await_creation_for=30)
    return f"models:/{name}/{version.version}"


@contextlib.contextmanager
def _quiet() -> Any:
    """Keep what MLflow says about itself from a user who did not ask."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    logger = logging.getLogger("mlflow")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own type hints, when it is imported
            yield
    finally:
        logger.setLevel(before)
