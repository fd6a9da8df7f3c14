"""What repeated runs say: means with Student's 95 % intervals, paired comparisons, and Holm's correction of them all.

A comparison is of differences over seeds: both cells with the same seed see the same data in the same order, so that a
difference varies less than its two values do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
LEVEL = 0.05  # of the corrected p-values
FLIPS_FROM, FLIPS_TO = 6, 16  # numbers of seeds for which the sign-flip test is done: it can tell, and is exact


@dataclass(frozen=True)
class Spread:
    """Values over seeds. `sd` (n - 1) and the interval of the mean are None for one value."""

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Paired:
    """Differences over seeds and how likely they are without an effect; p-values before correction.

    gain      of the differences, positive where the expectation holds (`equal`: first less second).
    p         of the t-test of the differences; None where they don't vary, or there is one.
    p_flips   of the exact sign-flip test, for 6 to 16 seeds.
    """

    gain: Spread
    p: float | None
    p_flips: float | None


def spread(values: Sequence[float]) -> Spread:
    """Mean, standard deviation and Student's 95 % interval of the mean."""
    count, mean = len(values), float(np.mean(values))
    if count < 2:
        return Spread(count, mean, None, None, None)
    sd = float(np.std(values, ddof=1))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * sd / count**0.5
    return Spread(count, mean, sd, mean - half, mean + half)


def paired(
    first: Sequence[float], second: Sequence[float], expect: Literal["lower", "higher", "equal"], margin: float
) -> Paired:
    """The comparison of two cells' values, in the order of the same seeds.

    lower, higher  two-sided against the margin. With a margin > 0, a mean between 0 and the margin says nothing (p = 1)
                   and one below 0 is tested against 0, so that no true gain from 0 to the margin is rejected too often.
    equal          two one-sided t-tests against -margin and margin (Schuirmann, 1987).
    """
    sign = -1.0 if expect == "lower" else 1.0
    gains = sign * (np.asarray(first, dtype=float) - np.asarray(second, dtype=float))
    found = spread(gains.tolist())
    if found.n < 2 or np.ptp(gains) == 0:
        return Paired(found, None, None)
    if expect == "equal":
        above = stats.ttest_1samp(gains, -margin, alternative="greater").pvalue
        below = stats.ttest_1samp(gains, margin, alternative="less").pvalue
        return Paired(found, float(max(above, below)), None)
    null = tested_against(found.mean, margin)
    if null is None:
        return Paired(found, 1.0, None)
    flips = sign_flips(gains - null) if FLIPS_FROM <= found.n <= FLIPS_TO else None
    return Paired(found, float(stats.ttest_1samp(gains, null).pvalue), flips)


def tested_against(mean: float, margin: float) -> float | None:
    """The value of no effect that is nearest to the mean gain; None where the mean is such a value itself."""
    least = min(margin, 0.0)
    if mean > margin:
        return margin
    return least if mean < least else None


def sign_flips(differences: np.ndarray) -> float:
    """Two-sided p of the mean of `differences` (n,) over all 2^n assignments of their signs."""
    tested = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", vectorized=True, n_resamples=np.inf
    )
    return float(tested.pvalue)


def correlation(first: Sequence[float], second: Sequence[float]) -> dict[str, float | None]:
    """Pearson's and Spearman's coefficients of pairs; None for fewer than three, or where one side is constant."""
    if len(first) < 3 or len(set(first)) == 1 or len(set(second)) == 1:
        return {"pearson": None, "spearman": None}
    return {
        "pearson": float(stats.pearsonr(first, second).statistic),
        "spearman": float(stats.spearmanr(first, second).statistic),
    }


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Holm's (1979) step-down correction of p-values; those that are None count as tests and stay None."""
    count = len(values)
    order = sorted((at for at in range(count) if values[at] is not None), key=lambda at: values[at] or 0.0)
    corrected: list[float | None] = [None] * count
    highest = 0.0
    for rank, at in enumerate(order):
        highest = max(highest, min(1.0, (count - rank) * (values[at] or 0.0)))
        corrected[at] = highest
    return corrected
