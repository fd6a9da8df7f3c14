"""Two moons as labelled tasks: their points, splits and grid (MetaLMO specification 1.12, 1.21)."""

import pytest

from mlpt.tasks import TASKS, TaskSource, load_task


@pytest.mark.parametrize("size", [10, 20, 40, 80, 160])
def test_train_and_dev_have_as_many_points_as_the_name_says_half_of_each_moon(size):
    data = load_task(f"two_moons_{size}", TaskSource(), ["train", "dev"])
    assert list(data.splits) == ["train", "dev"]
    for rows in data.splits.values():
        assert len(rows) == size
        assert sum(row.label for row in rows) == size // 2


def test_the_first_points_are_the_published_ones():
    data = load_task("two_moons_10", TaskSource())
    assert [(row.first, row.label) for row in data.splits["train"][:3]] == [("13 45", 0), ("55 38", 1), ("27 24", 1)]
    assert [(row.first, row.label) for row in data.splits["dev"][:3]] == [("22 48", 0), ("38 15", 1), ("57 39", 1)]
    held_out = data.splits["held_out"]
    assert [(row.first, row.label) for row in held_out[:5]] == [
        ("29 16", 1),
        ("39 25", 0),
        ("53 27", 1),
        ("13 43", 0),
        ("19 49", 0),
    ]
    assert (len(held_out), sum(row.label for row in held_out)) == (1000, 511)
    assert data.splits["train"][0].second is None


def test_the_grid_is_every_point_row_after_row_without_labels():
    rows = load_task("two_moons_10", TaskSource(), ["grid"]).splits["grid"]
    assert len(rows) == 4096
    assert [row.first for row in rows[:2]] == ["0 0", "1 0"]
    assert (rows[64].first, rows[-1].first) == ("0 1", "63 63")
    assert {row.label for row in rows} == {None}


def test_held_out_points_are_scored_and_the_grid_only_predicted():
    task = TASKS["two_moons_10"]
    assert (task.dev, task.test, task.select) == (("dev", "held_out"), ("grid",), "accuracy")
