"""Read the official checkpoints, of both generations and all three code bases, into our names.

Sources: the timm-style ImageNet checkpoints and the backbones inside mmdetection and mmsegmentation
checkpoints of both official repositories. What differs from ours:

- names (`_V1_RULES`, `_V2_RULES`), linear layers where we have 1×1 convolutions;
- V1's gates have one 1×1 convolution each: ours is their concatenation along the input channels;
- V1's frozen masks are in ImageNet checkpoints and not in dense ones: ours are built on the way, so
  those are compared with the model's and left out;
- V2 has two layouts. One keeps `filter_1..4` and `local_conv_1..4` and interleaves the heads'
  channels, the other keeps one `filter` and `local_convs.*` and concatenates heads. Their tensors
  have the same shapes for us but mean different functions: the model must be built with the
  matching `head_layout`.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from spanet_lightning.backbones.metaformer import Backbone
from spanet_lightning.backbones.spectral import resize_logits
from spanet_lightning.errors import CheckpointError

FORMAT = "spanet_lightning"

Rules = tuple[tuple[str, str], ...]

# Patterns match whole names. Rules of blocks see what follows the block's own prefix. A part after
# "@" marks tensors that are merged or split (`_merge_gates`, `_split_filters`).
_V1_RULES: Rules = (
    (r"patch_embed\.proj\.(.+)", r"stem.conv.\1"),
    (r"network\.([135])\.proj\.(.+)", r"stages.<odd \1>.downsample.conv.\2"),
    (r"norm([0246])\.(.+)", r"output_norms.<even \1>.\2"),
    (r"(norm|head)\.(.+)", r"\1.\2"),
)
_V1_BLOCK = r"network\.(?P<stage>[0246])\.(?P<block>\d+)\.(?P<rest>.+)"
_V1_BLOCK_RULES: Rules = (
    (r"token_mixer\.conv\.0\.(.+)", r"mixer.local_w.\1"),
    (r"token_mixer\.conv\.1\.(.+)", r"mixer.local_h.\1"),
    (r"token_mixer\.pws\.(\d+)\.(.+)", r"mixer.gates.\2@\1"),
    (r"token_mixer\.sps\.(\d+)\.filter", r"mixer.gates.mask@\1"),
    (r"token_mixer\.(proj_in|proj_out)\.(.+)", r"mixer.\1.\2"),
    (r"(norm|mlp|res_scale|layer_scale)(.+)", r"\1\2"),
)
_V2_RULES: Rules = (
    (r"downsample_layers\.0\.conv\.(.+)", r"stem.conv.\1"),
    (r"downsample_layers\.0\.post_norm\.(.+)", r"stem.norm.\1"),
    (r"downsample_layers\.(\d)\.conv\.(.+)", r"stages.\1.downsample.conv.\2"),
    (r"downsample_layers\.(\d)\.pre_norm\.(.+)", r"stages.\1.downsample.norm.\2"),
    (r"norm([0-3])\.(.+)", r"output_norms.\1.\2"),
    (r"(norm|head)\.(.+)", r"\1.\2"),
)
_V2_BLOCK = r"stages\.(?P<stage>\d)\.(?P<block>\d+)\.(?P<rest>.+)"
_V2_BLOCK_RULES: Rules = (
    (r"token_mixer\.query\.0\.(.+)", r"mixer.query.\1"),
    (r"token_mixer\.ctx\.(.+)", r"mixer.context.\1"),
    (r"token_mixer\.local_conv_(\d+)\.(.+)", r"mixer.local.<minus one \1>.\2"),
    (r"token_mixer\.local_convs\.(\d+)\.(.+)", r"mixer.local.\1.\2"),
    (r"token_mixer\.filter_(\d+)", r"mixer.srf.logits.<minus one \1>"),
    (r"token_mixer\.filter", r"mixer.srf.logits@all"),
    (r"token_mixer\.scale\.alpha", r"mixer.srf.alpha"),
    (r"token_mixer\.proj\.0\.(.+)", r"mixer.expand.\1"),
    (r"token_mixer\.proj\.1\.(.+)", r"mixer.norm.\1"),
    (r"token_mixer\.proj\.3\.(.+)", r"mixer.reduce.\1"),
    (r"token_mixer\.proj_out\.(.+)", r"mixer.proj.\1"),
    (r"token_mixer\.(qkv|proj)\.weight", r"mixer.\1.weight"),
    (r"token_mixer\.local_conv\.weight", r"mixer.local.weight"),
    (r"(norm|mlp|res_scale|layer_scale)(.+)", r"\1\2"),
)

_INDEX = re.compile(r"<(even|odd|minus one) (\d+)>")
_MASK_REASON = "frozen SPF mask; equal to the one the model builds for each size"
_CLASSIFIER = ("norm.", "head.")


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor.

    Attributes:
        layout: Where the checkpoint came from, in words.
        used: Names in the checkpoint whose tensors are now in the model.
        ignored: Names in the checkpoint that were left out, with the reason.
        missing: Names in the model that the checkpoint does not have, with the reason.
    """

    layout: str
    used: tuple[str, ...]
    ignored: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.layout}: {len(self.used)} tensors used"]
        for title, names in (("left out", self.ignored), ("not in the checkpoint", self.missing)):
            for reason in dict.fromkeys(names.values()):
                group = [name for name, why in names.items() if why == reason]
                more = f" and {len(group) - 1} more" if len(group) > 1 else ""
                lines.append(f"{title}: {group[0]}{more} ({reason})")
        return "\n".join(lines)


@dataclass
class _Translated:
    """A checkpoint in our names, before it meets a model."""

    generation: int
    layout: str
    head_layout: str | None
    tensors: dict[str, Tensor]
    sources: dict[str, list[str]]  # our name → names in the checkpoint
    masks: dict[str, tuple[str, Tensor]]  # "….gates@i" → (name in the checkpoint, mask)
    ignored: dict[str, str]


def load_official(model: Backbone, checkpoint: str | Path | Mapping[str, Any]) -> LoadReport:
    """Load an official checkpoint, or one of ours, into `model`.

    Args:
        model: A backbone built with the checkpoint's depths, dims, mixers and head layout. Logits
            of the SRF are resized where `img_size` differs; the last layer of the classifier is
            left out where the number of classes differs.
        checkpoint: A file (`.pth`, `.pt`, `.ckpt`, `.tar`, `.safetensors`), or its mapping of names
            to tensors. Files are read without running code from them.

    Returns:
        What became of every tensor.

    Raises:
        CheckpointError: If the file can't be read safely, or a tensor has no place in the model, or
            the model needs one that is not there.
    """
    name, state, metadata = _read(checkpoint)
    translated = _translate(name, state, metadata)
    return _load(model, name, translated)


def convert(source: str | Path, target: str | Path) -> LoadReport:
    """Write the official checkpoint `source` as safetensors in our names.

    Raises:
        CheckpointError: As `load_official`; `target` is then not written.
    """
    name, state, metadata = _read(source)
    translated = _translate(name, state, metadata)
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
    translated = _translate("the pretrained weights", _unwrap("pretrained", state), {})
    _check_fit(model, "the pretrained weights", translated)
    return _resized(model, translated.tensors)


def _read(
    checkpoint: str | Path | Mapping[str, Any],
) -> tuple[str, dict[str, Tensor], dict[str, str]]:
    """Return a name for messages, the state dict, and the file's metadata."""
    if isinstance(checkpoint, Mapping):
        return "checkpoint", _unwrap("checkpoint", checkpoint), {}
    path = Path(checkpoint)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                return str(path), tensors, file.metadata() or {}
        except SafetensorError as error:
            raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from None
    try:
        with warnings.catch_warnings():  # torch warns of a protocol just before it refuses the file
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused, it holds more than tensors and plain values{_offender(error)}; "
            "loading it could run code. Save its state_dict alone where it was made"
        ) from None
    except (EOFError, RuntimeError, OSError, ValueError, KeyError) as error:
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not a readable checkpoint ({cause})") from None
    return str(path), _unwrap(str(path), content), {}


def _offender(error: Exception) -> str:
    found = re.search(r"(?:GLOBAL|global) (\S+)", str(error))
    return f" ({found[1].rstrip('.,')})" if found else ""


def _unwrap(name: str, content: Any) -> dict[str, Tensor]:
    """Find the mapping of names to tensors inside the wrappers that trainers put around it."""
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{name}: got {type(content).__name__}, expected a state dict")
    state = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not state:
        raise CheckpointError(f"{name}: holds no tensors, expected a state dict")
    if all(key.startswith("module.") for key in state):  # saved from DataParallel
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def _translate(name: str, state: dict[str, Tensor], metadata: Mapping[str, str]) -> _Translated:
    ignored: dict[str, str] = {}
    whole_model = any(key.startswith("backbone.") for key in state)
    if whole_model:
        ignored = {
            key: f"{key.split('.')[0]}: not part of the backbone"
            for key in state
            if not key.startswith("backbone.")
        }
        state = {k.removeprefix("backbone."): v for k, v in state.items() if k not in ignored}
    prefix = "backbone." if whole_model else ""

    if "patch_embed.proj.weight" in state:
        out = _apply_rules(name, state, prefix, 1)
        _merge_gates(out)
    elif "downsample_layers.0.conv.weight" in state:
        out = _apply_rules(name, state, prefix, 2)
        out.head_layout = _split_filters(out)
    elif "stem.conv.weight" in state:
        generation = 2 if "stem.norm.weight" in state else 1
        sources = {key: [prefix + key] for key in state}
        out = _Translated(
            generation, "ours", metadata.get("head_layout"), dict(state), sources, {}, {}
        )
    else:
        raise CheckpointError(
            f"{name}: first key {next(iter(state))!r}, expected a SPANet or SPANetV2 checkpoint "
            "(keys patch_embed.*, downsample_layers.* or stem.*)"
        )
    out.layout = f"SPANet{'V2' if out.generation == 2 else ''} checkpoint, {out.layout} layout"
    out.ignored = ignored
    return out


def _apply_rules(
    name: str, state: Mapping[str, Tensor], prefix: str, generation: int
) -> _Translated:
    out = _Translated(generation, "official", None, {}, {}, {}, {})
    for key, value in state.items():
        ours = _our_name(key, generation)
        if ours is None:
            model = "SPANet" if generation == 1 else "SPANetV2"
            raise CheckpointError(f"{name}: key {prefix + key!r} is in no known {model} layout")
        out.tensors[ours] = value
        out.sources[ours] = [prefix + key]
    return out


def _our_name(key: str, generation: int) -> str | None:
    rules, block = (_V1_RULES, _V1_BLOCK) if generation == 1 else (_V2_RULES, _V2_BLOCK)
    where = ""
    if match := re.fullmatch(block, key):
        stage = f"<even {match['stage']}>" if generation == 1 else match["stage"]
        where = f"stages.{stage}.blocks.{match['block']}."
        key = match["rest"]
        rules = _V1_BLOCK_RULES if generation == 1 else _V2_BLOCK_RULES
    for pattern, template in rules:
        if match := re.fullmatch(pattern, key):
            return _INDEX.sub(_stage_index, where + match.expand(template))
    return None


def _stage_index(match: re.Match[str]) -> str:
    """V1 lists stages and down-sampling together; V2's interleaved heads count from 1."""
    kind, number = match[1], int(match[2])
    return str({"even": number // 2, "odd": (number + 1) // 2, "minus one": number - 1}[kind])


def _merge_gates(out: _Translated) -> None:
    """Concatenate each mixer's 1×1 convolutions; set its masks aside."""
    gathered: dict[str, dict[int, Tensor]] = {}
    for key in [key for key in out.tensors if "@" in key]:
        ours, gate = key.split("@")
        value, source = out.tensors.pop(key), out.sources.pop(key)
        if ours.endswith(".mask"):
            out.masks[key.replace(".mask@", "@")] = (source[0], value)
            continue
        gathered.setdefault(ours, {})[int(gate)] = value
        out.sources.setdefault(ours, []).extend(source)
    for ours, parts in gathered.items():
        ordered = [parts[i] for i in sorted(parts)]
        out.tensors[ours] = (
            torch.cat(ordered, dim=1) if ours.endswith(".weight") else torch.stack(ordered)
        )


def _split_filters(out: _Translated) -> str | None:
    """Split concatenated filters into heads; return the head layout, `None` without SPAM mixers."""
    concatenated = [key for key in out.tensors if key.endswith(".logits@all")]
    for key in concatenated:
        ours = key.removesuffix("@all")
        mixer = ours.removesuffix(".srf.logits")
        heads = sum(
            re.fullmatch(rf"{re.escape(mixer)}\.local\.\d+\.weight", k) is not None
            for k in out.tensors
        )
        source = out.sources.pop(key)
        for i, part in enumerate(out.tensors.pop(key).chunk(max(heads, 1))):
            out.tensors[f"{ours}.{i}"] = part
            # One tensor of the checkpoint feeds several of ours: it is named once.
            out.sources[f"{ours}.{i}"] = source if i == 0 else []
    if concatenated:
        return "concatenated"
    return "interleaved" if any(".mixer.local.0." in key for key in out.tensors) else None


def _architecture(state: Mapping[str, Tensor]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the depths and dims of a state dict in our names."""
    blocks: dict[int, set[int]] = {}
    dims: dict[int, int] = {}
    for key, value in state.items():
        if match := re.match(r"stages\.(\d+)\.blocks\.(\d+)\.(norm1\.weight)?", key):
            blocks.setdefault(int(match[1]), set()).add(int(match[2]))
            if match[3]:
                dims[int(match[1])] = value.shape[0]
    return tuple(len(blocks[i]) for i in sorted(blocks)), tuple(dims[i] for i in sorted(dims))


def _check_fit(model: Backbone, name: str, translated: _Translated) -> None:
    """Refuse a checkpoint of another generation, size or head layout, saying which."""
    state = model.state_dict()
    generation = 2 if "stem.norm.weight" in state else 1
    if generation != translated.generation:
        raise CheckpointError(
            f"{name}: holds SPANet{'V2' * (translated.generation - 1)} weights, "
            f"the model is SPANet{'V2' * (generation - 1)}"
        )
    theirs, ours = _architecture(translated.tensors), _architecture(state)
    if theirs != ours:
        raise CheckpointError(
            f"{name}: depths {theirs[0]} and dims {theirs[1]}, "
            f"the model has depths {ours[0]} and dims {ours[1]}"
        )
    layouts = {m.head_layout for m in model.modules() if hasattr(m, "head_layout")}
    if translated.head_layout and layouts and layouts != {translated.head_layout}:
        raise CheckpointError(
            f"{name}: head_layout {translated.head_layout!r}, the model has {layouts.pop()!r}"
        )


def _resized(model: Backbone, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring SRF logits to the size that the model stores; give linear layers their 1×1."""
    state = model.state_dict()
    out = {}
    for key, value in tensors.items():
        if key in state and ".srf.logits." in key and value.ndim == 3:
            value = resize_logits(value, *state[key].shape[-2:])
        elif key in state and value.ndim == 2 and state[key].ndim == 4:
            value = value[..., None, None]
        out[key] = value
    return out


def _load(model: Backbone, name: str, translated: _Translated) -> LoadReport:
    _check_fit(model, name, translated)
    state = model.state_dict()
    tensors = _resized(model, translated.tensors)
    ignored = dict(translated.ignored)
    for key in list(tensors):
        reason = _why_ignored(model, key, tensors[key], state)
        if reason:
            del tensors[key]
            ignored |= dict.fromkeys(translated.sources[key], reason)
    for key, value in tensors.items():
        theirs = (translated.sources[key] or [key])[0]
        if key not in state:
            raise CheckpointError(f"{name}: tensor {theirs!r} has no place in the model ({key})")
        if value.shape != state[key].shape:
            raise CheckpointError(
                f"{name}: tensor {theirs!r} has shape {tuple(value.shape)}, "
                f"the model's {key} {tuple(state[key].shape)}"
            )
    missing = {}
    for key in state.keys() - tensors.keys():
        reason = _why_missing(key, translated, ignored)
        if not reason:
            raise CheckpointError(f"{name}: lacks a tensor for the model's {key}")
        missing[key] = reason
    ignored |= _check_masks(model, name, translated)
    model.load_state_dict(state | tensors)
    used = tuple(source for key in tensors for source in translated.sources[key])
    return LoadReport(translated.layout, used, ignored, dict(sorted(missing.items())))


def _why_ignored(
    model: Backbone, key: str, value: Tensor, state: Mapping[str, Tensor]
) -> str | None:
    if key.startswith("output_norms.") and key not in state:
        return "norm of a dense model's feature level; this model has none"
    if key.startswith("head.") and model.num_classes == 0:
        return "classifier; this model has none"
    last_layer = key.removesuffix(".weight").removesuffix(".bias") in ("head", "head.fc2")
    if last_layer and key in state and value.shape[0] != model.num_classes:
        return f"classifier of {value.shape[0]} classes; this model has {model.num_classes}"
    if ".mixer.srf." in key and not any(".mixer.srf." in k for k in state):
        return "SRF filter; this model is built with srf off"
    if key.endswith(".srf.alpha") and key not in state:
        return "scale of the sigmoid, unused by the plain sigmoid gate"
    return None


def _why_missing(key: str, translated: _Translated, ignored: Mapping[str, str]) -> str | None:
    if key.endswith(".srf.alpha"):
        return "scale of the sigmoid; stays as it was"
    if key.startswith(_CLASSIFIER):
        dense = any("not part of the backbone" in reason for reason in ignored.values())
        replaced = any(k.startswith("head.") for k in translated.tensors)
        headless = not any(k.startswith(_CLASSIFIER) for k in translated.tensors)
        if dense or replaced or headless:
            return "classifier; stays as it was"
    return None


def _check_masks(model: Backbone, name: str, translated: _Translated) -> dict[str, str]:
    """Compare the checkpoint's masks with those that the model would build at their size."""
    reasons = {}
    for where, (source, mask) in translated.masks.items():
        path, gate = where.split("@")
        gates: Any = model.get_submodule(path)
        if gates.radius is None:
            reasons[source] = "frozen SPF mask; this model is built with spf off"
            continue
        expected = gates.mask(int(gate), *mask.shape[-2:])
        if not torch.allclose(mask.float().squeeze(0), expected, atol=1e-6):
            raise CheckpointError(
                f"{name}: the mask {source!r} differs from the model's: radius={gates.radius}, "
                f"gates={gates.gates} are not the checkpoint's"
            )
        reasons[source] = _MASK_REASON
    return reasons
