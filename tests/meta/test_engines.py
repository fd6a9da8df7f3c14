"""The engines: `higher` against numeric differentiation of plain torch training, the others against `higher`."""

import copy
import gc
from dataclasses import replace

import pytest
import torch
from tiny_encoder import NAMES, TinyBlocks, make_adamw, make_encoder, train

from mlpt.errors import UserError
from mlpt.meta.engines import ENGINES, FiniteDifference, ForwardOverReverse, Higher, OneStep
from mlpt.meta.engines.base import InnerStep, Lookahead, Sgd

SOLVERS = [name for name, engine in ENGINES.items() if not engine.uses_made]  # of inner steps that are to be made


def make_problem(steps, dtype=torch.float64, warm=7):
    """A look-ahead over the mixture's logits from a warm AdamW (heads at different step counts).

    steps  how many inner steps, or what steps the weights in each: None for the AdamW, or an `Sgd`.
    """
    model = make_encoder(dropout=0.1).to(dtype).eval()
    optimizer = make_adamw(model, lr=2e-2, eps=1e-6)
    train(model, optimizer, TinyBlocks(1), warm)

    def inputs(k, name, size=6):
        generator = torch.Generator().manual_seed(100 * k + NAMES.index(name))
        rows = torch.randint(0, 40, (size,), generator=generator).numpy()
        return model.objectives[name].corrupt(TinyBlocks(1 if k < 90 else 2).batch(rows), generator)

    def inner_loss(k):
        def loss(forward, outer):
            shares = zip(outer["logits"].softmax(0), NAMES, strict=True)
            return torch.stack([p * forward(name, inputs(k, name)) for p, name in shares]).sum()

        return loss

    def outer_loss(forward, outer):
        return torch.stack([forward(name, inputs(99, name)) for name in NAMES]).mean()

    outer = {"logits": torch.tensor([0.3, -0.2, 0.5], dtype=dtype, requires_grad=True)}
    kinds = [None] * steps if isinstance(steps, int) else steps
    inner_steps = [InnerStep(inner_loss(k), kind) for k, kind in enumerate(kinds)]
    return Lookahead(model, optimizer, outer, inner_steps, outer_loss)


def numeric_gradient(problem, name, h=1e-5):
    """Central differences of the meta-dev loss after plain torch.optim steps on a copy of the model."""
    tensor = problem.outer[name].detach()
    gradient = torch.zeros_like(tensor)
    for place in range(tensor.numel()):
        losses = []
        for sign in (1, -1):
            moved = tensor.clone()
            moved.view(-1)[place] += sign * h
            losses.append(meta_dev_loss(problem, {**problem.outer, name: moved}))
        gradient.view(-1)[place] = (losses[0] - losses[1]) / (2 * h)
    return gradient


def meta_dev_loss(problem, outer):
    model, optimizer = copy.deepcopy((problem.model, problem.optimizer))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in outer:
                parameter.copy_(outer[name])
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for step in problem.steps:
        optimizer.zero_grad()
        step.loss(model, outer).backward()
        stepper = optimizer if step.optimizer is None else torch.optim.SGD(trained, lr=step.optimizer.lr)
        stepper.step()
    return problem.outer_loss(model, outer).item()


@pytest.mark.parametrize("steps", [1, 3])
def test_higher_agrees_with_numeric_differentiation_of_plain_training(steps):
    problem = make_problem(steps)
    loss, gradients = Higher()(problem)
    assert loss.item() == pytest.approx(meta_dev_loss(problem, problem.outer), rel=1e-12)
    torch.testing.assert_close(gradients["logits"], numeric_gradient(problem, "logits"), rtol=1e-5, atol=1e-10)
    assert gradients["logits"].abs().min() > 1e-7


@pytest.mark.parametrize("warm", [0, 7])
def test_one_step_agrees_with_higher(warm):
    problem = make_problem(1, warm=warm)
    expected, found = Higher()(problem), OneStep()(problem)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.gradients["logits"], expected.gradients["logits"], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_finite_difference_agrees_with_higher(steps):
    problem = make_problem(steps)
    expected, found = Higher()(problem), FiniteDifference(radius=1e-4)(problem)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.gradients["logits"], expected.gradients["logits"], rtol=1e-5, atol=1e-11)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_forward_over_reverse_agrees_with_higher(steps):
    problem = make_problem(steps)
    expected, found = Higher()(problem), ForwardOverReverse()(problem)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.gradients["logits"], expected.gradients["logits"], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_a_truncated_gradient_is_that_of_the_last_steps_alone(kept):
    """As if the steps before them had been made, and the look-ahead had begun only then."""
    whole = make_problem(3)
    model, optimizer = copy.deepcopy((whole.model, whole.optimizer))
    for step in whole.steps[: 3 - kept]:
        optimizer.zero_grad()
        step.loss(model, whole.outer).backward()
        optimizer.step()
    last = replace(whole, model=model, optimizer=optimizer, steps=whole.steps[3 - kept :])
    expected = Higher()(last)
    for engine, tolerance in ((Higher(), 1e-9), (ForwardOverReverse(), 1e-9), (FiniteDifference(1e-4), 1e-5)):
        found = engine(replace(whole, backward_steps=kept))
        torch.testing.assert_close(found.loss, expected.loss, rtol=1e-12, atol=0)
        torch.testing.assert_close(
            found.gradients["logits"], expected.gradients["logits"], rtol=tolerance, atol=tolerance * 1e-5
        )


@pytest.mark.parametrize(
    ("name", "steps"),
    [("one_step", 1), ("finite_difference", 1), ("finite_difference", 3), ("forward_over_reverse", 3)],
)
def test_in_float32_the_engines_agree_to_a_part_in_a_hundred(name, steps):
    expected = Higher()(make_problem(steps)).gradients["logits"]
    found = ENGINES[name]()(make_problem(steps, dtype=torch.float32)).gradients["logits"].double()
    assert (found - expected).norm() < 0.01 * expected.norm()


def test_outer_tensors_may_be_parameters_of_the_model():
    """As mask scores will be: a tensor inside the network, trained by the outer loop only."""
    problem = make_problem(2)
    inside = problem.model.positions
    for group in problem.optimizer.param_groups:
        group["params"] = [one for one in group["params"] if one is not inside]
    outer = {**problem.outer, "positions": inside.detach().clone().requires_grad_()}
    problem = replace(problem, outer=outer)
    exact = Higher()(problem).gradients
    numeric = numeric_gradient(problem, "positions")
    torch.testing.assert_close(exact["positions"], numeric, rtol=1e-5, atol=1e-9)
    close, forward = FiniteDifference(radius=1e-4)(problem).gradients, ForwardOverReverse()(problem).gradients
    for name in outer:
        torch.testing.assert_close(forward[name], exact[name], rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(close[name], exact[name], rtol=1e-4, atol=1e-8)
    with pytest.raises(UserError, match="engine=higher"):
        OneStep()(replace(problem, steps=problem.steps[:1]))


@pytest.mark.parametrize("name", SOLVERS)
def test_an_outer_tensor_that_the_meta_dev_loss_reads_directly_is_counted(name):
    problem = make_problem(1)
    direct = replace(
        problem, outer_loss=lambda forward, outer: problem.outer_loss(forward, outer) + (outer["logits"] ** 2).sum()
    )
    expected = ENGINES[name]()(problem).gradients["logits"] + 2 * problem.outer["logits"].detach()
    torch.testing.assert_close(ENGINES[name]()(direct).gradients["logits"], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", SOLVERS)
def test_an_engine_changes_neither_the_model_nor_the_optimizer(name):
    problem = make_problem(1)
    weights = copy.deepcopy(problem.model.state_dict())
    state = copy.deepcopy(problem.optimizer.state_dict())
    gradients = copy.deepcopy([parameter.grad for parameter in problem.model.parameters()])
    ENGINES[name]()(problem)
    for key, value in problem.model.state_dict().items():
        assert torch.equal(value, weights[key]), key
    for index, values in problem.optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, state["state"][index][key]) for key, value in values.items())
    for parameter, gradient in zip(problem.model.parameters(), gradients, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_cold_adamw_with_untouched_rows_gives_finite_hypergradients(name):
    problem = make_problem(1, warm=0)
    problem.model.decoder.weight = torch.nn.Parameter(problem.model.decoder.weight.detach().clone())  # untied
    optimizer = make_adamw(problem.model, lr=1e-2, eps=1e-12)
    problem = replace(problem, optimizer=optimizer)
    assert torch.isfinite(ENGINES[name]()(problem).gradients["logits"]).all()


def test_the_patched_model_is_reused_with_new_weights_and_leaves_nothing_alive():
    engine = Higher()
    problem = make_problem(2)
    first = engine(problem)
    patched = engine._patched
    gc.collect()
    alive = sum(torch.is_tensor(one) for one in gc.get_objects())
    train(problem.model, problem.optimizer, TinyBlocks(1), 2)
    second = engine(problem)
    assert engine._patched is patched
    assert second.loss != first.loss
    torch.testing.assert_close(second.gradients["logits"], Higher()(problem).gradients["logits"])
    for _ in range(3):
        engine(problem)
    del second
    gc.collect()
    assert sum(torch.is_tensor(one) for one in gc.get_objects()) <= alive + 2


def test_one_step_refuses_more_steps():
    with pytest.raises(UserError, match="inner_steps=1"):
        OneStep()(make_problem(2))


MIXED = {
    "AdamW, SGD": [None, Sgd(0.3)],
    "SGD, AdamW": [Sgd(0.3), None],
    "AdamW, SGD, SGD, AdamW": [None, Sgd(0.3), Sgd(0.1), None],
}


@pytest.mark.parametrize("warm", [0, 7])
@pytest.mark.parametrize("kinds", MIXED.values(), ids=MIXED.keys())
def test_steps_of_adamw_and_of_gradient_descent_may_follow_each_other(kinds, warm):
    problem = make_problem(kinds, warm=warm)
    numeric = numeric_gradient(problem, "logits")
    exact, close, forward = Higher()(problem), FiniteDifference(radius=1e-4)(problem), ForwardOverReverse()(problem)
    torch.testing.assert_close(forward.gradients["logits"], exact.gradients["logits"], rtol=1e-8, atol=1e-12)
    for found in (exact, close):
        assert found.loss.item() == pytest.approx(meta_dev_loss(problem, problem.outer), rel=1e-12)
    # a cold AdamW bends more within a central difference
    torch.testing.assert_close(exact.gradients["logits"], numeric, rtol=1e-5 if warm else 1e-4, atol=1e-9)
    torch.testing.assert_close(close.gradients["logits"], numeric, rtol=1e-4, atol=1e-8)
    assert numeric.abs().min() > 1e-6
    # the kind of a step matters: all of AdamW gives something else
    other = Higher()(make_problem(len(kinds), warm=warm)).gradients["logits"]
    assert (other - numeric).norm() > 1e-2 * numeric.norm()


@pytest.mark.parametrize("name", SOLVERS)
def test_one_step_of_gradient_descent_is_an_inner_product_of_gradients(name):
    """d L_dev / d logit_j = -lr sum_i (d p_i / d logit_j) <grad L_i, grad L_dev at the stepped weights>."""
    rate = 0.3
    problem = make_problem([Sgd(rate)])
    model, parameters = problem.model, list(problem.model.parameters())
    shares = problem.outer["logits"].detach().softmax(0)

    def gradient(loss, *outer):
        found = torch.autograd.grad(loss(model, *outer), parameters, materialize_grads=True, allow_unused=True)
        return torch.nn.utils.parameters_to_vector(found)

    def corner(i):  # the mixture that is objective i alone
        return {"logits": torch.tensor([0.0 if i == j else -1e3 for j in range(3)], dtype=torch.float64)}

    each = torch.stack([gradient(problem.steps[0].loss, corner(i)) for i in range(3)])
    with torch.no_grad():
        before = torch.nn.utils.parameters_to_vector(parameters).clone()
        torch.nn.utils.vector_to_parameters(before - rate * shares @ each, parameters)
    held_out = gradient(problem.outer_loss, {})
    with torch.no_grad():
        torch.nn.utils.vector_to_parameters(before, parameters)
    jacobian = torch.diag(shares) - torch.outer(shares, shares)
    expected = -rate * jacobian @ (each @ held_out)
    found = ENGINES[name]()(problem).gradients["logits"]
    tolerance = 2e-3 if name == "finite_difference" else 1e-9
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=1e-12)


def test_mixed_steps_reach_outer_tensors_inside_the_model():
    problem = make_problem([None, Sgd(0.3)])
    inside = problem.model.norm.weight
    for group in problem.optimizer.param_groups:
        group["params"] = [one for one in group["params"] if one is not inside]
    outer = {**problem.outer, "norm.weight": inside.detach().clone().requires_grad_()}
    problem = replace(problem, outer=outer)
    exact, close = Higher()(problem).gradients, FiniteDifference(radius=1e-4)(problem).gradients
    for leaf in outer:
        numeric = numeric_gradient(problem, leaf)
        torch.testing.assert_close(exact[leaf], numeric, rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(close[leaf], numeric, rtol=1e-4, atol=1e-8)
