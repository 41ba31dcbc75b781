"""From the names on a command line to models.

spanet_s                  a model by timm's name; `timm:convnext_tiny` is the same
spanet_s:fft              one of ours, with this `spectral_impl`
python:MODULE:FUNCTION    whatever FUNCTION() of MODULE returns, such as other code's model
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import timm
import torch
from torch import nn

from spanet_lightning.backbones.spectral import SpectralImpl
from spanet_lightning.errors import ConfigError, did_you_mean, invalid, invalid_choice

IMPLS: tuple[str, ...] = get_args(SpectralImpl)
DEFAULTS = ("spanet_s", "spanetv2_s18_pure", "spanetv2_s18_hybrid")


@dataclass(frozen=True)
class Subject:
    """A model to measure.

    Attributes:
        name: timm's name, or `python:MODULE:FUNCTION`.
        impl: `spectral_impl` where it was asked for.
    """

    name: str
    impl: str | None = None

    @property
    def label(self) -> str:
        """What tables and records call it."""
        return self.name if self.impl is None else f"{self.name}:{self.impl}"


def parse(text: str, key: str = "MODEL") -> Subject:
    """Read the name of a model.

    Args:
        text: A name as above.
        key: Argument that holds it, for the message.

    Raises:
        ConfigError: If there is no such model, or it has no such `spectral_impl`.
    """
    if text.startswith("python:"):
        if text.count(":") != 2:
            raise invalid(key, text, "python:MODULE:FUNCTION")
        return Subject(text)
    name, _, impl = text.removeprefix("timm:").partition(":")
    base = name.partition(".")[0]  # without the tag of pretrained weights
    if not timm.is_model(base):
        accepted = "a model that timm knows, or python:MODULE:FUNCTION"
        raise invalid(key, text, accepted, did_you_mean(base, timm.list_models()))
    if not impl:
        return Subject(name)
    if impl not in IMPLS:
        raise invalid_choice(f"{key} {name}", impl, IMPLS)
    if not is_ours(base):
        raise invalid(key, text, f"{name!r} alone: only our models have a spectral_impl")
    return Subject(name, impl)


def parse_ours(text: str) -> Subject:
    """Read the name of one of our models.

    Raises:
        ConfigError: If it is none.
    """
    subject = parse(text)
    if not is_ours(subject.name):
        raise invalid("MODEL", text, "one of this project's models; see 'spanet models'")
    return subject


def parse_against(text: str, subjects: Sequence[Subject]) -> list[tuple[Subject, Subject]]:
    """Read what subjects are compared with, separated by commas.

    Args:
        text: `fft` and the like stand for each subject with that `spectral_impl`; anything else
            names a model.
        subjects: The subjects.

    Returns:
        Pairs of a subject and what it is compared with.

    Raises:
        ConfigError: If a name is wrong.
    """
    pairs = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        for subject in subjects:
            if entry in IMPLS:
                if not is_ours(subject.name):
                    raise invalid(
                        "--against", entry, f"a model: {subject.name!r} has no spectral_impl"
                    )
                other = Subject(subject.name, entry)
            elif ":" not in entry and not timm.is_model(entry.partition(".")[0]):
                raise _unknown(entry)
            else:
                other = parse(entry, "--against")
            if other != subject:
                pairs.append((subject, other))
    return pairs


def is_ours(name: str) -> bool:
    """Tell whether timm's model of this name is one of this project's."""
    if name.startswith("python:"):
        return False
    module: str = timm.model_entrypoint(name.partition(".")[0]).__module__
    return module.startswith("spanet_lightning.")


def build(subject: Subject, size: int, seed: int) -> nn.Module:
    """Build a model with random weights.

    Args:
        subject: Which one.
        size: Side of its images, in pixels, where the model has to know.
        seed: Of its weights: the same for every `spectral_impl`.

    Raises:
        ConfigError: If `python:MODULE:FUNCTION` can't be called.
    """
    torch.manual_seed(seed)
    if subject.name.startswith("python:"):
        return _from_python(subject.name)
    options: dict[str, Any] = {}
    if is_ours(subject.name):
        options["img_size"] = size
        if subject.impl is not None:
            options["spectral_impl"] = subject.impl
    else:
        cfg = timm.get_pretrained_cfg(subject.name)
        if cfg is not None and cfg.fixed_input_size:
            options["img_size"] = size
    return timm.create_model(subject.name, **options)


def build_all(subjects: Sequence[Subject], size: int, seed: int) -> dict[Subject, nn.Module]:
    """Build models; those of one name share the values of their weights."""
    models: dict[Subject, nn.Module] = {}
    first: dict[str, nn.Module] = {}
    for subject in dict.fromkeys(subjects):
        model = models[subject] = build(subject, size, seed)
        same = first.setdefault(subject.name, model)
        if same is not model:
            model.load_state_dict(same.state_dict())
    return models


def _from_python(name: str) -> nn.Module:
    _, module, function = name.split(":")
    try:
        model = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{name}: {reason}; expected a function that returns a model") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{name}: returned {type(model).__name__}, expected a torch.nn.Module")
    return model


def _unknown(entry: str) -> ConfigError:
    hint = did_you_mean(entry, [*IMPLS, *timm.list_models()])
    accepted = f"one of {', '.join(map(repr, IMPLS))}, timm:NAME or python:MODULE:FUNCTION"
    return invalid("--against", entry, accepted, hint)
