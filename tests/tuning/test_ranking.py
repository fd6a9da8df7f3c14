"""Best points and Pareto fronts, on tables small enough to check by hand."""

import math

from hypothesis import given
from hypothesis import strategies as st

from mlpt.tuning.ranking import Trial, best, pareto_front, scores


def trial(point, seed, loss, status="finished", tokens=100, **more):
    return Trial(
        f"{point}-{seed}", {"lr": point}, {"lr": point}, seed, {"loss": loss, **more}, tokens, 1.0, status, None, ""
    )


def test_the_best_point_is_chosen_by_the_mean_over_seeds_not_by_the_luckiest_seed():
    table = [trial(1, 0, 1.0), trial(1, 1, 5.0), trial(2, 0, 2.0), trial(2, 1, 2.0)]
    winner = best(scores(table, ["loss"]), "loss", "min")
    assert winner.point == {"lr": 2}
    assert (winner.means["loss"], winner.spreads["loss"], winner.seeds) == (2.0, 0.0, 2)


def test_the_spread_is_the_sample_standard_deviation():
    (score,) = scores([trial(1, 0, 1.0), trial(1, 1, 5.0)], ["loss"])
    assert score.means["loss"] == 3.0
    assert math.isclose(score.spreads["loss"], math.sqrt(8))


def test_the_same_run_twice_is_no_second_seed():
    again = Trial("x", {"lr": 1, "inert": 7}, {"lr": 1}, 0, {"loss": 1.0}, 100, 1.0, "finished", None, "")
    (score,) = scores([trial(1, 0, 1.0), again], ["loss"])
    assert score.seeds == 1


def test_points_that_were_stopped_early_failed_or_diverged_are_not_compared():
    table = [
        trial(1, 0, 0.1, status="stopped early", tokens=10),
        trial(2, 0, 0.1, status="failed"),
        trial(3, 0, math.nan),
        trial(5, 0, 2.0),
    ]
    assert [score.point["lr"] for score in scores(table, ["loss"])] == [5]
    assert best([], "loss", "min") is None


def test_a_metric_may_be_better_when_larger():
    table = [trial(1, 0, 1.0), trial(2, 0, 5.0)]
    assert best(scores(table, ["loss"]), "loss", "max").point == {"lr": 2}


def test_the_front_keeps_what_nothing_beats():
    table = [trial(n, 0, loss, sparsity=sparsity) for n, (loss, sparsity) in enumerate([(1, 0.1), (2, 0.5), (3, 0.4)])]
    front = pareto_front(scores(table, ["loss", "sparsity"]), {"loss": "min", "sparsity": "max"})
    assert [score.point["lr"] for score in front] == [0, 1]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_no_point_of_a_front_dominates_another_and_every_other_point_is_dominated(pairs):
    metrics = {"loss": "min", "sparsity": "max"}
    scored = scores([trial(n, 0, a, sparsity=b) for n, (a, b) in enumerate(pairs)], list(metrics))
    front = {score.point["lr"] for score in pareto_front(scored, metrics)}

    def dominates(one, other):
        return one[0] <= other[0] and one[1] >= other[1] and one != other

    for at, pair in enumerate(pairs):
        assert (at in front) == (not any(dominates(other, pair) for other in pairs))
