"""A validation split where a data set has none: a share, or a fold, of the training split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from spanet_lightning.errors import invalid


class Holdout(NamedTuple):
    """Which images of the training split are validated on.

    Attributes:
        share: Share of each class; at least one image of each class with two or more.
        fold: Number of folds and which of them this is, from 0.
        seed: Which split of that kind; independent of the seed of the run.
    """

    share: float | None
    fold: tuple[int, int] | None
    seed: int

    @classmethod
    def parse(cls, split: float | None, kfold: str | None, seed: int) -> Holdout | None:
        """Return what the arguments of a data module ask for; None without any.

        Raises:
            ConfigError: If a value is out of its range, or both are given.
        """
        if split is not None and not 0 < split < 1:
            raise invalid("split", split, "a share in (0, 1), or null")
        if kfold is None:
            return None if split is None else cls(split, None, seed)
        if split is not None:
            raise invalid("kfold", kfold, f"null beside split={split}")
        folds, _, index = kfold.partition("/")
        if not (folds.isdecimal() and index.isdecimal() and 2 <= int(folds) > int(index)):
            accepted = "'K/I': fold I, from 0 to K - 1, of K folds, such as '5/0'"
            raise invalid("kfold", kfold, accepted)
        return cls(None, (int(folds), int(index)), seed)

    def choose(self, labels: Sequence[int], names: Sequence[str]) -> np.ndarray:
        """Return whether each image is held out, shape (images,); of each class the same share.

        Images are ranked within their class by a hash of the seed and their name: neither the
        version of a library nor images that are added elsewhere change where an image is.

        Args:
            labels: Class of each image.
            names: Name of each image, the same wherever the data set is.
        """
        digests = [
            hashlib.sha256(f"{self.seed}:{name}".encode(errors="surrogateescape")).digest()
            for name in names
        ]
        order = sorted(range(len(names)), key=digests.__getitem__)
        order.sort(key=labels.__getitem__)
        chosen = np.zeros(len(names), dtype=bool)
        if self.fold is not None:
            # Across the borders of classes, or all classes of one image would be in the first fold.
            chosen[order[self.fold[1] :: self.fold[0]]] = True
            return chosen
        share = self.share or 0.0
        classes = np.asarray(labels)[order]
        for label in np.unique(classes):
            ranked = np.asarray(order)[classes == label]
            if len(ranked) > 1:
                chosen[ranked[: min(max(1, round(share * len(ranked))), len(ranked) - 1)]] = True
        if not chosen.any() and len(order) > 1:  # every class has one image
            chosen[order[: max(1, round(share * len(order)))]] = True
        return chosen

    def __str__(self) -> str:
        return f"{self.share} {self.fold} {self.seed}"
