"""The loop's side of meta-learning with a part of tensors: answers carry what changed, checkpoints keep the rest."""

import json
from pathlib import Path

import pytest
import torch
from ranks import run_ranks

from mlpt.meta.learner import MetaConfig, first_policy
from mlpt.meta.policy import Answer, Part, Policy
from mlpt.meta.rules import RULES
from mlpt.meta.rules.base import Rule, RuleConfig
from mlpt.settings import load_settings
from mlpt.storage.state import State
from mlpt.training.group import Group
from mlpt.training.meter import Seen
from mlpt.training.outer import Outer, newer, policy_of, policy_state

NAMES = ["mlm", "cse"]


class Weights(Rule):
    """A rule whose part and state have tensors; every other update leaves them as they are."""

    name = "weights"
    part = "weights"

    class Config(RuleConfig):
        rule: str = "weights"

    def __init__(self, config, arms):
        super().__init__(config, arms)
        self._updates, self._momentum = 0, torch.zeros(3)

    def apply(self, part, model):
        with torch.no_grad():
            model.weight.copy_(part.tensors.get("weight", torch.zeros_like(model.weight)))

    def update(self, part, evidence, context):
        self._updates += 1
        if self._updates % 2 == 0:
            return part
        self._momentum = self._momentum * 0.9 + torch.tensor([0.1, 0.2, 0.3]) * context
        before = part.tensors.get("weight", torch.zeros(1, 3))
        return Part({"updates": self._updates}, {"weight": before + self._momentum})

    def state(self):
        return State({"updates": self._updates}, {"momentum": self._momentum})

    def load_state(self, state):
        self._updates, self._momentum = state.values["updates"], state.tensors["momentum"].clone()


class Mixing(Rule):
    """A rule of the mixture that always changes it, and keeps no tensors."""

    name = "mixing"
    part = "mixture"

    class Config(RuleConfig):
        rule: str = "mixing"

    def __init__(self, config, arms):
        super().__init__(config, arms)
        self._share = 0.5

    def first(self):
        return Part({"mlm": 0.5, "cse": 0.5})

    def update(self, part, evidence, context):
        self._share = 0.9 * self._share + 0.01 * evidence.draws.get("mlm", 0.0)
        return Part({"mlm": self._share, "cse": 1 - self._share})

    def state(self):
        return State({"share": self._share})

    def load_state(self, state):
        self._share = state.values["share"]


@pytest.fixture(autouse=True)
def rules(monkeypatch):
    monkeypatch.setitem(RULES, "weights", {"weights": Weights})
    monkeypatch.setitem(RULES["mixture"], "mixing", Mixing)


def config_of(lag):
    rules = {"mixture": {"rule": "mixing"}, "weights": {"rule": "weights"}}
    return load_settings(MetaConfig, {"interval": 4, "lag": lag, "rules": rules})


class Learner:
    """A `PolicySource` that updates the rules as `MetaLearner` does, without a model to measure."""

    def __init__(self, config):
        from mlpt.meta.learner import Updates
        from mlpt.meta.rules import make_rules

        self.updates = Updates(make_rules(config.rules, NAMES), config.lookahead)
        self.first = self.updates.state()
        self.answers = []

    def start(self, policy, state):
        self.policy = policy
        self.updates.load_state(self.first if state is None else state)

    def launch(self, snapshot, evidence):
        rules = self.updates.rules
        parts = {
            name: rule.update(self.policy.parts[name], evidence, snapshot.step + 1) for name, rule in rules.items()
        }
        changed = {name: part for name, part in parts.items() if part is not self.policy.parts[name]}
        state = self.updates.state(changed)
        self.answers.append(Answer(self.policy.version + 1, changed, state, {"at": snapshot.step}))
        self.policy = self.policy.after(self.answers[-1])

    def collect(self):
        return self.answers[-1]


class Run:
    """A loop that only launches and adopts; everything about it follows from its steps."""

    def __init__(self, lag, group=None):
        self.model = torch.nn.Linear(3, 1, bias=False)
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.group = group or Group()
        config = config_of(lag)
        self.learner = Learner(config)
        self.outer = Outer(config, NAMES, self.learner if self.group.leads else None, self.group)
        self.seen = []

    def steps(self, first, last):
        for step in range(first, last):
            self.adopt(step)
            if self.outer.launch_due(step):
                self.outer.launch(step, self.model, self.optimizer, 1e-3)
                self.adopt(step)
            mixture = self.outer.draw()
            self.outer.observe({NAMES[step % 3 // 2]: Seen(1.0, 1, 1.0)})
            self.seen.append((step, self.outer.policy.version, dict(mixture), self.model.weight.tolist()))

    def adopt(self, step):
        report = self.outer.adopt_if_due(step, self.model)
        if report is not None:
            self.seen.append(("report", step, dict(report)))


def through_json(state):
    """A state as a checkpoint keeps it: JSON, and tensors of its own."""
    return State(json.loads(json.dumps(state.values)), {name: one.clone() for name, one in state.tensors.items()})


def assert_same(ours, theirs):
    assert ours.values == theirs.values
    assert ours.tensors.keys() == theirs.tensors.keys()
    assert all(torch.equal(one, theirs.tensors[name]) for name, one in ours.tensors.items())


def untimed(state):
    return State({key: value for key, value in state.values.items() if key != "seconds"}, state.tensors)


def test_answers_whose_part_did_not_change_carry_no_tensors():
    run = Run(lag=0)
    run.outer.start(run.model)
    run.steps(0, 16)
    assert [sorted(answer.parts) for answer in run.learner.answers] == [
        ["mixture", "weights"],
        ["mixture"],
        ["mixture", "weights"],
        ["mixture"],
    ]
    assert [sorted(answer.state.tensors) for answer in run.learner.answers] == [["weights/momentum"], []] * 2
    assert all(answer.state.values["weights"]["updates"] == n for n, answer in enumerate(run.learner.answers, 1))


@pytest.mark.parametrize("lag", [0, 2, 4])
def test_the_kept_state_is_the_learners_whole_state_after_every_adoption(lag):
    run = Run(lag)
    run.outer.start(run.model)
    adopted = 0
    for step in range(20):
        run.steps(step, step + 1)
        if run.outer.policy.version == adopted:
            continue
        adopted = run.outer.policy.version
        if run.learner.policy.version == adopted:  # nothing newer is under way
            assert_same(run.outer.state().part("learner"), run.learner.updates.state())
            assert torch.equal(run.model.weight, run.outer.policy.tensors("weights")["weight"])
    assert adopted == {0: 5, 2: 5, 4: 4}[lag]


@pytest.mark.parametrize("lag", [0, 2, 3, 4])
@pytest.mark.parametrize("at", [1, 4, 5, 8, 9, 10, 13])
def test_a_checkpoints_state_restores_bit_for_bit(lag, at):
    whole = Run(lag)
    whole.outer.start(whole.model)
    whole.steps(0, 24)
    first = Run(lag)
    first.outer.start(first.model)
    first.steps(0, at)
    first.adopt(at)
    first.outer.settle()
    kept = first.outer.state()
    second = Run(lag)
    second.outer.load_state(through_json(kept))
    assert_same(second.outer.state(), kept)
    second.outer.start(second.model)
    assert_same(second.learner.updates.state(), first.learner.updates.state())
    second.steps(at, 24)
    assert first.seen + second.seen == whole.seen
    assert_same(untimed(second.outer.state()), untimed(whole.outer.state()))


def test_newer_keeps_the_tensors_of_rules_that_sent_none():
    old = State.join({"a": State({"n": 1}, {"x": torch.ones(2)}), "ab": State({"n": 1}, {"y": torch.ones(3)})})
    told = State.join({"a": State({"n": 2}, {"z": torch.zeros(1)}), "ab": State({"n": 2})})
    found = newer(old, told)
    assert found.values == {"a": {"n": 2}, "ab": {"n": 2}}
    assert found.tensors.keys() == {"a/z", "ab/y"}, "of a rule that sent some, only those"
    assert newer(None, told) == told
    assert torch.equal(old.tensors["a/x"], torch.ones(2))


def test_a_policy_with_tensors_is_a_state_and_comes_back():
    policy = Policy(7, {"mixture": Part({"mlm": 1.0}), "weights": Part({}, {"a/b": torch.ones(2)}), "none": Part()})
    state = through_json(State.join({"policy": policy_state(policy)})).part("policy")
    again = policy_of(state)
    assert again.version == 7
    assert list(again.parts) == ["mixture", "weights", "none"]
    for name, part in policy.parts.items():
        assert_same(again.parts[name], part)
    assert json.loads(policy.to_json()) == {"version": 7, "mixture": {"mlm": 1.0}, "weights": {}, "none": {}}


def rank_main(group, folder):
    RULES["weights"], RULES["mixture"]["mixing"] = {"weights": Weights}, Mixing
    run = Run(2, group)
    run.outer.start(run.model)
    run.steps(0, 15)
    (Path(folder) / f"{group.rank}.json").write_text(json.dumps(run.seen))


def test_every_rank_obeys_the_parts_and_tensors_that_rank_0_was_answered(tmp_path):
    run_ranks(rank_main, str(tmp_path))
    alone = Run(2)
    alone.outer.start(alone.model)
    alone.steps(0, 15)
    expected = json.loads(json.dumps(alone.seen))
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)] == [expected, expected]


def test_where_nothing_is_learned_there_is_nothing_to_launch():
    config = load_settings(MetaConfig, {"rules": {"mixture": {"rule": "fixed", "weights": {"mlm": 3, "cse": 1}}}})
    outer = Outer(config, NAMES, None, Group())
    assert not outer.learns
    assert not outer.launch_due(0)
    assert outer.policy.values("mixture") == first_policy(outer.rules).values("mixture") == {"mlm": 0.75, "cse": 0.25}
