"""Muon for matrices and AdamW for the rest, as one optimiser: torch's own steps, one schedule, one checkpoint."""

import copy

import pytest
import torch
from torch import nn

from mlpt.errors import UserError
from mlpt.training.muon import hidden_matrices
from mlpt.training.optimizer import OptimizerConfig, check_look_ahead, make_optimizer, set_learning_rate
from mlpt.training.state import load_optimizer_tensors, optimizer_tensors


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.base_model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 4))
        self.decoder = nn.Linear(4, 9, bias=False)
        self.decoder.weight = self.base_model[0].weight

    def forward(self, tokens):
        return nn.functional.cross_entropy(self.decoder(self.base_model(tokens)), tokens)


CONFIG = OptimizerConfig(kind="muon", lr=1e-2)


def train(model, *optimizers, steps=3, rate=5e-3):
    for k in range(steps):
        model.zero_grad()
        model(torch.randint(0, 9, (12,), generator=torch.Generator().manual_seed(k))).backward()
        for one in optimizers:
            set_learning_rate(one, rate)
            one.step()


def weights(model):
    return nn.utils.parameters_to_vector(model.parameters())


def test_it_makes_the_steps_of_torchs_two_optimisers():
    model, twin = Tiny(), Tiny()
    assert [tuple(one.shape) for one in hidden_matrices(model)] == [(6, 4), (4, 6)]
    train(model, make_optimizer(model, CONFIG))
    linear = [twin.base_model[1], twin.base_model[3]]
    matrices = [one.weight for one in linear]
    plain = [twin.base_model[2].weight, twin.base_model[2].bias, *(one.bias for one in linear)]
    groups = [
        {"params": [twin.decoder.weight], "weight_decay": CONFIG.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    muon = torch.optim.Muon(matrices, weight_decay=CONFIG.weight_decay, adjust_lr_fn="match_rms_adamw")
    train(twin, muon, torch.optim.AdamW(groups, betas=CONFIG.betas, eps=CONFIG.eps))
    torch.testing.assert_close(weights(model), weights(twin), rtol=1e-5, atol=1e-7)
    assert not torch.allclose(weights(model), weights(Tiny()))


def test_its_state_goes_through_a_checkpoint():
    model = Tiny()
    optimizer = make_optimizer(model, CONFIG)
    train(model, optimizer)
    again = copy.deepcopy(model)
    loaded = make_optimizer(again, CONFIG)
    load_optimizer_tensors(again, loaded, optimizer_tensors(model, optimizer))
    train(model, optimizer)
    train(again, loaded)
    assert torch.equal(weights(model), weights(again))


def test_where_it_has_nothing_to_do_or_cannot_be_followed_it_is_refused():
    with pytest.raises(UserError, match="take adamw"):
        make_optimizer(nn.LayerNorm(3), CONFIG)
    with pytest.raises(ValueError, match="kind=adamw"):
        check_look_ahead("rule 'x'", CONFIG, "train.optimizer")
