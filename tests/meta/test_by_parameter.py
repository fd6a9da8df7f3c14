"""How much of a hypergradient goes through each parameter, against steps in which that one alone moves with phi."""

import copy
from dataclasses import replace

import torch
from test_alignment import made
from test_engines import make_problem
from tiny_encoder import NAMES

from mlpt.meta.engines import Alignment, Higher, OneStep
from mlpt.meta.engines.base import by_parameter_of

PARTS = by_parameter_of("logits")


def stepped(problem, logits):
    """The weights after the inner step, made by torch."""
    model, optimizer = copy.deepcopy((problem.model, problem.optimizer))
    optimizer.zero_grad()
    problem.steps[0].loss(model, {"logits": logits}).backward()
    optimizer.step()
    return {name: one.detach() for name, one in model.named_parameters()}


def numeric(problem, h=1e-5):
    """(parameters, logits) by central differences."""
    logits = problem.outer["logits"].detach()
    middle, model = stepped(problem, logits), copy.deepcopy(problem.model)
    sides = {}
    for place in range(len(logits)):
        for sign in (1, -1):
            moved = logits.clone()
            moved[place] += sign * h
            sides[place, sign] = stepped(problem, moved)
    rows = []
    for name in middle:
        row = []
        for place in range(len(logits)):
            losses = []
            for sign in (1, -1):
                model.load_state_dict({**model.state_dict(), **middle, name: sides[place, sign][name]})
                with torch.no_grad():
                    losses.append(problem.outer_loss(model, problem.outer).item())
            row.append((losses[0] - losses[1]) / (2 * h))
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


def test_each_parameters_part_is_what_moving_it_alone_does():
    problem = replace(make_problem(1), by_parameter=True)
    expected = numeric(problem)
    assert (expected.abs().sum(1) > 0).sum() > 5
    for found in (OneStep()(problem), Alignment()(made(problem)), Alignment()(made(problem, clip=0.5))):
        parts = found.gradients[PARTS]
        torch.testing.assert_close(parts.sum(0), found.gradients["logits"], rtol=1e-10, atol=1e-14)
    for found in (OneStep()(problem), Alignment()(made(problem))):
        torch.testing.assert_close(found.gradients[PARTS], expected, rtol=1e-3, atol=1e-6)


def test_asking_changes_nothing_else():
    problem = make_problem(1)
    for engine, one in ((OneStep, problem), (Alignment, made(problem))):
        plain, asked = engine()(one), engine()(replace(one, by_parameter=True))
        assert PARTS not in plain.gradients
        assert torch.equal(plain.gradients["logits"], asked.gradients["logits"])


def test_a_loss_without_a_gradient_gets_one_after_the_step():
    problem = replace(make_problem(1), by_parameter=True)
    whole, found = Alignment()(made(problem)), Alignment()(made(problem, keep=NAMES[1:]))
    plain = Alignment()(replace(made(problem, keep=NAMES[1:]), by_parameter=False))
    assert not torch.equal(found.gradients[PARTS], whole.gradients[PARTS])
    torch.testing.assert_close(found.gradients[PARTS].sum(0), found.gradients["logits"], rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(found.gradients["logits"], plain.gradients["logits"], rtol=1e-4, atol=1e-7)


def test_an_engine_that_cannot_tell_leaves_it_out():
    assert [*Higher()(replace(make_problem(1), by_parameter=True)).gradients] == ["logits"]
