"""The differentiable AdamW and Adam against torch.optim's, step by step, and against numeric differentiation."""

import copy

import higher
import pytest
import torch
from torch import nn

from mlpt.errors import UserError
from mlpt.meta.engines import adam

SETTINGS = [
    (torch.optim.AdamW, {}),
    (torch.optim.AdamW, {"amsgrad": True}),
    (torch.optim.AdamW, {"maximize": True, "eps": 1e-3}),
    (torch.optim.Adam, {"weight_decay": 0.1}),
    (torch.optim.Adam, {"weight_decay": 0.1, "decoupled_weight_decay": True, "betas": (0.5, 0.9)}),
    (torch.optim.Adam, {"weight_decay": 0.1, "maximize": True, "amsgrad": True}),
]
IDS = [f"{cls.__name__} {settings}" for cls, settings in SETTINGS]


class Net(nn.Module):
    """An embedding of which some rows are never read, and a head that is used in some steps only."""

    def __init__(self):
        super().__init__()
        self.rows = nn.Embedding(9, 4)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, ids, with_head):
        x = torch.tanh(self.mix(self.rows(ids)))
        return self.head(x).square().mean() if with_head else x.sin().mean()


def make(cls, settings, seed=0):
    torch.manual_seed(seed)
    model = Net().double()
    groups = [
        {"params": [model.rows.weight, model.mix.weight, model.head.weight], "weight_decay": 0.2},
        {"params": [model.mix.bias, model.head.bias], "weight_decay": 0.0, "lr": 3e-3},
    ]
    return model, cls(groups, lr=1e-2, **settings)


def ids(step):
    return torch.randint(0, 6, (5,), generator=torch.Generator().manual_seed(step))


def torch_step(model, optimizer, step):
    optimizer.zero_grad()
    model(ids(step), with_head=step % 3 == 2).backward()
    optimizer.step()


@pytest.mark.parametrize(("cls", "settings"), SETTINGS, ids=IDS)
@pytest.mark.parametrize("warm", [0, 4])
def test_it_follows_torch_to_float64_digits_step_by_step(cls, settings, warm):
    model, optimizer = make(cls, settings)
    for step in range(warm):
        torch_step(model, optimizer, step)
    with higher.innerloop_ctx(model, optimizer) as (patched, differentiable):
        for step in range(warm, warm + 6):
            differentiable.step(patched(ids(step), with_head=step % 3 == 2))
            torch_step(model, optimizer, step)
            for ours, theirs in zip(patched.parameters(), model.parameters(), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-15)


def test_an_integer_step_count_in_the_state_is_understood():
    model, optimizer = make(torch.optim.AdamW, {})
    for step in range(3):
        torch_step(model, optimizer, step)
    for state in optimizer.state.values():
        state["step"] = int(state["step"])
    with higher.innerloop_ctx(model, optimizer) as (patched, differentiable):
        differentiable.step(patched(ids(3), with_head=False))
    for state in optimizer.state.values():
        state["step"] = torch.tensor(float(state["step"]))
    torch_step(model, optimizer, 3)
    for ours, theirs in zip(patched.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-15)


def loss_after_torch_steps(model, optimizer, scale, steps):
    """Plain torch training whose losses are scaled by a number: the function to differentiate numerically."""
    model, state = copy.deepcopy(model), copy.deepcopy(optimizer.state_dict())
    groups = [{"params": [model.rows.weight, model.mix.weight, model.head.weight]}]
    groups += [{"params": [model.mix.bias, model.head.bias]}]
    optimizer = type(optimizer)(groups)
    optimizer.load_state_dict(state)
    for step in steps:
        optimizer.zero_grad()
        loss = model(ids(step), with_head=True) * scale + model(ids(step + 50), with_head=False)
        loss.backward()
        optimizer.step()
    return model(ids(99), with_head=True).item()


@pytest.mark.parametrize(("cls", "settings"), SETTINGS, ids=IDS)
@pytest.mark.parametrize("warm", [0, 4])
def test_the_meta_gradient_agrees_with_numeric_differentiation(cls, settings, warm):
    model, optimizer = make(cls, settings)
    for step in range(warm):
        torch_step(model, optimizer, step)
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    steps = range(warm, warm + 3)
    with higher.innerloop_ctx(model, optimizer) as (patched, differentiable):
        for step in steps:
            loss = patched(ids(step), with_head=True) * scale + patched(ids(step + 50), with_head=False)
            differentiable.step(loss)
        (gradient,) = torch.autograd.grad(patched(ids(99), with_head=True), scale)
    h = 1e-5
    plus, minus = (loss_after_torch_steps(model, optimizer, 0.7 + sign * h, steps) for sign in (1, -1))
    assert gradient.item() == pytest.approx((plus - minus) / (2 * h), rel=1e-5, abs=1e-10)
    assert gradient.item() != 0


def test_rows_that_no_loss_has_touched_give_no_nan():
    model, optimizer = make(torch.optim.AdamW, {})
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    with higher.innerloop_ctx(model, optimizer) as (patched, differentiable):
        differentiable.step(patched(ids(0), with_head=True) * scale)
        every_row = patched.rows.weight
        (gradient,) = torch.autograd.grad(every_row.sum(), scale)
    assert torch.isfinite(gradient)


def test_a_learning_rate_can_be_learned_through_it():
    model, optimizer = make(torch.optim.AdamW, {})
    rate = torch.tensor(1e-2, dtype=torch.float64, requires_grad=True)
    with higher.innerloop_ctx(model, optimizer, override={"lr": [rate]}) as (patched, differentiable):
        differentiable.step(patched(ids(0), with_head=True))
        (gradient,) = torch.autograd.grad(patched(ids(99), with_head=True), rate)
    losses = []
    for sign in (1, -1):
        twin, twin_optimizer = make(torch.optim.AdamW, {})
        for group in twin_optimizer.param_groups:
            group["lr"] = 1e-2 + sign * 1e-6
        twin(ids(0), with_head=True).backward()
        twin_optimizer.step()
        losses.append(twin(ids(99), with_head=True).item())
    assert gradient.item() == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-6)


def test_options_that_it_does_not_know_are_refused_not_ignored():
    model, optimizer = make(torch.optim.AdamW, {})
    optimizer.param_groups[0]["cautious"] = True
    with pytest.raises(UserError, match="cautious"), higher.innerloop_ctx(model, optimizer):
        pass


def test_sparse_gradients_are_refused():
    model = nn.Embedding(5, 2, sparse=True)
    optimizer = torch.optim.AdamW(model.parameters())
    with (
        higher.innerloop_ctx(model, optimizer, track_higher_grads=False) as (patched, differentiable),
        pytest.raises(UserError, match="dense"),
    ):
        differentiable.step(patched(torch.tensor([1, 2])).sum())


def test_higher_uses_it_for_both_optimizers():
    for cls, ours in ((torch.optim.Adam, adam.DifferentiableAdam), (torch.optim.AdamW, adam.DifferentiableAdamW)):
        model, optimizer = make(cls, {})
        assert type(higher.optim.get_diff_optim(optimizer, model.parameters())) is ours
