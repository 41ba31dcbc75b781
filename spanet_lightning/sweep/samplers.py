"""Optuna's samplers and pruners, as a study names them."""

from __future__ import annotations

import hashlib
import warnings

from optuna import pruners, samplers
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from spanet_lightning.sweep.definition import Search, Study

_POPULATION = 50  # Optuna's own default for NSGA-II


def make_sampler(study: Study, number: int) -> BaseSampler:
    """Return who draws the parameters of one trial.

    Its seed comes of the study's and of the trial's number: workers that shared one stream of
    numbers would all draw the same first points, and this way it does not matter which one draws.

    Args:
        study: The definition.
        number: Number of the trial.
    """
    search = study.method
    if not isinstance(search, Search):
        return samplers.RandomSampler(seed=0)  # all is enqueued: nothing is left to draw
    seed = _seed(search.seed, number)
    if search.sampler == "tpe":
        # Trials that still run count as bad ones, so that workers keep their distance.
        return samplers.TPESampler(seed=seed, constant_liar=True)
    if search.sampler == "qmc":
        # One sequence that all workers share: its place in it is in the storage.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return samplers.QMCSampler(
                scramble=True,
                seed=search.seed,
                independent_sampler=samplers.RandomSampler(seed=seed),
                warn_independent_sampling=False,
            )
    if search.sampler == "nsga2":
        # With Optuna's 50, a study of 40 trials would be a random search.
        budget = search.trials or 5 * _POPULATION
        return samplers.NSGAIISampler(
            population_size=max(8, min(_POPULATION, budget // 5)), seed=seed
        )
    return samplers.RandomSampler(seed=seed)  # a grid is enqueued


def make_pruner(study: Study, epochs: int | None) -> BasePruner:
    """Return who ends a trial early.

    Args:
        study: The definition.
        epochs: Epochs of a trial, where they are known.
    """
    search = study.method
    if not isinstance(search, Search) or search.pruner == "none":
        return pruners.NopPruner()
    if search.pruner == "median":
        return pruners.MedianPruner()
    if search.pruner == "hyperband":
        return pruners.HyperbandPruner(max_resource=epochs or "auto")
    return pruners.SuccessiveHalvingPruner()


def _seed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4], "big")
