"""Engine `alignment`: a step that was made, and its gradients, give what `higher` finds by looking ahead."""

import copy
from dataclasses import replace

import pytest
import torch
from test_engines import make_problem
from tiny_encoder import NAMES

from mlpt.errors import UserError
from mlpt.meta.engines import Alignment, Higher, base
from mlpt.meta.engines.base import Made


def losses_of(problem):
    """The gradient of each loss at the weights of the problem, by name."""
    found = []
    for i in range(len(NAMES)):
        corner = torch.full((len(NAMES),), -1e3, dtype=torch.float64)
        corner[i] = 0.0
        problem.model.zero_grad()
        problem.steps[0].loss(problem.model, {"logits": corner}).backward()
        found.append({name: one.grad.clone() for name, one in problem.model.named_parameters() if one.grad is not None})
    return found


def made(problem, clip=0.0, keep=NAMES):
    """The problem after its step has been made by torch."""
    each = losses_of(problem)
    model, optimizer = copy.deepcopy((problem.model, problem.optimizer))
    optimizer.zero_grad()
    problem.steps[0].loss(model, problem.outer).backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip) if clip else 0.0
    optimizer.step()
    total = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    gradients = [one if name in keep else None for name, one in zip(NAMES, each, strict=True)]
    step = Made(total, gradients, min(1.0, clip / float(norm)) if clip else 1.0)
    return replace(problem, model=model, optimizer=optimizer, made=step)


@pytest.fixture(params=[1 << 14, 7])
def piece(request, monkeypatch):
    """Numbers that are computed with at a time: more than these models have, and a few."""
    monkeypatch.setattr(base, "_PIECE", request.param)


@pytest.mark.usefixtures("piece")
def test_it_agrees_with_higher():
    problem = make_problem(1)
    expected, found = Higher()(problem), Alignment()(made(problem))
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.gradients["logits"], expected.gradients["logits"], rtol=1e-8, atol=1e-13)


def test_a_cold_adamw_gives_finite_gradients():
    problem = make_problem(1, warm=0)
    expected, found = Higher()(problem), Alignment()(made(problem))
    torch.testing.assert_close(found.gradients["logits"], expected.gradients["logits"], rtol=1e-6, atol=1e-11)


def test_a_step_that_was_clipped_is_differentiated_with_its_clipping():
    """Against central differences of training with clipping."""
    problem = make_problem(1)
    numeric = torch.zeros(len(NAMES), dtype=torch.float64)
    for place in range(len(NAMES)):
        after = []
        for sign in (1, -1):
            logits = problem.outer["logits"].detach().clone()
            logits[place] += sign * 1e-5
            model, optimizer = copy.deepcopy((problem.model, problem.optimizer))
            optimizer.zero_grad()
            problem.steps[0].loss(model, {"logits": logits}).backward()
            assert torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1) > 0.1
            optimizer.step()
            after.append(problem.outer_loss(model, {"logits": logits}).item())
        numeric[place] = (after[0] - after[1]) / 2e-5
    found = Alignment()(made(problem, clip=0.1)).gradients["logits"]
    torch.testing.assert_close(found, numeric, rtol=1e-4, atol=1e-9)
    unclipped = Alignment()(made(problem)).gradients["logits"]
    assert (found - unclipped).norm() > 1e-2 * unclipped.norm()


@pytest.mark.usefixtures("piece")
def test_losses_without_a_gradient_are_measured_by_two_forward_passes():
    """At the weights after the step, so up to the step's length."""
    problem = made(make_problem(1))
    expected = Alignment()(problem).gradients["logits"]
    at_new_weights = replace(problem, made=replace(problem.made, gradients=losses_of(problem)))
    exact = Alignment()(at_new_weights).gradients["logits"]
    none = replace(problem, made=replace(problem.made, gradients=[None] * len(NAMES)))
    differences = Alignment(radius=1e-4)(none).gradients["logits"]
    torch.testing.assert_close(differences, exact, rtol=1e-5, atol=1e-11)
    assert torch.cosine_similarity(differences, expected, dim=0) > 0.9
    some = made(make_problem(1), keep=NAMES[1:])
    assert torch.isfinite(Alignment()(some).gradients["logits"]).all()


def test_without_a_made_step_it_says_what_to_do():
    problem = make_problem(1)
    with pytest.raises(UserError, match="step that was made"):
        Alignment()(problem)
    step = made(problem)
    with pytest.raises(UserError, match="one for each"):
        Alignment()(replace(step, made=replace(step.made, gradients=step.made.gradients[:2])))
