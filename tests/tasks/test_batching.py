"""Batches: every row once, the same for the same seed, little padding, and nothing over the token budget."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlpt.tasks.batching import draw_subset, epoch_batches, passes

LENGTHS = np.random.default_rng(0).integers(3, 60, size=1003)


@pytest.mark.parametrize("window", [1, 5, 50])
def test_an_epoch_has_every_row_once_and_one_short_batch(window):
    batches = epoch_batches(LENGTHS, 32, 1, 0, window)
    assert sorted(np.concatenate(batches).tolist()) == list(range(1003))
    assert sorted(len(batch) for batch in batches) == [1003 % 32] + [32] * (1003 // 32)


def test_batches_follow_from_seed_and_epoch_alone():
    def order(seed, epoch):
        return np.concatenate(epoch_batches(LENGTHS, 32, seed, epoch, 5)).tolist()

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_rows_can_come_as_they_are_listed():
    batches = epoch_batches(LENGTHS, 32, 1, 0, 5, shuffle=False)
    assert np.concatenate(batches).tolist() == list(range(1003))
    assert [len(batch) for batch in batches] == [32] * (1003 // 32) + [1003 % 32]


def padded(batches):
    return sum(len(batch) * LENGTHS[batch].max() for batch in batches)


def test_sorting_within_windows_leaves_little_padding():
    assert padded(epoch_batches(LENGTHS, 32, 1, 0, 50)) < 1.1 * LENGTHS.sum()
    assert padded(epoch_batches(LENGTHS, 32, 1, 0, 1)) > 1.6 * LENGTHS.sum()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 100), min_size=1, max_size=60), st.integers(1, 300), st.integers(1, 20))
def test_passes_split_the_rows_within_the_budget(lengths, tokens, most):
    lengths = np.array(lengths)
    parts = passes(np.arange(len(lengths)), lengths, tokens, most)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(lengths)))
    for part in parts:
        assert len(part) <= most
        assert len(part) == 1 or len(part) * lengths[part].max() <= tokens


def test_each_seed_draws_its_own_few_samples():
    first, second = draw_subset(1000, 50, 1), draw_subset(1000, 50, 2)
    assert len(set(first.tolist())) == 50
    assert first.tolist() == draw_subset(1000, 50, 1).tolist()
    assert first.tolist() != second.tolist()
    assert draw_subset(10, 50, 1).tolist() == list(range(10))
