"""The meta-learner as the loop sees it: state goes through JSON exactly, answers repeat bit for bit."""

import copy
import json

import numpy as np
import pytest
import torch
from tiny_encoder import ARMS, make_adamw, make_encoder, make_sources, train

from mlpt.data.batch import Batch
from mlpt.errors import UserError
from mlpt.meta.learner import MetaConfig, MetaLearner
from mlpt.meta.policy import Evidence
from mlpt.meta.rules import RULES
from mlpt.meta.snapshot import take_snapshot
from mlpt.settings import load_settings
from mlpt.storage.state import State

# the rule of the mixture, and how it looks ahead
SETTINGS = {
    "fixed": ({"rule": "fixed", "weights": {"words": 3, "order": 1}}, {}),
    "uniform": ({"rule": "uniform"}, {}),
    "mometas": ({"rule": "mometas", "dev_batch_size": 8}, {}),
    "exp3": ({"rule": "exp3"}, {}),
    "famo": ({"rule": "famo", "dev_batch_size": 8}, {}),
    "hypergradient": ({"rule": "hypergradient"}, {"lookahead": {"start": 5}}),
    "hypergradient, one step": (
        {"rule": "hypergradient"},
        {"lookahead": {"engine": "one_step", "start": 5}, "target": ["words"]},
    ),
    "hypergradient, 2 steps": (
        {"rule": "hypergradient", "optimizer": "sgd"},
        {"lookahead": {"engine": "finite_difference", "inner_steps": 2, "start": 5}},
    ),
    "dga": ({"rule": "dga"}, {"lookahead": {"engine": "one_step", "start": 5}, "target": ["words"]}),
    "dga_shrunk": ({"rule": "dga_shrunk"}, {"lookahead": {"engine": "one_step", "start": 5}, "target": ["words"]}),
    "ado": ({"rule": "ado", "start": 0}, {}),
    "doremi": ({"rule": "doremi", "reference": {"words": 3.0, "noise": 0.5, "order": 0.5}}, {}),
    "loss_ratio": ({"rule": "loss_ratio"}, {}),
    "staged": ({"rule": "staged", "stages": [{"until": 0.5, "weights": {"words": 1}}, {"weights": {"order": 1}}]}, {}),
    "mometas, resampled": ({"rule": "mometas", "dev": "resampled", "dev_batch_size": 8, "dev_batches": 2}, {}),
}


def make_learner(mixture, seed=7, **meta):
    model = make_encoder(seed=3)  # its own weights: snapshots replace them
    config = load_settings(MetaConfig, {"interval": 10, "rules": {"mixture": mixture}, **meta})
    return MetaLearner(config, model, make_adamw(model), make_sources(), ARMS, seed, batch_size=12)


def some_snapshots(moments):
    """Three moments of one real training run, with what happened between them."""
    model = make_encoder()
    optimizer = make_adamw(model, lr=1e-2)
    for step in (0, 10, 20):
        in_force = {"words": 5, "noise": 3, "order": 2}
        losses = {"words": 3.5 - step / 50, "noise": 0.6}
        evidence = Evidence({"words": 6, "noise": 4}, losses, in_force) if step else Evidence()
        yield take_snapshot(model, optimizer, step, 1e-2, moments), evidence
        train(model, optimizer, make_sources()["all"].train, 10, seed=step)


def without_clock(report):
    return {key: value for key, value in report.items() if key not in ("seconds", "peak_bytes")}


def through_json(state):
    """The state as a checkpoint keeps it."""
    return State(json.loads(json.dumps(state.values)), copy.deepcopy(dict(state.tensors)))


def assert_same(state, other):
    assert state.values == other.values
    assert state.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(one, other.tensors[name]) for name, one in state.tensors.items())


@pytest.mark.parametrize(("mixture", "meta"), SETTINGS.values(), ids=SETTINGS.keys())
def test_a_learner_rebuilt_from_its_json_state_answers_bit_for_bit_alike(mixture, meta):
    straight = make_learner(mixture, **meta)
    for snapshot, evidence in some_snapshots(straight.needs_moments):
        policy = straight.policy
        again = make_learner(mixture, **meta)
        again.start(policy, through_json(straight.state()))
        answer, repeated = straight.update(snapshot, evidence), again.update(snapshot, evidence)
        assert repeated.version == answer.version == policy.version + 1
        assert again.policy == straight.policy == policy.after(answer)
        assert_same(repeated.state, answer.state)
        assert_same(again.state(), straight.state())
        assert without_clock(repeated.report) == without_clock(answer.report)
        json.dumps(answer.report)


@pytest.mark.parametrize(("mixture", "meta"), SETTINGS.values(), ids=SETTINGS.keys())
def test_the_mixture_covers_the_objectives_and_sums_to_one(mixture, meta):
    learner = make_learner(mixture, **meta)
    for snapshot, evidence in some_snapshots(learner.needs_moments):
        probabilities = learner.policy.values("mixture")
        assert probabilities.keys() == {"words", "noise", "order"}
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-12)
        learner.update(snapshot, evidence)


def test_every_rule_of_the_mixture_is_covered_here():
    assert {mixture["rule"] for mixture, _ in SETTINGS.values()} == RULES["mixture"].keys()


def test_fixed_keeps_the_proportions_that_were_asked_for():
    learner = make_learner({"rule": "fixed", "weights": {"words": 3, "order": 1}})
    assert learner.policy.values("mixture") == {"words": 0.75, "noise": 0.0, "order": 0.25}


def test_an_unknown_objective_in_the_settings_is_named():
    with pytest.raises(UserError, match="'mlm', which this run does not train: words, noise, order"):
        make_learner({"rule": "fixed", "weights": {"mlm": 1}})
    with pytest.raises(UserError, match=r"meta\.target names 'mlm', which this run neither trains nor measures: words"):
        make_learner({"rule": "hypergradient"}, target=["mlm"])


def test_a_state_of_another_rule_of_other_arms_or_of_other_parts_is_refused():
    uniform, learner = make_learner({"rule": "uniform"}), make_learner({"rule": "mometas"})
    with pytest.raises(UserError, match="the state of mixture has rule uniform and this run mometas"):
        learner.start(uniform.policy, uniform.state())
    values = {**learner.state().values["mixture"], "arms": ["words", "noise"]}
    with pytest.raises(UserError, match="arms"):
        learner.start(learner.policy, State({"mixture": values}))
    with pytest.raises(UserError, match="has the parts none and this run mixture"):
        learner.start(type(learner.policy)(3), learner.state())


def test_an_answer_names_only_the_parts_that_changed():
    learner = make_learner({"rule": "mometas", "dev_batch_size": 8})
    first = learner.policy
    (early, nothing), (later, evidence), _ = some_snapshots(moments=False)
    assert learner.update(early, nothing).parts == {}  # it takes its baseline
    assert learner.policy.version == 1
    assert learner.policy.parts["mixture"] is first.parts["mixture"]
    assert learner.update(later, evidence).parts.keys() == {"mixture"}


def test_updates_leave_global_random_state_alone():
    learner = make_learner({"rule": "mometas"})
    before = torch.random.get_rng_state()
    snapshot, evidence = next(some_snapshots(moments=False))
    torch.random.set_rng_state(before)
    learner.update(snapshot, evidence)
    assert torch.equal(torch.random.get_rng_state(), before)


class NoRows:
    def __len__(self):
        return 0

    def batch(self, rows):
        return Batch(torch.empty(0, 12, dtype=torch.int64), np.empty(0, dtype=np.int64))


@pytest.mark.parametrize("split", ["train", "dev"])
def test_a_source_without_text_is_named(split):
    source = make_sources()["all"]
    sources = {"all": type(source)(**{**vars(source), split: NoRows()})}
    model, config = make_encoder(), load_settings(MetaConfig, {})
    with pytest.raises(UserError, match=r"at least one block .* of 'words'"):
        MetaLearner(config, model, make_adamw(model), sources, ARMS, 0, batch_size=4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"interval": 5, "lag": 6}, "lag .6. cannot exceed interval"),
        ({"interval": 0}, "interval"),
        ({"rules": {"mixture": {"rule": "mometas", "lr": -1}}}, "lr"),
        ({"rules": {"mixture": {"rule": "fixed", "weights": {"words": -1}}}}, "numbers >= 0"),
        ({"rules": {"mixture": {"rule": "nothing"}}}, "nothing"),
        ({"rules": {"mixture": {"rule": "mometaz"}}}, "did you mean 'mometas'"),
        ({"rules": {"mixture": {"lr": 1}}}, r"meta\.rules\.mixture says no rule; there are fixed, uniform"),
        ({"rules": {"mixture": 3}}, "a rule's name or its settings"),
        ({"rules": {"masks": "mometas"}}, "mometas"),
        ({"rules": {"weather": "sunny"}}, "no rule here learns a part 'weather'; there are rules of mixture, masks"),
        ({"rules": ["mometas"]}, "name a part and its rule"),
        ({"mixture": {"rule": "mometas"}}, r"meta\.mixture is now meta\.rules\.mixture; .*meta\.lookahead"),
        ({"masks": {"lr": 1e-3}}, r"meta\.masks is now meta\.rules\.masks; .*meta\.lookahead"),
        ({"target": {"words": 0}}, "above 0"),
        ({"target": {"words": "much"}}, "words: much is no weight"),
        ({"target": {"texts": 2}}, "texts: 2.0 is no weight; .*FILE OR FOLDER"),
        ({"lookahead": {"engine": "magic"}}, "there is no engine 'magic'; there are auto, higher, one_step"),
        ({"lookahead": {"engine": "one_step", "inner_steps": 2}}, "inner_steps=1"),
    ],
)
def test_impossible_settings_get_one_line(settings, message):
    with pytest.raises(UserError, match=message) as error:
        load_settings(MetaConfig, settings, "meta")
    assert "\n" not in str(error.value)


def test_a_rule_may_be_written_as_its_bare_name_and_a_target_as_a_name_or_a_list():
    config = load_settings(MetaConfig, {"rules": {"mixture": "famo", "masks": {"lr": 0.5}}, "target": "words"})
    assert {part: rule.rule for part, rule in config.rules.items()} == {"mixture": "famo", "masks": "mask_scores"}
    assert config.rules["masks"].lr == 0.5
    assert config.weights == {"words": 1.0}
    assert load_settings(MetaConfig, {"target": ["words", "order"]}).weights == {"words": 1.0, "order": 1.0}
    own = load_settings(MetaConfig, {"target": {"words": 3, "texts": "folder"}})
    assert own.weights == {"words": 3.0, "texts": 1.0}
    assert own.texts == "folder"


def test_the_default_lag_fits_a_short_interval():
    assert load_settings(MetaConfig, {"interval": 5}).lag <= 5
    assert load_settings(MetaConfig, {}).lag == 20
