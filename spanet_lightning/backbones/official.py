"""Read the official checkpoints, of both generations and all three code bases, into our names.

Sources: the timm-style ImageNet checkpoints and the mmdetection and mmsegmentation checkpoints of
both official repositories, whole (`official_dense`) or their backbones alone. What differs from
ours:

- names (`official_names`), linear layers where we have 1×1 convolutions;
- V1's gates have one 1×1 convolution each: ours is their concatenation along the input channels;
- V1's frozen masks are in ImageNet checkpoints and not in dense ones: ours are built on the way, so
  those are compared with the model's and left out;
- V2 has two layouts. One keeps `filter_1..4` and `local_conv_1..4` and interleaves the heads'
  channels, the other keeps one `filter` and `local_convs.*` and concatenates heads. Their tensors
  have the same shapes for us but mean different functions: the model must be built with the
  matching `head_layout`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from spanet_lightning.backbones.metaformer import Backbone
from spanet_lightning.backbones.official_dense import load_dense
from spanet_lightning.backbones.official_files import read, unwrap
from spanet_lightning.backbones.official_fit import LoadReport, check_fit, fit, resized
from spanet_lightning.backbones.official_names import translate
from spanet_lightning.errors import CheckpointError

__all__ = ["LoadReport", "convert", "load_official", "pretrained_filter"]

FORMAT = "spanet_lightning"


def load_official(model: nn.Module, checkpoint: str | Path | Mapping[str, Any]) -> LoadReport:
    """Load an official checkpoint, or one of ours, into `model`.

    Args:
        model: A backbone or a dense model (`spanet_lightning.heads.DenseModel`), built with the
            checkpoint's depths, dims, mixers and head layout. Logits of the SRF are resized where
            `img_size` differs; layers for another number of classes are left out. A dense model
            takes a checkpoint of a whole dense model, or of a classifier for its backbone alone.
        checkpoint: A file (`.pth`, `.pt`, `.ckpt`, `.tar`, `.safetensors`), or its mapping of names
            to tensors. Files are read without running code from them.

    Returns:
        What became of every tensor.

    Raises:
        CheckpointError: If the file can't be read safely, or a tensor has no place in the model, or
            the model needs one that is not there.
        ConfigError: If `model` is neither a backbone nor a dense model.
    """
    name, state, metadata = read(checkpoint)
    if not isinstance(model, Backbone):
        return load_dense(model, name, state, metadata)
    tensors, report = fit(model, name, translate(name, state, metadata))
    model.load_state_dict(model.state_dict() | tensors)
    return report


def convert(source: str | Path, target: str | Path) -> LoadReport:
    """Write the official checkpoint `source` as safetensors in our names.

    Raises:
        CheckpointError: As `load_official`; `target` is then not written.
    """
    name, state, metadata = read(source)
    translated = translate(name, state, metadata)
    ignored = dict(translated.ignored)
    ignored |= {key: "frozen SPF mask; built for each size" for key, _ in translated.masks.values()}
    tags = {"format": FORMAT, "generation": str(translated.generation)}
    if translated.head_layout:
        tags["head_layout"] = translated.head_layout
    target = Path(target)
    partial = target.with_name(target.name + ".partial")
    try:
        save_file({k: v.contiguous() for k, v in translated.tensors.items()}, partial, tags)
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(f"{target}: can't be written ({error.strerror or error})") from None
    used = [key for ours in translated.tensors for key in translated.sources[ours]]
    return LoadReport(translated.layout, tuple(used), ignored)


def pretrained_filter(state: Mapping[str, Any], model: Backbone) -> dict[str, Tensor]:
    """Translate a downloaded official state dict for timm's `pretrained=True`."""
    translated = translate("the pretrained weights", unwrap("pretrained", state), {})
    check_fit(model, "the pretrained weights", translated)
    return resized(model, translated.tensors)
