"""Held-out losses: of every arm on its own source, weighted into a target, and nothing else is read for them."""

import numpy as np
import pytest
import torch

from mlpt.arms import arms_of
from mlpt.data.batch import Arm
from mlpt.data.sources import Sources
from mlpt.models.config import ModelConfig
from mlpt.models.encoder import build_encoder
from mlpt.objectives import make_objectives
from mlpt.randomness import numpy_generator, torch_generator
from mlpt.training.evaluate import held_out_losses
from mlpt.training.group import Group


@pytest.fixture(scope="module")
def sources(small_blocks):
    return Sources.open(small_blocks)


@pytest.fixture(scope="module")
def model(sources):
    objectives = make_objectives({"mlm": {}, "dtd": {}}, sources.vocabulary)
    config = ModelConfig(hidden_size=32, layers=1, heads=2)
    return build_encoder(config, sources.vocabulary, objectives, sources.block_size, 0)


class Only(dict):
    """Sources of which all but one must not be opened."""

    def __init__(self, opened, names):
        super().__init__(dict.fromkeys(names))
        self.opened = opened

    def __getitem__(self, name):
        if name not in self.opened:
            raise AssertionError(f"{name} was opened")
        return self.opened[name]

    def items(self):
        return [(name, self[name]) for name in self]

    def values(self):
        return [self[name] for name in self]


def test_sources_that_no_arm_is_of_are_not_opened(sources, model):
    only = Only({"all": sources["all"]}, ["all", "legal", "code"])
    arms = arms_of(["mlm", "dtd"], [], None, texts=False).every
    losses = held_out_losses(model, arms, only, "dev", 2, 8, 3, Group())
    assert losses == held_out_losses(model, arms, {"all": sources["all"]}, "dev", 2, 8, 3, Group())


def test_each_arm_is_measured_on_rows_of_its_own_source(sources, model):
    """The mean over fixed batches, with the noise of the arm's name, computed by hand."""
    some = next(name for name in sources.domains if len(sources[name].dev) >= 16)
    arms = {name: Arm(name, "mlm", source) for name, source in (("mlm", "all"), (f"mlm@{some}", some))}
    found = held_out_losses(model, arms, sources, "dev", 2, 8, 3, Group())
    for name, arm in arms.items():
        rows = sources[arm.source].dev
        order = numpy_generator(3, "evaluation-rows").permutation(len(rows))
        losses = []
        for batch in range(2):
            chosen = rows.batch(np.sort(order[8 * batch : 8 * batch + 8]))
            noise = torch_generator(3, f"evaluation-noise/{name}", batch)
            with torch.no_grad():
                losses.append(float(model.eval()("mlm", model.objectives["mlm"].corrupt(chosen, noise))))
        assert found[name] == pytest.approx(sum(losses) / 2, rel=1e-6)
    assert found["mlm"] != found[f"mlm@{some}"]


def test_losses_come_in_the_order_of_the_arms_and_leave_the_mode_alone(sources, model):
    arms = {name: Arm(name, name, "all") for name in ("dtd", "mlm")}
    model.train()
    found = held_out_losses(model, arms, {"all": sources["all"]}, "test", 1, 8, 0, Group())
    assert list(found) == ["dtd", "mlm"]
    assert model.training
