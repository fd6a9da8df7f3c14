"""The optimiser of outer tensors against torch.optim's own, and how its state is kept."""

import copy
import json

import pytest
import torch

from mlpt.meta.outer_optimizer import EPS, OuterOptimizer
from mlpt.storage.state import State

KINDS = {
    "adam": lambda leaves: torch.optim.Adam(leaves, lr=0.05, betas=(0.8, 0.95), eps=EPS),
    "sgd": lambda leaves: torch.optim.SGD(leaves, lr=0.05),
}
SHAPES = {"scalar": (), "row": (5,), "layer.0.scores": (3, 4)}


def make(kind):
    return OuterOptimizer(kind, 0.05, (0.8, 0.95))


def random(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_it_steps_as_torch_does(kind, dtype):
    optimizer, tensors = make(kind), random(0, dtype)
    leaves = {name: one.clone().requires_grad_() for name, one in tensors.items()}
    theirs = KINDS[kind](leaves.values())
    for step in range(1, 6):
        gradients = {name: one * 1e-4 for name, one in random(step, dtype).items()}  # hypergradients are small
        for name, leaf in leaves.items():
            leaf.grad = gradients[name].clone()
        theirs.step()
        tensors, state = optimizer.step(tensors, gradients)
        optimizer.load_state(state)
        assert optimizer.steps == step
        for name, one in tensors.items():
            torch.testing.assert_close(one, leaves[name].detach(), rtol=1e-6, atol=1e-8)
            assert one.dtype == dtype
            assert not one.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_it_is_given_is_written_to(kind):
    optimizer = make(kind)
    tensors = {name: one.requires_grad_() for name, one in random(0).items()}
    for step in range(3):
        gradients = random(step + 1)
        held = optimizer.state()
        before = copy.deepcopy(({n: one.detach() for n, one in tensors.items()}, gradients, dict(held.tensors)))
        moved, state = optimizer.step(tensors, gradients)
        for given, kept in zip((tensors, gradients, held.tensors), before, strict=True):
            assert all(torch.equal(given[name].detach(), one) for name, one in kept.items())
        assert all(one.grad is None for one in (*tensors.values(), *moved.values()))
        assert all(moved[name].data_ptr() != one.data_ptr() for name, one in tensors.items())
        assert optimizer.steps == step, "a step counts once its state is loaded"
        optimizer.load_state(state)
        assert all(torch.equal(held.tensors[name], one) for name, one in before[2].items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_is_not_taken_over_can_be_taken_again(kind):
    optimizer = make(kind)
    tensors, gradients = random(0), random(1)
    first, second = optimizer.step(tensors, gradients), optimizer.step(tensors, gradients)
    assert all(torch.equal(first[0][name], one) for name, one in second[0].items())
    assert first[1].values == second[1].values == {"steps": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_goes_through_a_checkpoint_bit_for_bit(kind):
    straight, tensors = make(kind), random(0)
    for step in range(3):
        tensors, state = straight.step(tensors, random(step + 1))
        straight.load_state(state)
    kept = straight.state()
    again = make(kind)
    again.load_state(State(json.loads(json.dumps(kept.values)), {k: one.clone() for k, one in kept.tensors.items()}))
    assert again.steps == 3
    ours, theirs = (one.step(tensors, random(9)) for one in (straight, again))
    assert all(torch.equal(one, theirs[0][name]) for name, one in ours[0].items())
    assert ours[1].values == theirs[1].values
    assert ours[1].tensors.keys() == theirs[1].tensors.keys()
    assert all(torch.equal(one, theirs[1].tensors[name]) for name, one in ours[1].tensors.items())
    assert len(kept.tensors) == (2 * len(SHAPES) if kind == "adam" else 0)
