"""One look-ahead for all rules that differentiate: each gets the gradient of the held-out loss by its own leaves."""

import copy
import math

import pytest
import torch
from tiny_encoder import ARMS, NAMES, TinyBlocks, make_adamw, make_encoder, make_sources, train

from mlpt.arms import Arms, arms_of
from mlpt.data.batch import Arm, Source
from mlpt.errors import UserError
from mlpt.meta.context import MetaContext
from mlpt.meta.joint_lookahead import LookAhead, LookaheadConfig, each_share
from mlpt.meta.learner import MetaConfig, MetaLearner, Updates
from mlpt.meta.policy import Evidence, Part, Policy
from mlpt.meta.rules.base import LookaheadRule, Share
from mlpt.meta.rules.hypergradient import Hypergradient
from mlpt.meta.snapshot import take_snapshot
from mlpt.settings import load_settings

INSIDE = "norm.weight"  # a parameter that the outer loop trains instead of AdamW
LOGITS = "mixture.logits"


class Inside(LookaheadRule):
    """A rule of a part of its own: an outer tensor takes the place of a parameter, and descends by plain steps."""

    name = "inside"
    part = "inside"

    def apply(self, part, model):
        if part.tensors:
            with torch.no_grad():
                model.get_parameter(INSIDE).copy_(part.tensors[INSIDE])

    def share(self, part, context):
        return Share({INSIDE: context.model.get_parameter(INSIDE).detach().clone().requires_grad_()})

    def descend(self, part, gradients, context):
        before = context.model.get_parameter(INSIDE).detach()
        return Part({}, {INSIDE: before - 0.1 * gradients[INSIDE]})


def trainee(dtype=torch.float64):
    """A model whose `norm.weight` no optimiser trains, and its AdamW, both warm."""
    model = make_encoder(dropout=0.0).to(dtype)
    inside = model.get_parameter(INSIDE)
    optimizer = make_adamw(model, lr=1e-2, eps=1e-6)
    for group in optimizer.param_groups:
        group["params"] = [one for one in group["params"] if one is not inside]
    train(model, optimizer, TinyBlocks(1), 9)
    return model.eval(), optimizer


def context_of(model, optimizer, target=None, arms=ARMS, sources=None, step=9):
    return MetaContext(
        model,
        optimizer,
        arms.every,
        arms.trained,
        target or dict.fromkeys(arms.trained, 1 / len(arms.trained)),
        sources or make_sources(),
        seed=7,
        batch_size=12,
        step=step,
    )


def mixture_rule(**settings):
    return Hypergradient(Hypergradient.Config(**{"floor": 0.1, **settings}), NAMES)


def loss_after(context, steps, logits, inside, target, floor=0.1):
    """The look-ahead by plain torch training of a copy: the function to differentiate numerically."""
    model, optimizer = copy.deepcopy((context.model, context.optimizer))
    with torch.no_grad():
        model.get_parameter(INSIDE).copy_(inside)
    mixture = floor + (1 - 3 * floor) * logits.softmax(0)
    for k in range(steps):
        optimizer.zero_grad()
        losses = [model(name, context.train_inputs(name, 12 // 3, k)) for name in NAMES]
        torch.stack([share * loss for share, loss in zip(mixture.tolist(), losses, strict=True)]).sum().backward()
        optimizer.step()
    with torch.no_grad():
        size = max(2, 12 // len(target))
        held_out = {name: model(name, context.dev_inputs(name, size, 0, context.step, context.step)) for name in target}
    return sum(weight * float(held_out[name]) for name, weight in target.items())


def numeric(context, steps, logits, inside, target, which, h=1e-5):
    start = {"logits": logits, "inside": inside}
    gradient = torch.zeros_like(start[which])
    for place in range(gradient.numel()):
        ends = []
        for sign in (1, -1):
            moved = {**start, which: start[which].clone()}
            moved[which][place] += sign * h
            ends.append(loss_after(context, steps, moved["logits"], moved["inside"], target))
        gradient[place] = (ends[0] - ends[1]) / (2 * h)
    return gradient


TARGETS = {
    "all that train": dict.fromkeys(NAMES, 1 / 3),
    "one": {"order": 1.0},
    "two, by weight": {"noise": 0.2, "words": 0.8},
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
def test_two_rules_share_one_look_ahead_and_each_gets_its_own_gradient(target):
    model, optimizer = trainee()
    context = context_of(model, optimizer, target)
    mixture, inside = mixture_rule(), Inside({}, NAMES)
    policy = Policy(0, {"mixture": mixture.first(), "inside": inside.first()})
    logits = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
    mixture._logits = logits.tolist()
    shares = {"mixture": mixture.share(policy.parts["mixture"], context), "inside": inside.share(Part(), context)}
    shares["mixture"].outer[LOGITS] = logits.clone().requires_grad_()  # in float64, for the differences
    weight = model.get_parameter(INSIDE).detach()
    steps = 2
    expected = {which: numeric(context, steps, logits, weight, target, which) for which in ("logits", "inside")}
    assert all(one.abs().max() > 1e-6 for one in expected.values())
    for engine, tolerance in (("higher", 1e-4), ("finite_difference", 1e-3)):
        look_ahead = LookAhead(LookaheadConfig(engine=engine, inner_steps=steps))
        if engine == "finite_difference":
            look_ahead._engine.radius = 1e-4
        found = look_ahead.gradients(policy, shares, context)
        assert {name: list(leaves) for name, leaves in found.items()} == {"mixture": [LOGITS], "inside": [INSIDE]}
        close = {"rtol": tolerance, "atol": 1e-7}
        torch.testing.assert_close(found["mixture"][LOGITS], expected["logits"], **close)
        torch.testing.assert_close(found["inside"][INSIDE], expected["inside"], **close)


def counted(updates):
    """How often the engine of `updates` was called, as a list that grows."""
    calls = []
    engine = updates._look_ahead._engine
    updates._look_ahead._engine = lambda problem: calls.append(problem) or engine(problem)
    return calls


def test_an_update_solves_one_look_ahead_whose_inner_steps_follow_the_learned_mixture():
    model, optimizer = trainee(torch.float32)
    updates = Updates({"mixture": mixture_rule(), "inside": Inside({}, NAMES)}, LookaheadConfig(start=0))
    calls = counted(updates)
    context = context_of(model, optimizer)
    first = updates.first()
    parts = updates.parts(first, Evidence(), context)
    assert len(calls) == 1
    assert calls[0].outer.keys() == {LOGITS, INSIDE}
    assert parts["mixture"].values != first.values("mixture")
    before = model.get_parameter(INSIDE).detach()
    assert not torch.equal(parts["inside"].tensors[INSIDE], before)
    assert context.report["hypergradient"].keys() == set(NAMES)
    # Alone, a rule that learns no mixture looks ahead with the mixture in force.
    alone = Updates({"inside": Inside({}, NAMES)}, LookaheadConfig(start=0))
    skewed = Policy(0, {"mixture": Part({"words": 0.5, "noise": 0.0, "order": 0.5}), "inside": Part()})
    calls = counted(alone)
    alone.parts(skewed, Evidence(), context)
    loss = calls[0].steps[0].loss(model, calls[0].outer)
    expected = sum(0.5 * model(name, context.train_inputs(name, 12 // 2, 0)) for name in ("words", "order"))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_no_engine_runs_before_the_start_and_parts_stay_the_same_objects():
    model, optimizer = trainee(torch.float32)
    updates = Updates({"mixture": mixture_rule(), "inside": Inside({}, NAMES)}, LookaheadConfig(start=10))
    calls = counted(updates)
    first = updates.first()
    parts = updates.parts(first, Evidence(), context_of(model, optimizer, step=9))
    assert calls == []
    assert all(parts[name] is first.parts[name] for name in first.parts)
    updates.parts(first, Evidence(), context_of(model, optimizer, step=10))
    assert len(calls) == 1


def learner_with(target, arms=ARMS, sources=None, **lookahead):
    model = make_encoder(seed=3)
    settings = {"rules": {"mixture": {"rule": "hypergradient", "floor": 0.0}}, "target": target}
    config = load_settings(MetaConfig, {**settings, "lookahead": {"start": 0, **lookahead}})
    return MetaLearner(config, model, make_adamw(model), sources or make_sources(), arms, 7, batch_size=24)


def report_of(learner):
    model = make_encoder(dropout=0.0)
    optimizer = make_adamw(model, lr=1e-2)
    train(model, optimizer, TinyBlocks(1), 9)
    return learner.update(take_snapshot(model, optimizer, 9, 1e-2, moments=True), Evidence()).report


def test_a_hypergradient_is_linear_in_the_weights_of_its_target():
    """On equally many rows each: that of {words: 3, order: 1} is three quarters of one and a quarter of the other."""
    rows = {"dev_batch_size": 8}
    both = report_of(learner_with({"words": 3, "order": 1}, **{"dev_batch_size": 16}))
    words, order = (report_of(learner_with([name], **rows)) for name in ("words", "order"))
    for name in NAMES:
        expected = 0.75 * words["hypergradient"][name] + 0.25 * order["hypergradient"][name]
        assert both["hypergradient"][name] == pytest.approx(expected, rel=1e-3, abs=1e-7)
    assert both["dev_loss"].keys() == {"words", "order"}
    assert both["dev_loss"]["words"] == pytest.approx(words["dev_loss"]["words"], rel=1e-5)


def test_equal_weights_are_the_plain_mean_however_they_are_written():
    found = [report_of(learner_with(target))["hypergradient"] for target in ((), NAMES, dict.fromkeys(NAMES, 0.2))]
    assert found[0] == found[1] == found[2]


def test_a_target_may_be_a_text_that_nothing_trains_on():
    sources = {**make_sources(), "texts": Source(TinyBlocks(9), TinyBlocks(9), TinyBlocks(9))}
    arms = arms_of(NAMES, [], None, texts=True)
    assert arms.trained == NAMES
    learner = learner_with({"words@texts": 1}, arms, sources)
    assert learner.policy.values("mixture").keys() == set(NAMES)
    report = report_of(learner)
    assert report["dev_loss"].keys() == {"words@texts"}
    assert report["hypergradient"].keys() == set(NAMES)
    model, optimizer = trainee()
    context = context_of(model, optimizer, {"words@texts": 1.0}, arms, sources)
    drawn = context.dev_inputs("words@texts", 5, 0, 9, 9)
    rows = {tuple(row) for row in TinyBlocks(9).batch(torch.arange(40).numpy()).tokens.tolist()}
    kept = drawn.input_ids.clone()
    kept.view(-1)[drawn.positions] = drawn.targets
    assert all(tuple(row) in rows for row in kept.tolist())


def test_arms_of_one_objective_on_several_sources_get_gradients_of_their_own():
    sources = {"a": Source(*(TinyBlocks(n) for n in (1, 2, 4))), "b": Source(*(TinyBlocks(n) for n in (5, 6, 8)))}
    arms = arms_of(["words"], ["a", "b"], "learned", texts=False)
    assert arms.trained == ["words@a", "words@b"]
    report = report_of(learner_with({"words@b": 1}, arms, sources, batch_size=24, dev_batch_size=24))
    assert report["hypergradient"].keys() == {"words@a", "words@b"}
    # one more of the one is one less of the other
    assert sum(report["hypergradient"].values()) == pytest.approx(0, abs=1e-6)
    assert report["dev_loss"].keys() == {"words@b"}


@pytest.mark.parametrize(("rows", "arms", "each"), [(32, 4, 8), (7, 3, 2), (4, 4, 2), (2, 9, 2)])
def test_rows_are_shared_out_among_the_arms_two_at_least(rows, arms, each):
    assert each_share(rows, arms) == each


def test_a_gradient_that_is_no_number_is_divergence():
    model, optimizer = trainee(torch.float32)
    with torch.no_grad():
        model.get_parameter("positions").fill_(math.nan)
    updates = Updates({"inside": Inside({}, NAMES)}, LookaheadConfig(start=0))
    with pytest.raises(UserError, match="hypergradient at step 9 is not finite: training has diverged"):
        updates.parts(updates.first(), Evidence(), context_of(model, optimizer))


def test_weights_of_a_target_name_arms_objectives_or_sources():
    every = {name: Arm(name, *name.split("@")) for name in ("mlm@a", "mlm@b", "cse@a", "cse@b")}
    arms = Arms({**every, "mlm@texts": Arm("mlm@texts", "mlm", "texts")}, list(every))
    assert arms.weights({}, "t") == dict.fromkeys(every, 0.25)
    assert arms.weights({"mlm@a": 2}, "t") == {"mlm@a": 1.0}
    assert arms.weights({"mlm": 1}, "t") == {"mlm@a": 0.5, "mlm@b": 0.5}  # those that train
    assert arms.weights({"a": 3, "cse@b": 1}, "t") == {"mlm@a": 0.375, "cse@a": 0.375, "cse@b": 0.25}
    assert arms.weights({"texts": 1}, "t") == {"mlm@texts": 1.0}
    assert arms.weights({"a": 1, "mlm@a": 1}, "t") == {"mlm@a": 0.75, "cse@a": 0.25}
    with pytest.raises(UserError, match="t names 'dtd', which this run neither trains nor measures: mlm@a, mlm@b"):
        arms.weights({"dtd": 1}, "t")
