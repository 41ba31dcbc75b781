"""Statistics of studies, on synthetic studies whose truth is known.

The error rates are counted over simulated studies; of 300 studies a true 5 % stays below 7.7 % in
98 of 100 cases, and the seeds are fixed.
"""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from spanet_lightning.errors import ConfigError
from spanet_lightning.sweep import statistics as st
from spanet_lightning.sweep.statistics import compare, holm, interval, paired, sign_flip_test

STUDIES = 300
TOO_MANY = 0.077


def by_seed(values: np.ndarray) -> dict[int, float]:
    return dict(enumerate(map(float, values)))


def test_sign_flip_counts_all_assignments() -> None:
    values = [0.3, -0.1, 0.25, 0.4, 0.05]
    means = [abs(np.dot(signs, values)) for signs in product((-1, 1), repeat=5)]
    expected = np.mean([m >= abs(sum(values)) - 1e-12 for m in means])
    assert sign_flip_test(values) == pytest.approx(expected)


@pytest.mark.parametrize("n", [1, 2, 6, 10, 30])
def test_the_smallest_p_is_that_of_differences_of_one_sign(n: int) -> None:
    assert sign_flip_test([0.1] * n) == pytest.approx(st.min_p(n))
    assert st.min_p(n) > 0


def test_holm_by_hand() -> None:
    # 0.01 × 3; 0.02 × 2 = 0.04; 0.04 × 1 = 0.04
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.03, 0.04]) == pytest.approx([0.06, 0.06])  # never below a smaller p's
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize(("n", "arms"), [(6, 2), (9, 4)])
def test_false_better_or_worse_stays_below_5_percent_per_study(n: int, arms: int) -> None:
    rng = np.random.default_rng(n)
    false = 0
    for _ in range(STUDIES):
        # An effect of the seed on all arms, and skewed noise of each.
        values = 0.8 + rng.normal(0, 0.02, size=n) + 0.01 * rng.gamma(2.0, size=(arms + 1, n))
        rows = compare({str(i): by_seed(values[i]) for i in range(1, arms + 1)}, by_seed(values[0]))
        false += any(row.verdict != "undecided" for row in rows.values())
    assert false / STUDIES <= TOO_MANY


def test_without_correction_it_would_not() -> None:
    rng = np.random.default_rng(10)
    false = 0
    for _ in range(STUDIES // 4):
        control, *arms = rng.normal(size=(8, 10))
        false += any(sign_flip_test(list(arm - control)) <= st.ALPHA for arm in arms)
    assert false / (STUDIES // 4) > 0.1


@pytest.mark.parametrize("n", [5, 12])
def test_false_equivalence_stays_below_5_percent_per_study(n: int) -> None:
    # The worst case: every arm differs by exactly the margin.
    rng = np.random.default_rng(n)
    false = 0
    for _ in range(STUDIES):
        control, *arms = rng.normal(0, 0.004, size=(4, n))
        rows = compare(
            {str(i): by_seed(arm + 0.01) for i, arm in enumerate(arms)},
            by_seed(control),
            margin=0.01,
        )
        false += any(row.verdict == "equivalent" for row in rows.values())
    assert 0 < false / STUDIES <= TOO_MANY


@pytest.mark.parametrize("n", [3, 5, 8, 12])
@pytest.mark.parametrize("skewed", [False, True])
def test_intervals_cover_the_truth_in_93_to_97_percent(n: int, skewed: bool) -> None:
    rng = np.random.default_rng(100 + n)
    # A difference of two arms with the same skewed noise is symmetric, whatever the noise.
    draw = (lambda: rng.gamma(2.0, size=n)) if skewed else (lambda: rng.normal(size=n))
    found = [interval(list(draw() - draw())) for _ in range(2000)]
    assert 0.93 <= np.mean([i is not None and i.low <= 0 <= i.high for i in found]) <= 0.975


@pytest.mark.parametrize("family", [1, 3])
def test_the_seeds_that_are_asked_for_reach_80_percent_power(family: int) -> None:
    sd, effect = 0.01, 0.008
    n = st.seeds_needed(effect, sd, family)
    assert n is not None
    rng = np.random.default_rng(family)
    decided = 0
    for _ in range(STUDIES):
        differences = rng.normal(effect, sd, size=n)
        arms = {"a": by_seed(differences)}
        decided += compare(arms, by_seed(np.zeros(n)), family=family)["a"].verdict == "better"
    assert 0.75 <= decided / STUDIES <= 0.86
    assert st.detectable_difference(n, sd, family) == pytest.approx(effect, rel=0.06)


def test_the_seeds_that_equivalence_asks_for_reach_80_percent_power() -> None:
    n = st.seeds_needed(0.01, 0.012, equivalence=True)
    assert n is not None
    rng = np.random.default_rng(0)
    arms = rng.normal(0, 0.012, size=(STUDIES, n))
    found = [compare({"a": by_seed(a)}, by_seed(np.zeros(n)), margin=0.01) for a in arms]
    assert 0.75 <= np.mean([row["a"].verdict == "equivalent" for row in found]) <= 0.88


@pytest.mark.parametrize("maximize", [True, False])
def test_a_planted_effect_has_its_direction(maximize: bool) -> None:
    rng = np.random.default_rng(5)
    effect_of_seed = rng.normal(0, 0.05, size=8)
    control, same, lower = effect_of_seed + rng.normal(0, 0.002, size=(3, 8))
    arms = {"same": by_seed(same), "lower": by_seed(lower - 0.03)}
    rows = compare(arms, by_seed(control), maximize=maximize, margin=0.01)
    assert rows["lower"].verdict == ("worse" if maximize else "better")
    assert rows["same"].verdict == "equivalent"
    assert rows["same"].seeds_needed is None


def test_agreement_in_every_seed_is_identical_and_equivalence_takes_five_seeds() -> None:
    for n, verdict in ((4, "undecided"), (5, "equivalent")):
        same = compare({"b": by_seed(np.ones(n))}, by_seed(np.ones(n)), margin=0.1)["b"]
        assert (same.identical, same.p, same.interval, same.verdict) == (True, 1.0, None, verdict)
    # Accuracies in float32, one image of 179 less each time, are a tie.
    values = paired({0: 0.98882681, 1: 0.98882687}, {0: 0.99441344, 1: 0.99441338 + 1e-8}, "b")
    assert abs(values[0] - values[1]) <= 2e-7


def test_three_seeds_can_not_support_a_claim() -> None:
    control = {0: 0.1, 1: 0.2, 2: 0.3}
    row = compare({"b": {s: v + 0.5 for s, v in control.items()}}, control)["b"]
    assert (row.p, row.verdict, row.can_claim) == (0.25, "undecided", False)
    assert st.seeds_needed(1.0, 0.0, 1) == 6
    assert st.seeds_needed(1.0, 0.0, 3) == 7
    assert row.detectable is None


def test_seeds_that_do_not_match_are_refused_by_number() -> None:
    with pytest.raises(ConfigError, match=r"arm 'b' lacks seeds 1, 2; the control lacks seed 9"):
        paired({0: 1.0, 9: 1.0}, {0: 1.0, 1: 1.0, 2: 1.0}, "b")
    with pytest.raises(ConfigError, match="not finite"):
        paired({0: math.nan}, {0: 1.0})


def test_arms_that_have_not_ended_still_count_as_tests() -> None:
    control = by_seed(np.zeros(6))
    arm = {"b": by_seed(np.linspace(1, 2, 6))}
    assert compare(arm, control)["b"].verdict == "better"
    held = compare(arm, control, family=2)["b"]
    assert (held.verdict, held.can_claim) == ("undecided", False)


@pytest.mark.parametrize("effect", [0.0, 1.5, -1.5])
def test_stopping_losers_makes_no_false_claims_and_loses_few_winners(effect: float) -> None:
    """Three arms, nine seeds: dropped ones claim nothing, the others are tested as one of three."""
    rng = np.random.default_rng(5)
    racing = plain = trained = 0
    for _ in range(STUDIES):
        differences = rng.normal(effect, 1.0, (3, 9))
        arms = {str(i): by_seed(0.5 + each) for i, each in enumerate(differences)}
        control = by_seed(np.full(9, 0.5))
        stops = {
            name: next((k for k in range(3, 9) if st.cannot_win(list(differences[i][:k]))), 9)
            for i, name in enumerate(arms)
        }
        trained += sum(stops.values())
        left = {name: values for name, values in arms.items() if stops[name] == 9}
        found = compare(left, control, maximize=True, family=3)
        racing += any(each.verdict == "better" for each in found.values())
        whole = compare(arms, control, maximize=True, family=3)
        plain += any(each.verdict == "better" for each in whole.values())
    assert racing <= plain
    if effect == 0.0:
        assert racing / STUDIES <= TOO_MANY
    elif effect > 0:
        assert racing >= 0.99 * plain > 0.95 * STUDIES
    else:
        assert racing == 0
        assert trained < 0.6 * STUDIES * 3 * 9  # what it saves
