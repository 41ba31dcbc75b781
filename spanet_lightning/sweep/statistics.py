"""Paired comparisons of arms with a control over seeds, their tests, and the seeds they need.

Every arm is trained with the same seeds, so each seed gives one difference to the control, free of
what the seed does to both. All statements are about the mean of these differences:

- *better, worse*: exact two-sided sign-flip permutation test. Without an effect, each difference
  could as well have had the opposite sign.
- *equivalent*: two one-sided t-tests (TOST; Schuirmann, 1987) against a margin ±δ that was stated
  before the first trial.
- *undecided*: neither, with the number of seeds that the observed spread asks for.

Both families of tests are corrected by Holm's method for the number of arms, so that the chance of
any false "better" or "worse", and of any false "equivalent", is at most `ALPHA` per study.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from spanet_lightning.errors import ConfigError

Verdict = Literal["better", "worse", "equivalent", "undecided"]

ALPHA = 0.05
"""Chance of a false claim, over all arms of a study."""
POWER = 0.8
"""Chance of finding a difference that is there, for the seeds that are asked for."""
MAX_SEEDS = 200
"""More seeds than this are not worth stating."""
MAX_EXACT = 13
"""Seeds up to which all assignments of signs are enumerated: 8,192 of 13."""

_RESAMPLES = 2**MAX_EXACT
_SEED = 20_250_701


@dataclass(frozen=True)
class Interval:
    """95 % confidence interval of a mean difference (Student's t)."""

    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """An arm beside the control.

    Attributes:
        seeds: The seeds, in order.
        differences: Arm minus control for each seed.
        mean: Mean difference.
        sd: Standard deviation of the differences; NaN for one seed.
        interval: Of the mean difference; None for one seed or without spread.
        p: Two-sided p-value of the sign-flip test.
        holm_p: `p` corrected for the number of arms.
        min_holm_p: The smallest corrected p-value that this many seeds and arms can give.
        equivalence_p: TOST's p-value, corrected; None without a margin.
        verdict: The claim.
        family: Number of arms that the tests are corrected for.
        margin: The margin of equivalence, if any.
    """

    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    mean: float
    sd: float
    interval: Interval | None
    p: float
    holm_p: float
    min_holm_p: float
    equivalence_p: float | None
    verdict: Verdict
    family: int
    margin: float | None

    @property
    def can_claim(self) -> bool:
        """Whether this many seeds could support "better" or "worse", however clear they were."""
        return self.min_holm_p <= ALPHA

    @property
    def seeds_needed(self) -> int | None:
        """Seeds in all that decide with `POWER`, assuming the observed spread.

        About a difference as large as the margin or, without one, as the observed mean. None for a
        decided arm, and where more than `MAX_SEEDS` would be needed.
        """
        if self.verdict != "undecided":
            return None
        target = abs(self.mean) if self.margin is None else self.margin
        return seeds_needed(target, self.sd, self.family, equivalence=self.margin is not None)

    @property
    def detectable(self) -> float | None:
        """The difference that these seeds find with `POWER`; None for too few seeds."""
        return detectable_difference(len(self.seeds), self.sd, self.family)

    @property
    def identical(self) -> bool:
        """Whether arm and control agree exactly in every seed."""
        return all(difference == 0 for difference in self.differences)


def mean_sd(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation (n - 1), which is NaN for fewer than two values."""
    if not values:
        return math.nan, math.nan
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return math.fsum(values) / len(values), sd


def paired(
    arm: Mapping[int, float], control: Mapping[int, float], name: str = "arm"
) -> dict[int, float]:
    """Return arm minus control for each seed.

    Differences are rounded to seven digits after the point: metrics are float32, and what differs
    by the same number of images in two seeds should be a tie.

    Args:
        arm: Value by seed.
        control: Value by seed.
        name: Name of the arm, for the error.

    Raises:
        ConfigError: If the two have different seeds, or a value is not finite.
    """
    missing = {
        f"arm {name!r}": sorted(set(control) - set(arm)),
        "the control": sorted(set(arm) - set(control)),
    }
    reasons = [
        f"{who} lacks seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
        for who, seeds in missing.items()
        if seeds
    ]
    if reasons:
        raise ConfigError(f"arm {name!r}: can't be paired with the control: {'; '.join(reasons)}")
    for seed in arm:
        if not (math.isfinite(arm[seed]) and math.isfinite(control[seed])):
            raise ConfigError(f"arm {name!r}: seed {seed}: a value is not finite")
    return {seed: round(arm[seed] - control[seed], 7) for seed in sorted(arm)}


def compare(
    arms: Mapping[str, Mapping[int, float]],
    control: Mapping[int, float],
    *,
    maximize: bool = True,
    margin: float | None = None,
    family: int | None = None,
) -> dict[str, Comparison]:
    """Compare each arm with the control.

    Args:
        arms: Value by seed, by arm; without the control.
        control: Value by seed.
        maximize: Whether larger values are better.
        margin: δ: smaller differences do not matter, in units of the metric; None claims no
            equivalence.
        family: Number of arms that the study declares. Arms without values yet count as tests that
            show nothing, so that no claim is withdrawn later.

    Raises:
        ConfigError: If an arm and the control have different seeds, or there are none.
    """
    family = len(arms) if family is None else family
    if family < len(arms):
        raise ConfigError(f"family: got {family}, expected at least the {len(arms)} arms given")
    if arms and not control:
        raise ConfigError("control: has no values to compare with")
    by_arm = {name: list(paired(values, control, name).values()) for name, values in arms.items()}
    unfinished = [1.0] * (family - len(arms))
    p_values = {name: sign_flip_test(values) for name, values in by_arm.items()}
    corrected = holm([*p_values.values(), *unfinished])
    equivalence: list[float] | None = None
    if margin is not None:
        equivalence = holm([*(tost(v, margin) for v in by_arm.values()), *unfinished])
    comparisons = {}
    for i, (name, values) in enumerate(by_arm.items()):
        mean, sd = mean_sd(values)
        verdict: Verdict = "undecided"
        if equivalence is not None and equivalence[i] <= ALPHA:
            verdict = "equivalent"
        elif corrected[i] <= ALPHA and mean != 0:
            verdict = "better" if (mean > 0) == maximize else "worse"
        comparisons[name] = Comparison(
            seeds=tuple(sorted(arms[name])),
            differences=tuple(values),
            mean=mean,
            sd=sd,
            interval=interval(values),
            p=p_values[name],
            holm_p=corrected[i],
            min_holm_p=min(1.0, min_p(len(values)) * family),
            equivalence_p=None if equivalence is None else equivalence[i],
            verdict=verdict,
            family=family,
            margin=margin,
        )
    return comparisons


def sign_flip_test(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of the sign-flip permutation test of the mean.

    Exact for up to `MAX_EXACT` differences; beyond, over random assignments with a fixed seed.
    """
    values = np.asarray(differences, dtype=np.float64)
    sums = np.abs(_signs(len(values)) @ values)
    # Sums that differ by rounding alone are ties, and count as at least as far from 0.
    count = int((sums >= abs(values.sum()) - 1e-9 * np.abs(values).sum()).sum())
    if len(values) <= MAX_EXACT:
        return count / len(sums)
    return (1 + count) / (1 + len(sums))  # the observed signs are an assignment too


@lru_cache(maxsize=32)
def _signs(n: int) -> npt.NDArray[np.float64]:
    """Return assignments of n signs, one per row: all up to a common sign, or random ones."""
    if n > MAX_EXACT:
        return np.random.default_rng(_SEED).choice([-1.0, 1.0], size=(_RESAMPLES, n))
    return np.array([(1.0, *rest) for rest in product((1.0, -1.0), repeat=n - 1)])


def min_p(n: int) -> float:
    """Return the smallest p-value that a sign-flip test of n differences can give."""
    return min(1.0, 2.0 ** (1 - n)) if n <= MAX_EXACT else 1 / (1 + _RESAMPLES)


def tost(differences: Sequence[float], margin: float) -> float:
    """Return the p-value of two one-sided t-tests for a mean difference within ±margin.

    Without spread there is no t-test; the p-value is then that of a sign test, 2⁻ⁿ.
    """
    values = np.asarray(differences, dtype=np.float64)
    n = len(values)
    if n < 2:
        return 1.0
    if np.ptp(values) == 0:
        return 0.5**n if abs(values[0]) < margin else 1.0
    above = stats.ttest_1samp(values, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(values, margin, alternative="less").pvalue
    return float(max(above, below))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's step-down method, in their order."""
    corrected = [1.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def interval(differences: Sequence[float]) -> Interval | None:
    """Return the 95 % confidence interval of the mean; None for one value or without spread."""
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2 or np.ptp(values) == 0:
        return None
    found = stats.ttest_1samp(values, 0.0).confidence_interval(1 - ALPHA)
    return Interval(float(found.low), float(found.high))


def power(difference: float, sd: float, n: int, family: int = 1) -> float:
    """Return the chance that n seeds show a true difference, at `ALPHA` over `family` arms.

    Of the paired t-test, which the sign-flip test follows closely; 0 where the least p-value of
    the sign-flip test is not small enough.
    """
    if n < 2 or min_p(n) * family > ALPHA:
        return 0.0
    critical = stats.t.ppf(1 - ALPHA / family / 2, n - 1)
    shift = abs(difference) / sd * math.sqrt(n)
    return float(stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift))


def equivalence_power(margin: float, sd: float, n: int, family: int = 1) -> float:
    """Return the chance that n seeds show equivalence within ±margin of arms without a difference.

    The usual approximation by the central t distribution.
    """
    if n < 2:
        return 0.0
    critical = stats.t.ppf(1 - ALPHA / family, n - 1)
    inside = stats.t.cdf(margin / sd * math.sqrt(n) - critical, n - 1)
    return max(0.0, float(2 * inside - 1))


def seeds_needed(
    difference: float, sd: float, family: int = 1, *, equivalence: bool = False
) -> int | None:
    """Return the number of seeds that decide about a difference with `POWER`.

    Args:
        difference: The true difference to find, or the margin.
        sd: Standard deviation of the differences between seeds.
        family: Arms compared.
        equivalence: Whether arms without a difference are to be shown equivalent as well.

    Returns:
        None where it is not known, or above `MAX_SEEDS`.
    """
    if not math.isfinite(sd) or difference == 0:
        return None
    if sd == 0:
        return next(n for n in range(2, MAX_SEEDS) if min_p(n) * family <= ALPHA)

    def decides(n: int) -> bool:
        enough = power(difference, sd, n, family) >= POWER
        return enough and not (equivalence and equivalence_power(difference, sd, n, family) < POWER)

    n = 2 + bisect.bisect_left(range(2, MAX_SEEDS + 1), True, key=decides)
    return n if n <= MAX_SEEDS else None


def detectable_difference(n: int, sd: float, family: int = 1) -> float | None:
    """Return the true difference that n seeds find with `POWER`; None for too few seeds."""
    if not (math.isfinite(sd) and sd > 0) or power(1e9 * sd, sd, n, family) < POWER:
        return None
    high = sd
    while power(high, sd, n, family) < POWER:
        high *= 2
    root = optimize.brentq(lambda d: power(d, sd, n, family) - POWER, 0.0, high, rtol=1e-4)
    return float(root)


def cannot_win(improvements: Sequence[float], margin: float | None = None) -> bool:
    """Whether an arm can no longer be better than the control, or equivalent to it.

    The rule of `stop_losers`: with three seeds or more, the upper 95 % confidence limit (Student's
    t) of the mean improvement is below 0, or below -margin. An arm that is dropped claims nothing,
    and the others are tested as one of the whole family, so that looking after every seed can't
    raise the rate of false claims; it costs a little power.

    Args:
        improvements: Arm minus control by seed; of a metric to minimise, control minus arm.
        margin: Differences that do not matter; None claims no equivalence.
    """
    n = len(improvements)
    if n < 3:
        return False
    mean, sd = mean_sd(improvements)
    limit = mean + float(stats.t.ppf(1 - ALPHA, n - 1)) * sd / math.sqrt(n)
    return limit < -(margin or 0.0)
