"""The soak in small: a few random kills, and the same losses as without them."""

import pytest

from mlpt.bench.soak import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_random_kills_change_no_loss_and_leave_no_process():
    rows = {row.name: row.ours for row in run(kills=3, seed=1)}
    assert rows["losses equal to the undisturbed run's, after 3 kills (1: yes)"] == 1
    assert rows["processes left behind"] == 0
    (repeated,) = [value for name, value in rows.items() if name.startswith("most steps done twice")]
    assert repeated <= 50
