"""Rule `mometas`: the published vectors, the gradient behind the closed form, and both sides of the MO-3 switch."""

import math

import pytest
import torch
from tiny_encoder import ARMS, TinyBlocks, make_adamw, make_encoder, make_sources, train

from mlpt.meta.learner import MetaConfig, MetaLearner
from mlpt.meta.policy import Evidence
from mlpt.meta.rules.base import softmax
from mlpt.meta.rules.mometas import reinforce, relative_drop
from mlpt.meta.snapshot import take_snapshot


@pytest.mark.parametrize(
    ("before", "after", "reward"),
    [
        (2, 1, 0.50000025),
        (2, 1.9995, 0),
        (1, 2.5, -1),
        (1, 1.5, -0.4999985),
        (0, 0.5, -1),
        (0, 0, 0),
        (0.5, 0, 1.0),
    ],
)
def test_the_reward_is_the_published_relative_drop(before, after, reward):
    assert relative_drop(before, after) == pytest.approx(reward, abs=1e-10)


def on_policy(scores, counts):
    """The probabilities in force, summed over draws that all come from the newest policy, as published."""
    return [sum(counts) * p for p in softmax(scores)]


def loss_of(scores, counts, reward, gamma):
    """J = -R sum_i n_i log p_i - gamma H(p), whose gradient step an update is."""
    log_p = scores.double().log_softmax(0)
    return -reward * (torch.tensor(counts) * log_p).sum() + gamma * (log_p.exp() * log_p).sum()


@pytest.mark.parametrize(
    ("scores", "counts", "reward", "expected", "loss"),
    [
        ([1, 1, 1, 1], [2, 1, 1, 0], 0.5000005, [1.05, 1, 1, 0.95], 2.9e-6),
        ([1, 1, 1, 1], [0, 0, 0, 100], 0.1000009, [0.749998, 0.749998, 0.749998, 1.750007], 11.09049),
        ([1, 1, 1, 1], [0, 0, 0, 0], 0.7, [1, 1, 1, 1], -2.772589),
        ([2, 1, 0, 0], [1, 1, 0, 0], 0.1000019, [1.930064, 1.025496, 0.022220, 0.022220], -1.898644),
    ],
)
def test_an_update_gives_the_published_scores_for_the_published_loss(scores, counts, reward, expected, loss):
    all_new = on_policy(scores, counts)
    assert reinforce(scores, counts, all_new, reward, lr=0.1, gamma=2) == pytest.approx(expected, abs=1.5e-6)
    assert loss_of(torch.tensor(scores), counts, reward, gamma=2).item() == pytest.approx(loss, rel=1e-6, abs=1e-6)


def test_the_mixture_after_an_update_is_the_published_one():
    assert softmax([1.05, 1, 1, 0.95]) == pytest.approx([0.262654, 0.249844, 0.249844, 0.237659], abs=1e-6)
    assert softmax([0.749998] * 3 + [1.750007])[3] == pytest.approx(0.475369, abs=1e-6)


def test_the_closed_form_is_the_gradient_step_that_autograd_takes():
    scores = torch.tensor([0.3, -1.2, 2.0, 0.0, 0.7], dtype=torch.float64, requires_grad=True)
    counts, reward, lr, gamma = [3, 0, 11, 2, 4], -0.37, 0.05, 1.3
    (gradient,) = torch.autograd.grad(loss_of(scores, counts, reward, gamma), scores)
    expected = on_policy(scores.tolist(), counts)
    assert reinforce(scores.tolist(), counts, expected, reward, lr, gamma) == pytest.approx(
        (scores - lr * gradient).tolist(), abs=1e-13
    )


def test_draws_of_an_older_policy_are_centred_by_its_own_gradient():
    """grad_s of log p_old(draw) for p_old's scores, and the entropy's gradient at the newest scores."""
    older = torch.tensor([0.5, 0.0, -0.5], dtype=torch.float64, requires_grad=True)
    newest = torch.tensor([1.5, -0.2, 0.3], dtype=torch.float64, requires_grad=True)
    counts, reward, lr, gamma = [6, 3, 1], 0.4, 0.1, 2.0
    (score,) = torch.autograd.grad((torch.tensor(counts) * older.log_softmax(0)).sum(), older)
    log_p = newest.log_softmax(0)
    (flattening,) = torch.autograd.grad(-(log_p.exp() * log_p).sum(), newest)
    moved = reinforce(newest.tolist(), counts, on_policy(older.tolist(), counts), reward, lr, gamma)
    assert moved == pytest.approx((newest + lr * (reward * score + gamma * flattening)).tolist(), abs=1e-13)


def test_scores_so_far_apart_that_a_probability_underflows_stay_finite():
    assert all(math.isfinite(score) for score in reinforce([2000, 0], [5, 0], [5, 0], 1.0, 0.1, 2.0))


THIRDS = dict.fromkeys(["words", "noise", "order"], 10 / 3)  # of ten steps


def make_learner(**mixture):
    rules = {"mixture": {"rule": "mometas", "dev_batch_size": 8, **mixture}}
    config = MetaConfig.model_validate({"interval": 10, "rules": rules})
    return MetaLearner(config, make_encoder(), make_adamw(make_encoder()), make_sources(), ARMS, 7, 8)


@pytest.mark.parametrize("dev", ["same", "resampled"])
def test_the_first_update_takes_the_baseline_and_leaves_the_mixture_alone(dev):
    model = make_encoder()
    learner = make_learner(dev=dev)
    first = learner.policy
    snapshot = take_snapshot(model, make_adamw(model), 0, 1e-3, moments=False)
    answer = learner.update(snapshot, Evidence())
    assert learner.policy.values("mixture") == first.values("mixture")
    assert learner.policy.version == answer.version == 1
    assert answer.report["dev_loss"].keys() == first.values("mixture").keys()


def test_with_the_same_dev_pair_an_unchanged_model_earns_exactly_nothing():
    model = make_encoder()
    optimizer = make_adamw(model)
    learner = make_learner(dev="same")
    first = learner.policy
    for step in (0, 10, 20):
        snapshot = take_snapshot(model, optimizer, step, 1e-3, moments=False)
        answer = learner.update(snapshot, Evidence(draws={"words": 10}, expected=THIRDS))
        if step:
            assert answer.report["reward"] == 0
    assert learner.policy.version == 3
    assert learner.policy.values("mixture") == first.values("mixture")


def test_resampled_dev_sets_reward_an_unchanged_model_for_the_sampling_noise():
    model = make_encoder()
    optimizer = make_adamw(model)
    learner = make_learner(dev="resampled")
    rewards = []
    for step in (0, 10, 20):
        snapshot = take_snapshot(model, optimizer, step, 1e-3, moments=False)
        evidence = Evidence(draws={"words": 10}, expected=THIRDS)
        rewards.append(learner.update(snapshot, evidence).report.get("reward"))
    assert rewards[1] != 0
    assert rewards[2] != 0


def test_the_update_follows_from_the_measured_losses_and_draws():
    model = make_encoder()
    optimizer = make_adamw(model, lr=1e-2)
    learner = make_learner(dev="resampled", lr=0.2, gamma=1.5)
    before = learner.update(take_snapshot(model, optimizer, 0, 1e-2, moments=False), Evidence())
    train(model, optimizer, TinyBlocks(1), 10)
    snapshot = take_snapshot(model, optimizer, 10, 1e-2, moments=False)
    after = learner.update(snapshot, Evidence(draws={"words": 7, "order": 3}, expected=THIRDS))
    reward = sum(
        relative_drop(before.report["dev_loss"][name], loss) for name, loss in after.report["dev_loss"].items()
    )
    assert after.report["reward"] == pytest.approx(reward)
    p, counts = torch.full((3,), 1 / 3, dtype=torch.float64), torch.tensor([7.0, 0.0, 3.0])
    scores = 1 + 0.2 * reward * (counts - 10 * p)  # the entropy's gradient is zero at the uniform mixture
    expected = scores.softmax(0)
    assert list(after.parts["mixture"].values.values()) == pytest.approx(expected.tolist(), abs=1e-12)


def test_a_target_says_what_is_rewarded():
    model = make_encoder()
    optimizer = make_adamw(model, lr=1e-2)
    config = MetaConfig.model_validate(
        {"interval": 10, "rules": {"mixture": "mometas"}, "target": {"words": 3, "order": 1}}
    )
    learner = MetaLearner(config, model, optimizer, make_sources(), ARMS, seed=7, batch_size=24)
    learner.update(take_snapshot(model, optimizer, 0, 1e-2, moments=False), Evidence())
    before = learner.state().part("mixture").values["before"]
    train(model, optimizer, TinyBlocks(1), 10)
    evidence = Evidence(draws={"words": 10}, expected=THIRDS)
    report = learner.update(take_snapshot(model, optimizer, 10, 1e-2, moments=False), evidence).report
    drops = {name: relative_drop(before[name], report["dev_loss"][name]) for name in ("words", "order")}
    assert report["reward"] == pytest.approx(2 * (0.75 * drops["words"] + 0.25 * drops["order"]))
    assert drops["words"] != drops["order"]
