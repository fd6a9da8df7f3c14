"""Learning-rate schedules, against their equations and published values."""

import math

import pytest

from mlpt.config import load_run_config
from mlpt.errors import UserError
from mlpt.training.schedule import ScheduleConfig, check_schedule, learning_rate, power_law


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


def test_power_law_has_the_factors_of_metalmo():
    # MetaLMO specification 1.10: endless with power -1/2, for warm-ups of 10,000 and of 10 steps.
    long, short = (ScheduleConfig(shape="power_law", warmup=warmup, power=0.5) for warmup in (10_000, 10))
    factors = [learning_rate(long, step, 50_000, 1.0) for step in (0, 9_999, 39_999)]
    assert factors == pytest.approx([1e-6, 0.01, 0.005])
    factors = [learning_rate(short, step, 50_000, 1.0) for step in (0, 9, 39)]
    assert factors == pytest.approx([0.0316228, 0.316228, 0.158114], rel=1e-5)
    # The peak rates of its report.
    moons = ScheduleConfig(shape="power_law", warmup=1_000)
    assert max(learning_rate(moons, step, 5_000, 0.08) for step in range(5_000)) == pytest.approx(2.53e-3, rel=1e-3)
    assert learning_rate(short, 9, 5_000, 0.04) == pytest.approx(1.26e-2, rel=1e-2)


def test_power_law_can_end_and_is_then_metalmos_too():
    config = ScheduleConfig(shape="power_law", warmup=100, power=0.5, endless=False)
    factors = [learning_rate(config, step, 1_000, 1.0) for step in (0, 99, 500, 999)]
    assert factors == pytest.approx([0.000706101, 0.07061011, 0.01348021, 0.0], rel=1e-5)
    above = ScheduleConfig(shape="power_law", warmup=100, power=0.5, endless=False, final=0.01)
    assert learning_rate(above, 999, 1_000, 1.0) == pytest.approx(0.01)


def test_a_rising_power_without_an_end_is_constant_after_warm_up():
    assert [power_law(step, 10, math.inf, power=1.0) for step in (5, 10, 1_000)] == [0.5, 1.0, 1.0]


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(UserError, match="needs 200 steps"):
        check_schedule(ScheduleConfig(warmup=200), 100)


@pytest.mark.parametrize(("interval", "share"), [(2792, 0.90), (200, 0.993)])
def test_the_published_pruning_keeps_its_rate_within_an_interval_because_its_schedule_is_that_of_two_epochs(
    interval, share
):
    # Specification of TAMT, B9: each pruning restarts the schedule, whose length stays that of the whole run.
    train = load_run_config("tamt_imp", {"masks": {"iterative": {"interval": interval}}}).train
    peak = train.optimizer.lr
    assert learning_rate(train.schedule, interval, train.steps, peak) / peak == pytest.approx(share, abs=5e-4)


def test_a_shorter_mask_training_keeps_the_schedule_of_two_epochs():
    train = load_run_config("tamt_mlm", {"train": {"steps": 3000}}).train
    assert learning_rate(train.schedule, 3000, train.steps, 1.0) == pytest.approx(1 - 3000 / 27920)
    check_schedule(train.schedule, train.steps)
