"""Which parameters of a search mattered: Optuna's PED-ANOVA, with an interval."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

from spanet_lightning.sweep.definition import Goal
from spanet_lightning.sweep.report.gather import Trial

EVALUATOR = "PED-ANOVA"
LEAST_TRIALS = 10
"""Complete trials below which nothing is said: the best tenth of them would be one trial."""

_REPEATS = 100
_SEED = 20_250_701


@dataclass(frozen=True)
class Importance:
    """How much of what sets good trials apart is one parameter's.

    Attributes:
        name: Of the parameter.
        share: Of all trials; the shares of all parameters add up to 1.
        low: 2.5 % quantile over trials drawn anew.
        high: 97.5 % quantile over trials drawn anew.
    """

    name: str
    share: float
    low: float
    high: float


def importances(trials: Sequence[Trial], objective: int, goal: Goal) -> tuple[Importance, ...]:
    """Return the importance of each parameter, the greatest first; none of too few trials.

    PED-ANOVA compares where the best tenth of the trials is with where all of them are. Its
    interval is a bootstrap over trials: what other trials of the same study could have said.

    Args:
        trials: Complete ones.
        objective: Which of their values.
        goal: Whether more or less of it is better.
    """
    if len(trials) < LEAST_TRIALS:
        return ()
    pool = [
        optuna.trial.create_trial(
            params=dict(t.params),
            distributions=dict(t.distributions),
            value=t.values[objective],
        )
        for t in trials
    ]
    whole = _evaluate(pool, goal)
    draws = np.random.default_rng(_SEED).integers(0, len(pool), size=(_REPEATS, len(pool)))
    repeats = [_evaluate([pool[i] for i in row], goal) for row in draws]
    found = []
    for name, share in whole.items():
        low, high = np.quantile([r.get(name, 0.0) for r in repeats], [0.025, 0.975])
        found.append(Importance(name, share, float(low), float(high)))
    return tuple(sorted(found, key=lambda one: (-one.share, one.name)))


def _evaluate(trials: Sequence[optuna.trial.FrozenTrial], goal: Goal) -> dict[str, float]:
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            # That the best tenth of a draw is all of it, say: the interval shows it.
            warnings.simplefilter("ignore")
            study = optuna.create_study(direction="maximize" if goal == "max" else "minimize")
            study.add_trials(trials)
            found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    finally:
        optuna.logging.set_verbosity(level)
    return {name: float(share) for name, share in found.items()}
