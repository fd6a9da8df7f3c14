"""The soak in small: a few random kills, the same losses as without them, and nothing left behind."""

import pytest

from mlpt.bench.soak import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_random_kills_change_no_loss_and_leave_nothing_behind():
    rows = {row.name: row.ours for row in run(kills=4, seed=1)}
    assert rows["losses equal to the undisturbed run's, after 4 kills (1: yes)"] == 1
    left = {name: value for name, value in rows.items() if name.endswith("left behind")}
    assert len(left) == 5
    assert set(left.values()) == {0}, left
    (repeated,) = [value for name, value in rows.items() if name.startswith("most steps done twice")]
    assert repeated <= 50
