"""Drawing objectives: frequencies, agreement and the stratified mode's smaller variance."""

from collections import Counter

import numpy as np
import pytest

from mlpt.training.draw import draw_arms, sampled

MIXTURE = {"mlm": 0.5, "atd": 0.3, "dtd": 0.15, "cse": 0.05}


def counts(how: str, micro_batches: int, steps: int) -> Counter:
    drawn = (draw_arms(how, MIXTURE, 7, step, micro_batches) for step in range(steps))
    return Counter(name for step in drawn for slot in step for name, _ in slot)


@pytest.mark.parametrize("how", ["step", "stratified"])
def test_objectives_come_as_often_as_the_mixture_says(how):
    drawn = counts(how, 4, 20_000)
    total = sum(drawn.values())
    # four standard errors of a share, for independent steps
    tolerance = 4 * 0.5 / np.sqrt(20_000)
    assert {name: drawn[name] / total for name in MIXTURE} == pytest.approx(MIXTURE, abs=tolerance)


def test_one_draw_serves_the_whole_step():
    for step in range(50):
        assert len({slot[0][0] for slot in draw_arms("step", MIXTURE, 0, step, 8)}) == 1


def test_stratified_gives_each_objective_the_floor_or_the_ceiling_of_its_expected_number():
    for step in range(200):
        drawn = Counter(slot[0][0] for slot in draw_arms("stratified", MIXTURE, 0, step, 8))
        for name, share in MIXTURE.items():
            assert np.floor(8 * share) <= drawn[name] <= np.ceil(8 * share)


def test_weighted_trains_every_objective_with_its_share():
    assert draw_arms("weighted", {"mlm": 0.7, "cse": 0.3, "atd": 0.0}, 0, 0, 2) == [
        [("mlm", 0.7), ("cse", 0.3)],
        [("mlm", 0.7), ("cse", 0.3)],
    ]


def test_an_objective_of_share_zero_is_never_drawn():
    mixture = {"atd": 0.0, "mlm": 1.0, "cse": 0.0}
    for how in ("step", "stratified"):
        drawn = {slot[0][0] for step in range(300) for slot in draw_arms(how, mixture, 1, step, 3)}
        assert drawn == {"mlm"}


def test_a_step_is_drawn_alike_whenever_it_is_asked_for():
    assert draw_arms("stratified", MIXTURE, 3, 17, 8) == draw_arms("stratified", MIXTURE, 3, 17, 8)


def test_sampling_of_its_own_covers_the_arms_that_the_mixture_has_a_share_of():
    mixture, sampling = {"mlm": 0.9, "atd": 0.0, "cse": 0.1}, {"mlm": 0.25, "atd": 0.5, "cse": 0.25}
    assert sampled(mixture, None) is mixture
    assert sampled(mixture, sampling) == {"mlm": 0.5, "atd": 0.0, "cse": 0.5}
