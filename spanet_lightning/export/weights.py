"""Weights as safetensors that say how their model is built."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from spanet_lightning.errors import ConfigError
from spanet_lightning.export.source import Source


def to_safetensors(source: Source, path: str | Path) -> Path:
    """Write a model's weights with its description, whole or not at all.

    `export.from_safetensors` builds the model again; `load_official` and timm's `checkpoint_path`
    read the weights into a model that is there.

    Args:
        source: The model.
        path: File to write; replaced where it exists.

    Raises:
        ConfigError: If it can't be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    tensors = {name: tensor.contiguous() for name, tensor in source.model.state_dict().items()}
    try:
        save_file(tensors, partial, source.metadata())
        partial.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: can't be written ({error.strerror or error})") from None
    finally:
        partial.unlink(missing_ok=True)
    return path
