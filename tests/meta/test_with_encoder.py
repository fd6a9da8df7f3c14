"""The meta-learner on real parts: stock transformers encoders, all objectives, prepared blocks, the run's AdamW."""

import copy
import json

import numpy as np
import pytest
import torch

from mlpt.data.blocks import Blocks
from mlpt.data.prepare import DataConfig, prepare
from mlpt.meta.hypergradient import FiniteDifference, Higher, Lookahead, OneStep
from mlpt.meta.learner import MetaConfig, MetaLearner
from mlpt.meta.policy import Evidence
from mlpt.meta.snapshot import load_snapshot, take_snapshot
from mlpt.models.config import ModelConfig
from mlpt.models.encoder import build_encoder
from mlpt.objectives import make_objectives
from mlpt.randomness import torch_generator
from mlpt.settings import load_settings
from mlpt.training.optimizer import OptimizerConfig, make_optimizer

NAMES = ["mlm", "atd", "dtd", "cse"]


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    """Blocks of 16 tokens of made-up prose with some structure."""
    folder = tmp_path_factory.mktemp("prepared")
    random = np.random.default_rng(0)
    words = np.array(["ray", "tree", "river", "stone", "bird", "cloud", "road", "lamp", "door", "field"])
    sentences = [" ".join(words[(random.integers(10) + np.arange(9) * random.integers(1, 4)) % 10]) for _ in range(400)]
    (folder / "text.txt").write_text("\n\n".join(sentences))
    config = DataConfig(
        source=str(folder / "text.txt"), vocab_size=100, block_size=16, dev_share=0.3, test_share=0.1, workers=1
    )
    prepare(config, str(folder / "blocks"))
    return {split: Blocks.open(str(folder / "blocks"), split) for split in ("train", "dev")}


def make_encoder(blocks, architecture="bert", seed=0):
    config = ModelConfig(architecture=architecture, hidden_size=32, layers=2, heads=2)
    vocabulary = blocks["train"].vocabulary
    objectives = make_objectives({name: {} for name in NAMES}, vocabulary)
    options = {"embedding_size": 32} if architecture == "electra" else {}
    config = config.model_copy(update={"options": options})
    return build_encoder(config, vocabulary, objectives, 16, seed)


def warm(model, optimizer, blocks, steps):
    """Real training steps, one objective each, without dropout noise."""
    model.eval()
    for step in range(steps):
        name = NAMES[step % len(NAMES)]
        rows = np.arange(8) + 8 * (step % 3)
        inputs = model.objectives[name].corrupt(blocks["train"].tokens(rows), torch_generator(0, "noise", step))
        optimizer.zero_grad()
        model(name, inputs).backward()
        optimizer.step()


def make_lookahead(model, optimizer, blocks, steps=1):
    def inputs(split, name, k):
        return model.objectives[name].corrupt(blocks[split].tokens(np.arange(8) + k), torch_generator(1, name, k))

    def inner_loss(forward, k, outer):
        mixture = outer["logits"].softmax(0)
        return sum(p * forward(name, inputs("train", name, k)) for p, name in zip(mixture, NAMES, strict=True))

    def outer_loss(forward, outer):
        return sum(forward(name, inputs("dev", name, 50)) for name in NAMES) / len(NAMES)

    logits = torch.tensor([0.3, -0.2, 0.5, 0.1], requires_grad=True)
    return Lookahead(model, optimizer, {"logits": logits}, inner_loss, outer_loss, steps)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "electra", "modernbert"])
def test_the_three_engines_agree_on_a_stock_encoder(blocks, architecture):
    model = make_encoder(blocks, architecture)
    optimizer = make_optimizer(model, OptimizerConfig(lr=1e-3))
    warm(model, optimizer, blocks, 9)
    problem = make_lookahead(model, optimizer, blocks)
    exact = Higher()(problem).gradients["logits"]
    closed = OneStep()(problem).gradients["logits"]
    close = FiniteDifference()(problem).gradients["logits"]
    assert (closed - exact).norm() < 1e-4 * exact.norm()
    assert (close - exact).norm() < 1e-2 * exact.norm()
    assert exact.norm() > 0


def test_the_engines_agree_over_several_steps_on_bert(blocks):
    model = make_encoder(blocks)
    optimizer = make_optimizer(model, OptimizerConfig(lr=1e-3))
    warm(model, optimizer, blocks, 9)
    problem = make_lookahead(model, optimizer, blocks, steps=3)
    exact = Higher()(problem).gradients["logits"]
    close = FiniteDifference()(problem).gradients["logits"]
    assert (close - exact).norm() < 2e-2 * exact.norm()


def test_higher_agrees_with_plain_training_under_another_mixture_on_bert(blocks):
    model = make_encoder(blocks)
    optimizer = make_optimizer(model, OptimizerConfig(lr=5e-3))
    warm(model, optimizer, blocks, 9)
    problem = make_lookahead(model, optimizer, blocks, steps=2)
    exact = Higher()(problem)
    direction = exact.gradients["logits"] / exact.gradients["logits"].norm()
    losses = []
    for sign in (1, -1):
        twin = copy.deepcopy(model)
        twin_optimizer = make_optimizer(twin, OptimizerConfig(lr=5e-3))
        load_snapshot(twin, twin_optimizer, take_snapshot(model, optimizer, 9, 5e-3, moments=True))
        outer = {"logits": problem.outer["logits"].detach() + sign * 0.05 * direction}
        for k in range(2):
            twin_optimizer.zero_grad()
            problem.inner_loss(twin, k, outer).backward()
            twin_optimizer.step()
        losses.append(problem.outer_loss(twin, outer).item())
    numeric = (losses[0] - losses[1]) / 0.1
    assert exact.gradients["logits"].norm().item() == pytest.approx(numeric, rel=2e-2)


RULES = {
    "mometas": {"rule": "mometas"},
    "famo": {"rule": "famo"},
    "hypergradient": {"rule": "hypergradient", "start": 0},
    "hypergradient of mlm": {"rule": "hypergradient", "start": 0, "engine": "one_step", "target": ["mlm"]},
}


@pytest.mark.parametrize("mixture", RULES.values(), ids=RULES.keys())
def test_a_rebuilt_learner_answers_bit_for_bit_alike_on_bert(blocks, mixture):
    config = load_settings(MetaConfig, {"interval": 10, "mixture": mixture})
    config = MetaConfig.model_validate(json.loads(config.model_dump_json()))  # as a run directory keeps it
    trainee = make_encoder(blocks)
    optimizer = make_optimizer(trainee, OptimizerConfig(lr=1e-3))

    def learner():
        model = make_encoder(blocks, seed=1)
        return MetaLearner(config, model, make_optimizer(model, OptimizerConfig()), *blocks.values(), 3, batch_size=16)

    straight = learner()
    policy = straight.first_policy()
    for step in (0, 10):
        snapshot = take_snapshot(trainee, optimizer, step, 1e-3, straight.needs_moments)
        evidence = Evidence({"mlm": 7, "cse": 3}, expected={"mlm": 5, "cse": 5}) if step else Evidence()
        again = learner()
        state, tensors = straight.state()
        again.load_state(json.loads(json.dumps(state)), tensors)
        answer, repeated = straight.update(policy, snapshot, evidence), again.update(policy, snapshot, evidence)
        assert repeated.policy == answer.policy
        assert repeated.state == answer.state
        policy = answer.policy
        warm(trainee, optimizer, blocks, 10)
    assert sum(policy.mixture.values()) == pytest.approx(1, abs=1e-12)
    assert policy.mixture != straight.first_policy().mixture
