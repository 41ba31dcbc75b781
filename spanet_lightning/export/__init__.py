"""A trained classifier as a file for elsewhere: ONNX, or safetensors that describe themselves."""

from spanet_lightning.export.fixed import fixed
from spanet_lightning.export.onnx_file import ExportError, Written, compare, to_onnx
from spanet_lightning.export.source import Source, from_checkpoint, from_safetensors, read
from spanet_lightning.export.weights import to_safetensors

__all__ = [
    "ExportError",
    "Source",
    "Written",
    "compare",
    "fixed",
    "from_checkpoint",
    "from_safetensors",
    "read",
    "to_onnx",
    "to_safetensors",
]
