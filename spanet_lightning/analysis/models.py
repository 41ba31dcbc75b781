"""From the names on a command line to models ready to be analysed.

spanet_s                     a model by timm's name, with random weights
vit_small                    a family's usual member: `vit_small_patch16_224`
spanet_s@FILE                with the weights of FILE: official, safetensors, or of a run
runs/digits-spanetv2/best.ckpt   a run's checkpoint alone, which knows its own architecture; the
                     run's config.yaml beside it says how its images are normalised
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from jaxtyping import Float
from torch import Tensor, nn

from spanet_lightning.backbones import (
    Backbone,
    SPANet,
    SPANetV2,
    TimmBackbone,
    checkpoint_file,
    load_official,
)
from spanet_lightning.backbones.official import WeightsSet, read_weights
from spanet_lightning.errors import CheckpointError, ConfigError, did_you_mean, invalid

SHORT = {
    "vit_tiny": "vit_tiny_patch16_224",
    "vit_small": "vit_small_patch16_224",
    "vit_base": "vit_base_patch16_224",
    "deit_small": "deit_small_patch16_224",
    "swin_tiny": "swin_tiny_patch4_window7_224",
    "swin_small": "swin_small_patch4_window7_224",
    "swin_base": "swin_base_patch4_window7_224",
}
"""What papers call a model, and timm's name of its usual member."""

_CLASSES: dict[str, type[Backbone]] = {c.__name__: c for c in (SPANet, SPANetV2, TimmBackbone)}
_SUFFIXES = (".ckpt", ".safetensors", ".pth", ".pt", ".tar")


@dataclass(frozen=True)
class Subject:
    """A model with what its images have to look like.

    Attributes:
        label: What tables and figures call it.
        model: In evaluation mode.
        mean: What is subtracted from each channel of an image in [0, 1].
        std: What is divided by.
        size: Side of its images in pixels, where it takes no other; else `None`.
        crop_pct: Share of the resized image that its evaluation crops.
        trained: Whether its weights were read or downloaded.
    """

    label: str
    model: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int | None
    crop_pct: float
    trained: bool

    def image_size(self, wanted: int) -> int:
        """Return the side of images for this model, in pixels.

        Raises:
            ConfigError: If it takes only another.
        """
        if self.size is not None and wanted != self.size:
            raise invalid("--size", wanted, f"{self.size}, the only size that {self.label} takes")
        return wanted

    def logits(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Return the logits of normalised images.

        Raises:
            ConfigError: If the model is no classifier, as that of a dense task.
        """
        logits: Tensor = self.model(x)
        # Without a classifier, models return their pooled features, which have the same shape.
        bare = getattr(self.model, "num_classes", None) == 0
        if bare or logits.ndim != 2 or logits.shape[1] < 2:
            raise ConfigError(
                f"{self.label}: returns no logits of classes; this analysis needs a classifier"
            )
        return logits


def subject(
    text: str,
    *,
    size: int = 224,
    seed: int = 0,
    pretrained: bool = False,
    num_classes: int | None = None,
    weights_set: WeightsSet | None = None,
) -> Subject:
    """Build a model from its name on the command line.

    Args:
        text: A name as in the module's docstring.
        size: Side of its images in pixels, where the model has to know.
        seed: Of random weights.
        pretrained: Download timm's weights.
        num_classes: Of a model whose weights are random; default: ImageNet's 1,000.
        weights_set: Which weights of a file that holds their moving average as well.

    Raises:
        ConfigError: If there is no such model.
        CheckpointError: If its weights can't be read, or don't fit.
    """
    name, _, file = text.partition("@")
    if not file and name.endswith(_SUFFIXES):
        return _of_run(Path(name), seed, weights_set)
    if "@" in text and not file:
        raise invalid("MODEL", text, "NAME@FILE")
    known = SHORT.get(name, name).removeprefix("timm:")
    base = known.partition(".")[0]
    if not timm.is_model(base):
        near = did_you_mean(base, [*timm.list_models(), *SHORT])
        raise invalid("MODEL", text, "a model that timm knows, NAME@FILE or a run's .ckpt", near)
    options: dict[str, Any] = {}
    cfg = timm.get_pretrained_cfg(known)
    entry = timm.model_entrypoint(base)
    if entry.__module__.startswith("spanet_lightning.") or (cfg and cfg.fixed_input_size):
        options["img_size"] = size
    if num_classes is not None and not file and not pretrained:
        options["num_classes"] = num_classes
    torch.manual_seed(seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = timm.create_model(known, pretrained=pretrained, **options)
    except (RuntimeError, OSError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"MODEL {text}: {reason}") from error
    if file:
        _load(model, Path(file), text, weights_set)
    return _subject(text, model, bool(file) or pretrained, options.get("img_size"))


def _subject(label: str, model: nn.Module, trained: bool, built_for: int | None = None) -> Subject:
    cfg = dict(getattr(model, "pretrained_cfg", None) or {})
    fixed = bool(cfg.get("fixed_input_size")) and not isinstance(model, Backbone)
    size = (built_for or cfg["input_size"][-1]) if fixed else None
    return Subject(
        label,
        model.eval().requires_grad_(False),
        tuple(cfg.get("mean") or (0.485, 0.456, 0.406)),
        tuple(cfg.get("std") or (0.229, 0.224, 0.225)),
        size,
        float(cfg.get("crop_pct") or 1.0),
        trained,
    )


def _load(model: nn.Module, file: Path, text: str, weights_set: WeightsSet | None) -> None:
    """Fill a model with the weights of a file, all of them."""
    tensors = read_weights(file, weights_set).tensors
    own = _of_backbone(tensors)
    if isinstance(model, Backbone) and own is None:
        load_official(model, file, weights_set)
        return
    hint = "" if own is None else f"; {file} alone, without a name, brings its own model"
    _strict(model, own if own is not None else tensors, f"MODEL {text}:", hint)


def _of_backbone(tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return the tensors of a run's backbone, or `None` where it is no run's."""
    prefix = "backbone."
    own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return own or None


def _strict(model: nn.Module, tensors: Mapping[str, Tensor], where: str, hint: str = "") -> None:
    wanted = model.state_dict()
    wrong = [k for k, v in wanted.items() if k not in tensors or tensors[k].shape != v.shape]
    wrong += [k for k in tensors if k not in wanted]
    if wrong:
        raise CheckpointError(
            f"{where} the weights do not fit the model: {len(wrong)} tensors are missing, too many "
            f"or of another shape, such as {wrong[0]!r}{hint}"
        )
    model.load_state_dict(dict(tensors))


def _of_run(file: Path, seed: int, weights_set: WeightsSet | None) -> Subject:
    """Build the backbone that a checkpoint of a run describes."""
    tensors = read_weights(file, weights_set).tensors
    described = _described(file)
    kind = str(described.get("class_path", "")).rpartition(".")[2]
    own = _of_backbone(tensors)
    if kind not in _CLASSES or own is None:
        raise CheckpointError(
            f"MODEL {file}: does not tell its architecture, as a run's .ckpt does; name the model: "
            f"NAME@{file}"
        )
    channels = described.get("init_args", {}).get("in_chans", 3)
    if channels != 3:
        raise CheckpointError(
            f"MODEL {file}: takes images of {channels} channels; photographs have 3"
        )
    torch.manual_seed(seed)
    try:
        model = _CLASSES[kind](**described.get("init_args", {}))
    except TypeError as error:
        raise CheckpointError(f"MODEL {file}: was made by another version ({error})") from error
    if isinstance(model, TimmBackbone):  # the reader takes `model.` for a wrapper's prefix
        own = {f"model.{key.removeprefix('model.')}": value for key, value in own.items()}
    # A dense task takes features alone: its backbone may have no classifier.
    if model.state_dict().keys() - own.keys():
        model.reset_classifier(0)
        own = {key: value for key, value in own.items() if key in model.state_dict()}
        unused = ("model.",) if isinstance(model, TimmBackbone) else ("norm.",)  # the final norm
        own = {**{k: v for k, v in model.state_dict().items() if k.startswith(unused)}, **own}
    _strict(model, own, f"MODEL {file}:")
    plain: nn.Module = model.model if isinstance(model, TimmBackbone) else model
    one = _subject(f"{file.parent.name}/{file.name}", plain, True)
    mean, std = _statistics(file.parent) or (one.mean, one.std)
    return replace(one, mean=mean, std=std)


def _statistics(run: Path) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return mean and standard deviation that a run's configuration states, where it does."""
    try:
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        data = config["data"]["init_args"]
        mean, std = (tuple(map(float, data[key])) for key in ("mean", "std"))
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return None
    return (mean, std) if len(mean) == len(std) == 3 else None


def _described(file: Path) -> dict[str, Any]:
    """Return what a checkpoint says of its backbone: class path and arguments."""
    content, _ = checkpoint_file.read(file)
    if not isinstance(content, Mapping):
        return {}
    parameters = content.get("hyper_parameters")
    found = parameters.get("backbone") if isinstance(parameters, Mapping) else None
    return dict(found) if isinstance(found, Mapping) else {}
