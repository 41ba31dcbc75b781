"""What is exported: a model with the description that rebuilds it."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from torch import Tensor

from spanet_lightning._version import __version__
from spanet_lightning.backbones import (
    Backbone,
    SPANet,
    SPANetV2,
    TimmBackbone,
    checkpoint_file,
    load_official,
    spanet,
    spanetv2,
)
from spanet_lightning.backbones.official import FORMAT
from spanet_lightning.backbones.validate import image_size
from spanet_lightning.backbones.weights import WeightsSet, read_weights
from spanet_lightning.errors import CheckpointError, ConfigError, did_you_mean, invalid
from spanet_lightning.renamed import modernize

FAMILIES: dict[str, type[Backbone]] = {
    "SPANet": SPANet,
    "SPANetV2": SPANetV2,
    "TimmBackbone": TimmBackbone,
}
MODELS: dict[str, tuple[str, str]] = {
    **{spanet.timm_name(v): ("SPANet", v) for v in spanet.VARIANTS},
    **{spanetv2.timm_name(v): ("SPANetV2", v) for v in spanetv2.VARIANTS},
}
"""timm's name → family and variant."""

CONFIG_FILE = "config.yaml"
_IMAGES = ("image_size", "mean", "std")
_CLASSIFICATION = "ClassificationTask"


@dataclass(frozen=True)
class Source:
    """A classifier to export.

    Attributes:
        model: The network, in evaluation mode.
        family: Name of its class.
        arguments: What its class is called with, in values that JSON holds; complete, so that a
            default that changes one day does not change the model.
        weights: Where the weights are from, in words.
        images: What is known of the images it was trained on: `image_size` in pixels, `mean` and
            `std` of each channel, of values in [0, 1].
    """

    model: Backbone
    family: str
    arguments: Mapping[str, Any]
    weights: str
    images: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name under which timm knows the model, or the variant that it began as."""
        if self.family == "TimmBackbone":
            return str(self.arguments["name"])
        module = spanet if self.family == "SPANet" else spanetv2
        return str(module.timm_name(str(self.arguments["variant"])))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, in pixels, of the images it was trained on, or built for."""
        wanted = self.images.get("image_size") or self.arguments["img_size"]
        if wanted is None:
            wanted = getattr(self.model, "pretrained_cfg", {}).get("input_size", (3, 224, 224))[1:]
        return image_size("image_size", wanted)

    def metadata(self) -> dict[str, str]:
        """Return what an exported file says of itself; `from_safetensors` reads it."""
        found = {
            "format": FORMAT,  # with the generation and layout, what `spanet convert` writes
            "version": __version__,
            "model": self.name,
            "family": self.family,
            "arguments": json.dumps(dict(self.arguments)),
            "weights": self.weights,
        }
        if self.family != "TimmBackbone":
            found["generation"] = "2" if self.family == "SPANetV2" else "1"
        if "head_layout" in self.arguments:
            found["head_layout"] = str(self.arguments["head_layout"])
        return found | {key: json.dumps(value) for key, value in self.images.items()}


def read(
    text: str,
    *,
    weights: str | None = None,
    weights_set: WeightsSet | None = None,
    num_classes: int | None = None,
    seed: int = 0,
) -> Source:
    """Build the model that a user names.

    Args:
        text: A checkpoint of a run (`.ckpt`), a file that was exported (`.safetensors`), or timm's
            name of a model, such as "spanetv2_s18_pure".
        weights: With a name: a checkpoint for it, official or ours. Without, weights are random.
        weights_set: Which weights of a file that holds their moving average as well.
        num_classes: With a name: classes of the head; default: 1000.
        seed: Of random weights.

    Raises:
        ConfigError: If it is none of these.
        CheckpointError: If a file can't be read safely, or holds no classifier of ours.
    """
    path = Path(text)
    if path.is_file():
        for key, value in (("--weights", weights), ("--num-classes", num_classes)):
            if value is not None:
                raise invalid(key, value, "a model's name before it: a file says this itself")
        if path.suffix == ".safetensors":
            return from_safetensors(path)
        return from_checkpoint(path, weights_set)
    if text not in MODELS and not timm.is_model(text):
        if path.is_dir() or path.suffix or len(path.parts) > 1:
            problem = "is a folder" if path.is_dir() else "does not exist"
            raise ConfigError(f"SOURCE: got {text!r}, which {problem}; expected a checkpoint")
        raise invalid(
            "SOURCE",
            text,
            "a checkpoint (.ckpt, .safetensors) or a model's name such as 'spanetv2_s18_pure'",
            did_you_mean(text, [*MODELS, *timm.list_models()]),
        )
    family, variant = MODELS.get(text, ("TimmBackbone", ""))
    given: dict[str, Any] = {"variant": variant} if variant else {"name": text}
    given |= {} if num_classes is None else {"num_classes": num_classes}
    cfg = timm.get_pretrained_cfg(text)  # what published weights expect
    images = {} if cfg is None else {"mean": list(cfg.mean), "std": list(cfg.std)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        words = f"random, seed {seed}" if weights is None else Path(weights).name
        source = _build(family, given, words, images)
    if weights is not None:
        _load(source.model, weights, weights_set, f"--weights: {weights}")
    return source


def from_checkpoint(path: Path, weights_set: WeightsSet | None = None) -> Source:
    """Build the classifier of a run's checkpoint, which holds its constructor arguments.

    Where it does not, because the task was built by hand, the `config.yaml` beside it is read.

    Raises:
        CheckpointError: If the file can't be read without running code, or is of another kind.
    """
    content, _ = checkpoint_file.read(path)
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or "pytorch-lightning_version" not in content:
        raise CheckpointError(
            f"{path}: is not a checkpoint of a run; for official weights give a model's name and "
            f"--weights {path}"
        )
    config = _config_beside(path)
    made_by = content.get("hyper_parameters") or {}
    if "backbone" not in made_by:
        model = config.get("model")
        model = model if isinstance(model, Mapping) else {}
        made_by = {"_class_path": model.get("class_path"), **(model.get("init_args") or {})}
    task = str(made_by.get("_class_path", "")).rpartition(".")[2]
    backbone = made_by.get("backbone")
    if not isinstance(backbone, Mapping) or not isinstance(backbone.get("class_path"), str):
        raise CheckpointError(
            f"{path}: does not tell how its backbone was built, and there is no {CONFIG_FILE} "
            f"beside it; give a model's name and --weights {path}"
        )
    if task != _CLASSIFICATION:
        raise CheckpointError(
            f"{path}: holds a {task or 'task of another kind'}; only classifiers "
            f"({_CLASSIFICATION}) can be exported"
        )
    package, _, family = backbone["class_path"].rpartition(".")
    if package.partition(".")[0] != "spanet_lightning" or family not in FAMILIES:
        raise CheckpointError(
            f"{path}: its backbone is {backbone['class_path']!r}; only {', '.join(FAMILIES)} of "
            "spanet_lightning can be exported"
        )
    arguments = dict(backbone.get("init_args") or {})
    # In a configuration it comes from the data, and so is not among the arguments.
    own = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    arguments["num_classes"] = _num_classes(path, family, arguments, own)
    data = config.get("data")
    images = (data.get("init_args") if isinstance(data, Mapping) else None) or {}
    images = {key: images[key] for key in _IMAGES if images.get(key) is not None}
    source = _build(family, _accepted(path, family, arguments), path.name, images)
    _load(source.model, path, weights_set, str(path))
    return source


def from_safetensors(path: Path) -> Source:
    """Build the model of a file that `spanet export --format safetensors` wrote.

    Raises:
        CheckpointError: If it can't be read, or does not say how its model is built.
    """
    metadata = read_weights(path).metadata
    family = metadata.get("family", "")
    try:
        arguments = json.loads(metadata.get("arguments", ""))
        images = {key: json.loads(metadata[key]) for key in _IMAGES if key in metadata}
    except ValueError:
        arguments = None
    if family not in FAMILIES or not isinstance(arguments, dict):
        raise CheckpointError(
            f"{path}: does not tell how its model is built; give a model's name and "
            f"--weights {path}"
        )
    weights = metadata.get("weights", path.name)
    source = _build(family, _accepted(path, family, arguments), weights, images)
    _load(source.model, path, None, str(path))
    return source


def _accepted(path: Path, family: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored arguments under their present names.

    Raises:
        CheckpointError: If this version has no such argument.
    """
    accepted = inspect.signature(FAMILIES[family]).parameters
    current = modernize(arguments, accepted)
    if unknown := sorted(set(current) - set(accepted)):
        raise CheckpointError(
            f"{path}: {family} has no argument {unknown[0]!r} in this version ({__version__})"
        )
    return current


def _build(
    family: str, given: Mapping[str, Any], weights: str, images: Mapping[str, Any]
) -> Source:
    parameters = inspect.signature(FAMILIES[family]).parameters
    defaults = {n: p.default for n, p in parameters.items() if p.default is not p.empty}
    merged = {**defaults, **given}
    plain: dict[str, Any] = {k: list(v) if isinstance(v, tuple) else v for k, v in merged.items()}
    model: Backbone = FAMILIES[family](**plain)
    return Source(model.eval(), family, plain, weights, images)


def _load(model: Backbone, file: str | Path, weights_set: WeightsSet | None, key: str) -> None:
    """Load all weights of a model.

    Raises:
        CheckpointError: If some would stay random.
    """
    report = load_official(model, file, weights_set)
    if heads := [why for why in report.missing.values() if "classes" in why]:
        theirs, ours = re.findall(r"\d+", heads[0])
        raise CheckpointError(
            f"{key} has {theirs} classes, the model {ours}; add --num-classes {theirs}"
        )
    if report.missing:
        raise CheckpointError(f"{key} lacks {next(iter(report.missing))}, which would stay random")


def _num_classes(
    path: Path, family: str, arguments: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> int:
    """Return the rows of a checkpoint's classifier: those that follow `num_classes`."""
    with torch.device("meta"):
        one, two = (
            FAMILIES[family](**(_accepted(path, family, arguments) | {"num_classes": n}))
            for n in (2, 3)
        )
    for (key, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        if a.shape != b.shape:
            return len(tensors[key]) if key in tensors else 0
    return 0


def _config_beside(path: Path) -> dict[str, Any]:
    """Return the configuration of the run that a checkpoint is in the folder of."""
    file = path.parent / CONFIG_FILE
    if not file.is_file():
        return {}
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        config = None
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: is not the configuration of a run")
    return config
