"""Learning-rate schedules, against their equations and published values."""

import math

import pytest

from mlpt.errors import UserError
from mlpt.training.schedule import ScheduleConfig, check_schedule, learning_rate


def test_linear_has_the_published_factors_of_a_thousand_steps_with_a_tenth_of_warm_up():
    config = ScheduleConfig(shape="linear", warmup=0.1)
    factors = [learning_rate(config, step, 1000, 1.0) for step in (0, 1, 50, 100, 550, 1000)]
    assert factors == pytest.approx([0, 0.01, 0.5, 1, 0.5, 0])


def test_cosine_is_half_a_period_down_to_the_final_share():
    config = ScheduleConfig(shape="cosine", warmup=0, final=0.1)
    assert learning_rate(config, 0, 100, 2.0) == pytest.approx(2.0)
    assert learning_rate(config, 50, 100, 2.0) == pytest.approx(2.0 * 0.55)
    assert learning_rate(config, 100, 100, 2.0) == pytest.approx(0.2)


def test_wsd_is_flat_until_its_decay_which_falls_by_one_minus_the_root():
    config = ScheduleConfig(shape="wsd", warmup=10, decay=20)
    assert [learning_rate(config, step, 100, 1.0) for step in (10, 50, 80)] == [1.0, 1.0, 1.0]
    assert learning_rate(config, 85, 100, 1.0) == pytest.approx(1 - math.sqrt(5 / 20))
    assert learning_rate(config, 100, 100, 1.0) == pytest.approx(0)


def test_inverse_power_falls_by_the_root_of_the_step_after_warm_up():
    config = ScheduleConfig(shape="inverse_power", warmup=100, power=0.5)
    assert learning_rate(config, 100, 1000, 1.0) == pytest.approx(1.0)
    assert learning_rate(config, 400, 1000, 1.0) == pytest.approx(0.5)


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(UserError, match="needs 200 steps"):
        check_schedule(ScheduleConfig(warmup=200), 100)
