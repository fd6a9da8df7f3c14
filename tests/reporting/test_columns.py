"""Figures of a run as columns: read whole or torn, put over tokens and time, thinned with their extremes."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlpt.reporting.columns import Metrics, kept_points, read_metrics, running_mean, running_spread

LINES = [
    {"step": 0, "held_out_before": {"mlm": 9.0}},
    {"step": 10, "tokens": 1000, "loss": {"mlm": 5.0, "a.b": 1}, "tokens_per_second": 100.0, "gradient_norm": None},
    {"step": 20, "tokens": 2000, "loss": {"mlm": 4.0}, "tokens_per_second": 50.0, "gradient_norm": 2.5},
    {"step": 20, "meta": {"hypergradient": {"mlm": -0.5}}, "policy": 1},
]


def content(*more: str) -> bytes:
    return "".join([*(json.dumps(line) + "\n" for line in LINES), *more]).encode()


@pytest.mark.parametrize("more", ["", '{"step": 30, "loss": {"mlm": NaN}}\n', "damaged\n"])
def test_every_number_of_every_line_becomes_a_column(more):
    metrics = read_metrics(content(more))
    columns = {name: list(zip(one.steps, one.values, strict=True)) for name, one in metrics.columns.items()}
    assert columns == {
        "held_out_before/mlm": [(0, 9)],
        "tokens": [(10, 1000), (20, 2000)],
        "loss/mlm": [(10, 5), (20, 4)],
        "loss/a.b": [(10, 1)],
        "tokens_per_second": [(10, 100), (20, 50)],
        "gradient_norm": [(20, 2.5)],
        "meta/hypergradient/mlm": [(20, -0.5)],
        "policy": [(20, 1)],
    }
    assert metrics.damaged == (1 if more.startswith("damaged") else 0)


def test_a_torn_last_line_is_one_being_written():
    torn, whole = read_metrics(content('{"step": 30, "loss": {"ml')), read_metrics(content())
    assert torn.damaged == 0
    assert torn.last_step() == whole.last_step() == 20
    assert torn.columns.keys() == whole.columns.keys()


@pytest.mark.parametrize("nothing", [b"", b'{"step": 1', b"\n\n"])
def test_a_run_without_a_whole_line_has_no_columns(nothing):
    assert read_metrics(nothing) == Metrics()


def test_of_a_step_that_stands_there_twice_the_last_value_counts():
    again = read_metrics(content('{"step": 10, "loss": {"mlm": 7.0}}\n'))
    assert list(again.columns["loss/mlm"].steps) == [10, 20]
    assert list(again.columns["loss/mlm"].values) == [7, 4]


def test_tokens_and_time_of_any_step_follow_from_the_lines():
    metrics = read_metrics(content())
    steps = np.array([0, 5, 10, 15, 20, 40])
    assert list(metrics.tokens_at(steps)) == [0, 500, 1000, 1500, 2000, 4000]
    # 1,000 tokens at 100 tokens/s, then 1,000 at 50; beyond the last line at the pace until then.
    assert list(metrics.seconds_at(steps)) == [0, 5, 10, 20, 30, 60]


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400), st.integers(2, 60))
def test_what_is_left_out_lies_between_what_stays(values, most):
    array = np.array(values)
    kept = kept_points(array, most)
    assert np.all(np.diff(kept) > 0)
    assert len(kept) <= max(most, 2) + 2
    assert {0, len(array) - 1} <= set(kept)
    assert array[kept].min() == array.min()
    assert array[kept].max() == array.max()


def test_a_single_spike_in_a_hundred_thousand_values_stays():
    values = np.zeros(100_000)
    values[54_321] = 7.0
    assert 54_321 in kept_points(values, 100)


def test_running_figures_are_those_of_the_window():
    values = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    assert running_mean(values, 3) == pytest.approx([1.5, 7 / 3, 14 / 3, 28 / 3, 12])
    assert running_spread(values, 3)[1] == pytest.approx(np.std([1, 2, 4]))
