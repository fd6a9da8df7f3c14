"""Rule `staged`: mixtures one after another by share of the run."""

import pytest
from tiny_encoder import ARMS, make_adamw, make_encoder, make_sources

from mlpt.downstream.samplers import PolicySampler
from mlpt.errors import UserError
from mlpt.meta.learner import MetaConfig, MetaLearner
from mlpt.meta.policy import Evidence
from mlpt.meta.snapshot import take_snapshot
from mlpt.settings import load_settings

STAGES = [{"until": 0.5, "weights": {"words": 1}}, {"until": 0.75, "weights": {"words": 1, "noise": 3}}]
LAST = {"weights": {"order": 2}}


def make_learner(stages, **meta):
    config = load_settings(
        MetaConfig, {"interval": 10, "rules": {"mixture": {"rule": "staged", "stages": stages}}, **meta}
    )
    model = make_encoder(seed=3)
    return MetaLearner(config, model, make_adamw(model), make_sources(), ARMS, seed=7, batch_size=12, steps=100)


@pytest.mark.parametrize("lag", [0, 10])
def test_a_stage_is_in_force_from_its_share_of_the_run_on(lag):
    learner = make_learner([*STAGES, LAST], lag=lag)
    model = make_encoder()
    optimizer = make_adamw(model)
    in_force = [learner.policy.values("mixture")]  # from step 0, 10, ... on
    for step in range(0, 100 - lag, 10):
        learner.update(take_snapshot(model, optimizer, step, 1e-2, moments=False), Evidence())
        if step + lag > 0:
            in_force.append(learner.policy.values("mixture"))
    first, second, third = ({"words": 1.0}, {"words": 0.25, "noise": 0.75}, {"order": 1.0})
    expected = [first] * 5 + [second] * 2 + [second] + [third] * 2
    for at, (found, wanted) in enumerate(zip(in_force, expected, strict=True)):
        assert found == {"words": 0.0, "noise": 0.0, "order": 0.0, **wanted}, f"step {10 * at}"


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([], "at least 1"),
        ([STAGES[1], STAGES[0], LAST], "rising"),
        (STAGES, "the last at 1"),
        ([{"weights": {"words": 0}}], "at least one is above 0"),
        ([{"weights": {"words": -1, "order": 2}}], "numbers >= 0"),
    ],
)
def test_stages_that_are_no_schedule_are_refused(stages, said):
    with pytest.raises(UserError, match=said):
        make_learner(stages)


def test_an_arm_that_the_run_does_not_train_is_named_with_its_stage():
    with pytest.raises(UserError, match=r"stages\[1\].weights names 'code'"):
        make_learner([STAGES[0], {"weights": {"code": 1}}])


def test_multi_task_work_whose_length_is_not_told_refuses_the_rule():
    with pytest.raises(UserError, match="'staged' is of pretraining"):
        load_settings(PolicySampler.Config, {"learner": {"rule": "staged", "stages": [LAST]}})
