"""Intervals against scipy's own, and against simulation."""

import numpy as np
import pytest
from scipy import stats

from mlpt.downstream.intervals import mean_of_means, mean_of_shares, of_models, of_repeats, wilson


@pytest.mark.parametrize(("right", "count"), [(0, 7), (7, 7), (1, 7), (520, 1000), (66_999, 67_000)])
def test_wilson_is_scipys(right, count):
    expected = stats.binomtest(right, count).proportion_ci(method="wilson")
    found = wilson(right / count, count)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_a_mean_over_groups_of_one_size_is_worth_all_of_its_questions():
    groups = [np.arange(100) < 60, np.arange(100) < 80]
    assert mean_of_shares(groups) == wilson(0.7, 200)


def test_a_mean_over_groups_of_unequal_sizes_is_worth_less():
    groups = [np.arange(1000) < 500, np.arange(10) < 5]
    found = mean_of_shares(groups)
    # The variance of the mean of two shares of one half: (1/1000 + 1/10) / 4 * 0.25, that of 39.6 questions.
    assert found == wilson(0.5, 4 / (1 / 1000 + 1 / 10))
    assert found.high - found.low > 0.25


def test_the_interval_of_means_is_the_normal_one():
    values = np.array([0.0, 0.25, 0.5, 1.0, 0.1, 0.3])
    expected = stats.norm.interval(0.95, loc=values.mean(), scale=stats.sem(values))
    found = mean_of_means([values])
    assert (found.low, found.high) == pytest.approx((max(0, expected[0]), min(1, expected[1])))
    alone = mean_of_means([values, np.array([1.0])])
    assert alone.value == pytest.approx((values.mean() + 1) / 2)
    assert alone.high > alone.value, "one question says little"


def test_the_interval_over_models_is_students():
    values = [0.58, 0.61, 0.57, 0.60]
    expected = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    found = of_models(values)
    assert (found.low, found.high) == pytest.approx(expected)
    assert of_models([0.5]).low == of_models([0.5]).high == 0.5


def test_half_samples_cover_the_score_of_the_population():
    """The point of them: an accuracy on 400 questions, cut in halves eight times, says how far 400 are off."""
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        right = random.random(400) < 0.7
        halves = [random.permutation(right)[:200].mean() for _ in range(8)]
        found = of_repeats([float(half) for half in halves])
        covered += found.low <= 0.7 <= found.high
    assert 0.92 <= covered / 400 <= 0.99
