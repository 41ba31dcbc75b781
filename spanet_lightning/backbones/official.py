"""Load weights into a model: official checkpoints of both generations, and the project's own.

Sources: the timm-style ImageNet checkpoints and the mmdetection and mmsegmentation checkpoints of
both official repositories, whole or their backbones alone, with whatever wrappers a trainer put
around the names and whatever it stored beside them (`checkpoint_file`). What differs from ours:

- names, and linear layers where we have 1×1 convolutions;
- V1's gates have one 1×1 convolution each: ours is their concatenation along the input channels;
- V1's frozen masks are in ImageNet checkpoints and not in dense ones (nor in the official
  `spanet_s24_init.pth.tar` and `spanet_s36_init.pth.tar`, which are the ImageNet checkpoints of
  SPANet-S and -M without them): masks are compared with the model's filter and left out;
- V2 has two layouts. One keeps `filter_1..4` and `local_conv_1..4` and interleaves the heads'
  channels, the other keeps one `filter` and `local_convs.*` and concatenates heads. Their tensors
  have the same shapes for us but mean different functions: the model must be built with the
  matching `head_layout`;
- dense heads have the background as the last class, ours as the first. A dense model brings the
  names of its own head: this package knows no heads.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from spanet_lightning.backbones import checkpoint_file
from spanet_lightning.backbones.checkpoint_file import StandIn
from spanet_lightning.backbones.metaformer import Backbone
from spanet_lightning.backbones.spectral import SpectralPooling, full_gain, resize_logits
from spanet_lightning.errors import CheckpointError, invalid, invalid_choice
from spanet_lightning.remote import download, is_address

__all__ = ["LoadReport", "WeightsSet", "convert", "load_official", "pretrained_filter"]

FORMAT = "spanet_lightning"
_logger = logging.getLogger(__name__)
WeightsSet = Literal["model", "ema"]
"""The trained weights, or their exponential moving average."""


@dataclass(frozen=True)
class LoadReport:
    """How every tensor was handled.

    Attributes:
        layout: Where the checkpoint came from, in words.
        used: Names in the checkpoint whose tensors are now in the model.
        ignored: Names in the checkpoint that were left out, with the reason.
        missing: Names in the model that the checkpoint does not have, with the reason.
        adapted: Names in the model whose tensors were resized, with the sizes.
        weights_set: Which set of the file was taken, and which others it holds, in words.
    """

    layout: str
    used: tuple[str, ...]
    ignored: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    adapted: Mapping[str, str] = field(default_factory=dict)
    weights_set: str = ""

    def __str__(self) -> str:
        lines = [f"{self.layout}: {len(self.used)} tensors loaded"]
        if self.weights_set:
            lines.append(f"weights set: {self.weights_set}")
        reasons: dict[str, list[str]] = {}
        for names in (self.adapted, self.ignored, self.missing):
            for why in dict.fromkeys(names.values()):  # a fresh head is both: named once
                reasons.setdefault(why, [name for name in names if names[name] == why])
        for why, group in reasons.items():
            more = f" and {len(group) - 1} more" if len(group) > 1 else ""
            lines.append(f"{why}: {group[0]}{more}")
        return "\n".join(lines)


def load_official(
    model: nn.Module,
    checkpoint: str | Path | Mapping[str, Any],
    weights_set: WeightsSet | None = None,
) -> LoadReport:
    """Load an official checkpoint, or one of ours, into `model`.

    Args:
        model: A backbone, a feature model of timm's around one, or a dense model
            (`spanet_lightning.heads.DenseModel`), built with the checkpoint's depths, dims, mixers
            and head layout. Logits of the SRF are resized where `img_size` differs; layers for
            another number of classes are left out. A dense model takes a checkpoint of a whole
            dense model, or of a classifier for its backbone alone.
        checkpoint: A file of any format, its address with its hash (see `spanet_lightning.remote`),
            or a mapping of names to tensors. Files are read without running code from them.
        weights_set: Which weights to take from a file that holds their moving average as well;
            default: those that the file calls its `state_dict` or `model`.

    Returns:
        How every tensor was handled.

    Raises:
        CheckpointError: If the file can't be read safely, or a tensor has no place in the model, or
            the model needs one that is not there. The model is then as it was.
        ConfigError: If `model` is neither a backbone nor a dense model.
    """
    weights = read_weights(checkpoint, weights_set)
    model = _unwrapped(model)
    if isinstance(model, Backbone):
        tensors, report = _fit(model, _translate_for(model, weights))
    else:
        tensors, report = _fit_dense(model, weights)
    model.load_state_dict(model.state_dict() | tensors)
    return replace(report, weights_set=weights.set_name)


def convert(
    source: str | Path, target: str | Path, weights_set: WeightsSet | None = None
) -> LoadReport:
    """Write the official checkpoint `source` as safetensors in our names.

    Raises:
        CheckpointError: As `load_official`; `target` is then not written.
    """
    weights = read_weights(source, weights_set)
    translated = translate(weights)
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
    return LoadReport(translated.layout, tuple(used), ignored, weights_set=weights.set_name)


def pretrained_filter(state: Mapping[str, Any], model: Backbone) -> dict[str, Tensor]:
    """Translate a downloaded official state dict for timm's `pretrained=True`."""
    translated = translate(_select("the pretrained weights", state))
    _check_architecture(model, translated)
    return _resize(model, translated.tensors)[0]


def accept_checkpoints(model: nn.Module) -> None:
    """Let `model.load_state_dict`, hence timm's `checkpoint_path`, take what `load_official` takes.

    Args:
        model: What timm built: a backbone, or its feature model around one.
    """
    model.register_load_state_dict_pre_hook(_translate_names)  # type: ignore[no-untyped-call]


def _translate_names(
    module: nn.Module, state: dict[str, Any], prefix: str, _: Any, strict: bool, *__: Any
) -> None:
    own = module.state_dict()
    if prefix or {k: v.shape for k, v in own.items()} == {
        k: getattr(v, "shape", None) for k, v in state.items()
    }:
        return
    backbone = _unwrapped(module)
    name = "" if backbone is module else "model."
    try:
        tensors, report = _fit(cast("Backbone", backbone), translate(_select("checkpoint", state)))
    except CheckpointError:
        if strict:
            raise
        return
    if report.missing:
        _logger.warning("%s", report)
    state.clear()
    state.update(own | {f"{name}{key}": value for key, value in tensors.items()})


def _unwrapped(model: nn.Module) -> nn.Module:
    """Return the backbone inside of timm's feature model, torch.compile's or DDP's module."""
    for name in ("_orig_mod", "module", "model"):
        inner = getattr(model, name, None)
        if isinstance(inner, nn.Module) and not isinstance(model, Backbone):
            return _unwrapped(inner) if name != "model" or isinstance(inner, Backbone) else model
    return model


# -- which weights of a file, without the prefixes that wrappers give


@dataclass(frozen=True)
class Weights:
    """One set of weights of a file.

    Attributes:
        name: What the file is called in messages.
        tensors: Tensors by name, without the prefixes of wrappers.
        sources: The names that they have in the file.
        set_name: Which set it is, in words; empty where the file is a state dict.
        metadata: Of a safetensors file.
    """

    name: str
    tensors: dict[str, Tensor]
    sources: dict[str, str]
    set_name: str
    metadata: Mapping[str, str]


_SETS = ("state_dict", "model", "model_state_dict", "model_state", "net", "network", "module",
         "weights", "params", "current_model_state")  # fmt: skip
_EMA_SETS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "ema_model", "params_ema",
             "model_ema_state_dict", "ema_model_state_dict", "averaged_model")  # fmt: skip
# Of torch.compile, DDP, FSDP and activation checkpointing, at any depth of a name.
_WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_PREFIXES = {"model", "net", "backbone", *_EMA_SETS}
_STEMS = ("patch_embed.proj.weight", "downsample_layers.0.conv.weight", "stem.conv.weight")


def read_weights(
    checkpoint: str | Path | Mapping[str, Any], weights_set: WeightsSet | None = None
) -> Weights:
    """Read one set of weights.

    Args:
        checkpoint: As `load_official` takes it.
        weights_set: Which set to take.

    Raises:
        CheckpointError: If it can't be had or read, or holds no such weights.
    """
    if isinstance(checkpoint, Mapping):
        return _select("checkpoint", checkpoint, weights_set)
    if is_address(str(checkpoint)):
        checkpoint = download(str(checkpoint))
    init = re.search(r"spanet_(s24|s36|m36)_init", str(checkpoint))
    if init and not Path(checkpoint).exists():
        released = {"s24": "spanet_s", "s36": "spanet_m", "m36": "spanet_b"}[init[1]]
        raise CheckpointError(
            f"{checkpoint}: no such checkpoint file; it is the ImageNet checkpoint of {released} "
            "without its frozen masks: give that one, masks are left out on the way"
        )
    content, metadata = checkpoint_file.read(checkpoint)
    return _select(str(checkpoint), content, weights_set, metadata)


def _select(
    name: str,
    content: Any,
    weights_set: WeightsSet | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Weights:
    """Choose a set, and take the prefixes of wrappers off its names."""
    if weights_set not in (None, "model", "ema"):
        raise invalid_choice("weights_set", weights_set, ("model", "ema"))
    sets = list(_sets(content))
    if not sets:
        keys = ", ".join(map(repr, list(content)[:8])) if isinstance(content, Mapping) else ""
        what = f"a dictionary of {keys or 'nothing'}" if keys or content == {} else "no dictionary"
        raise CheckpointError(
            f"{name}: holds no tensors, expected a state dict; it is {what}: save "
            "model.state_dict() where it was made"
        )
    wanted = [s for s in sets if weights_set in (None, "ema" if s[1] else "model")]
    in_words = [f"{label or 'state dict'}{' (EMA)' * averaged}" for label, averaged, _ in sets]
    if not wanted:
        raise CheckpointError(
            f"{name}: weights_set: got {weights_set!r}, but it holds only {' and '.join(in_words)}"
        )
    taken = sets.index(wanted[0])
    set_name = in_words[taken] if len(sets) > 1 or sets[taken][1] or sets[taken][0] else ""
    if others := [words for i, words in enumerate(in_words) if i != taken]:
        other = "model" if sets[taken][1] else "ema"
        set_name += f"; the file also holds {', '.join(others)} (weights_set: {other})"
    tensors, sources = {}, {}
    for ours, (source, value) in sets[taken][2].items():
        sources[ours] = source
        tensors[ours] = value
    return Weights(name, tensors, sources, set_name, metadata or {})


_Set = tuple[str, bool, dict[str, tuple[str, Tensor]]]


def _sets(content: Any, label: str = "", averaged: bool = False) -> Iterator[_Set]:
    """Yield a label, whether it is a moving average, and names → (name in the file, tensor)."""
    if isinstance(content, StandIn) and not content:
        content = dict(checkpoint_file.module_state(content))  # a model that was pickled whole
    if not isinstance(content, Mapping):
        return
    inner = [k for k in (*_SETS, *_EMA_SETS) if isinstance(content.get(k), Mapping)]
    if inner:
        # What these call their state dict is the average: Lightning's and mmengine's callbacks
        # exchange both when they save.
        ema = content.get("ema_state_dict", {})
        mmengine = bool(ema) and ("steps" in ema or "message_hub" in content)
        exchanged = mmengine or "current_model_state" in content
        for key in inner:
            is_average = key in _EMA_SETS
            if exchanged and key in ("state_dict", "ema_state_dict", "current_model_state"):
                is_average = key == "state_dict"
            yield from _sets(content[key], f"{label}.{key}".lstrip("."), averaged or is_average)
        return
    parts: dict[bool, dict[str, tuple[str, Tensor]]] = {}
    for key, value in content.items():
        tensor = checkpoint_file.as_tensor(value)
        if isinstance(key, str) and tensor is not None and key not in ("steps", "n_averaged"):
            ours, is_average = _strip(key)
            part = parts.setdefault(is_average, {})
            if ours in part:
                raise CheckpointError(f"tensors {part[ours][0]!r} and {key!r} are both {ours!r}")
            part[ours] = (key, tensor)
    for is_average in sorted(parts):
        words = f"{label} ({'its EMA' if is_average else 'its model'})" if len(parts) > 1 else label
        yield words, averaged or is_average, parts[is_average]


def _strip(key: str) -> tuple[str, bool]:
    """Return a name without wrappers, `backbone.` before it where it was, and whether it is EMA."""
    parts = [part for part in key.split(".") if part not in _WRAPPERS]
    first = next((i for i, part in enumerate(parts) if part not in _PREFIXES), len(parts))
    prefixes = parts[:first]
    backbone = ["backbone"] if "backbone" in prefixes else []
    return ".".join(backbone + parts[first:]), any(part in _EMA_SETS for part in prefixes)


# -- official names in ours

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
_INDEX = re.compile(r"<(even|odd|half|minus one) (\d+)>")
# Names that only a backbone has, and those that a classifier has beside them.
_OF_BACKBONE = re.compile(r"(patch_embed|network|downsample_layers|stages|stem|output_norms)\..+")
_OF_CLASSIFIER = re.compile(r"(norm|head|head\.(fc1|fc2|norm))\.(weight|bias)")
_OTHER_MODELS = (
    ("cls_token", "a vision transformer"),
    ("conv1.weight", "a ResNet"),
    ("layer1.0.conv1.weight", "a ResNet"),
    ("downsample_layers.0.0.weight", "a ConvNeXt"),
    ("stem.0.weight", "a ConvNeXt or another model of timm's"),
    ("stem.conv1.weight", "a ConvFormer, CAFormer or PoolFormer"),
    ("patch_embed.proj.bias", "a vision transformer"),
)


@dataclass
class Translated:
    """A checkpoint in our names, before it meets a model."""

    name: str
    generation: int
    layout: str
    head_layout: str | None
    tensors: dict[str, Tensor]
    sources: dict[str, list[str]]  # our name → names in the checkpoint
    masks: dict[str, tuple[str, Tensor]]  # "….gates@i" → (name in the checkpoint, mask)
    ignored: dict[str, str]  # names in the checkpoint of what is no backbone


def translate(weights: Weights) -> Translated:
    """Bring the backbone of a checkpoint into our names; what is no backbone is set aside.

    Raises:
        CheckpointError: If a key of the backbone is in no known layout.
    """
    state, aside = _split_backbone(weights.tensors)
    sources = {ours: weights.sources[clean] for ours, (clean, _) in state.items()}
    tensors = {ours: tensor for ours, (_, tensor) in state.items()}
    out = Translated(weights.name, 1, "official", None, {}, {}, {}, {})
    if _STEMS[2] in tensors:
        out.layout, out.tensors = "ours", tensors
        out.generation = 2 if "stem.norm.weight" in tensors else 1
        out.sources = {key: [sources[key]] for key in tensors}
        out.head_layout = weights.metadata.get("head_layout")
    elif _STEMS[0] in tensors and any(key.startswith("network.") for key in tensors):
        _apply_rules(out, tensors, sources)
        _merge_gates(out)
    elif _STEMS[1] in tensors:
        out.generation = 2
        _apply_rules(out, tensors, sources)
        out.head_layout = _split_filters(out)
    else:
        other = next((what for key, what in _OTHER_MODELS if key in tensors), None)
        likely = f"; it looks like {other}" if other else ""
        raise CheckpointError(
            f"{weights.name}: first key {next(iter(weights.sources.values()))!r}, expected a "
            "SPANet or SPANetV2 checkpoint (keys patch_embed.*, downsample_layers.* or stem.*)"
            f"{likely}"
        )
    out.layout = f"{_family(out.generation)} checkpoint, {out.layout} layout"
    out.ignored = {
        weights.sources[key]: f"{key.split('.')[0]}: not part of the backbone" for key in aside
    }
    return out


def _translate_for(model: nn.Module, weights: Weights) -> Translated:
    """As `translate`; of a model of timm's, which has names of its own, they stay as they are."""
    from spanet_lightning.backbones.timm_backbone import TimmBackbone

    if not isinstance(model, TimmBackbone):
        return translate(weights)
    state, aside = _split_backbone(weights.tensors)
    tensors = {f"model.{ours}": tensor for ours, (_, tensor) in state.items()}
    sources = {f"model.{ours}": [weights.sources[clean]] for ours, (clean, _) in state.items()}
    left_out = {weights.sources[k]: f"{k.split('.')[0]}: not part of the backbone" for k in aside}
    name = f"{model.name} checkpoint"
    return Translated(weights.name, 0, name, None, tensors, sources, {}, left_out)


def _split_backbone(
    tensors: Mapping[str, Tensor],
) -> tuple[dict[str, tuple[str, Tensor]], list[str]]:
    """Return the backbone's part of a checkpoint by its own names, and the other names."""
    prefix = "backbone."
    if not any(key.startswith(prefix) for key in tensors):
        # Under a name of the user's own, such as `encoder.`
        ends = {k.removesuffix(s) for k in tensors for s in _STEMS if k.endswith(f".{s}")}
        prefix = ends.pop() if len(ends) == 1 and not any(s in tensors for s in _STEMS) else ""
    aside = [key for key in tensors if not key.startswith(prefix)]
    own = [key for key in aside if _OF_BACKBONE.fullmatch(key)]
    if all(_OF_BACKBONE.fullmatch(k) or _OF_CLASSIFIER.fullmatch(k) for k in aside):
        own = aside  # a prefix on a subset alone, not a dense model with another head
    state = {
        key.removeprefix(prefix): (key, tensor)
        for key, tensor in tensors.items()
        if key.startswith(prefix) or key in own
    }
    return state, [key for key in aside if key not in own]


def _apply_rules(
    out: Translated, tensors: Mapping[str, Tensor], sources: Mapping[str, str]
) -> None:
    for key, value in tensors.items():
        ours = _backbone_name(key, out.generation)
        if ours is None:
            raise CheckpointError(
                f"{out.name}: key {sources[key]!r} is in no known {_family(out.generation)} layout"
            )
        out.tensors[ours] = value
        out.sources[ours] = [sources[key]]


def _backbone_name(key: str, generation: int) -> str | None:
    rules, block = (_V1_RULES, _V1_BLOCK) if generation == 1 else (_V2_RULES, _V2_BLOCK)
    where = ""
    if match := re.fullmatch(block, key):
        stage = f"<even {match['stage']}>" if generation == 1 else match["stage"]
        where = f"stages.{stage}.blocks.{match['block']}."
        key = match["rest"]
        rules = _V1_BLOCK_RULES if generation == 1 else _V2_BLOCK_RULES
    return _renamed(key, rules, where)


def _renamed(key: str, rules: Rules, where: str = "") -> str | None:
    """Return our name of a whole official name, by the first rule that matches."""
    for pattern, template in rules:
        if match := re.fullmatch(pattern, key):
            return _INDEX.sub(_renumber, where + match.expand(template))
    return None


def _renumber(match: re.Match[str]) -> str:
    """Return the number that `<kind number>` in a template of names stands for.

    V1 lists stages and down-sampling together; V2's interleaved heads count from 1;
    official branches of Semantic FPN list their up-sampling as well.
    """
    n = int(match[2])
    return str({"even": n // 2, "odd": (n + 1) // 2, "half": n // 2, "minus one": n - 1}[match[1]])


def _merge_gates(out: Translated) -> None:
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


def _split_filters(out: Translated) -> str | None:
    """Split concatenated filters into heads; return the head layout, `None` without SPAM mixers."""
    concatenated = [key for key in out.tensors if key.endswith(".logits@all")]
    for key in concatenated:
        ours = key.removesuffix("@all")
        local = ours.removesuffix("srf.logits") + "local."
        heads = sum(k.startswith(local) and k.endswith(".weight") for k in out.tensors)
        source = out.sources.pop(key)
        for i, part in enumerate(out.tensors.pop(key).chunk(max(heads, 1))):
            out.tensors[f"{ours}.{i}"] = part
            # One tensor of the checkpoint feeds several of ours: it is named once.
            out.sources[f"{ours}.{i}"] = source if i == 0 else []
    if concatenated:
        return "concatenated"
    return "interleaved" if any(".mixer.local.0." in key for key in out.tensors) else None


# -- into a model


def _fit(model: Backbone, translated: Translated) -> tuple[dict[str, Tensor], LoadReport]:
    """Return the tensors that the model takes, and how each was handled; load nothing yet.

    Raises:
        CheckpointError: If a tensor has no place in the model, or the model needs one more.
    """
    if not translated.generation:
        return _fit_timm(model, translated)
    _check_architecture(model, translated)
    state = model.state_dict()
    tensors, adapted = _resize(model, translated.tensors)
    ignored = dict(translated.ignored)
    for key in list(tensors):
        if reason := _why_ignored(model, key, tensors[key], state):
            ignored |= dict.fromkeys(translated.sources[key], reason)
            del tensors[key]
    for key, value in tensors.items():
        theirs = (translated.sources[key] or [key])[0]
        if key not in state:
            raise CheckpointError(
                f"{translated.name}: tensor {theirs!r} has no place in the model ({key}){knob(key)}"
            )
        if value.shape != state[key].shape:
            raise CheckpointError(
                f"{translated.name}: tensor {theirs!r} has shape {tuple(value.shape)}, "
                f"the model's {key} {tuple(state[key].shape)}{knob(key)}"
            )
    missing = {}
    for key in sorted(state.keys() - tensors.keys()):
        missing[key] = _why_missing(key, translated, ignored)
        if not missing[key]:
            raise CheckpointError(
                f"{translated.name}: lacks a tensor for the model's {key}{knob(key)}"
            )
    ignored |= _check_masks(model, translated)
    used = tuple(source for key in tensors for source in translated.sources[key])
    return tensors, LoadReport(translated.layout, used, ignored, missing, adapted)


def _fit_timm(model: Backbone, translated: Translated) -> tuple[dict[str, Tensor], LoadReport]:
    """As `_fit`, for a model of timm's, by its own names."""
    state = model.state_dict()
    used, ignored, missing = {}, dict(translated.ignored), {}
    last = {f"model.{name}" for name, part in model.get_submodule("model").named_modules()
            if part is model.get_classifier()}  # fmt: skip
    for key, value in translated.tensors.items():
        (source,) = translated.sources[key]
        owner = key.rpartition(".")[0]
        if key in state and state[key].shape == value.shape:
            used[key] = value
        elif owner in last and key in state and state[key].shape[1:] == value.shape[1:]:
            ignored[source] = missing[key] = _other_classes(len(value), model.num_classes)
        elif key not in state and model.num_classes == 0:
            ignored[source] = "classifier; this model has none"
        else:
            shape = f", the model's is {tuple(state[key].shape)}" if key in state else ""
            raise CheckpointError(
                f"{translated.name}: tensor {source!r} of shape {tuple(value.shape)} has no place "
                f"in the {translated.layout.removesuffix(' checkpoint')}{shape}"
            )
    for key in state.keys() - used.keys() - missing.keys():
        raise CheckpointError(f"{translated.name}: lacks a tensor for the model's {key}")
    sources = tuple(translated.sources[key][0] for key in used)
    return used, LoadReport(translated.layout, sources, ignored, missing)


_KNOBS = (
    (r"\.mixer\.local_[wh]\.", "kernel_size"),
    (r"\.mixer\.local\.", "kernel_sizes"),
    (r"\.srf\.alpha", "srf_gate"),
    (r"\.mixer\.srf\.", "srf"),
    (r"\.mlp\.", "mlp_ratio"),
    (r"\.(res|layer)_scale", "branch_scale"),
    (r"^stem\.conv\.", "in_chans"),
    (r"\.gates\.", "balance, the number of gates,"),
)


def knob(key: str) -> str:
    """Return a hint to the argument of the backbone that decides on a tensor, where one does."""
    found = next((knob for pattern, knob in _KNOBS if re.search(pattern, key)), None)
    return f": backbone.{found} differs" if found else ""


def _check_architecture(model: Backbone, translated: Translated) -> None:
    """Refuse a checkpoint of another generation, size or head layout, saying which."""
    name = translated.name
    state = model.state_dict()
    generation = 2 if "stem.norm.weight" in state else 1
    theirs, ours = _architecture(translated.tensors), _architecture(state)
    stages = len(model.stages)  # a feature model may have fewer than its checkpoint
    looks, variant = _variant(translated)
    if generation != translated.generation:
        use = f": use backbone={_family(translated.generation)}"
        raise CheckpointError(
            f"{name}: holds {_family(translated.generation)} weights ({looks}), the model is "
            f"{_family(generation)}{use}{f' with variant={variant}' if variant else ''}"
        )
    if any(a[:stages] != b for a, b in zip(theirs[:2], ours[:2], strict=True)):
        raise CheckpointError(
            f"{name}: depths {theirs[0]} and dims {theirs[1]} ({looks}), the model has depths "
            f"{ours[0]} and dims {ours[1]}{f': set backbone.variant={variant}' if variant else ''}"
        )
    if theirs[2][:stages] != ours[2]:
        raise CheckpointError(
            f"{name}: mixers {', '.join(theirs[2])} ({looks}), the model has {', '.join(ours[2])}"
            f"{f': set backbone.variant={variant}' if variant else ''}"
        )
    layouts = {m.head_layout for m in model.modules() if hasattr(m, "head_layout")}
    if translated.head_layout and layouts and layouts != {translated.head_layout}:
        raise CheckpointError(
            f"{name}: head_layout {translated.head_layout!r}, the model has {layouts.pop()!r}: set "
            f"backbone.head_layout={translated.head_layout}"
        )


def _architecture(
    state: Mapping[str, Tensor],
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[str, ...]]:
    """Return depths, dims and kinds of mixers of a state dict in our names."""
    blocks: dict[int, set[int]] = {}
    dims: dict[int, int] = {}
    mixers: dict[int, str] = {}
    for key, value in state.items():
        if match := re.match(r"stages\.(\d+)\.blocks\.(\d+)\.(.+)", key):
            stage, rest = int(match[1]), match[3]
            blocks.setdefault(stage, set()).add(int(match[2]))
            if rest == "norm1.weight":
                dims[stage] = value.shape[0]
            if rest.startswith("mixer."):
                mixers.setdefault(stage, "other")
            if rest in ("mixer.query.weight", "mixer.proj_in.weight"):
                mixers[stage] = "spam"
            elif rest == "mixer.local.weight":
                mixers[stage] = "mixed"
            elif rest == "mixer.qkv.weight" and mixers[stage] != "mixed":
                mixers[stage] = "attention"
    stages = sorted(blocks)
    return (
        tuple(len(blocks[i]) for i in stages),
        tuple(dims.get(i, 0) for i in stages),
        tuple(mixers.get(i, "other") for i in stages),
    )


def _variant(translated: Translated) -> tuple[str, str]:
    """Return what a checkpoint looks like, in words, and the variant that it is of, if any."""
    from spanet_lightning.backbones import spanet, spanetv2  # they import this module

    depths, dims, mixers = _architecture(translated.tensors)
    if translated.generation == 1:
        for variant, row in spanet.VARIANTS.items():
            if (row.depths, row.dims) == (depths, dims):
                return spanet.timm_name(variant), variant
    else:
        for name, found in spanetv2.VARIANTS.items():
            if (found.depths, found.dims, found.mixers) == (depths, dims, mixers):
                return spanetv2.timm_name(name), name
    return "no published variant", ""


def _resize(
    model: Backbone, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Bring SRF logits to the model's size and linear layers to 1×1; return what was resized."""
    state = model.state_dict()
    out, adapted = {}, {}
    for key, value in tensors.items():
        if key in state and ".srf.logits." in key and value.ndim == 3:
            before, after = value.shape, state[key].shape
            value = resize_logits(value, *after[-2:])
            if before[-2:] != after[-2:]:
                stride = 4 << int(key.split(".")[1])
                adapted[key] = (
                    f"SRF logits resized from {before[1] * stride} to {after[1] * stride} px"
                )
        elif key in state and value.ndim == 2 and state[key].ndim == 4:
            value = value[..., None, None]
        out[key] = value
    return out, adapted


def _why_ignored(
    model: Backbone, key: str, value: Tensor, state: Mapping[str, Tensor]
) -> str | None:
    stage = re.match(r"stages\.(\d+)\.", key)
    if stage and int(stage[1]) >= len(model.stages):
        return "stage that this feature model does not have"
    if key.startswith("output_norms.") and key not in state:
        return "norm of a dense model's feature level; this model has none"
    if key.startswith("norm.") and isinstance(model.norm, nn.Identity):
        return "final norm; this model has none"
    if key.startswith("head.") and model.num_classes == 0:
        return "classifier; this model has none"
    last_layer = key.removesuffix(".weight").removesuffix(".bias") in ("head", "head.fc2")
    if last_layer and key in state and value.shape[0] != model.num_classes:
        return _other_classes(len(value), model.num_classes)
    if ".mixer.srf." in key and not any(".mixer.srf." in k for k in state):
        return "SRF filter; this model is built with srf off"
    if key.endswith(".srf.alpha") and key not in state:
        return "scale of the sigmoid, unused by the plain sigmoid gate"
    return None


def _why_missing(key: str, translated: Translated, ignored: Mapping[str, str]) -> str:
    if key.endswith(".srf.alpha"):
        return "scale of the sigmoid; stays as it was"
    classifier = ("norm.", "head.")
    theirs = (translated.sources.get(key) or [key])[0]
    if theirs in ignored and "classes" in ignored[theirs]:
        return ignored[theirs]
    if key.startswith(classifier):
        dense = any("not part of the backbone" in reason for reason in ignored.values())
        replaced = any(k.startswith("head.") for k in translated.tensors)
        headless = not any(k.startswith(classifier) for k in translated.tensors)
        if dense or replaced or headless:
            return "classifier; stays as it was"
    return ""


def _check_masks(model: Backbone, translated: Translated) -> dict[str, str]:
    """Compare the checkpoint's masks with those that the model would build at their size."""
    reasons = {}
    for where, (source, mask) in translated.masks.items():
        path, gate = where.split("@")
        mixer: Any = model.get_submodule(path.rpartition(".")[0])
        if not isinstance(mixer.spf, SpectralPooling):
            reasons[source] = "frozen SPF mask; this model is built with spf off"
            continue
        height, width = mask.shape[-2:]
        full = full_gain(mixer.spf.gain(height, width), width)
        expected = torch.split(full, mixer.gates.sizes)[int(gate)][0]
        if not torch.allclose(mask.double().squeeze(0), expected, atol=1e-6):
            raise CheckpointError(
                f"{translated.name}: the mask {source!r} differs from the model's: backbone.radius "
                f"({mixer.spf.radius} here), balance or ring are not the checkpoint's"
            )
        reasons[source] = "frozen SPF mask; equal to the one the model builds for each size"
    return reasons


def _other_classes(theirs: int, ours: int) -> str:
    return f"head re-initialised, {theirs} → {ours} classes"


def _family(generation: int) -> str:
    return "SPANetV2" if generation == 2 else "SPANet"


# -- into a dense model


class _Head(Protocol):
    first_level: int
    first_version_rules: Rules
    official_rules: Rules
    background_last: str


_DENSE = ("head.", "output_norms.")
_PER_CLASS = re.compile(r".*\b(cls_logits|bbox_pred|mask_logits|conv_seg)\.(weight|bias)")


def _fit_dense(model: nn.Module, weights: Weights) -> tuple[dict[str, Tensor], LoadReport]:
    """As `_fit`, for a model with `backbone`, `output_norms` and `head`.

    From a checkpoint of a classifier the backbone is taken; norms of the levels and head stay as
    they were. Layers of a head for another number of classes are left out.
    """
    backbone, head = getattr(model, "backbone", None), getattr(model, "head", None)
    if not (isinstance(backbone, Backbone) and hasattr(head, "official_rules")):
        raise invalid("model", type(model).__name__, "a Backbone or a DenseModel")
    head = cast("_Head", head)
    translated = _translate_for(backbone, weights)
    name = translated.name
    norms = {k: v for k, v in translated.tensors.items() if k.startswith("output_norms.")}
    own = {k: v for k, v in translated.tensors.items() if k not in norms}
    tensors, report = _fit(backbone, replace(translated, tensors=own, ignored={}))
    wanted = {k: v for k, v in model.state_dict().items() if not k.startswith("backbone.")}

    found = dict(norms)
    sources = {key: translated.sources[key][0] for key in norms}
    clean = {source: key for key, source in weights.sources.items()}
    for source in translated.ignored:
        key = clean[source]
        if key.startswith("head."):
            ours: str | None = "head." + _of_first_version(key[5:], head.first_version_rules)
        else:
            official = _renamed(key, head.official_rules, "head.")
            ours = key if key.startswith(_DENSE) else official
        if ours is None:
            kind = type(head).__name__.removesuffix("Layers")
            raise CheckpointError(f"{name}: key {source!r} has no place in a {kind}")
        value, background = weights.tensors[key], head.background_last
        if not key.startswith(_DENSE) and background and re.fullmatch(f"head.{background}", ours):
            value = value.roll(1, 0)
        found[ours], sources[ours] = value, source

    ignored, missing = dict(report.ignored), dict(report.missing)
    for key, value in wanted.items():
        if key not in found:
            missing[key] = _why_missing_dense(key, translated, head.first_level)
        elif found[key].shape != value.shape:
            if not _PER_CLASS.fullmatch(key) or found[key].shape[1:] != value.shape[1:]:
                raise CheckpointError(
                    f"{name}: tensor {sources[key]!r} has shape {tuple(found[key].shape)}, "
                    f"the model's {key} {tuple(value.shape)}"
                )
            reason = "head re-initialised for another number of classes"
            ignored[sources[key]] = missing[key] = reason
            del found[key]
    extra = next((key for key in found if key not in wanted), None)
    if extra is not None:
        raise CheckpointError(
            f"{name}: tensor {sources[extra]!r} has no place in the model ({extra})"
        )
    used = (*report.used, *(sources[key] for key in found))
    tensors = {f"backbone.{key}": value for key, value in tensors.items()} | found
    return tensors, replace(
        report, used=used, ignored=ignored, missing=dict(sorted(missing.items()))
    )


def _of_first_version(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _why_missing_dense(key: str, translated: Translated, first_level: int) -> str:
    if not translated.ignored:
        return "not part of a classifier's checkpoint; stays as it was"
    match = re.match(r"output_norms\.(\d)\.", key)
    if match and int(match[1]) < first_level:
        return "norm of a level that this head does not read; stays as it was"
    raise CheckpointError(f"{translated.name}: lacks a tensor for the model's {key}")
