"""The soaks in small: kills, faults and partitions at random moments change no bit and leave nothing behind."""

import pytest

from mlpt.bench import faults, partitions
from mlpt.bench.soak import run
from mlpt.errors import UserError
from mlpt.runtime.namespaces import namespace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_random_kills_change_no_loss_and_leave_nothing_behind():
    rows = {row.name: row.ours for row in run(kills=4, seed=1)}
    assert rows["losses equal to the undisturbed run's, after 4 kills (1: yes)"] == 1
    left = {name: value for name, value in rows.items() if name.endswith("left behind")}
    assert len(left) == 5
    assert set(left.values()) == {0}, left
    (repeated,) = [value for name, value in rows.items() if name.startswith("most steps done twice")]
    assert repeated <= 50


def test_faults_of_five_kinds_change_nothing_that_a_run_leaves():
    rows = {row.name: row.ours for row in faults.run(faults=5, seed=1)}
    assert rows["faults"] == rows["kinds of fault"] == 5
    assert rows["faults after which something was not as promised"] == 0


@pytest.mark.parametrize("number", [0, 1])
def test_nodes_that_lose_sight_of_each_other_for_half_a_minute_go_on_to_the_same_end(number, tmp_path):
    try:
        with namespace():
            pass
    except UserError as error:
        pytest.skip(str(error))
    (one,) = partitions.one_run(number, 1, seed=0, dropped=30, kept=tmp_path)
    assert one.found == ""
