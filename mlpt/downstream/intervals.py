"""95 % intervals of the scores of suites: shares of questions, means of values, and means over repeats or models."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; the interval is the value alone where nothing says how far it may be off."""

    value: float
    low: float
    high: float


def wilson(share: float, count: float) -> Estimate:
    """Wilson's score interval (1927) of a share of `count` independent questions; `count` may be a fraction.

    Equal to scipy's `binomtest(...).proportion_ci(method="wilson")` where `share * count` is a whole number.
    """
    if count <= 0:
        return Estimate(share, 0.0, 1.0)
    z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    spread = 1 + z**2 / count
    centre = (share + z**2 / (2 * count)) / spread
    half = z / spread * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return Estimate(share, max(0.0, float(centre - half)), min(1.0, float(centre + half)))


def mean_of_shares(groups: Sequence[np.ndarray]) -> Estimate:
    """The mean of the groups' shares of True, with Wilson's interval of as many questions as that mean is worth.

    groups  bool, (questions of the group,) each. A mean over groups of unequal sizes is worth g^2 / sum(1 / n)
            questions: all of them where the sizes are equal, fewer where small groups weigh as much as large ones.
    """
    worth = len(groups) ** 2 / sum(1 / len(group) for group in groups)
    return wilson(float(np.mean([group.mean() for group in groups])), worth)


def mean_of_means(groups: Sequence[np.ndarray]) -> Estimate:
    """The mean of the groups' means of values in [0, 1], with the normal interval of independent questions.

    A group of one question is taken to vary as all questions together do.
    """
    every = np.concatenate(groups)
    overall = float(every.var(ddof=1)) if len(every) > 1 else 0.25
    variances = [group.var(ddof=1) if len(group) > 1 else overall for group in groups]
    error = np.sqrt(sum(v / len(group) for v, group in zip(variances, groups, strict=True))) / len(groups)
    value = float(np.mean([group.mean() for group in groups]))
    half = float(stats.norm.ppf((1 + CONFIDENCE) / 2) * error)
    return Estimate(value, max(0.0, value - half), min(1.0, value + half))


def of_repeats(values: Sequence[float]) -> Estimate:
    """The mean of repeated scores, with the interval that another half-sample's score falls into: mean +- t s.

    The spread s over repeats is not divided by their number: each repeat trains and scores on a random half of the
    rows, so that s estimates the standard error of the score on all of them (half-sample replication, McCarthy, 1969).
    """
    return _student(values, 1.0)


def of_models(values: Sequence[float]) -> Estimate:
    """The mean over models (one recipe, several seeds) with Student's interval of that mean."""
    return _student(values, 1 / np.sqrt(len(values)))


def _student(values: Sequence[float], scale: float) -> Estimate:
    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean, mean, mean)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * np.std(values, ddof=1) * scale)
    return Estimate(mean, mean - half, mean + half)
