"""The meta-learner as the loop sees it: state goes through JSON exactly, answers repeat bit for bit."""

import copy
import json

import pytest
import torch
from tiny_encoder import TinyBlocks, make_adamw, make_encoder, train

from mlpt.errors import UserError
from mlpt.meta.learner import MetaConfig, MetaLearner
from mlpt.meta.policy import Evidence
from mlpt.meta.rules import RULES
from mlpt.meta.snapshot import take_snapshot
from mlpt.settings import load_settings

SETTINGS = {
    "fixed": {"rule": "fixed", "weights": {"words": 3, "order": 1}},
    "uniform": {"rule": "uniform"},
    "mometas": {"rule": "mometas", "dev_batch_size": 8},
    "exp3": {"rule": "exp3"},
    "famo": {"rule": "famo", "dev_batch_size": 8},
    "hypergradient": {"rule": "hypergradient", "start": 5},
    "hypergradient, one step": {"rule": "hypergradient", "engine": "one_step", "target": ["words"], "start": 5},
    "hypergradient, 2 steps": {
        "rule": "hypergradient",
        "engine": "finite_difference",
        "inner_steps": 2,
        "start": 5,
        "optimizer": "sgd",
    },
    "mometas, resampled": {"rule": "mometas", "dev": "resampled", "dev_batch_size": 8, "dev_batches": 2},
}


def make_learner(mixture, seed=7):
    model = make_encoder(seed=3)  # its own weights: snapshots replace them
    config = load_settings(MetaConfig, {"interval": 10, "mixture": mixture})
    return MetaLearner(config, model, make_adamw(model), TinyBlocks(1), TinyBlocks(2), seed, batch_size=12)


def some_snapshots(moments):
    """Three moments of one real training run, with what happened between them."""
    model = make_encoder()
    optimizer = make_adamw(model, lr=1e-2)
    for step in (0, 10, 20):
        in_force = {"words": 5, "noise": 3, "order": 2}
        losses = {"words": 3.5 - step / 50, "noise": 0.6}
        evidence = Evidence({"words": 6, "noise": 4}, losses, in_force) if step else Evidence()
        yield take_snapshot(model, optimizer, step, 1e-2, moments), evidence
        train(model, optimizer, TinyBlocks(1), 10, seed=step)


def without_clock(report):
    return {key: value for key, value in report.items() if key not in ("seconds", "peak_bytes")}


@pytest.mark.parametrize("mixture", SETTINGS.values(), ids=SETTINGS.keys())
def test_a_learner_rebuilt_from_its_json_state_answers_bit_for_bit_alike(mixture):
    straight = make_learner(mixture)
    policy = straight.first_policy()
    for snapshot, evidence in some_snapshots(straight.needs_moments):
        state, tensors = straight.state()
        again = make_learner(mixture)
        again.load_state(json.loads(json.dumps(state)), copy.deepcopy(tensors))
        answer, repeated = straight.update(policy, snapshot, evidence), again.update(policy, snapshot, evidence)
        assert repeated.policy == answer.policy
        assert repeated.state == answer.state
        assert without_clock(repeated.report) == without_clock(answer.report)
        assert answer.policy.version == policy.version + 1
        json.dumps(answer.report)
        policy = answer.policy


@pytest.mark.parametrize("mixture", SETTINGS.values(), ids=SETTINGS.keys())
def test_the_mixture_covers_the_objectives_and_sums_to_one(mixture):
    learner = make_learner(mixture)
    policy = learner.first_policy()
    for snapshot, evidence in some_snapshots(learner.needs_moments):
        assert policy.mixture.keys() == {"words", "noise", "order"}
        assert sum(policy.mixture.values()) == pytest.approx(1, abs=1e-12)
        policy = learner.update(policy, snapshot, evidence).policy


def test_every_rule_is_covered_here():
    assert {settings["rule"] for settings in SETTINGS.values()} == RULES.keys()


def test_fixed_keeps_the_proportions_that_were_asked_for():
    learner = make_learner({"rule": "fixed", "weights": {"words": 3, "order": 1}})
    assert learner.first_policy().mixture == {"words": 0.75, "noise": 0.0, "order": 0.25}


def test_an_unknown_objective_in_the_settings_is_named():
    with pytest.raises(UserError, match="'mlm', which is not an objective"):
        make_learner({"rule": "fixed", "weights": {"mlm": 1}})


def test_a_state_of_another_rule_is_refused():
    state, tensors = make_learner({"rule": "uniform"}).state()
    with pytest.raises(UserError, match="rule"):
        make_learner({"rule": "mometas"}).load_state(state, tensors)


def test_updates_leave_global_random_state_alone():
    learner = make_learner({"rule": "mometas"})
    before = torch.random.get_rng_state()
    snapshot, evidence = next(some_snapshots(moments=False))
    torch.random.set_rng_state(before)
    learner.update(learner.first_policy(), snapshot, evidence)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"interval": 5, "lag": 6}, "lag .6. cannot exceed interval"),
        ({"interval": 0}, "interval"),
        ({"mixture": {"rule": "mometas", "lr": -1}}, "lr"),
        ({"mixture": {"rule": "fixed", "weights": {"words": -1}}}, "numbers >= 0"),
        ({"mixture": {"rule": "nothing"}}, "nothing"),
    ],
)
def test_impossible_settings_get_one_line(settings, message):
    with pytest.raises(UserError, match=message) as error:
        load_settings(MetaConfig, settings, "meta")
    assert "\n" not in str(error.value)


def test_the_default_lag_fits_a_short_interval():
    assert load_settings(MetaConfig, {"interval": 5}).lag <= 5
    assert load_settings(MetaConfig, {}).lag == 20
