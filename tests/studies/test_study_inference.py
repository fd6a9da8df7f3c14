"""The statistics of studies: against equations worked out here, scipy's own tests, and published worked examples."""

import itertools
import math
import statistics

import numpy as np
import pytest
from scipy import stats

from mlpt.studies.declaration import Comparison
from mlpt.studies.inference import correlation, holm, paired, sign_flips, spread
from mlpt.studies.measurements import Measurement
from mlpt.studies.verdicts import verdict

FIRST = [5.81, 5.79, 5.90, 5.77, 5.84, 5.80, 5.79]
SECOND = [5.89, 5.83, 5.92, 5.85, 5.83, 5.91, 5.88]


def test_the_interval_of_a_mean_is_students():
    found = spread([1.0, 2.0, 4.0])
    assert (found.n, found.mean) == (3, pytest.approx(7 / 3))
    sd = math.sqrt(((1 - 7 / 3) ** 2 + (2 - 7 / 3) ** 2 + (4 - 7 / 3) ** 2) / 2)
    assert found.sd == pytest.approx(sd)
    half = 4.302652729911275 * sd / math.sqrt(3)  # t(0.975) with 2 degrees of freedom, from tables
    assert (found.low, found.high) == (pytest.approx(7 / 3 - half), pytest.approx(7 / 3 + half))


def test_one_value_has_no_interval():
    found = spread([3.0])
    assert (found.mean, found.sd, found.low, found.high) == (3.0, None, None, None)


def test_a_comparison_is_the_paired_t_test():
    found = paired(FIRST, SECOND, "lower", 0.0)
    expected = stats.ttest_rel(SECOND, FIRST)
    assert found.p == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert (found.gain.low, found.gain.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert found.gain.mean == pytest.approx(statistics.fmean(SECOND) - statistics.fmean(FIRST))
    assert paired(FIRST, SECOND, "higher", 0.0).gain.mean == pytest.approx(-found.gain.mean)


@pytest.mark.parametrize(
    ("margin", "null"),
    [
        (0.01, 0.01),  # the mean gain, .0586, lies beyond the margin
        (0.08, None),  # between 0 and the margin: nothing is claimed
        (-0.02, -0.02),  # no worse by more than .02
    ],
)
def test_a_margin_moves_what_is_tested_against(margin, null):
    found = paired(FIRST, SECOND, "lower", margin)
    gains = [second - first for first, second in zip(FIRST, SECOND, strict=True)]
    assert found.p == (1.0 if null is None else pytest.approx(stats.ttest_1samp(gains, null).pvalue))


def test_a_loss_beyond_a_margin_is_tested_against_no_effect():
    gains = [first - second for first, second in zip(FIRST, SECOND, strict=True)]
    assert paired(FIRST, SECOND, "higher", 0.5).p == pytest.approx(stats.ttest_1samp(gains, 0).pvalue)


def test_rejections_within_a_margin_are_as_rare_as_the_level_says():
    """True gains at both ends of [0, margin] are rejected in about 5 % of 1,000 studies, in the middle in fewer."""
    generator = np.random.default_rng(0)
    shares = {}
    for gain in (0.0, 0.5, 1.0):
        draws = generator.normal(gain, 1.0, (1000, 5))
        shares[gain] = np.mean([(paired(row, [0.0] * 5, "higher", 1.0).p or 1) <= 0.05 for row in draws])
    assert max(shares.values()) < 0.071  # 0.05 and three standard errors of 1,000 draws
    assert shares[0.5] < shares[1.0]


def test_equality_is_two_one_sided_tests():
    differences = np.array(FIRST) - np.array(SECOND)
    mean, error = differences.mean(), differences.std(ddof=1) / math.sqrt(7)
    above = stats.t.sf((mean + 0.1) / error, 6)
    below = stats.t.cdf((mean - 0.1) / error, 6)
    assert paired(FIRST, SECOND, "equal", 0.1).p == pytest.approx(max(above, below))


def test_sign_flips_count_every_assignment_of_signs():
    differences = np.array(FIRST) - np.array(SECOND)
    means = [
        abs(statistics.fmean(sign * one for sign, one in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=7)
    ]
    expected = sum(mean >= abs(differences.mean()) - 1e-12 for mean in means) / 2**7
    assert sign_flips(differences) == pytest.approx(expected)
    assert paired(FIRST, SECOND, "lower", 0.0).p_flips == pytest.approx(expected)
    assert paired(FIRST[:5], SECOND[:5], "lower", 0.0).p_flips is None  # 2 / 2^5 is above the level whatever is found


def test_differences_that_never_vary_show_nothing():
    assert paired([1.0, 2.0, 3.0], [2.0, 3.0, 4.0], "lower", 0.0).p is None


def test_holms_correction():
    # Sorted: .01 x 4, .02 x 3, .03 x 2 and at least the one before, .04 x 1 and at least the one before.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.01, None, 0.04]) == [pytest.approx(0.03), None, pytest.approx(0.08)]  # three were declared


def test_correlations_are_scipys_and_none_where_undefined():
    found = correlation([1.0, 2.0, 4.0], [3.0, 2.5, 0.0])
    assert found["pearson"] == pytest.approx(np.corrcoef([1, 2, 4], [3, 2.5, 0])[0, 1])
    assert found["spearman"] == pytest.approx(-1)
    assert correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) == {"pearson": None, "spearman": None}
    assert correlation([1.0, 2.0], [1.0, 2.0])["pearson"] is None


# Of the gains: mean .0586, deviation .0430; 2.447 (t(.975), 6 degrees of freedom) times .0430 / sqrt 7 is .0398.
NATS = Measurement(held_out="mlm")


@pytest.mark.parametrize(
    ("expect", "margin", "first", "second", "says"),
    [
        ("lower", 0.0, FIRST, SECOND, "better by 0.059 (95 % interval of the gain +0.019 to +0.098)"),
        ("higher", 0.0, FIRST, SECOND, "worse by 0.059 (95 % interval of the gain -0.098 to -0.019)"),
        ("lower", 0.05, FIRST, SECOND, "not shown (95 % interval"),
        ("lower", -0.02, FIRST, SECOND, "no worse by more than 0.020"),
        ("equal", 0.2, FIRST, SECOND, "equal to within 0.200"),
        ("equal", 0.05, FIRST, SECOND, "not shown to be equal to 0.050"),
        ("lower", 0.0, FIRST[:1], SECOND[:1], "not shown: one seed alone"),
        ("lower", 0.0, [1.0, 2.0], [2.0, 3.0], "not shown: every seed has the same difference"),
    ],
)
def test_verdicts_in_words(expect, margin, first, second, says):
    comparison = Comparison(compare=("a", "b"), measurement="mlm", expect=expect, margin=margin)
    found = paired(first, second, expect, margin)
    assert verdict(comparison, NATS, found, found.p).startswith(says)


def test_a_difference_that_correction_takes_back_is_not_shown():
    comparison = Comparison(compare=("a", "b"), measurement="mlm", expect="lower")
    found = paired(FIRST, SECOND, "lower", 0.0)
    assert verdict(comparison, NATS, found, 0.051).startswith("not shown (95 % interval")
    assert verdict(comparison, NATS, None, None) == "not shown: no seed has both values"
