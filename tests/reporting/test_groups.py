"""Runs side by side: groups, means over seeds at equal tokens and time, paired differences."""

import numpy as np
import pytest
from made_runs import RATE, TOKENS, make_run
from scipy import stats

from mlpt.reporting.groups import common_grid, difference, grouped, mean_curve
from mlpt.reporting.records import read_run


def settings(rule: str) -> dict:
    more = {"engine": "higher", "lr": 0.1} if rule == "hypergradient" else {}
    return {"meta": {"interval": 50, "mixture": {"rule": rule, **more}}, "runtime": {"num_workers": 1}}


@pytest.fixture
def records(tmp_path):
    made = []
    for rule in ("uniform", "hypergradient"):
        for seed in range(3):
            folder = make_run(tmp_path / f"{rule}-{seed}", settings(rule), seed, lift=0.3 * (rule == "uniform"))
            made.append(read_run(str(folder)))
    return made


def test_runs_that_differ_in_the_seed_alone_are_a_group_named_by_what_tells_them_apart(records):
    groups = grouped(records)
    assert [group.label for group in groups] == ["rule=uniform", "rule=hypergradient"]
    assert [sorted(group.by_seed()) for group in groups] == [[0, 1, 2]] * 2


def test_runs_with_other_rules_are_named_by_the_rule_and_not_by_a_setting_of_it(tmp_path):
    rules = [
        {"rule": "hypergradient", "engine": "higher", "floor": 0.02, "lr": 0.2},
        {"rule": "mometas", "floor": 0.0, "gamma": 2.0, "lr": 0.1},
        {"rule": "mometas", "floor": 0.05, "gamma": 2.0, "lr": 0.1},
    ]
    runs = [
        read_run(str(make_run(tmp_path / str(at), {"meta": {"rules": {"mixture": one}}})))
        for at, one in enumerate(rules)
    ]
    assert [one.label for one in grouped(runs[:2])] == ["rule=hypergradient", "rule=mometas"]
    assert [one.label for one in grouped(runs)] == [
        *("rule=hypergradient, floor=0.02", "rule=mometas, floor=0.0", "rule=mometas, floor=0.05"),
    ]


def test_means_and_spreads_are_those_of_the_curves(records):
    group = grouped(records)[0]
    grid = common_grid(group.records, "dev/mlm", "tokens")
    mean = mean_curve(group.records, "dev/mlm", "tokens", grid, smooth=False)
    last = [record.metrics.columns["dev/mlm"].values[-1] for record in group.records]
    assert mean.count == 3
    assert mean.mean[-1] == pytest.approx(np.mean(last))
    assert mean.spread[-1] == pytest.approx(np.std(last, ddof=1))


def test_curves_are_compared_where_all_runs_have_been(records, tmp_path):
    short = read_run(str(make_run(tmp_path / "short", settings("uniform"), 7, steps=100)))
    assert common_grid([*records, short], "loss/mlm", "tokens")[-1] == 100 * TOKENS
    assert common_grid([*records, short], "loss/mlm", "seconds")[-1] == pytest.approx(100 * TOKENS / RATE)


def test_a_paired_difference_has_the_interval_of_the_paired_t_test():
    base, other = {0: 3.0, 1: 3.3, 2: 2.9, 9: 1.0}, {0: 2.8, 1: 3.0, 2: 2.9, 8: 5.0}
    found = difference("other", base, other)
    expected = stats.ttest_rel([2.8, 3.0, 2.9], [3.0, 3.3, 2.9])
    interval = expected.confidence_interval(0.95)
    assert found.mean == pytest.approx(-0.5 / 3)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert set(found.by_seed) == {0, 1, 2}
    assert difference("none", {0: 1.0}, {1: 1.0}) is None
