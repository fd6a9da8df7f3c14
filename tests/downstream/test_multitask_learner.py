"""Mixture rules of the meta-learner, with tasks where pretraining has objectives."""

import pytest
import torch
from tiny_tasks import rows_of
from transformers import BertConfig, BertModel

from mlpt.downstream.multitask.config import MultitaskConfig
from mlpt.downstream.multitask.data import Collator
from mlpt.downstream.multitask.learner import TaskLearner
from mlpt.downstream.multitask.model import MultitaskModel
from mlpt.downstream.samplers import PolicySampler
from mlpt.errors import UserError
from mlpt.meta.rules.mometas import relative_drop
from mlpt.models.conditional.encoder import ConditionalConfig, ConditionalEncoder
from mlpt.settings import load_settings
from mlpt.training.optimizer import OptimizerConfig, make_optimizer

NAMES = ["learnable", "noise"]


def learner(rule: dict, **lookahead) -> TaskLearner:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=16,
    )  # fmt: skip
    encoder = ConditionalEncoder(BertModel(config), ConditionalConfig(max_length=16), 2)
    model = MultitaskModel(encoder, {"learnable": 2, "noise": 2})
    settings = load_settings(PolicySampler.Config, {"interval": 4, "learner": rule, "lookahead": lookahead})
    train = [rows_of([6] * 20, [i % 2 for i in range(20)]), rows_of([6] * 10, [i % 2 for i in range(10)])]
    dev = [rows_of([6] * 8, [i % 2 for i in range(8)]), rows_of([6] * 6, [i % 2 for i in range(6)])]
    sampler = PolicySampler(settings, NAMES, [20, 10], [2, 2], 4, seed=0)
    optimizer = make_optimizer(model, OptimizerConfig(lr=1e-3))
    return TaskLearner(sampler, model.train(), optimizer, train, dev)


def one_step(taught: TaskLearner, step: int) -> None:
    batch = Collator(taught.train.tasks)(taught.sampler.batch(step))
    taught.model.model(batch).backward()
    taught.optimizer.step()
    taught.optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize(
    ("rule", "lookahead"),
    [
        ({"rule": "mometas"}, {}),
        ({"rule": "exp3"}, {}),
        ({"rule": "hypergradient"}, {"engine": "higher", "start": 0}),
        ({"rule": "hypergradient"}, {"engine": "one_step", "start": 0}),
    ],
    ids=["mometas", "exp3", "higher", "one_step"],
)
def test_rules_update_the_mixture_on_time_and_leave_the_model_alone(rule, lookahead):
    taught = learner(rule, **lookahead)
    updated = []
    for step in range(9):
        before = {name: weight.clone() for name, weight in taught.model.state_dict().items()}
        report = taught.update_if_due(step, {"learnable": 0.6, "noise": 0.9})
        if report is not None:
            updated.append(step)
        for name, weight in taught.model.state_dict().items():
            torch.testing.assert_close(weight, before[name], rtol=0, atol=0)
        assert taught.model.model.training
        assert sum(taught.sampler.policy.values("mixture").values()) == pytest.approx(1)
        one_step(taught, step)
    assert updated == [0, 4, 8]
    assert taught.sampler.policy.version == 3
    if rule["rule"] != "exp3":  # its first updates explore uniformly
        assert taught.sampler.policy.values("mixture")["learnable"] != pytest.approx(0.5, abs=1e-9)


def test_mometas_is_rewarded_by_the_drop_of_the_tasks_held_out_losses():
    taught = learner({"rule": "mometas", "dev": "same"})
    first = taught.update_if_due(0, {})
    for step in range(4):
        one_step(taught, step)
    second = taught.update_if_due(4, {})
    expected = sum(relative_drop(first["dev_loss"][name], second["dev_loss"][name]) for name in NAMES)
    assert second["reward"] == pytest.approx(expected)


def test_a_rule_by_parameter_wants_an_engine_that_tells_parameters_apart():
    def configured(**lookahead):
        sampler = {"rule": "policy", "learner": {"rule": "dga_shrunk"}, "lookahead": lookahead}
        return load_settings(MultitaskConfig, {"model": "m", "tasks": ["cola", "rte"], "sampler": sampler})

    for engine in ("auto", "one_step"):
        configured(engine=engine)
    for lookahead in ({}, {"engine": "auto", "inner_steps": 2}):
        with pytest.raises(UserError, match=r"set sampler\.lookahead\.engine=one_step and inner_steps=1"):
            configured(**lookahead)


def test_an_engine_that_follows_steps_that_nobody_keeps_is_refused():
    for engine in ("auto", "one_step"):
        load_settings(PolicySampler.Config, {"lookahead": {"engine": engine}})
    with pytest.raises(UserError, match="engine=auto"):
        load_settings(PolicySampler.Config, {"lookahead": {"engine": "alignment"}})


def test_what_a_rule_says_of_its_settings_names_them_as_they_are_called_here():
    with pytest.raises(UserError, match=r"^sampler\.learner\.floor=0\.6 is too much for 2 arms"):
        learner({"rule": "mometas", "floor": 0.6})
    with pytest.raises(UserError, match=r"sampler\.learner\.weights names .*sleep"):
        learner({"rule": "fixed", "weights": {"sleep": 1}})
