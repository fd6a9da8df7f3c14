"""Rules that look at training losses, `ado`, `doremi` and `loss_ratio`, against their equations; guard rails of all."""

import json
import math

import numpy as np
import pytest
from tiny_encoder import ARMS, TinyBlocks, make_adamw, make_encoder, make_sources, train

from mlpt.errors import UserError
from mlpt.meta.learner import MetaConfig, MetaLearner
from mlpt.meta.policy import Evidence
from mlpt.meta.rules import RULES, rule_class, rule_config
from mlpt.meta.rules.ado import power_law, rate
from mlpt.meta.rules.mixture import with_floor
from mlpt.meta.snapshot import take_snapshot
from mlpt.settings import load_settings
from mlpt.storage.state import State

NAMES = ["a", "b", "c"]


class At:
    """As much of a context as these rules read."""

    def __init__(self, step):
        self.step, self.report = step, {}


def make(rule, arms=NAMES, **settings):
    config = rule_config("mixture", {"rule": rule, **settings})
    return rule_class("mixture", rule)(config, arms)


def evidence(losses, part, steps=10):
    return Evidence(dict.fromkeys(NAMES, steps / 3), losses, {name: steps * p for name, p in part.values.items()})


def shares(part):
    return [part.values[name] for name in NAMES]


def test_doremi_is_exponentiated_gradient_on_clipped_excess_mixed_with_uniform():
    rule = make("doremi", reference={"a": 2.0, "b": 3.0, "c": 1.0}, lr=0.5, floor=0.01)
    part, alpha = rule.first(), np.full(3, 1 / 3)
    excess, seen = np.zeros(3), []
    for losses in ({"a": 3.0, "b": 2.5, "c": 1.1}, {"a": 2.2, "b": 3.4}):  # c is not drawn: its excess stays
        part = rule.update(part, evidence(losses, part), context := At(10))
        excess = np.array(
            [max(0.0, losses[n] - r) if n in losses else e for n, r, e in zip(NAMES, (2, 3, 1), excess, strict=True)]
        )
        alpha = alpha * np.exp(0.5 * excess)
        alpha = 0.97 * alpha / alpha.sum() + 0.01
        seen.append(alpha)
        assert shares(part) == pytest.approx(alpha.tolist(), abs=1e-12)
    assert list(context.report["average_mixture"].values()) == pytest.approx(np.mean(seen, axis=0).tolist())


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ({"a": 1, "b": 1}, "no loss of 'c'"),
        ({"a": 1, "b": 1, "c": 1, "d": 1}, "names 'd'"),
        ({"a": -1}, "numbers >= 0"),
    ],
)
def test_doremi_refuses_references_that_are_not_of_every_arm(reference, said):
    with pytest.raises(UserError, match=said):
        make("doremi", reference=reference)


def test_loss_ratio_follows_inverse_training_rates():
    rule = make("loss_ratio", power=2, floor=0, smoothing=0)
    part = rule.update(rule.first(), evidence({"a": 8.0, "b": 4.0}, rule.first()), At(10))
    assert shares(part) == pytest.approx([1 / 3] * 3)  # each is at its beginning
    part = rule.update(part, evidence({"a": 4.0, "b": 3.0, "c": 5.0}, part), At(20))
    ratios = np.array([4 / 8, 3 / 4, 1.0]) ** 2
    assert shares(part) == pytest.approx((ratios / ratios.sum()).tolist(), abs=1e-12)
    part = rule.update(part, evidence({"c": 2.5}, part), At(30))  # a and b keep their ratios
    ratios = np.array([4 / 8, 3 / 4, 2.5 / 5]) ** 2
    assert shares(part) == pytest.approx((ratios / ratios.sum()).tolist(), abs=1e-12)


def test_the_power_law_of_exact_points_is_found_and_its_rate_is_its_slope():
    exponent = 2.0 * (0.02 / 2.0) ** (10 / 40)  # the grid's own, geometric from .02 to 2 in 41 points
    law = [1.5 + 7.0 * n**-exponent for n in (30, 60, 120, 300, 700)]
    least, size, found = power_law(list(zip((30, 60, 120, 300, 700), law, strict=True)))
    assert (least, size, found) == pytest.approx((1.5, 7.0, exponent), rel=1e-6)
    slope = (7.0 * 701.0**-exponent - 7.0 * 699.0**-exponent) / 2
    assert rate(least, size, found, 700) == pytest.approx(-slope, rel=1e-4)


@pytest.mark.parametrize("prior", [None, {"a": 1.0, "b": 6.0, "c": 3.0}])
def test_ado_draws_by_prior_times_credit_times_predicted_fall(prior):
    laws = {"a": (1.0, 9.0), "b": (2.0, 4.0), "c": (3.0, 0.0)}  # c has nothing left to learn
    rule = make("ado", prior=prior, floor=0, smoothing=0, history=0, credit=0.5, start=0)
    part = rule.first()
    weights = prior or dict.fromkeys(NAMES, 1.0)
    assert shares(part) == pytest.approx([weights[name] / sum(weights.values()) for name in NAMES])
    in_force = {"a": 2.0, "b": 7.0, "c": 1.0}
    exponent = 0.2  # on the grid: .02 * 100 ** (20 / 40)
    for step in (20, 30, 40, 50):
        losses = {name: least + size * (step - 5) ** -exponent for name, (least, size) in laws.items()}
        before = part
        part = rule.update(part, Evidence(in_force, losses, in_force), At(step))
        if step < 50:
            assert part is before  # too few points for three parameters
    slopes = {name: exponent * size * 50 ** (-exponent - 1) for name, (_, size) in laws.items()}
    pulls = {name: weights[name] * math.sqrt(in_force[name] / 10) * slopes[name] for name in NAMES}
    assert shares(part) == pytest.approx([pulls[name] / sum(pulls.values()) for name in NAMES], abs=1e-6)


def test_ados_credit_begins_as_if_the_prior_had_been_drawn():
    prior = {"a": 0.1, "b": 0.6, "c": 0.3}
    rule = make("ado", prior=prior, history=0.9, start=0)
    drawn = {"a": 5.0, "b": 3.0, "c": 2.0}
    rule.update(rule.first(), Evidence(drawn, {}, drawn), At(10))
    expected = [0.9 * prior[name] + 0.1 * drawn[name] / 10 for name in NAMES]
    assert rule.state().values["shares"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prior", "said"),
    [
        ({"a": 1, "b": 1}, "no weight of 'c'"),
        ({"a": 1, "b": 1, "c": 1, "d": 1}, "names 'd'"),
        ({"a": 0, "b": 1, "c": 1}, "numbers above 0"),
    ],
)
def test_ado_refuses_priors_that_are_not_of_every_arm(prior, said):
    with pytest.raises(UserError, match=said):
        make("ado", prior=prior)


def test_ado_fits_no_loss_from_before_its_start():
    rule = make("ado", start=100)
    part = rule.first()
    for step in (100, 150, 200, 250):  # the first is of the steps 50 to 99
        part = rule.update(part, evidence(dict.fromkeys(NAMES, 300 / step), part, steps=50), At(step))
        assert shares(part) == [1 / 3] * 3
    for seen in rule.state().values["seen"].values():
        assert [middle for middle, _ in seen] == [125, 175, 225]


def test_ado_without_a_falling_loss_leaves_the_mixture_alone():
    rule = make("ado", start=0)
    part = rule.first()
    for step in range(10, 100, 10):
        part = rule.update(part, evidence(dict.fromkeys(NAMES, 2.0 + step / 100), part), At(step))
    assert shares(part) == pytest.approx([1 / 3] * 3)


SETTINGS = {
    "exp3": {},
    "mometas": {"dev_batch_size": 8},
    "famo": {"dev_batch_size": 8},
    "hypergradient": {"entropy": 0},
    "dga": {"averaging": 0, "doubt": 0},
    "dga_shrunk": {"doubt": 0, "entropy": 0},
    "ado": {"start": 0},
    "doremi": {"reference": {"words": 0.5, "noise": 0.1, "order": 0.1}},
    "loss_ratio": {},
}
LEARNS = [name for name, rule in RULES["mixture"].items() if rule.learns and name != "staged"]


def learner_of(rule, lookahead=0, **settings):
    values = {"rule": rule, **SETTINGS[rule], **settings}
    config = load_settings(
        MetaConfig,
        {"interval": 10, "rules": {"mixture": values}, "lookahead": {"engine": "one_step", "start": lookahead}},
    )
    model = make_encoder(seed=3)
    return MetaLearner(config, model, make_adamw(model), make_sources(), ARMS, seed=7, batch_size=12)


def updated(learner, updates=9, first=0):
    """The mixtures after updates `first` and on of one training run, in which the arms' losses differ."""
    model = make_encoder()
    optimizer = make_adamw(model, lr=1e-2)
    found = []
    for number in range(first + updates):
        if number:
            train(model, optimizer, TinyBlocks(1), 10, seed=10 * number)
        if number < first:
            continue
        old = learner.policy.values("mixture")
        losses = {"words": 4 - 0.3 * number, "noise": 0.6, "order": 0.7 - 0.02 * number}
        seen = Evidence({"words": 6, "noise": 3, "order": 1}, losses, {name: 10 * p for name, p in old.items()})
        learner.update(take_snapshot(model, optimizer, 10 * number, 1e-2, moments=True), seen if number else Evidence())
        found.append(learner.policy.values("mixture"))
    return found


@pytest.mark.parametrize("rule", LEARNS)
def test_every_rule_that_learns_keeps_the_floor(rule):
    found = updated(learner_of(rule, floor=0.3))
    assert all(min(mixture.values()) >= 0.3 - 1e-12 for mixture in found)
    assert max(max(mixture.values()) for mixture in found) > 0.334  # and learns within it
    with pytest.raises(UserError, match=r"floor=0\.4 is too much for 3 arms"):
        learner_of(rule, floor=0.4)


@pytest.mark.parametrize("rule", LEARNS)
def test_a_floor_that_nobody_set_leaves_room_to_learn_among_any_number_of_arms(rule):
    usual = {"exp3": 0, "mometas": 0, "ado": 0.01, "dga_shrunk": 0.01, "doremi": 0.001}.get(rule, 0.02)
    for count in (3, 25, 50, 100, 1000):
        arms = [f"mlm@{number}" for number in range(count)]
        reference = {"reference": dict.fromkeys(arms, 1.0)} if rule == "doremi" else {}
        one = make(rule, arms, **reference)
        assert one.floor == min(usual, 0.5 / count)
        moved = with_floor({arm: float(arm == "mlm@1") for arm in arms}, one.floor)
        assert moved["mlm@1"] > 0.5
        assert sum(moved.values()) == pytest.approx(1)


@pytest.mark.parametrize(("count", "floor"), [(100, 0.01), (50, 0.02), (6, 1 / 6)])
def test_a_floor_that_leaves_nothing_to_learn_is_refused_with_one_that_fits(count, floor):
    arms = [f"mlm@{number}" for number in range(count)]
    with pytest.raises(UserError, match=f"too much for {count} arms") as refused:
        make("dga", arms, floor=floor)
    make("dga", arms, floor=float(str(refused.value).rpartition(" ")[2]))
    make("dga", ["mlm"], floor=0.5)  # one arm has no other share


@pytest.mark.parametrize("rule", LEARNS)
def test_no_rule_moves_before_its_start(rule):
    looks = rule in ("hypergradient", "dga", "dga_shrunk")
    learner = learner_of(rule, lookahead=50) if looks else learner_of(rule, start=50)
    found = updated(learner, updates=13)
    uniform = dict.fromkeys(found[0], 1 / 3)
    assert all(mixture == pytest.approx(uniform) for mixture in found[:5])
    assert found[-1] != pytest.approx(uniform)


@pytest.mark.parametrize("rule", [name for name in LEARNS if name != "exp3"])  # which smooths its rewards
def test_smoothing_keeps_a_share_of_the_old_mixture(rule):
    sharp, smooth = (
        next(m for m in updated(learner_of(rule, smoothing=keep)) if m != pytest.approx(dict.fromkeys(m, 1 / 3)))
        for keep in (0, 0.75)
    )
    expected = {name: 0.75 / 3 + 0.25 * share for name, share in sharp.items()}
    assert smooth == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("rule", ["ado", "dga", "dga_shrunk", "doremi", "loss_ratio"])
def test_a_rule_goes_on_from_its_state_bit_for_bit(rule):
    whole = updated(learner_of(rule), updates=8)
    first = learner_of(rule)
    updated(first, updates=5)
    second = learner_of(rule)
    state = first.state()
    second.start(first.policy, State(json.loads(json.dumps(state.values)), state.tensors))
    assert updated(second, updates=3, first=5) == whole[5:]
