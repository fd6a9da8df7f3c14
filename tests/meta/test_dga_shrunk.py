"""Rule `dga_shrunk` against its equations in plain numpy, and against noise of a known size."""

import math

import numpy as np
import pytest
import torch
from tiny_encoder import ARMS, TinyBlocks, make_adamw, make_encoder, make_sources, train

from mlpt.config import load_run_config
from mlpt.errors import UserError
from mlpt.meta.engines.base import by_parameter_of
from mlpt.meta.learner import MetaConfig, MetaLearner
from mlpt.meta.policy import Evidence, Part
from mlpt.meta.rules.dga import WEIGHTS
from mlpt.meta.rules.dga_shrunk import DgaShrunk
from mlpt.meta.snapshot import take_snapshot
from mlpt.settings import load_settings
from mlpt.storage.state import State


class Reported:
    """As much of a context as `descend` writes to."""

    step = 20

    def __init__(self):
        self.report = {}


def descend(rule, part, shares):
    """`shares` (parameters, arms) of alignments."""
    shares = torch.as_tensor(shares, dtype=torch.float64)
    gradients = {WEIGHTS: -shares.sum(0), by_parameter_of(WEIGHTS): -shares}
    return rule.descend(part, gradients, Reported())


def mixture(part):
    return np.array(list(part.values.values()))


def made(**settings):
    return DgaShrunk(DgaShrunk.Config(**{"entropy": 0, "floor": 0, **settings}), ["a", "b", "c"])


def by_hand(seen, lr, averaging, memory, doubt, entropy=0.0):
    """The mixture after updates that saw `seen` (updates, parameters, arms), each from the sums over all before it."""
    logits, in_noise = np.zeros(3), []

    def weighted(keep, count):
        return keep ** np.arange(count - 1, -1, -1.0)

    def averages(count):
        weights = weighted(averaging, count)
        past = np.array(in_noise[:count])
        return np.average(past, axis=0, weights=weights), math.sqrt(
            np.average((past.sum(1) ** 2).mean(1), weights=weights)
        )

    for count in range(1, len(seen) + 1):
        alpha = np.exp(logits) / np.exp(logits).sum()
        in_noise.append(np.sqrt(alpha) * (seen[count - 1] - (seen[count - 1] * alpha).sum(1, keepdims=True)))
        moved, evidence = np.zeros(3), 0.0
        if count > 2:
            before = [averages(earlier) for earlier in range(1, count)]
            products = np.array([(m * b).sum(1) / scale**2 for (m, scale), b in zip(before, in_noise[1:], strict=True)])
            sizes = np.array([(m**2).sum(1) / scale**2 for m, scale in before])
            weights = weighted(memory, count - 1)
            sure = weights @ products - doubt * np.sqrt(weights**2 @ products**2)
            factors = np.clip(sure / (weights @ sizes), 0, 1)
            evidence = weights @ products.sum(1) / np.sqrt(weights**2 @ products.sum(1) ** 2)
            mean, scale = averages(count)
            moved = factors @ mean / scale
        logits = logits + lr * (moved - entropy / max(1, evidence) * alpha * (np.log(alpha) - alpha @ np.log(alpha)))
    return np.exp(logits) / np.exp(logits).sum()


def test_a_step_is_that_of_its_equations():
    seen = np.random.default_rng(0).normal([0.5, 0.0, -0.3], [[0.2], [0.5], [1.0], [3.0]], size=(12, 4, 3))
    rule = made(lr=0.7, averaging=0.7, memory=0.9, doubt=0.5, entropy=0.3)
    part = rule.first()
    for update in seen:
        part = descend(rule, part, update)
    assert mixture(part) == pytest.approx(by_hand(seen, 0.7, 0.7, 0.9, 0.5, 0.3), abs=1e-9)
    assert mixture(part) != pytest.approx(by_hand(seen, 0.7, 0.7, 0.9, 0.0, 0.3), abs=1e-3)


def test_a_tensor_of_noise_does_not_drown_one_that_is_sure():
    """One tensor always says the same, another a hundred times as much, and something else each time."""
    draws = np.random.default_rng(1).normal(size=(40, 3)) * 100
    sure, found = np.array([1.0, 0.0, -1.0]), {}
    for doubt in (0.0, 2.0):
        rule = made(doubt=doubt)
        steps, part = [], rule.first()
        for noise in draws:
            before = np.log(mixture(part))
            part = descend(rule, part, np.stack([sure, noise]))
            steps.append(np.log(mixture(part)) - before)
        found[doubt] = np.array(steps[10:])[:, 0] - np.array(steps[10:])[:, 2]
    assert found[2.0].min() > 0  # towards a, at each update
    assert found[0.0].min() < 0


def test_by_noise_alone_a_mixture_hardly_leaves_equal_parts():
    """The median of 40 runs of 150 updates; what is said again and again is heard in each of them."""
    generator, noise, said = np.random.default_rng(2), [], []
    for _ in range(40):
        draws = generator.normal(size=(150, 8, 3))
        for found, means in ((noise, [0.0, 0.0, 0.0]), (said, [1.0, 0.0, -1.0])):
            rule = DgaShrunk(DgaShrunk.Config(), ["a", "b", "c"])
            part = rule.first()
            for update in draws + np.array(means):
                part = descend(rule, part, update)
            found.append(mixture(part))
    assert np.median(np.abs(np.array(noise) - 1 / 3).max(1)) < 0.06
    assert np.array(said)[:, 0].min() > 0.9


def test_the_pull_towards_equal_parts_lets_go_as_evidence_grows():
    """So much doubt that no tensor is heard: only the pull is left, from the same unequal parts."""
    draws = np.random.default_rng(6).normal(size=(100, 4, 3))
    evidence, apart = {}, {}
    for said in (0.0, 1.0):
        rule = made(entropy=0.1, doubt=1e9)
        rule.load_state(State({"logits": [2.0, 0.0, 0.0], "updates": 0}))
        context, part = Reported(), Part({"a": 0.8, "b": 0.1, "c": 0.1})
        for update in draws + said * np.array([1.0, 0.0, -1.0]):
            part = rule.descend(part, {WEIGHTS: -torch.tensor(update.sum(0))}, context)
        evidence[said], apart[said] = context.report["evidence"], mixture(part)[0] - 1 / 3
    assert abs(evidence[0.0]) < 2.5
    assert evidence[1.0] > 4
    assert 0 < apart[0.0] < apart[1.0] / 3


def test_an_arm_with_few_rows_is_moved_by_noise_no_more_than_the_others():
    """Of three alike arms one has a fiftieth of the rows: its alignments are five times as far from what they mean."""
    shares = np.array([0.49, 0.49, 0.02])
    generator, moved = np.random.default_rng(5), []
    for _ in range(300):
        rule = made(lr=1.0, doubt=0.0)
        rule.load_state(State({"logits": np.log(shares).tolist(), "updates": 0}))
        part = Part(dict(zip("abc", shares.tolist(), strict=True)))
        for update in generator.normal(size=(3, 4, 3)) / np.sqrt(shares):
            part = descend(rule, part, update)
        moved.append(np.array(rule.state().values["logits"]) - np.log(shares))
    apart = np.array(moved) @ [1, -1, 0]  # the two with many rows
    assert np.std(np.array(moved)[:, 2]) < np.std(apart)  # as they come: 1.5 times as much


def test_the_state_goes_on_bit_for_bit():
    draws = np.random.default_rng(3).normal([1.0, 0.0, -1.0], 1.0, size=(9, 4, 3))
    rule, other = made(entropy=0.1), made(entropy=0.1)
    part = rule.first()
    for update in draws[:4]:
        part = descend(rule, part, update)
    state = rule.state()
    other.load_state(State(dict(state.values), {name: one.clone() for name, one in state.tensors.items()}))
    theirs = part
    for update in draws[4:]:
        part, theirs = descend(rule, part, update), descend(other, theirs, update)
    assert part.values == theirs.values
    fresh = made()
    fresh.load_state(made().state())
    assert descend(fresh, fresh.first(), draws[0]).values == made().first().values


def test_an_engine_that_tells_no_parameters_apart_is_one_tensor():
    seen = np.random.default_rng(4).normal([0.5, 0.0, -0.3], 0.4, size=(5, 1, 3))
    rule = made(lr=0.7, averaging=0.8, memory=0.9, doubt=0.5)
    part = rule.first()
    for update in seen:
        part = rule.descend(part, {WEIGHTS: -torch.tensor(update[0])}, Reported())
    assert mixture(part) == pytest.approx(by_hand(seen, 0.7, 0.8, 0.9, 0.5), abs=1e-9)


def test_a_learner_that_looks_ahead_gives_it_what_it_asks_for():
    model = make_encoder(dropout=0.0)
    optimizer = make_adamw(model, lr=1e-2)
    train(model, optimizer, TinyBlocks(1), 9)
    settings = {
        "rules": {"mixture": "dga_shrunk"},
        "lookahead": {"start": 0, "engine": "one_step"},
        "target": ["order"],
    }
    config = load_settings(MetaConfig, settings)
    other = make_encoder(seed=3)
    learner = MetaLearner(config, other, make_adamw(other), make_sources(), ARMS, seed=7, batch_size=24)
    answers = [
        learner.update(take_snapshot(model, optimizer, step, 1e-2, moments=True), Evidence()) for step in range(9, 15)
    ]
    assert answers[0].report["heard"] == 0
    assert 0 < answers[-1].report["heard"] <= 1
    shares = list(answers[-1].parts["mixture"].values.values())
    assert sum(shares) == pytest.approx(1)
    assert max(shares) > 1 / len(shares) + 1e-3


def test_engines_that_cannot_tell_parameters_apart_are_refused():
    settings = {"data.source": "docs", "meta.rules.mixture": "dga_shrunk", "objectives": ["mlm", "dtd"]}
    with pytest.raises(UserError, match="engine=one_step"):
        load_run_config(None, settings)
    for engine in ("alignment", "one_step", "auto"):
        load_run_config(None, {**settings, "meta.lookahead.engine": engine})
    with pytest.raises(UserError, match="inner_steps=1"):
        load_run_config(None, {**settings, "meta.lookahead.engine": "auto", "meta.lookahead.inner_steps": 2})
