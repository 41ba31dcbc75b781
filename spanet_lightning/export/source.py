"""What is exported: a model with the description that rebuilds it."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping, Sequence
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
    checkpoint_file,
    load_official,
    spanet,
    spanetv2,
)
from spanet_lightning.backbones.official import FORMAT, WeightsSet
from spanet_lightning.backbones.validate import image_size
from spanet_lightning.backbones.weights import read_weights
from spanet_lightning.data.info import stored_info
from spanet_lightning.errors import CheckpointError, ConfigError, did_you_mean, invalid
from spanet_lightning.renamed import modernize

FAMILIES: dict[str, type[Backbone]] = {"SPANet": SPANet, "SPANetV2": SPANetV2}
MODELS: dict[str, tuple[str, str]] = {
    **{spanet.timm_name(v): ("SPANet", v) for v in spanet.VARIANTS},
    **{spanetv2.timm_name(v): ("SPANetV2", v) for v in spanetv2.VARIANTS},
}
"""timm's name → family and variant."""

CONFIG_FILE = "config.yaml"
_IMAGES = ("image_size", "mean", "std")
_STATED = (*_IMAGES, "classes")
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
            `std` of each channel, of values in [0, 1], and the names of the `classes`.
    """

    model: Backbone
    family: str
    arguments: Mapping[str, Any]
    weights: str
    images: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name under which timm knows the variant that the model is of, or began as."""
        module = spanet if self.family == "SPANet" else spanetv2
        return str(module.timm_name(str(self.arguments["variant"])))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, in pixels, of the images it was trained on, or built for."""
        wanted = self.images.get("image_size") or self.arguments["img_size"]
        return image_size("image_size", wanted)

    def metadata(self) -> dict[str, str]:
        """Return what an exported file says of itself; `from_safetensors` reads it."""
        found = {
            "format": FORMAT,  # with the generation and layout, what `spanet convert` writes
            "generation": "2" if self.family == "SPANetV2" else "1",
            "version": __version__,
            "model": self.name,
            "family": self.family,
            "arguments": json.dumps(dict(self.arguments)),
            "weights": self.weights,
        }
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
        text: A checkpoint of a run (`.ckpt`), a file that was exported (`.safetensors`), or the
            name of a variant, such as "spanetv2_s18_pure".
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
    if text not in MODELS:
        if path.is_dir() or path.suffix or len(path.parts) > 1:
            problem = "is a folder" if path.is_dir() else "does not exist"
            raise ConfigError(f"SOURCE: got {text!r}, which {problem}; expected a checkpoint")
        raise invalid(
            "SOURCE",
            text,
            "a checkpoint (.ckpt, .safetensors) or a model's name such as 'spanetv2_s18_pure'",
            did_you_mean(text, MODELS),
        )
    family, variant = MODELS[text]
    given: dict[str, Any] = {"variant": variant}
    given |= {} if num_classes is None else {"num_classes": num_classes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        words = f"random, seed {seed}" if weights is None else Path(weights).name
        source = _build(family, given, words, _published(text))
    if weights is not None:
        report = load_official(source.model, weights, weights_set)
        if heads := [why for why in report.missing.values() if "classes" in why]:
            theirs, ours = re.findall(r"\d+", heads[0])
            raise CheckpointError(
                f"--weights: {weights} has {theirs} classes, the model {ours}; add "
                f"--num-classes {theirs}"
            )
        if report.missing:
            raise CheckpointError(
                f"--weights: {weights} lacks {next(iter(report.missing))}, which would stay random"
            )
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
    made_by = content.get("hyper_parameters") or {}
    if "backbone" not in made_by:
        made_by = _made_by(_config_beside(path))
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
    class_path = backbone["class_path"]
    package, _, family = class_path.rpartition(".")
    if package.partition(".")[0] != "spanet_lightning" or family not in FAMILIES:
        raise CheckpointError(
            f"{path}: its backbone is {class_path!r}; only {' and '.join(FAMILIES)} of "
            "spanet_lightning can be exported"
        )
    tensors = {
        key.removeprefix("backbone."): value
        for key, value in read_weights(path, weights_set).tensors.items()
        if key.startswith("backbone.")
    }
    arguments = dict(backbone.get("init_args") or {})
    # In a configuration it comes from the data, and so is not among the arguments.
    arguments["num_classes"] = _num_classes(tensors)
    config = _config_beside(path)
    images = _images(config)
    stored = stored_info(content)
    if stored is not None:
        _check_classes(path, stored.classes, config)
        images |= {"mean": list(stored.mean), "std": list(stored.std)} if stored.mean else {}
        images["classes"] = list(stored.classes)
    return _restored(path, family, arguments, tensors, path.name, images)


def from_safetensors(path: Path) -> Source:
    """Build the model of a file that `spanet export --format safetensors` wrote.

    Raises:
        CheckpointError: If it can't be read, or does not say how its model is built.
    """
    weights = read_weights(path)
    name, tensors, metadata = weights.name, weights.tensors, weights.metadata
    family = metadata.get("family", "")
    try:
        arguments = json.loads(metadata.get("arguments", ""))
        images = {key: json.loads(metadata[key]) for key in _STATED if key in metadata}
    except ValueError:
        arguments = None
    if family not in FAMILIES or not isinstance(arguments, dict):
        raise CheckpointError(
            f"{name}: does not tell how its model is built; give a model's name and "
            f"--weights {path}"
        )
    return _restored(path, family, arguments, tensors, metadata.get("weights", path.name), images)


def _restored(
    path: Path,
    family: str,
    arguments: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    weights: str,
    images: Mapping[str, Any],
) -> Source:
    accepted = inspect.signature(FAMILIES[family]).parameters
    arguments = modernize(arguments, accepted)
    unknown = sorted(set(arguments) - set(accepted))
    if unknown:
        raise CheckpointError(
            f"{path}: {family} has no argument {unknown[0]!r} in this version ({__version__})"
        )
    source = _build(family, arguments, weights, images)
    wanted = source.model.state_dict()
    wrong = [
        key
        for key in [*wanted, *tensors]
        if key not in wanted or key not in tensors or wanted[key].shape != tensors[key].shape
    ]
    if wrong:
        raise CheckpointError(
            f"{path}: its weights are not those of the {family} that it describes: {wrong[0]}"
        )
    source.model.load_state_dict(dict(tensors))
    return source


def _build(
    family: str, given: Mapping[str, Any], weights: str, images: Mapping[str, Any]
) -> Source:
    cls = FAMILIES[family]
    defaults = {
        name: parameter.default for name, parameter in inspect.signature(cls).parameters.items()
    }
    arguments = {**defaults, **given}
    plain: dict[str, Any] = {
        k: list(v) if isinstance(v, tuple) else v for k, v in arguments.items()
    }
    return Source(cls(**plain).eval(), family, plain, weights, images)


def _check_classes(path: Path, classes: Sequence[str], config: Mapping[str, Any]) -> None:
    """Refuse a checkpoint in the folder of a run whose configuration names other classes."""
    given = _arguments_of_data(config).get("classes")
    if isinstance(given, list) and tuple(map(str, given)) != tuple(classes):
        raise CheckpointError(
            f"{path}: was trained on the classes {', '.join(classes)}, the {CONFIG_FILE} beside it "
            f"names {', '.join(map(str, given))}"
        )


def _num_classes(tensors: Mapping[str, Tensor]) -> int:
    """Return the rows of the classifier's last layer: `head` in V1, `head.fc2` in V2."""
    for name in ("head.weight", "head.fc2.weight"):
        if name in tensors:
            return len(tensors[name])
    return 0


def _published(name: str) -> dict[str, Any]:
    """Return mean and standard deviation that the published weights of a variant expect."""
    cfg = timm.get_pretrained_cfg(name)
    return {} if cfg is None else {"mean": list(cfg.mean), "std": list(cfg.std)}


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


def _made_by(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration's task and backbone, as a checkpoint holds them."""
    model = config.get("model")
    if not isinstance(model, Mapping) or not isinstance(model.get("init_args"), Mapping):
        return {}
    arguments = model["init_args"]
    return {"_class_path": model.get("class_path"), "backbone": arguments.get("backbone")}


def _images(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a configuration tells of the images."""
    arguments = _arguments_of_data(config)
    return {key: arguments[key] for key in _IMAGES if arguments.get(key) is not None}


def _arguments_of_data(config: Mapping[str, Any]) -> Mapping[str, Any]:
    data = config.get("data")
    arguments = data.get("init_args") if isinstance(data, Mapping) else None
    return arguments if isinstance(arguments, Mapping) else {}
