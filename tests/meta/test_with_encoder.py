"""The meta-learner on real parts: stock transformers encoders, all objectives, prepared blocks, the run's AdamW."""

import copy
import json

import numpy as np
import pytest
import torch

from mlpt.arms import arms_of
from mlpt.data.prepare import DataConfig, prepare
from mlpt.data.sources import Sources
from mlpt.meta.engines import FiniteDifference, Higher, OneStep
from mlpt.meta.engines.base import InnerStep, Lookahead
from mlpt.meta.learner import MetaConfig, MetaLearner
from mlpt.meta.policy import Evidence
from mlpt.meta.snapshot import load_snapshot, take_snapshot
from mlpt.models.config import ModelConfig
from mlpt.models.encoder import build_encoder
from mlpt.objectives import make_objectives
from mlpt.randomness import torch_generator
from mlpt.settings import load_settings
from mlpt.storage.state import State
from mlpt.training.optimizer import OptimizerConfig, make_optimizer

NAMES = ["mlm", "atd", "dtd", "cse"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
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
    return Sources.open(str(folder / "blocks"))


def make_encoder(sources, architecture="bert", seed=0):
    config = ModelConfig(architecture=architecture, hidden_size=32, layers=2, heads=2)
    vocabulary = sources.vocabulary
    objectives = make_objectives({name: {} for name in NAMES}, vocabulary)
    options = {"embedding_size": 32} if architecture == "electra" else {}
    config = config.model_copy(update={"options": options})
    return build_encoder(config, vocabulary, objectives, 16, seed)


def warm(model, optimizer, sources, steps):
    """Real training steps, one objective each, without dropout noise."""
    model.eval()
    for step in range(steps):
        name = NAMES[step % len(NAMES)]
        rows = np.arange(8) + 8 * (step % 3)
        inputs = model.objectives[name].corrupt(sources.train.batch(rows), torch_generator(0, "noise", step))
        optimizer.zero_grad()
        model(name, inputs).backward()
        optimizer.step()


def make_lookahead(model, optimizer, sources, steps=1):
    def inputs(split, name, k):
        rows = getattr(sources, split).batch(np.arange(8) + k)
        return model.objectives[name].corrupt(rows, torch_generator(1, name, k))

    def inner_loss(k):
        def loss(forward, outer):
            mixture = outer["logits"].softmax(0)
            return sum(p * forward(name, inputs("train", name, k)) for p, name in zip(mixture, NAMES, strict=True))

        return InnerStep(loss)

    def outer_loss(forward, outer):
        return sum(forward(name, inputs("dev", name, 50)) for name in NAMES) / len(NAMES)

    logits = torch.tensor([0.3, -0.2, 0.5, 0.1], requires_grad=True)
    return Lookahead(model, optimizer, {"logits": logits}, [inner_loss(k) for k in range(steps)], outer_loss)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "electra", "modernbert"])
def test_the_three_engines_agree_on_a_stock_encoder(sources, architecture):
    model = make_encoder(sources, architecture)
    optimizer = make_optimizer(model, OptimizerConfig(lr=1e-3))
    warm(model, optimizer, sources, 9)
    problem = make_lookahead(model, optimizer, sources)
    exact = Higher()(problem).gradients["logits"]
    closed = OneStep()(problem).gradients["logits"]
    close = FiniteDifference()(problem).gradients["logits"]
    assert (closed - exact).norm() < 1e-4 * exact.norm()
    assert (close - exact).norm() < 1e-2 * exact.norm()
    assert exact.norm() > 0


def test_the_engines_agree_over_several_steps_on_bert(sources):
    model = make_encoder(sources)
    optimizer = make_optimizer(model, OptimizerConfig(lr=1e-3))
    warm(model, optimizer, sources, 9)
    problem = make_lookahead(model, optimizer, sources, steps=3)
    exact = Higher()(problem).gradients["logits"]
    close = FiniteDifference()(problem).gradients["logits"]
    assert (close - exact).norm() < 2e-2 * exact.norm()


def test_higher_agrees_with_plain_training_under_another_mixture_on_bert(sources):
    model = make_encoder(sources)
    optimizer = make_optimizer(model, OptimizerConfig(lr=5e-3))
    warm(model, optimizer, sources, 9)
    problem = make_lookahead(model, optimizer, sources, steps=2)
    exact = Higher()(problem)
    direction = exact.gradients["logits"] / exact.gradients["logits"].norm()
    losses = []
    for sign in (1, -1):
        twin = copy.deepcopy(model)
        twin_optimizer = make_optimizer(twin, OptimizerConfig(lr=5e-3))
        load_snapshot(twin, twin_optimizer, take_snapshot(model, optimizer, 9, 5e-3, moments=True))
        outer = {"logits": problem.outer["logits"].detach() + sign * 0.05 * direction}
        for step in problem.steps:
            twin_optimizer.zero_grad()
            step.loss(twin, outer).backward()
            twin_optimizer.step()
        losses.append(problem.outer_loss(twin, outer).item())
    numeric = (losses[0] - losses[1]) / 0.1
    assert exact.gradients["logits"].norm().item() == pytest.approx(numeric, rel=2e-2)


RULES = {
    "mometas": {"rules": {"mixture": "mometas"}},
    "famo": {"rules": {"mixture": "famo"}},
    "hypergradient": {"rules": {"mixture": "hypergradient"}, "lookahead": {"start": 0}},
    "hypergradient of mlm": {
        "rules": {"mixture": "hypergradient"},
        "lookahead": {"start": 0, "engine": "one_step"},
        "target": ["mlm"],
    },
}


@pytest.mark.parametrize("meta", RULES.values(), ids=RULES.keys())
def test_a_rebuilt_learner_answers_bit_for_bit_alike_on_bert(sources, meta):
    config = load_settings(MetaConfig, {"interval": 10, **meta})
    config = MetaConfig.model_validate(json.loads(config.model_dump_json()))  # as a run directory keeps it
    trainee = make_encoder(sources)
    optimizer = make_optimizer(trainee, OptimizerConfig(lr=1e-3))

    def learner():
        model = make_encoder(sources, seed=1)
        optimizer, arms = make_optimizer(model, OptimizerConfig()), arms_of(NAMES, [], None, texts=False)
        return MetaLearner(config, model, optimizer, sources, arms, 3, batch_size=16)

    straight = learner()
    first = straight.policy
    for step in (0, 10):
        snapshot = take_snapshot(trainee, optimizer, step, 1e-3, straight.needs_moments)
        evidence = Evidence({"mlm": 7, "cse": 3}, expected={"mlm": 5, "cse": 5}) if step else Evidence()
        again = learner()
        state = straight.state()
        again.start(straight.policy, State(json.loads(json.dumps(state.values)), state.tensors))
        answer, repeated = straight.update(snapshot, evidence), again.update(snapshot, evidence)
        assert again.policy == straight.policy
        assert repeated.state.values == answer.state.values
        assert repeated.state.tensors.keys() == answer.state.tensors.keys()
        assert all(torch.equal(one, answer.state.tensors[name]) for name, one in repeated.state.tensors.items())
        warm(trainee, optimizer, sources, 10)
    mixture = straight.policy.values("mixture")
    assert sum(mixture.values()) == pytest.approx(1, abs=1e-12)
    assert mixture != first.values("mixture")
