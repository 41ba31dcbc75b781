"""The names of official backbone checkpoints, in ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from spanet_lightning.errors import CheckpointError

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

INDEX = re.compile(r"<(even|odd|half|minus one) (\d+)>")


@dataclass
class Translated:
    """A checkpoint in our names, before it meets a model."""

    generation: int
    layout: str
    head_layout: str | None
    tensors: dict[str, Tensor]
    sources: dict[str, list[str]]  # our name → names in the checkpoint
    masks: dict[str, tuple[str, Tensor]]  # "….gates@i" → (name in the checkpoint, mask)
    ignored: dict[str, str]


def translate(name: str, state: dict[str, Tensor], metadata: Mapping[str, str]) -> Translated:
    """Bring the backbone of a checkpoint into our names; what is no backbone is set aside.

    Args:
        name: What the checkpoint is called in messages.
        state: Its tensors.
        metadata: That of a file of ours, which tells the head layout.

    Raises:
        CheckpointError: If a key of the backbone is in no known layout.
    """
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
        out = Translated(
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
) -> Translated:
    out = Translated(generation, "official", None, {}, {}, {}, {})
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
            return INDEX.sub(renumber, where + match.expand(template))
    return None


def renumber(match: re.Match[str]) -> str:
    """Return the number that `<kind number>` in a template of names stands for.

    V1 lists stages and down-sampling together; V2's interleaved heads count from 1;
    official branches of Semantic FPN list their up-sampling as well.
    """
    kind, number = match[1], int(match[2])
    return str(
        {
            "even": number // 2,
            "odd": (number + 1) // 2,
            "half": number // 2,
            "minus one": number - 1,
        }[kind]
    )


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


def architecture(state: Mapping[str, Tensor]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the depths and dims of a state dict in our names."""
    blocks: dict[int, set[int]] = {}
    dims: dict[int, int] = {}
    for key, value in state.items():
        if match := re.match(r"stages\.(\d+)\.blocks\.(\d+)\.(norm1\.weight)?", key):
            blocks.setdefault(int(match[1]), set()).add(int(match[2]))
            if match[3]:
                dims[int(match[1])] = value.shape[0]
    return tuple(len(blocks[i]) for i in sorted(blocks)), tuple(dims[i] for i in sorted(dims))
