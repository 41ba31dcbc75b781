"""Decisions of a model about cue-conflict stimuli.

The model's 1,000 ImageNet probabilities become 16: the mean, not the sum, over each class's
ImageNet indices (the aggregation of Geirhos et al.'s toolbox). The largest is the decision.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from spanet_lightning.analysis.decisions import CLASSES, Decision, Stimulus, stimulus
from spanet_lightning.analysis.images import SUFFIXES, as_tensor, normalised, open_image, square
from spanet_lightning.analysis.models import Subject
from spanet_lightning.errors import ConfigError, DataError

Indices = Mapping[str, Sequence[int]]


def read_indices(path: str | Path) -> dict[str, list[int]]:
    """Read which of ImageNet's indices make up each of the 16 classes.

    Args:
        path: JSON: an object with a list of indices, 0 to 999, for each class.

    Raises:
        DataError: If the file is not that.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable JSON file ({error})") from None
    if not isinstance(found, dict) or sorted(found) != sorted(CLASSES):
        given = sorted(found) if isinstance(found, dict) else type(found).__name__
        raise DataError(f"{path}: expected an object with the keys {', '.join(CLASSES)}: {given}")
    for name, indices in found.items():
        good = isinstance(indices, list) and indices
        if not good or not all(type(i) is int and 0 <= i < 1000 for i in indices):
            raise DataError(f"{path}: {name}: expected a list of integers from 0 to 999")
        if len(set(indices)) < len(indices):
            raise DataError(f"{path}: {name}: has an index twice")
    every = [i for indices in found.values() for i in indices]
    if len(set(every)) < len(every):
        twice = next(i for i in every if every.count(i) > 1)
        raise DataError(f"{path}: index {twice} is in two classes")
    return {name: list(found[name]) for name in CLASSES}


def class_probabilities(logits: Float[Tensor, "b k"], indices: Indices) -> Float[Tensor, "b 16"]:
    """Return the mean softmax probability over each class's indices, in `CLASSES`' order."""
    probabilities = logits.double().softmax(1)
    return torch.stack([probabilities[:, list(indices[name])].mean(1) for name in CLASSES], 1)


def find_stimuli(folder: str | Path) -> list[tuple[Path, Stimulus]]:
    """List the stimuli of a folder, in the order of their names.

    Raises:
        DataError: If there is none, or an image that is no stimulus.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"--stimuli: no folder {folder}")
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in SUFFIXES:
            continue
        shown = stimulus(path.name)
        if shown is None:
            raise DataError(
                f"{path}: no stimulus by its name, expected one such as 'airplane1-bicycle2.png'"
            )
        found.append((path, shown))
    if not found:
        raise DataError(f"--stimuli: no image below {folder}")
    return found


@torch.no_grad()
def decide(
    subject: Subject,
    found: Sequence[tuple[Path, Stimulus]],
    indices: Indices,
    size: int = 224,
    batch: int = 32,
) -> list[Decision]:
    """Let a model decide about stimuli, preprocessed as in its evaluation.

    Args:
        subject: A classifier of ImageNet's 1,000 classes.
        found: Files and what they show.
        indices: ImageNet indices of each class.
        size: Side of its images in pixels.
        batch: Images at once.

    Raises:
        ConfigError: If the model has another number of classes.
    """
    decisions = []
    for start in range(0, len(found), batch):
        part = found[start : start + batch]
        pictures = [square(open_image(p), size, "crop", subject.crop_pct) for p, _ in part]
        logits = subject.model(normalised(torch.stack(list(map(as_tensor, pictures))), subject))
        if logits.ndim != 2 or logits.shape[1] != 1000:
            raise ConfigError(
                f"{subject.label}: returns {tuple(logits.shape[1:])} values an image, expected the "
                "logits of ImageNet's 1000 classes"
            )
        best = class_probabilities(logits, indices).argmax(1).tolist()
        decisions += [
            Decision(subject.label, shown, CLASSES[i])
            for (_, shown), i in zip(part, best, strict=True)
        ]
    return decisions
