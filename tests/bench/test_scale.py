"""The benchmark of two workers against one: its arithmetic, and that it says how busy the machine was."""

import pytest

from mlpt.bench import scale
from mlpt.bench.step import BATCH, LENGTH


def test_two_workers_are_compared_with_one_and_with_what_else_the_machine_did():
    found = {"one": [[2.0, 0.0], [1.0, 0.3], [1.5, 0.0]], "two": [[1.0, 0.6], [0.5, 0.0], [0.75, 0.0]]}
    speed, busy = scale.rows_of(found, cores=2)
    assert speed.ratio == pytest.approx(1.5 / 0.75)
    assert (speed.ours, speed.peer) == pytest.approx((BATCH * LENGTH / 0.75, BATCH * LENGTH / 1.5))
    assert (busy.ours, busy.unit) == (pytest.approx(0.15), "cores")
    assert "of 2 cores" in busy.name


@pytest.mark.slow
def test_two_real_workers_are_measured_in_turns_with_one():
    speed, busy = scale.run()
    assert speed.ratio == pytest.approx(speed.ours / speed.peer)
    assert 0 <= busy.ours < 64
