"""Rules `exp3`, `famo` and `hypergradient` against their equations, and their guard rails."""

import copy
import math

import pytest
import torch
from tiny_encoder import ARMS, TinyBlocks, make_adamw, make_encoder, make_sources, train

from mlpt.errors import UserError
from mlpt.meta.joint_lookahead import LookaheadConfig
from mlpt.meta.learner import MetaConfig, MetaLearner
from mlpt.meta.policy import Evidence
from mlpt.meta.rules.exp3 import Exp3
from mlpt.meta.rules.famo import step_logits
from mlpt.meta.rules.mixture import with_floor
from mlpt.meta.snapshot import take_snapshot
from mlpt.settings import load_settings
from mlpt.storage.state import State


def make_learner(target=(), lookahead=None, **mixture):
    model = make_encoder(seed=3)
    settings = {"interval": 10, "rules": {"mixture": mixture}, "target": target, "lookahead": lookahead or {}}
    config = load_settings(MetaConfig, settings)
    return MetaLearner(config, model, make_adamw(model), make_sources(), ARMS, seed=7, batch_size=24)


def mixture_of(learner):
    return learner.policy.values("mixture")


def trained(steps, lr=1e-2):
    model = make_encoder(dropout=0.0)
    optimizer = make_adamw(model, lr=lr)
    train(model, optimizer, TinyBlocks(1), steps)
    return model, optimizer


def test_exp3_follows_the_equations_of_online_data_mixing():
    rule = Exp3(Exp3.Config(reward="loss", smoothing=0.8), ["a", "b", "c"])
    part = rule.first()
    context = type("Context", (), {"report": {}})()
    history = [({"a": 4, "b": 6}, {"a": 2.0, "b": 5.0}), ({"a": 1, "c": 9}, {"a": 1.5, "c": 0.5})]
    rewards, mixture = {"a": 0.0, "b": 0.0, "c": 0.0}, dict(part.values)
    for t, (draws, losses) in enumerate(history, start=1):
        in_force = {name: 10 * probability for name, probability in part.values.items()}
        part = rule.update(part, Evidence(draws, losses, in_force), context)
        for name, loss in losses.items():
            rewards[name] = 0.8 * rewards[name] + 0.2 * loss * draws[name] / (10 * mixture[name])
        previous, exploration = (min(1 / 3, math.sqrt(math.log(3) / (3 * u))) for u in (t, t + 1))
        total = sum(math.exp(previous * reward) for reward in rewards.values())
        mixture = {
            name: (1 - 3 * exploration) * math.exp(previous * reward) / total + exploration
            for name, reward in rewards.items()
        }
        assert part.values == pytest.approx(mixture, abs=1e-12)
    assert sum(part.values.values()) == pytest.approx(1, abs=1e-12)


def test_exp3_without_draws_changes_nothing():
    rule = Exp3(Exp3.Config(), ["a", "b"])
    part = rule.first()
    state = rule.state()
    assert rule.update(part, Evidence(), None) is part
    assert rule.state() == state


def test_famo_moves_its_logits_by_the_gradient_that_autograd_finds():
    logits = torch.tensor([0.2, -0.4, 1.1], dtype=torch.float64, requires_grad=True)
    drops = torch.tensor([0.3, -0.1, 0.02], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(logits.softmax(0), logits, grad_outputs=drops)
    expected = logits - 0.5 * (gradient + 0.01 * logits)
    assert step_logits(logits.tolist(), drops.tolist(), 0.5, 0.01) == pytest.approx(expected.tolist(), abs=1e-14)


def test_famo_draws_in_proportion_to_its_weights_over_the_losses():
    model, optimizer = trained(3)
    learner = make_learner(rule="famo", floor=0.0, dev_batch_size=8)
    answer = learner.update(take_snapshot(model, optimizer, 0, 1e-2, moments=False), Evidence())
    inverse = {name: 1 / loss for name, loss in answer.report["dev_loss"].items()}
    assert mixture_of(learner) == pytest.approx({name: one / sum(inverse.values()) for name, one in inverse.items()})


def test_famo_gives_more_weight_to_what_improved_less():
    model, optimizer = trained(0)
    learner = make_learner(rule="famo", floor=0.0, dev_batch_size=8, lr=5.0)
    learner.update(take_snapshot(model, optimizer, 0, 1e-2, moments=False), Evidence())
    for group in optimizer.param_groups:
        group["lr"] = 3e-2
    for step in range(30):  # only the head of `noise` learns
        generator = torch.Generator().manual_seed(step)
        inputs = model.objectives["noise"].corrupt(TinyBlocks(1).batch(torch.arange(16).numpy()), generator)
        optimizer.zero_grad()
        model("noise", inputs).backward()
        optimizer.step()
    answer = learner.update(take_snapshot(model, optimizer, 10, 1e-2, moments=False), Evidence())
    weights = torch.tensor(answer.state.values["mixture"]["logits"]).softmax(0)  # words, noise, order
    assert weights[1] < min(weights[0], weights[2])


@pytest.mark.parametrize("broken", [math.inf, math.nan])
@pytest.mark.parametrize("rule", ["famo", "mometas", "exp3"])
def test_a_loss_that_is_not_finite_ends_the_run_and_no_rule_learns_from_it(rule, broken):
    model, optimizer = trained(3)
    learner = make_learner(rule=rule)

    def update(step, losses):
        seen = Evidence({"words": 5, "noise": 5}, losses, {"words": 5, "noise": 5})
        return learner.update(take_snapshot(model, optimizer, step, 1e-2, moments=False), seen)

    for step in (0, 10):
        update(step, {"words": 2.0, "noise": 1.0})
    before = (learner.state(), learner.policy)
    kind = "training" if rule == "exp3" else "held-out"
    if kind == "held-out":
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(broken)
    with pytest.raises(UserError, match=f"the {kind} loss of 'words' at step 20 is not finite: training has diverged"):
        update(20, {"words": broken if kind == "training" else 2.0, "noise": 1.0})
    assert (learner.state(), learner.policy) == before


HYPERGRADIENT = {"rule": "hypergradient", "floor": 0.0, "smoothing": 0.0, "entropy": 0.0}


def looking(lookahead=None, target=(), **mixture):
    """A learner that looks ahead from the start."""
    return make_learner(target, {"start": 0, **(lookahead or {})}, **{**HYPERGRADIENT, **mixture})


def update_at(learner, model, optimizer, step):
    return learner.update(take_snapshot(model, optimizer, step, 1e-2, moments=True), Evidence())


def test_a_step_down_the_reported_hypergradient_is_what_sgd_takes():
    model, optimizer = trained(9)
    learner = looking(optimizer="sgd", lr=30.0)
    answer = update_at(learner, model, optimizer, 9)
    logits = [-30.0 * one for one in answer.report["hypergradient"].values()]
    assert answer.state.values["mixture"]["logits"] == pytest.approx(logits, rel=1e-12)
    assert list(mixture_of(learner).values()) == pytest.approx(torch.tensor(logits).softmax(0).tolist(), rel=1e-5)


def test_the_outer_adam_steps_as_torch_does():
    model, optimizer = trained(9)
    learner = looking(lr=0.2)
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([logits], lr=0.2, betas=(0.9, 0.99), eps=1e-12)
    for step in (9, 19, 29):
        answer = update_at(learner, model, optimizer, step)
        logits.grad = torch.tensor(list(answer.report["hypergradient"].values()), dtype=torch.float64)
        adam.step()
    assert answer.state.values["mixture"]["logits"] == pytest.approx(logits.tolist(), rel=1e-6)


def test_the_hypergradient_predicts_what_plain_training_with_another_mixture_does():
    """Central differences of the meta-dev loss after one real AdamW step, with the rule's own batches."""
    model, optimizer = trained(9)
    learner = looking({"dev_batch_size": 12})
    seen = {}
    look_ahead = learner._updates._look_ahead
    look_ahead._engine = lambda problem, engine=look_ahead._engine: seen.update(problem=problem) or engine(problem)
    answer = update_at(learner, model, optimizer, 9)
    problem = seen["problem"]
    losses = []
    for sign in (1, -1):
        twin, twin_optimizer = copy.deepcopy((problem.model, problem.optimizer))
        twin.double()
        for state in twin_optimizer.state.values():
            state.update({key: state[key].double() for key in ("exp_avg", "exp_avg_sq")})
        logits = torch.tensor([sign * 1e-4, 0.0, 0.0], dtype=torch.float64)
        problem.steps[0].loss(twin, {"mixture.logits": logits}).backward()
        twin_optimizer.step()
        losses.append(problem.outer_loss(twin, {}).item())
    assert answer.report["hypergradient"]["words"] == pytest.approx((losses[0] - losses[1]) / 2e-4, rel=1e-3)


def test_the_engines_give_one_rule_the_same_hypergradient():
    model, optimizer = trained(9)
    found = [
        update_at(looking({"engine": engine}), model, optimizer, 9).report["hypergradient"]
        for engine in ("higher", "one_step", "finite_difference")
    ]
    scale = max(abs(one) for one in found[0].values())
    assert found[1] == pytest.approx(found[0], abs=1e-3 * scale)
    assert found[2] == pytest.approx(found[0], abs=2e-2 * scale)


def test_the_mixture_moves_to_the_objective_that_is_the_target():
    model, optimizer = trained(9)
    learner = looking({"batch_size": 36, "dev_batch_size": 36, "engine": "one_step"}, target=["order"])
    for step in range(9, 209, 20):
        update_at(learner, model, optimizer, step)
    mixture = mixture_of(learner)
    assert max(mixture, key=mixture.get) == "order"
    assert mixture["order"] > 0.45


def test_a_cold_adamw_is_left_alone_until_start():
    model, optimizer = trained(9)
    learner = looking({"start": 10})
    first = learner.policy
    early = update_at(learner, model, optimizer, 9)
    assert early.parts == {}
    assert mixture_of(learner) == first.values("mixture")
    assert "hypergradient" not in early.report
    update_at(learner, model, optimizer, 10)
    assert mixture_of(learner) != first.values("mixture")
    assert LookaheadConfig().start == 100


def test_floor_and_smoothing_bound_each_update():
    model, optimizer = trained(9)
    learner = looking(lr=50.0, floor=0.1, smoothing=0.75)
    update_at(learner, model, optimizer, 9)
    assert min(mixture_of(learner).values()) == pytest.approx(0.75 / 3 + 0.25 * 0.1, abs=1e-6)
    for step in range(19, 119, 10):
        update_at(learner, model, optimizer, step)
        assert min(mixture_of(learner).values()) >= 0.1
        assert sum(mixture_of(learner).values()) == pytest.approx(1, abs=1e-12)


def test_the_entropy_bonus_pulls_a_skewed_mixture_back_whatever_the_hypergradient_scale():
    model, optimizer = trained(9)
    far = {"logits": [4.0, 0.0, 0.0], "outer": {"steps": 0}}
    mixtures = []
    for entropy in (0.0, 100.0):
        learner = looking(entropy=entropy)
        learner.start(learner.policy, State({"mixture": far}))
        update_at(learner, model, optimizer, 9)
        mixtures.append(mixture_of(learner))
    assert mixtures[1]["words"] < mixtures[0]["words"] - 0.05


def test_a_floor_keeps_the_sum_and_an_impossible_one_is_refused():
    assert with_floor({"a": 1.0, "b": 0.0}, 0.2) == pytest.approx({"a": 0.8, "b": 0.2})
    with pytest.raises(UserError, match="too much"):
        make_learner(rule="famo", floor=0.4)
    with pytest.raises(UserError, match="too much"):
        looking(floor=0.5)


def test_impossible_look_aheads_are_refused_in_one_line():
    with pytest.raises(UserError, match="inner_steps=1"):
        looking({"engine": "one_step", "inner_steps": 2})
    with pytest.raises(UserError, match="'mlm', which this run neither trains nor measures"):
        looking(target=["mlm"])
    model, optimizer = trained(3)
    snapshot = take_snapshot(model, optimizer, 3, 1e-2, moments=False)
    with pytest.raises(UserError, match="moments=True"):
        looking().update(snapshot, Evidence())


def test_a_diverged_model_is_named_as_the_reason():
    model, optimizer = trained(3)
    with torch.no_grad():
        model.positions.fill_(math.nan)
    with pytest.raises(UserError, match="diverged"):
        update_at(looking(), model, optimizer, 9)
