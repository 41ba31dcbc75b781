"""Shape bias and error consistency, of humans and models.

Shape bias (Geirhos et al., ICLR 2019, arXiv:1811.12231): of the decisions for the shape or the
texture of cue-conflict images, the share for the shape. Images whose shape and texture agree are
dropped (80 of 1,280); decisions for neither class do not count.

Error consistency (Geirhos et al., NeurIPS 2020, arXiv:2006.16736): Cohen's kappa of two subjects'
correct answers, κ = (c_obs - c_exp) / (1 - c_exp). c_obs is the share of images that both answer
correctly or both wrongly, and c_exp = p₁p₂ + (1-p₁)(1-p₂) what two independent subjects of these
accuracies would have in common.

A model's 1,000 ImageNet probabilities become 16: the mean, not the sum, over the ImageNet indices
of each class (the aggregation of Geirhos et al.'s toolbox). The largest is the decision.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from spanet_lightning.analysis.figures import Curve, Figure, Panel
from spanet_lightning.analysis.images import batches, normalise
from spanet_lightning.analysis.models import LoadedModel
from spanet_lightning.analysis.trials import CLASSES, Trial, conflict, stimulus_name
from spanet_lightning.data import listing
from spanet_lightning.errors import ConfigError, DataError

HUMANS = "humans"
_HUMAN = re.compile(r"(subject|participant|observer|human)s?[-_ ]?\d*", re.IGNORECASE)

Indices = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class ShapeBias:
    """The counts of one subject or group.

    Attributes:
        name: Of the subject or group.
        subjects: How many were pooled.
        trials: Decisions about images of conflicting cues.
        shape: Those for the shape.
        texture: Those for the texture.
        dropped: Decisions about images without conflict, which are left out.
        by_class: For each class of shape: decisions for the shape, and for the texture.
    """

    name: str
    subjects: int
    trials: int
    shape: int
    texture: int
    dropped: int
    by_class: Mapping[str, tuple[int, int]]

    @property
    def value(self) -> float:
        """The shape bias, from 0 (texture) to 1 (shape); NaN without a decision for either."""
        return _share(self.shape, self.texture)

    @property
    def standard_error(self) -> float:
        """Binomial standard error of the shape bias."""
        number = self.shape + self.texture
        return math.sqrt(self.value * (1 - self.value) / number) if number else float("nan")

    @property
    def cue_accuracy(self) -> float:
        """Share of decisions for either cue."""
        return (self.shape + self.texture) / self.trials if self.trials else float("nan")

    def of_class(self, name: str) -> float:
        """Return the shape bias over images with the shape of one class."""
        return _share(*self.by_class.get(name, (0, 0)))

    @property
    def mean_over_classes(self) -> float:
        """Mean of the classes' shape biases, those without a decision left out."""
        values = [v for v in map(self.of_class, CLASSES) if not math.isnan(v)]
        return sum(values) / len(values) if values else float("nan")


def _share(shape: int, texture: int) -> float:
    return shape / (shape + texture) if shape + texture else float("nan")


def shape_bias(name: str, trials: Sequence[Trial]) -> ShapeBias:
    """Count the cue-conflict trials of a subject or of a group."""
    dropped = 0
    by_class = {one: [0, 0] for one in CLASSES}
    for one in trials:
        if one.category == one.texture:
            dropped += 1
        elif one.answer in (one.category, one.texture):
            by_class[one.category][one.answer == one.texture] += 1
    return ShapeBias(
        name,
        len({one.subject for one in trials}),
        len(trials) - dropped,
        sum(shape for shape, _ in by_class.values()),
        sum(texture for _, texture in by_class.values()),
        dropped,
        {key: (shape, texture) for key, (shape, texture) in by_class.items()},
    )


def shape_biases(trials: Sequence[Trial], *, pool_humans: bool = True) -> list[ShapeBias]:
    """Count the trials of each subject, in the order of their first appearance.

    Args:
        trials: Of any number of subjects.
        pool_humans: Count all subjects named `subject-01` and the like together.
    """
    groups: dict[str, list[Trial]] = {}
    for one in trials:
        human = pool_humans and _HUMAN.fullmatch(one.subject) is not None
        groups.setdefault(HUMANS if human else one.subject, []).append(one)
    return [shape_bias(name, own) for name, own in groups.items()]


@dataclass(frozen=True)
class Consistency:
    """How two subjects agree on which images are hard.

    Attributes:
        first: One subject.
        second: Another.
        images: Number of images that both answered.
        accuracies: Of both, on these images.
        observed: c_obs.
        expected: c_exp.
    """

    first: str
    second: str
    images: int
    accuracies: tuple[float, float]
    observed: float
    expected: float

    @property
    def kappa(self) -> float:
        """Cohen's kappa: 1 for the same errors, 0 for independent ones; NaN if both are perfect."""
        if self.expected == 1:
            return float("nan")
        return (self.observed - self.expected) / (1 - self.expected)


def error_consistency(trials: Sequence[Trial]) -> list[Consistency]:
    """Return the error consistency of each pair of subjects, over the images of both.

    Raises:
        DataError: If there are fewer than two subjects, or two without a common image.
    """
    correct: dict[str, dict[str, bool]] = {}
    for one in trials:
        correct.setdefault(one.subject, {})[one.image] = one.answer == one.category
    if len(correct) < 2:
        raise DataError(f"consistency: got {len(correct)} subject, expected at least two")
    found = []
    for (first, a), (second, b) in itertools.combinations(correct.items(), 2):
        common = sorted(a.keys() & b.keys())
        if not common:
            raise DataError(f"consistency: {first} and {second} have no image in common")
        x, y = (np.array([one[image] for image in common]) for one in (a, b))
        p, q = float(x.mean()), float(y.mean())
        expected = p * q + (1 - p) * (1 - q)
        observed = float((x == y).mean())
        found.append(Consistency(first, second, len(common), (p, q), observed, expected))
    return found


# Decisions of models


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
    seen: set[int] = set()
    for name, indices in found.items():
        good = isinstance(indices, list) and indices
        if not good or not all(type(i) is int and 0 <= i < 1000 for i in indices):
            raise DataError(f"{path}: {name}: expected a list of integers from 0 to 999")
        for i in indices:
            if i in seen:
                raise DataError(f"{path}: {name}: index {i} is in two classes, or twice in one")
            seen.add(i)
    return {name: list(found[name]) for name in CLASSES}


def class_probabilities(logits: Float[Tensor, "b k"], indices: Indices) -> Float[Tensor, "b 16"]:
    """Return the mean softmax probability over each class's indices, in `CLASSES`' order."""
    probabilities = logits.double().softmax(1)
    return torch.stack([probabilities[:, list(indices[name])].mean(1) for name in CLASSES], 1)


def list_stimuli(folder: str | Path) -> list[Path]:
    """List the cue-conflict images of a folder, in the order of their names.

    Raises:
        DataError: If there is none, or another image.
    """
    files = listing.list_images(Path(folder), "--stimuli").paths
    for path in files:
        if conflict(stimulus_name(path.name))[0] is None:
            raise DataError(
                f"{path}: not named as a stimulus, expected a name such as 'airplane1-bicycle2.png'"
            )
    return files


@torch.no_grad()
def decide(
    model: LoadedModel, stimuli: Sequence[Path], indices: Indices, size: int = 224, batch: int = 32
) -> list[Trial]:
    """Let a model decide about stimuli, preprocessed as in its evaluation.

    Args:
        model: A classifier of ImageNet's 1,000 classes.
        stimuli: Cue-conflict images.
        indices: ImageNet indices of each class.
        size: Side of its images in pixels.
        batch: Images at once.

    Raises:
        ConfigError: If the model has another number of classes.
    """
    answers: list[int] = []
    for images in batches(stimuli, size, batch, "crop", model.crop_pct):
        logits = model.model(normalise(images, model))
        if logits.ndim != 2 or logits.shape[1] != 1000:
            raise ConfigError(
                f"{model.label}: returns {tuple(logits.shape[1:])} values per image, expected the "
                "logits of ImageNet's 1000 classes"
            )
        answers += class_probabilities(logits, indices).argmax(1).tolist()
    names = [stimulus_name(path.name) for path in stimuli]
    return [
        Trial(model.label, name, conflict(name)[0] or "", CLASSES[answer])
        for name, answer in zip(names, answers, strict=True)
    ]


# Figures


def shape_bias_figure(found: Sequence[ShapeBias], title: str) -> Figure:
    """Return the shape bias by class, a marker per subject, and its mean as a line."""
    curves, lines, rows = [], [], []
    for i, one in enumerate(found):
        values = np.array([one.of_class(name) for name in CLASSES])
        known = not math.isnan(one.value)
        label = f"{one.name}  {one.value:.3f}" if known else f"{one.name}  no decision"
        # One below the other, so that none hides another.
        offset = (i - (len(found) - 1) / 2) * min(0.1, 0.7 / len(found))
        y = np.arange(len(CLASSES)) + offset
        curves.append(Curve(1 - values, y, label, i, style="markers"))
        lines += [(1 - one.value, i)] if known else []
        rows.append(bias_row(one))
    panel = Panel(
        curves=tuple(curves),
        xlabel="share of texture decisions (← shape; texture →)",
        ylabel="class of the shape",
        yticks=tuple((float(i), name) for i, name in enumerate(CLASSES)),
        xlim=(-0.02, 1.02),
        ylim=(len(CLASSES) - 0.5, -0.5),
        vlines=tuple(lines),
    )
    return Figure(title, ((panel,),), legend="shape bias", panel_size=(6.5, 4.9), table=rows)


def bias_row(one: ShapeBias) -> dict[str, Any]:
    """Return a subject as a row of a table."""
    return {
        "name": one.name,
        "subjects": one.subjects,
        "trials": one.trials,
        "shape": one.shape,
        "texture": one.texture,
        "dropped_without_conflict": one.dropped,
        "shape_bias": one.value,
        "standard_error": one.standard_error,
        "mean_over_classes": one.mean_over_classes,
        "cue_accuracy": one.cue_accuracy,
        **{name: one.of_class(name) for name in CLASSES},
    }


def consistency_figure(found: Sequence[Consistency], title: str) -> Figure:
    """Return kappa of all pairs of subjects as a matrix."""
    names = list(dict.fromkeys(name for one in found for name in (one.first, one.second)))
    matrix = np.eye(len(names))
    for one in found:
        i, j = names.index(one.first), names.index(one.second)
        matrix[i, j] = matrix[j, i] = one.kappa
    ticks = tuple((float(i), name) for i, name in enumerate(names))
    few = len(names) <= 12
    panel = Panel(image=matrix, xticks=ticks if few else (), yticks=ticks, annotated=few)
    rows = [
        {
            "first": one.first,
            "second": one.second,
            "images": one.images,
            "accuracy_first": one.accuracies[0],
            "accuracy_second": one.accuracies[1],
            "observed": one.observed,
            "expected": one.expected,
            "kappa": one.kappa,
        }
        for one in found
    ]
    side = min(1.5 + 0.55 * len(names), 8)
    return Figure(
        title,
        ((panel,),),
        colorbar="Cohen's κ",
        limits=(0, 1),
        panel_size=(side + 0.6, side),
        table=rows,
    )
