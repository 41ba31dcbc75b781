"""Load weights into a model: official checkpoints of both generations, and the project's own.

Sources: the timm-style ImageNet checkpoints and the mmdetection and mmsegmentation checkpoints of
both official repositories, whole or their backbones alone, with whatever wrappers a trainer put
around the names (`weights`) and whatever it stored beside them (`checkpoint_file`). What differs
from ours:

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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from spanet_lightning.backbones.metaformer import Backbone
from spanet_lightning.backbones.spectral import SpectralPooling, full_gain, resize_logits
from spanet_lightning.backbones.weights import Weights, WeightsSet, read_weights, select
from spanet_lightning.errors import CheckpointError, invalid

__all__ = ["LoadReport", "WeightsSet", "convert", "load_official", "pretrained_filter"]

FORMAT = "spanet_lightning"
_logger = logging.getLogger(__name__)


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
    tensors, report = _fit(model, _translate_for(model, weights))
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
    ignored = translated.not_backbone()
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
    translated = translate(select("the pretrained weights", state))
    _check_architecture(model, translated)
    return _resize(model.state_dict(), translated.tensors)[0]


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
        tensors, report = _fit(backbone, translate(select("checkpoint", state)))
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


# -- names

Rules = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]
"""Pairs of a pattern and what replaces it, applied one after the other."""


def rename(name: str, rules: Rules) -> str:
    """Return a name after all replacements."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


# A part after "@" marks tensors that are merged or split (`_merge_gates`, `_split_filters`). V1 has
# stages and down-sampling layers in one list; V2's interleaved heads count from 1.
_V1_RULES: Rules = (
    (r"^patch_embed\.proj\.", "stem.conv."),
    (r"^network\.([135])\.proj\.", lambda m: f"stages.{int(m[1]) // 2 + 1}.downsample.conv."),
    (r"^network\.([0246])\.", lambda m: f"stages.{int(m[1]) // 2}.blocks."),
    (r"^norm([0246])\.", lambda m: f"output_norms.{int(m[1]) // 2}."),
    (r"\.token_mixer\.conv\.0\.", ".mixer.local_w."),
    (r"\.token_mixer\.conv\.1\.", ".mixer.local_h."),
    (r"\.token_mixer\.pws\.(\d+)\.(\w+)$", r".mixer.gates.\2@\1"),
    (r"\.token_mixer\.sps\.(\d+)\.filter$", r".mixer.gates.mask@\1"),
    (r"\.token_mixer\.", ".mixer."),
)
_V2_RULES: Rules = (
    (r"^stages\.(\d)\.", r"stages.\1.blocks."),
    (r"^downsample_layers\.0\.conv\.", "stem.conv."),
    (r"^downsample_layers\.0\.post_norm\.", "stem.norm."),
    (r"^downsample_layers\.(\d)\.conv\.", r"stages.\1.downsample.conv."),
    (r"^downsample_layers\.(\d)\.pre_norm\.", r"stages.\1.downsample.norm."),
    (r"^norm([0-3])\.", r"output_norms.\1."),
    (r"\.token_mixer\.query\.0\.", ".mixer.query."),
    (r"\.token_mixer\.ctx\.", ".mixer.context."),
    (r"\.token_mixer\.local_conv_(\d+)\.", lambda m: f".mixer.local.{int(m[1]) - 1}."),
    (r"\.token_mixer\.local_convs?\.", ".mixer.local."),
    (r"\.token_mixer\.filter_(\d+)$", lambda m: f".mixer.srf.logits.{int(m[1]) - 1}"),
    (r"\.token_mixer\.filter$", ".mixer.srf.logits@all"),
    (r"\.token_mixer\.scale\.alpha$", ".mixer.srf.alpha"),
    (r"\.token_mixer\.proj\.0\.", ".mixer.expand."),
    (r"\.token_mixer\.proj\.1\.", ".mixer.norm."),
    (r"\.token_mixer\.proj\.3\.", ".mixer.reduce."),
    (r"\.token_mixer\.proj_out\.", ".mixer.proj."),
    (r"\.token_mixer\.", ".mixer."),
)
_OURS = re.compile(
    r"(stem|stages\.\d\.downsample)\.(conv|norm)\.\w+|(norm|head|output_norms\.\d)\..+"
    r"|stages\.\d\.blocks\.\d+\.((norm[12]|mlp|res_scale[12]|layer_scale[12])\.[\w.]+|mixer\.(query"
    r"|context|local|local_[wh]|srf|expand|norm|reduce|proj|proj_in|proj_out|gates|qkv)\.[\w.@]+)"
)
_STEMS = ("patch_embed.proj.weight", "downsample_layers.0.conv.weight", "stem.conv.weight")
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
    """A checkpoint in our names, before it meets a model.

    Attributes:
        name: What the file is called in messages.
        generation: 1 or 2; 0 of a model of timm's, which keeps its names.
        layout: Where it came from, in words.
        head_layout: Of its SPAM mixers, where it tells.
        tensors: By our names.
        sources: Our name → names in the checkpoint.
        masks: "….gates@i" → name in the checkpoint, mask.
        aside: Name without wrappers → name in the checkpoint, of what is no backbone.
    """

    name: str
    generation: int
    layout: str
    head_layout: str | None
    tensors: dict[str, Tensor]
    sources: dict[str, list[str]]
    masks: dict[str, tuple[str, Tensor]]
    aside: dict[str, str]

    def not_backbone(self) -> dict[str, str]:
        """Return why what is no backbone is left out, by its names in the checkpoint."""
        return {
            source: f"{key.split('.')[0]}: not part of the backbone"
            for key, source in self.aside.items()
        }


def translate(weights: Weights) -> Translated:
    """Bring the backbone of a checkpoint into our names; what is no backbone is set aside.

    Raises:
        CheckpointError: If a key of the backbone is in no known layout.
    """
    tensors, sources, aside = _split_backbone(weights)
    out = Translated(weights.name, 1, "ours", None, {}, {}, {}, aside)
    rules: Rules = ()
    if _STEMS[2] in tensors:
        out.generation = 2 if "stem.norm.weight" in tensors else 1
    elif _STEMS[0] in tensors and any(key.startswith("network.") for key in tensors):
        out.layout, rules = "official", _V1_RULES
    elif _STEMS[1] in tensors:
        out.generation, out.layout, rules = 2, "official", _V2_RULES
    else:
        other = next((what for key, what in _OTHER_MODELS if key in tensors), None)
        likely = f"; it looks like {other}" if other else ""
        raise CheckpointError(
            f"{weights.name}: first key {next(iter(weights.sources.values()))!r}, expected a "
            "SPANet or SPANetV2 checkpoint (keys patch_embed.*, downsample_layers.* or stem.*)"
            f"{likely}"
        )
    for key, value in tensors.items():
        ours = rename(key, rules)
        if rules and not _OURS.fullmatch(ours):
            raise CheckpointError(
                f"{out.name}: key {sources[key]!r} is in no known {_family(out.generation)} layout"
            )
        out.tensors[ours], out.sources[ours] = value, [sources[key]]
    _merge_gates(out)
    out.head_layout = _split_filters(out) if rules else weights.metadata.get("head_layout")
    out.layout = f"{_family(out.generation)} checkpoint, {out.layout} layout"
    return out


def _translate_for(model: nn.Module, weights: Weights) -> Translated:
    """As `translate`, for a model: timm's keep their names, dense ones have a head.

    Raises:
        ConfigError: If it is neither a backbone nor a dense model.
    """
    from spanet_lightning.backbones.timm_backbone import TimmBackbone

    backbone = model if isinstance(model, Backbone) else getattr(model, "backbone", None)
    head: Any = getattr(model, "head", None)
    if not isinstance(backbone, Backbone) or (backbone is not model and not hasattr(head, "rules")):
        raise invalid("model", type(model).__name__, "a Backbone or a DenseModel")
    if isinstance(backbone, TimmBackbone):
        tensors, sources, aside = _split_backbone(weights)
        out = Translated(weights.name, 0, f"{backbone.name} checkpoint", None, {}, {}, {}, aside)
        for key, value in tensors.items():
            name = key if key.startswith("output_norms.") else f"model.{key}"
            out.tensors[name], out.sources[name] = value, [sources[key]]
    else:
        out = translate(weights)
    if backbone is model:
        return out
    _check_architecture(backbone, out)
    for key in [key for key in out.tensors if not key.startswith("output_norms.")]:
        out.tensors[f"backbone.{key}"] = out.tensors.pop(key)
        out.sources[f"backbone.{key}"] = out.sources.pop(key)
    for key, source in out.aside.items():
        ours, value = f"head.{rename(key.removeprefix('head.'), head.rules)}", weights.tensors[key]
        official = not key.startswith("head.")
        if official and head.background_last and re.fullmatch(f"head.{head.background_last}", ours):
            value = value.roll(1, 0)
        out.tensors[ours], out.sources[ours] = value, [source]
    return out


def _split_backbone(
    weights: Weights,
) -> tuple[dict[str, Tensor], dict[str, str], dict[str, str]]:
    """Return the backbone's tensors and sources by its own names, and the sources of the rest."""
    names, prefix = weights.tensors, "backbone."
    if not any(key.startswith(prefix) for key in names):
        # Under a name of the user's own, such as `encoder.`
        ends = {k.removesuffix(s) for k in names for s in _STEMS if k.endswith(f".{s}")}
        prefix = ends.pop() if len(ends) == 1 and not any(s in names for s in _STEMS) else ""
    aside = [key for key in names if not key.startswith(prefix)]
    own = [key for key in aside if _OF_BACKBONE.fullmatch(key)]
    if all(_OF_BACKBONE.fullmatch(k) or _OF_CLASSIFIER.fullmatch(k) for k in aside):
        own = aside  # a prefix on a subset alone, not a dense model with another head
    clean = {k.removeprefix(prefix): k for k in names if k.startswith(prefix) or k in own}
    return (
        {ours: names[key] for ours, key in clean.items()},
        {ours: weights.sources[key] for ours, key in clean.items()},
        {key: weights.sources[key] for key in aside if key not in own},
    )


def _merge_gates(out: Translated) -> None:
    """Concatenate each mixer's 1×1 convolutions; set its masks aside."""
    gathered: dict[str, dict[int, Tensor]] = {}
    for key in [key for key in out.tensors if ".gates." in key and "@" in key]:
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

_PER_CLASS = re.compile(r"head\.(.*\.)?(cls_logits|bbox_pred|mask_logits|conv_seg)\.(weight|bias)")
_CLASSIFIER = ("norm.", "head.")
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


def _fit(model: nn.Module, translated: Translated) -> tuple[dict[str, Tensor], LoadReport]:
    """Return the tensors that the model takes, and how each was handled; load nothing yet.

    Raises:
        CheckpointError: If a tensor has no place in the model, or the model needs one more.
    """
    backbone = model if isinstance(model, Backbone) else cast("Backbone", model.backbone)
    dense = backbone is not model
    if not dense:
        _check_architecture(backbone, translated)
    state = model.state_dict()
    tensors, adapted = _resize(state, translated.tensors)
    used: dict[str, Tensor] = {}
    missing: dict[str, str] = {}
    ignored = {} if dense else translated.not_backbone()
    classifier = backbone.get_classifier()
    last = {
        f"{name}.{kind}"
        for name, part in model.named_modules()
        if part is classifier or part is getattr(classifier, "fc2", None)
        for kind in ("weight", "bias")
    }
    for key, value in sorted(tensors.items(), key=lambda item: item[0] in state):
        theirs = translated.sources[key]
        wanted = state.get(key)
        if wanted is not None and wanted.shape == value.shape:
            used[key] = value
        elif reason := _why_ignored(backbone, key.removeprefix("backbone."), state, translated):
            ignored |= dict.fromkeys(theirs, reason)
        elif wanted is not None and key in last and value.shape[1:] == wanted.shape[1:]:
            missing[key] = f"head re-initialised, {len(value)} → {backbone.num_classes} classes"
            ignored |= dict.fromkeys(theirs, missing[key])
        elif wanted is not None and dense and _PER_CLASS.fullmatch(key):
            missing[key] = "head re-initialised for another number of classes"
            ignored |= dict.fromkeys(theirs, missing[key])
        else:
            source, what = (theirs or [key])[0], getattr(backbone, "name", "model")
            if dense and key.startswith("head."):
                what = type(model.head).__name__.removesuffix("Layers")
            raise CheckpointError(
                f"{translated.name}: tensor {source!r} of shape {tuple(value.shape)} "
                + (
                    f"has no place in the {what} ({key})"
                    if wanted is None
                    else f"does not fit the {what}'s {key} {tuple(wanted.shape)}"
                )
                + knob(key.removeprefix("backbone."))
            )
    for key in sorted(state.keys() - used.keys() - missing.keys()):
        missing[key] = _why_missing(model, key, translated)
        if not missing[key]:
            raise CheckpointError(
                f"{translated.name}: lacks a tensor for the model's {key}"
                f"{knob(key.removeprefix('backbone.'))}"
            )
    ignored |= _check_masks(backbone, translated)
    sources = tuple(source for key in used for source in translated.sources[key])
    return used, LoadReport(
        translated.layout, sources, ignored, dict(sorted(missing.items())), adapted
    )


def _resize(
    state: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Bring SRF logits to the model's size and linear layers to 1×1; return what was resized."""
    out: dict[str, Tensor] = {}
    adapted: dict[str, str] = {}
    for key, value in tensors.items():
        if key in state and ".srf.logits." in key and value.ndim == 3:
            before, after = value.shape, state[key].shape
            value = resize_logits(value, *after[-2:])
            if before[-2:] != after[-2:]:
                stride = 4 << int(key.partition("stages.")[2][0])
                sides = f"from {before[1] * stride} to {after[1] * stride} px"
                # Those of the finest stage: later ones are rounded up to whole cells.
                adapted[key] = next(iter(adapted.values()), f"SRF logits resized {sides}")
        elif key in state and value.ndim == 2 and state[key].ndim == 4:
            value = value[..., None, None]
        out[key] = value
    return out, adapted


def _why_ignored(
    backbone: Backbone, key: str, state: Mapping[str, Tensor], translated: Translated
) -> str | None:
    """Return why a tensor without a place in the model is left out, if it is."""
    if not translated.generation:
        headless = backbone.num_classes == 0 and key.startswith("model.")
        return "classifier; this model has none" if headless and key not in state else None
    stage = re.match(r"stages\.(\d+)\.", key)
    if stage and int(stage[1]) >= len(backbone.stages):
        return "stage that this feature model does not have"
    if key.startswith("output_norms.") and key not in state:
        return "norm of a dense model's feature level; this model has none"
    if key.startswith("norm.") and isinstance(backbone.norm, nn.Identity):
        return "final norm; this model has none"
    if _OF_CLASSIFIER.fullmatch(key) and backbone.num_classes == 0:
        return "classifier; this model has none"
    if ".mixer.srf." in key and not any(".mixer.srf." in k for k in state):
        return "SRF filter; this model is built with srf off"
    if key.endswith(".srf.alpha") and not any(k.endswith(".srf.alpha") for k in state):
        return "scale of the sigmoid, unused by the plain sigmoid gate"
    return None


def _why_missing(model: nn.Module, key: str, translated: Translated) -> str:
    """Return why a tensor of the model may stay as it was; empty where it may not."""
    if key.endswith(".srf.alpha"):
        return "scale of the sigmoid; stays as it was"
    if not isinstance(model, Backbone) and not key.startswith("backbone."):
        if not translated.aside:
            return "not part of a classifier's checkpoint; stays as it was"
        level = re.match(r"output_norms\.(\d)\.", key)
        if level and int(level[1]) < cast("Any", model.head).first_level:
            return "norm of a level that this head does not read; stays as it was"
        return ""
    headless = not any(k.startswith(_CLASSIFIER) for k in translated.tensors)
    replaced = any(k.startswith("head.") for k in translated.tensors)
    if key.startswith(_CLASSIFIER) and (translated.aside or replaced or headless):
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


# -- which model a checkpoint is of


def _check_architecture(model: Backbone, translated: Translated) -> None:
    """Refuse a checkpoint of another generation, size or head layout, saying which."""
    if not translated.generation:
        return
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


def _family(generation: int) -> str:
    return "SPANetV2" if generation == 2 else "SPANet"
