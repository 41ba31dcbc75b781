"""Shape bias: of the decisions for an image's shape or texture, how many are for the shape.

Geirhos et al. (ICLR 2019, arXiv:1811.12231). Images whose shape and texture are of one class are
dropped (80 of 1,280); of the rest, decisions that are neither class do not count:

    shape bias = n_shape / (n_shape + n_texture).

A group of subjects, such as ten people, is pooled: its trials are counted together.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spanet_lightning.analysis.decisions import CLASSES, Decision

HUMANS = "humans"
_HUMAN = re.compile(r"(subject|participant|observer|human)s?[-_ ]?\d*", re.IGNORECASE)


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
        return share(self.shape, self.texture)

    @property
    def standard_error(self) -> float:
        """Binomial standard error of the shape bias."""
        number = self.shape + self.texture
        return math.sqrt(self.value * (1 - self.value) / number) if number else float("nan")

    @property
    def cue_accuracy(self) -> float:
        """Share of trials decided for the shape or the texture: for something that is there."""
        return (self.shape + self.texture) / self.trials if self.trials else float("nan")

    def of_class(self, name: str) -> float:
        """Return the shape bias over images with the shape of one class."""
        return share(*self.by_class.get(name, (0, 0)))

    @property
    def mean_over_classes(self) -> float:
        """Mean of the classes' shape biases, those without a decision left out."""
        values = [v for v in map(self.of_class, CLASSES) if not math.isnan(v)]
        return sum(values) / len(values) if values else float("nan")


def share(shape: int, texture: int) -> float:
    """Return shape / (shape + texture), NaN where both are 0."""
    return shape / (shape + texture) if shape + texture else float("nan")


def shape_bias(name: str, decisions: Sequence[Decision]) -> ShapeBias:
    """Count the decisions of a subject or of a group.

    Args:
        name: What to call it.
        decisions: All of its trials, in any order.
    """
    shape = texture = dropped = 0
    by_class = {one: [0, 0] for one in CLASSES}
    for one in decisions:
        if not one.stimulus.conflict:
            dropped += 1
        elif one.answer == one.stimulus.shape:
            shape += 1
            by_class[one.stimulus.shape][0] += 1
        elif one.answer == one.stimulus.texture:
            texture += 1
            by_class[one.stimulus.shape][1] += 1
    return ShapeBias(
        name,
        len({one.subject for one in decisions}),
        len(decisions) - dropped,
        shape,
        texture,
        dropped,
        {key: (a, b) for key, (a, b) in by_class.items()},
    )


def by_subject(decisions: Sequence[Decision], *, pool_humans: bool = True) -> list[ShapeBias]:
    """Count decisions of each subject, people pooled, in the order of their first appearance.

    Args:
        decisions: Trials of any number of subjects.
        pool_humans: Count all subjects named `subject-01` and the like together.
    """
    groups: dict[str, list[Decision]] = {}
    for one in decisions:
        human = pool_humans and _HUMAN.fullmatch(one.subject) is not None
        groups.setdefault(HUMANS if human else one.subject, []).append(one)
    return [shape_bias(name, trials) for name, trials in groups.items()]
