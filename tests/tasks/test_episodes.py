"""Support and query rows (MetaLMO specification 1.11): tasks' turns, masked modelling's share, rows that never meet."""

import numpy as np
import pytest

from mlpt.errors import UserError
from mlpt.tasks.episodes import EpisodeConfig, Episodes

SIZES = {"boolq": 30, "cb": 10, "wsc": 20}


def episodes(sizes=SIZES, seed=0, **settings):
    return Episodes(sizes, EpisodeConfig(**settings), seed)


def drawn(made, count, rows=4):
    return [made.draw(number, rows) for number in range(count)]


def test_a_micro_batch_has_one_task_and_tasks_are_drawn_alike():
    found = drawn(episodes(), 3000)
    assert all(len(set(one.tasks.tolist())) == 1 for one in found)
    shares = np.bincount([one.tasks[0] for one in found]) / len(found)
    assert shares == pytest.approx([1 / 3] * 3, abs=0.03)


def test_masked_modelling_is_drawn_as_often_as_all_others_together():
    found = drawn(episodes(SIZES | {"mlm": 1000}), 3000)
    shares = np.bincount([one.tasks[0] for one in found]) / len(found)
    assert shares == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2], abs=0.03)
    alone = drawn(episodes({"mlm": 10}), 5)
    assert all((one.tasks == 0).all() for one in alone)


def test_rows_that_teach_never_judge():
    found = drawn(episodes(query_share=0.3), 3000)
    for task, size in enumerate(SIZES.values()):
        support = {row for one in found for row in one.support[one.tasks == task].tolist()}
        query = {row for one in found for row in one.query[one.tasks == task].tolist()}
        assert not support & query
        assert support | query == set(range(size))
        assert len(query) == pytest.approx(0.3 * size)


def test_as_published_any_row_does_both_but_never_at_once():
    found = drawn(episodes(query_share=0), 3000)
    for task, size in enumerate(SIZES.values()):
        support = np.concatenate([one.support[one.tasks == task] for one in found])
        query = np.concatenate([one.query[one.tasks == task] for one in found])
        assert (support != query).all()
        assert set(support.tolist()) == set(query.tolist()) == set(range(size))
        assert np.bincount(query, minlength=size) / len(query) == pytest.approx(np.full(size, 1 / size), abs=0.03)


def test_as_published_a_task_holds_for_its_items_and_mixes_in_batches_that_it_does_not_fit():
    fitting = drawn(episodes(items_per_task=4), 300)
    assert all(len(set(one.tasks.tolist())) == 1 for one in fitting)
    found = np.concatenate([one.tasks for one in drawn(episodes(items_per_task=3), 300)])
    groups = found.reshape(-1, 3)
    assert (groups == groups[:, :1]).all()
    mixed = [one for one in drawn(episodes(items_per_task=3), 300) if len(set(one.tasks.tolist())) > 1]
    assert mixed


def test_an_episode_is_named_by_its_number_and_the_seed():
    first, again, other = episodes().draw(7, 4), episodes().draw(7, 4), episodes(seed=1).draw(7, 4)
    assert np.array_equal(first.support, again.support)
    assert np.array_equal(first.query, again.query)
    assert not (np.array_equal(first.support, other.support) and np.array_equal(first.query, other.query))


def test_a_task_without_a_row_for_both_is_refused():
    with pytest.raises(UserError, match="task 'tiny' has too few labelled rows"):
        episodes({"tiny": 1})
    with pytest.raises(UserError, match="task 'tiny' has too few labelled rows"):
        episodes({"tiny": 2}, query_share=0.9)
    with pytest.raises(UserError, match="there is no labelled task"):
        episodes({})
