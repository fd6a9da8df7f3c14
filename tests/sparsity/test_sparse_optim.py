"""The two published optimisers. Vectors: specs/self-evolution_tamt.md, B4, B6."""

import math

import pytest
import torch

from mlpt.config import load_run_config
from mlpt.sparsity.optim import BertAdam, TransformersAdamW
from mlpt.training.optimizer import make_optimizer


def first_step(optimizer_class, gradient: float, start: float = 0.0, **options) -> float:
    parameter = torch.nn.Parameter(torch.tensor([start], dtype=torch.float64))
    optimizer = optimizer_class([parameter], **options)
    parameter.grad = torch.tensor([gradient], dtype=torch.float64)
    optimizer.step()
    return float(parameter.detach()) - start


def test_adamw_of_transformers_first_moves_by_almost_the_rate():
    assert first_step(TransformersAdamW, 1e-3, lr=5e-5, eps=1e-8) == pytest.approx(-4.998e-5, rel=1e-4)


@pytest.mark.parametrize(("gradient", "size"), [(1e-3, 6.13e-5), (1e-5, 1.52e-5), (1e-7, 2.0e-7)])
def test_bert_adam_s_first_step_depends_on_eps(gradient, size):
    assert first_step(BertAdam, gradient, lr=2e-5) == pytest.approx(-size, rel=4e-3)


def test_bert_adam_decays_scores_inside_the_update():
    with_decay = first_step(BertAdam, 1e-3, start=0.02, lr=2e-5)
    without = first_step(BertAdam, 1e-3, start=0.02, lr=2e-5, weight_decay=0.0)
    assert with_decay - without == pytest.approx(-2e-5 * 0.01 * 0.02, rel=1e-6)


def test_bert_adam_clips_each_tensor_on_its_own():
    big, small = (torch.nn.Parameter(torch.zeros(4)) for _ in range(2))
    optimizer = BertAdam([big, small], lr=1.0, weight_decay=0.0)
    big.grad, small.grad = torch.full((4,), 50.0), torch.full((4,), 0.1)
    optimizer.step()
    torch.testing.assert_close(optimizer.state[big]["exp_avg"], torch.full((4,), 0.1 * 0.5))  # norm 100 -> 1
    torch.testing.assert_close(optimizer.state[small]["exp_avg"], torch.full((4,), 0.1 * 0.1))  # norm 0.2, untouched


def test_both_follow_their_formulas_over_several_steps():
    """The recurrences written out with plain floats."""
    gradients = [0.3, -0.1, 0.02, 0.5]
    for optimizer_class, eps, lr, decay in ((TransformersAdamW, 1e-8, 1e-2, 0.1), (BertAdam, 1e-6, 1e-2, 0.01)):
        parameter = torch.nn.Parameter(torch.tensor([0.4], dtype=torch.float64))
        optimizer = optimizer_class([parameter], lr=lr, eps=eps, weight_decay=decay)
        p, m, v = 0.4, 0.0, 0.0
        for t, g in enumerate(gradients, 1):
            parameter.grad = torch.tensor([g], dtype=torch.float64)
            optimizer.step()
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            if optimizer_class is BertAdam:
                p -= lr * (m / (math.sqrt(v) + eps) + decay * p)
            else:
                p -= lr * math.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (math.sqrt(v) + eps)
                p -= lr * decay * p
        assert float(parameter.detach()) == pytest.approx(p, rel=1e-12)


def test_state_has_the_names_that_checkpoints_store():
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = BertAdam([parameter])
    parameter.grad = torch.ones(2)
    optimizer.step()
    assert set(optimizer.state[parameter]) == {"step", "exp_avg", "exp_avg_sq"}


def test_the_recipe_of_self_evolution_takes_the_steps_of_fairseqs_adam():
    """A first step is lr * sqrt(.001) g / (sqrt(.001) g + eps), with eps beside the uncorrected root; no clipping."""
    train = load_run_config("self_evolution_train").train
    assert train.clip == 0
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    optimizer = make_optimizer(model, train.optimizer)
    model.weight.grad = torch.tensor([[1e-5]])
    optimizer.step()
    root = math.sqrt(0.001) * 1e-5
    assert model.weight.item() == pytest.approx(-1e-5 * root / (root + 1e-6), rel=1e-4)  # .24 of the rate, not .91
