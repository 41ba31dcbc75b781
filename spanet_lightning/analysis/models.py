"""From names on a command line to models ready to be analysed.

spanet_s                         a model by timm's name, with random weights
vit_small                        the usual member of a family: `vit_small_patch16_224`
spanet_s@FILE                    with the weights of FILE: official, safetensors, or of a run
runs/digits-spanetv2/best.ckpt   a run's checkpoint alone, which describes its own architecture; the
                                 run's config.yaml beside it states how its images are normalised
python:MODULE:FUNCTION           the module that a function returns; MODULE may be a FILE.py
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
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
from spanet_lightning.backbones.weights import WeightsSet, read_weights
from spanet_lightning.errors import CheckpointError, ConfigError, did_you_mean, invalid

SHORT_NAMES = {
    "vit_tiny": "vit_tiny_patch16_224",
    "vit_small": "vit_small_patch16_224",
    "vit_base": "vit_base_patch16_224",
    "deit_small": "deit_small_patch16_224",
    "swin_tiny": "swin_tiny_patch4_window7_224",
    "swin_small": "swin_small_patch4_window7_224",
    "swin_base": "swin_base_patch4_window7_224",
}
"""What papers call a model, and timm's name of its usual member."""

_BACKBONES: dict[str, type[Backbone]] = {c.__name__: c for c in (SPANet, SPANetV2, TimmBackbone)}
_SUFFIXES = (".ckpt", ".safetensors", ".pth", ".pt", ".tar")
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class LoadedModel:
    """A model with the preprocessing of its images.

    Attributes:
        label: Its name in tables and figures.
        model: In evaluation mode.
        mean: Subtracted from each channel of an image in [0, 1].
        std: What is divided by.
        size: Side of its images in pixels, where it takes no other; else `None`.
        crop_pct: Share of the resized image that its evaluation crops.
        trained: Whether its weights were read or downloaded.
    """

    label: str
    model: nn.Module
    mean: tuple[float, ...] = _MEAN
    std: tuple[float, ...] = _STD
    size: int | None = None
    crop_pct: float = 1.0
    trained: bool = False

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
            ConfigError: If the model is no classifier.
        """
        logits: Tensor = self.model(x)
        # Without a classifier, models return their pooled features, which have the same shape.
        bare = getattr(self.model, "num_classes", None) == 0
        if bare or logits.ndim != 2 or logits.shape[1] < 2:
            raise ConfigError(
                f"{self.label}: returns no logits of classes; this analysis needs a classifier"
            )
        return logits


def load_model(
    text: str,
    *,
    size: int = 224,
    seed: int = 0,
    pretrained: bool = False,
    num_classes: int | None = None,
    weights_set: WeightsSet | None = None,
    allow_code: bool = False,
) -> LoadedModel:
    """Build a model from its name on the command line.

    Args:
        text: A name as in the module's docstring.
        size: Side of its images in pixels, for models that need it.
        seed: Of random weights.
        pretrained: Download timm's weights.
        num_classes: Of a model with random weights; default: ImageNet's 1,000.
        weights_set: Which weights of a file that also holds their moving average.
        allow_code: Accept `python:MODULE:FUNCTION`, which runs code: only for a name that the user
            typed.

    Raises:
        ConfigError: If there is no such model.
        CheckpointError: If its weights can't be read, or don't fit.
    """
    if text.startswith("python:"):
        if not allow_code:
            raise ConfigError(f"MODEL {text}: accepted on the command line alone, as it runs code")
        torch.manual_seed(seed)
        return _wrap(text.partition(":")[2], call_function(text, size), trained=True)
    name, _, file = text.partition("@")
    if not file and name.endswith(_SUFFIXES):
        return _load_run(Path(name), seed, weights_set)
    if "@" in text and not file:
        raise invalid("MODEL", text, "NAME@FILE")
    full = SHORT_NAMES.get(name, name).removeprefix("timm:")
    base = full.partition(".")[0]
    if not timm.is_model(base):
        near = did_you_mean(base, [*timm.list_models(), *SHORT_NAMES])
        accepted = "a model that timm knows, NAME@FILE, a run's .ckpt or python:MODULE:FUNCTION"
        raise invalid("MODEL", text, accepted, near)
    options: dict[str, Any] = {}
    cfg = timm.get_pretrained_cfg(full)
    entry = timm.model_entrypoint(base)
    if entry.__module__.startswith("spanet_lightning.") or (cfg and cfg.fixed_input_size):
        options["img_size"] = size
    if num_classes is not None and not file and not pretrained:
        options["num_classes"] = num_classes
    torch.manual_seed(seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = timm.create_model(full, pretrained=pretrained, **options)
    except (RuntimeError, OSError, ValueError, AssertionError) as error:
        raise ConfigError(f"MODEL {text}: {' '.join(str(error).split())}") from error
    if file:
        _load_weights(model, Path(file), text, weights_set)
    return _wrap(text, model, bool(file) or pretrained, options.get("img_size"))


def call_function(text: str, size: int) -> nn.Module:
    """Call the function of `python:MODULE:FUNCTION`, and return the model that it returns.

    Args:
        text: The function; MODULE is imported as from the working directory, or is a FILE.py.
        size: Passed as `img_size` where the function has such a parameter.

    Raises:
        ConfigError: If it can't be imported or called, or returns no module.
    """
    parts = text.split(":")
    if len(parts) != 3 or not all(parts):
        raise invalid("MODEL", text, "python:MODULE:FUNCTION or python:FILE.py:FUNCTION")
    try:
        function = getattr(_import(parts[1]), parts[2])
        sized = "img_size" in inspect.signature(function).parameters
        model = function(**({"img_size": size} if sized else {}))
    except (ImportError, AttributeError, TypeError, OSError, SyntaxError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{text}: {reason}; expected a function that returns a model") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{text}: returned {type(model).__name__}, expected a torch.nn.Module")
    return model


def _import(name: str) -> Any:
    if not name.endswith(".py"):
        sys.path.insert(0, "")  # a console script does not see the working directory
        try:
            return importlib.import_module(name)
        finally:
            sys.path.remove("")
    spec = importlib.util.spec_from_file_location(Path(name).stem, name)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot import {name}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _wrap(label: str, model: nn.Module, trained: bool, built_for: int | None = None) -> LoadedModel:
    cfg = dict(getattr(model, "pretrained_cfg", None) or {})
    fixed = bool(cfg.get("fixed_input_size")) and not isinstance(model, Backbone)
    return LoadedModel(
        label,
        model.eval().requires_grad_(False),
        tuple(cfg.get("mean") or _MEAN),
        tuple(cfg.get("std") or _STD),
        (built_for or cfg["input_size"][-1]) if fixed else None,
        float(cfg.get("crop_pct") or 1.0),
        trained,
    )


def _load_weights(model: nn.Module, file: Path, text: str, weights_set: WeightsSet | None) -> None:
    """Load all weights of a file."""
    tensors = read_weights(file, weights_set).tensors
    backbone = _backbone_tensors(tensors)
    if isinstance(model, Backbone) and backbone is None:
        load_official(model, file, weights_set)
        return
    hint = "" if backbone is None else f"; {file} alone, without a name, brings its own model"
    _load_strictly(model, tensors if backbone is None else backbone, f"MODEL {text}:", hint)


def _backbone_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return the tensors of a run's backbone, or `None` where the file is no run's."""
    prefix = "backbone."
    found = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return found or None


def _load_strictly(
    model: nn.Module, tensors: Mapping[str, Tensor], where: str, hint: str = ""
) -> None:
    wanted = model.state_dict()
    wrong = [k for k, v in wanted.items() if k not in tensors or tensors[k].shape != v.shape]
    wrong += [k for k in tensors if k not in wanted]
    if wrong:
        raise CheckpointError(
            f"{where} the weights do not fit the model: {len(wrong)} tensors are missing, "
            f"unexpected or of another shape, such as {wrong[0]!r}{hint}"
        )
    model.load_state_dict(dict(tensors))


def _load_run(file: Path, seed: int, weights_set: WeightsSet | None) -> LoadedModel:
    """Build the backbone that the checkpoint of a run describes."""
    tensors = read_weights(file, weights_set).tensors
    described = _described_backbone(file)
    kind = str(described.get("class_path", "")).rpartition(".")[2]
    weights = _backbone_tensors(tensors)
    if kind not in _BACKBONES or weights is None:
        raise CheckpointError(
            f"MODEL {file}: does not describe its architecture, as a run's .ckpt does; name the "
            f"model: NAME@{file}"
        )
    channels = described.get("init_args", {}).get("in_chans", 3)
    if channels != 3:
        raise CheckpointError(
            f"MODEL {file}: takes images of {channels} channels; photographs have 3"
        )
    torch.manual_seed(seed)
    try:
        model = _BACKBONES[kind](**described.get("init_args", {}))
    except TypeError as error:
        raise CheckpointError(f"MODEL {file}: was saved by another version ({error})") from error
    if isinstance(model, TimmBackbone):  # the reader strips `model.` as a wrapper's prefix
        weights = {f"model.{key.removeprefix('model.')}": v for key, v in weights.items()}
    # A dense task takes features alone: its backbone may have no classifier.
    if model.state_dict().keys() - weights.keys():
        model.reset_classifier(0)
        state = model.state_dict()
        unused = ("model.",) if isinstance(model, TimmBackbone) else ("norm.",)  # the final norm
        weights = {key: v for key, v in weights.items() if key in state}
        weights = {**{k: v for k, v in state.items() if k.startswith(unused)}, **weights}
    _load_strictly(model, weights, f"MODEL {file}:")
    plain: nn.Module = model.model if isinstance(model, TimmBackbone) else model
    found = _wrap(f"{file.parent.name}/{file.name}", plain, True)
    mean, std = _read_statistics(file.parent) or (found.mean, found.std)
    return replace(found, mean=mean, std=std)


def checkpoints_by_epoch(run: Path) -> dict[int, Path]:
    """Return the checkpoints below a run's folder by their epoch, from 1, in ascending order.

    Raises:
        CheckpointError: If there are fewer than two epochs.
    """
    found: dict[int, Path] = {}
    for file in sorted(run.rglob("*.ckpt")):
        content, _ = checkpoint_file.read(file)
        if isinstance(content, Mapping) and isinstance(content.get("epoch"), int):
            found.setdefault(content["epoch"] + 1, file)
    if len(found) < 2:
        raise CheckpointError(
            f"--epochs: found checkpoints of {len(found)} epochs in {run}, expected at least 2; "
            "ModelCheckpoint keeps them with save_top_k: -1"
        )
    return dict(sorted(found.items()))


def _read_statistics(run: Path) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return mean and standard deviation from a run's configuration, where it states them."""
    try:
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        data = config["data"]["init_args"]
        mean, std = (tuple(map(float, data[key])) for key in ("mean", "std"))
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return None
    return (mean, std) if len(mean) == len(std) == 3 else None


def _described_backbone(file: Path) -> dict[str, Any]:
    """Return the class path and arguments of the backbone that a checkpoint holds."""
    content, _ = checkpoint_file.read(file)
    if not isinstance(content, Mapping):
        return {}
    parameters = content.get("hyper_parameters")
    found = parameters.get("backbone") if isinstance(parameters, Mapping) else None
    return dict(found) if isinstance(found, Mapping) else {}
