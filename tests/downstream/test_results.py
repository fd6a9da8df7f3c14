"""The summary over seeds: which learning rate is reported, and its median, mean and spread."""

import json

import pytest

from mlpt.downstream.place import Place
from mlpt.downstream.results import CellResult, best_rate, summarise, table, write_results


def result(rate, seed, best, last=0.5, splits=("dev",)):
    def scores(value):
        return {split: {"accuracy": value} for split in splits}

    return CellResult(
        task="t",
        learning_rate=rate,
        seed=seed,
        metric="accuracy",
        best=scores(best),
        best_step=10,
        last=scores(last),
        steps=20,
        majority=scores(0.4),
        rows=100,
        seconds=1.0,
        examples_per_second=10.0,
        folder="f",
    )


GRID = [result(1e-5, 1, 0.9), result(1e-5, 2, 0.1), result(1e-5, 3, 0.2)]
GRID += [result(2e-5, 1, 0.6), result(2e-5, 2, 0.7), result(2e-5, 3, 0.5, last=0.3)]


def test_the_rate_with_the_best_median_is_reported_not_that_of_the_luckiest_seed():
    assert best_rate(GRID) == 2e-5


def test_median_mean_and_spread_over_seeds():
    best, last = summarise(GRID)
    assert (best.which, best.median, best.mean, best.spread) == ("best", 0.6, pytest.approx(0.6), pytest.approx(0.1))
    assert (best.lowest, best.highest, best.majority, best.seeds) == (0.5, 0.7, 0.4, 3)
    assert (last.which, last.median, last.lowest) == ("last", 0.5, 0.3)


def test_one_seed_has_no_spread():
    assert summarise([GRID[0]])[0].spread is None


def test_both_dev_sets_of_mnli_have_their_own_line():
    lines = summarise([result(1e-5, 1, 0.9, splits=("dev_matched", "dev_mismatched"))])
    assert [(line.split, line.which) for line in lines] == [
        ("dev_matched", "best"),
        ("dev_mismatched", "best"),
        ("dev_matched", "last"),
        ("dev_mismatched", "last"),
    ]


def test_the_table_shows_percent_beside_the_majority_baseline():
    header, row = table(summarise(GRID)).splitlines()
    assert header.split()[:3] == ["task", "split", "metric"]
    assert row.split() == ["t", "dev", "accuracy", "2e-05", "3", "60.00", "60.00", "10.00", "50.00", "40.00"]


def test_results_are_readable_by_machines(tmp_path):
    write_results(Place(str(tmp_path)), GRID)
    document = json.loads((tmp_path / "results.json").read_text())
    assert [CellResult.from_json(cell) for cell in document["cells"]] == GRID
    assert document["summary"][0]["median"] == 0.6
