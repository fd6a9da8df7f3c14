"""Gradients exchanged in bf16: the plain ones but for rounding, and alike on every rank."""

import torch
from ranks import run_ranks
from torch import nn

from mlpt.training.compiling import wrapped
from mlpt.training.config import TrainConfig


def rank(group):
    gradients = {}
    for compressed in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(30, 40), nn.Tanh(), nn.Linear(40, 5))
        rows = torch.randn(8, 30, generator=torch.Generator().manual_seed(1 + group.rank))
        forward = wrapped(model, TrainConfig(compress_gradients=compressed), group, print)
        forward(rows).square().mean().backward()
        gradients[compressed] = nn.utils.parameters_to_vector([one.grad for one in model.parameters()])
    exact, rounded = gradients[False], gradients[True]
    # half a unit in the last place of bf16 (8 bits) of each of the two summands, which partly cancel, and of their sum
    assert (rounded - exact).norm() < 2**-6 * exact.norm()
    assert not torch.equal(rounded, exact)
    first, second = group.gather(rounded.tolist())
    assert first == second


def test_two_ranks_agree_on_gradients_that_are_the_plain_ones_rounded():
    run_ranks(rank)
