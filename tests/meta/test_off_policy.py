"""With a lag, draws come from an older policy than the newest: the estimators of `mometas` and `exp3` stay unbiased.

The loop's own parts, without a model to train: `Outer` launches and adopts, `draw_arms` draws, the rule updates.
"""

import itertools
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from mlpt.meta.learner import MetaConfig
from mlpt.meta.policy import Answer, Evidence
from mlpt.meta.rules.exp3 import Exp3
from mlpt.meta.rules.mometas import Mometas
from mlpt.settings import load_settings
from mlpt.storage.state import State
from mlpt.training.draw import draw_arms
from mlpt.training.group import Group
from mlpt.training.meter import Seen
from mlpt.training.outer import Outer

NAMES = ["a", "b", "c", "d"]
INTERVAL = 100
UPDATES = 10
SEEDS = 20


@dataclass
class Rewarding:
    """A `MetaContext` in which the held-out losses fall by 60 % of one objective's between two updates, whatever."""

    step: int
    target = dict.fromkeys(NAMES, 1 / len(NAMES))
    report: dict = field(default_factory=dict)

    def dev_losses(self, arms, batches, size, texts, noise):
        fresh = texts == self.step
        return {**dict.fromkeys(NAMES, 1.0), "a": 1.0 if fresh else 0.4}


class Updating:
    """A `PolicySource` around a rule; keeps what the rule was told and its state after it."""

    def __init__(self, rule):
        self.rule, self.evidence, self.states = rule, [], []

    def start(self, policy, state):
        self.policy = policy

    def launch(self, snapshot, evidence):
        self.evidence.append(evidence)
        part = self.rule.update(self.policy.parts["mixture"], evidence, Rewarding(snapshot.step))
        self.answer = Answer(self.policy.version + 1, {"mixture": part}, State())
        self.policy = self.policy.after(self.answer)
        self.states.append(self.rule.state().values)

    def collect(self):
        return self.answer


def simulated(rule, lag, seed, draw="step", micro_batches=1, updates=UPDATES):
    """A run's outer loop of `updates` intervals; objective i always has a training loss of i + 1."""
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    source = Updating(rule)
    config = load_settings(MetaConfig, {"interval": INTERVAL, "lag": lag, "rules": {"mixture": rule.name}})
    outer = Outer(config, NAMES, source, Group())
    outer.start(model)
    for step in range(updates * INTERVAL + 1):
        outer.adopt_if_due(step, model)
        if outer.launch_due(step):
            outer.launch(step, model, optimizer, 1e-3)
            outer.adopt_if_due(step, model)
        for slot in draw_arms(draw, outer.draw(), seed, step, micro_batches):
            for name, weight in slot:
                outer.observe({name: Seen(NAMES.index(name) + 1.0, 1, weight / micro_batches)})
    return source


def mean_cosine(moves):
    pairs = itertools.pairwise(moves)
    return np.mean([one @ other / np.linalg.norm(one) / np.linalg.norm(other) for one, other in pairs])


@pytest.mark.parametrize("lag", [0, 20, 100])
def test_successive_score_moves_of_mometas_do_not_undo_each_other(lag):
    cosines, centred = [], []
    for seed in range(SEEDS):
        source = simulated(Mometas(Mometas.Config(), NAMES), lag, seed)
        scores = np.array([state["scores"] for state in source.states[1:]])  # the first update takes the baseline
        cosines.append(mean_cosine(np.diff(scores, axis=0)))
        centred += [[one.draws.get(n, 0) - one.expected[n] for n in NAMES] for one in source.evidence[1:]]
    # Moves lie in the three dimensions that sum to zero, so the cosine of independent ones has a variance of 1/3.
    assert abs(np.mean(cosines)) < 4 * np.sqrt(1 / 3 / (SEEDS * (UPDATES - 2)))
    # With a reward that does not depend on the draws, the gradient's mean is zero.
    assert np.all(np.abs(np.mean(centred, axis=0)) < 4 * np.std(centred, axis=0) / np.sqrt(len(centred)))


@pytest.mark.parametrize("lag", [0, 20, 100])
def test_the_reward_estimates_of_exp3_have_the_losses_as_their_mean(lag):
    estimates = []
    for seed in range(SEEDS):
        rule = Exp3(Exp3.Config(reward="loss", smoothing=0.0), NAMES)
        estimates += [state["rewards"] for state in simulated(rule, lag, seed).states[1:]]
    error = np.mean(estimates, axis=0) - np.array([1.0, 2.0, 3.0, 4.0])
    assert np.all(np.abs(error) < 4 * np.std(estimates, axis=0) / np.sqrt(len(estimates)))


@pytest.mark.parametrize("draw", ["step", "stratified", "weighted"])
def test_evidence_carries_the_probabilities_in_force_of_both_policies_in_an_interval(draw):
    source = simulated(Mometas(Mometas.Config(lr=0.3), NAMES), 20, 1, draw, micro_batches=3, updates=3)
    before, _, last = source.evidence[1:]
    assert before.expected == pytest.approx(dict.fromkeys(NAMES, INTERVAL / 4))
    softmax = [torch.tensor(state["scores"], dtype=torch.float64).softmax(0) for state in source.states]
    expected = 20 * softmax[1] + 80 * softmax[2]  # 20 steps until the answer of step 200 was adopted
    assert [last.expected[name] for name in NAMES] == pytest.approx(expected.tolist(), rel=1e-12)
    assert sum(last.draws.values()) == pytest.approx(INTERVAL)
    if draw == "weighted":
        assert last.draws == pytest.approx(last.expected)


def test_evidence_without_the_probabilities_of_its_draws_is_refused():
    with pytest.raises(ValueError, match="probabilities"):
        Evidence(draws={"a": 3.0})
