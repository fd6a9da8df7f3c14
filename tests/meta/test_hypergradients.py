"""`mlpt.meta.lookahead` on models that are not ours: tied weights, keyword arguments, several inner steps."""

import copy
import logging
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from mlpt.errors import UserError
from mlpt.meta import lookahead
from mlpt.meta.engines import ENGINES, Auto, FiniteDifference, ForwardOverReverse, Higher, OneStep
from mlpt.meta.engines import auto as auto_engine
from mlpt.meta.engines.base import InnerStep, Lookahead, Made
from mlpt.meta.engines.memory import activation_bytes, needed_bytes

EXAMPLE = Path(__file__).resolve().parents[2] / "docs/examples/learn_loss_weights.py"


class Tied(nn.Module):
    """A tiny language model whose output matrix is its embedding; it returns logits, or the loss of given targets."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.layer = nn.Linear(6, 6)
        self.output = nn.Linear(6, 11, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, tokens, targets=None):
        logits = self.output(torch.tanh(self.layer(self.embedding(tokens))))
        return logits if targets is None else cross_entropy(logits, targets)


@pytest.fixture
def trained():
    """A float64 model, its warm AdamW, and batches (tokens, targets)."""
    torch.manual_seed(0)
    model = Tied().double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-2, eps=1e-6, weight_decay=0.1)
    batches = [(torch.randint(0, 11, (16,)), torch.randint(0, 11, (16,))) for _ in range(6)]
    for tokens, targets in batches[:3]:
        optimizer.zero_grad()
        model(tokens, targets=targets).backward()
        optimizer.step()
    return model, optimizer, batches


def weighted(batches):
    def loss(forward, outer):
        weights = outer["logits"].sigmoid()
        return sum(w * forward(tokens, targets=targets) for w, (tokens, targets) in zip(weights, batches, strict=True))

    return loss


def numeric(model, optimizer, values, losses, held_out, h=1e-5):
    """Central differences of the held-out loss over copies that torch's own optimiser trains."""
    gradient = torch.zeros_like(values)
    for place in range(len(values)):
        after = []
        for sign in (1, -1):
            twin, stepper = copy.deepcopy((model, optimizer))
            moved = {"logits": values.detach().clone()}
            moved["logits"][place] += sign * h
            for loss in losses:
                stepper.zero_grad()
                loss(twin, moved).backward()
                stepper.step()
            after.append(held_out(twin, moved).detach())
        gradient[place] = (after[0] - after[1]) / (2 * h)
    return gradient


@pytest.mark.parametrize(("engine", "steps"), [("auto", 1), ("one_step", 1), ("higher", 1), ("auto", 3), ("higher", 3)])
def test_the_gradient_is_that_of_plain_training(trained, engine, steps):
    model, optimizer, batches = trained
    logits = torch.tensor([0.4, -0.3], dtype=torch.float64, requires_grad=True)
    losses = [weighted([batches[k], batches[k + 1]]) for k in range(steps)]

    def held_out(forward, outer):
        return forward(batches[5][0], targets=batches[5][1]) + 0.1 * outer["logits"].square().sum()

    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    found = lookahead(model, optimizer, {"logits": logits}, losses, held_out, engine)
    expected = numeric(model, optimizer, logits, losses, held_out)
    torch.testing.assert_close(found.gradients["logits"], expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close((model.state_dict(), optimizer.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize("engine", list(ENGINES))
def test_outer_tensors_of_the_held_out_loss_alone_have_its_gradient(trained, engine):
    model, optimizer, batches = trained
    logits = torch.tensor([0.4, -0.3], dtype=torch.float64, requires_grad=True)
    (tokens, targets), held = batches[4:]
    made = None
    if ENGINES[engine].uses_made:
        loss = model(tokens, targets=targets)
        each = dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, model.parameters()), strict=True))
        made = Made(each, [each])

    def inner(forward, outer):
        return forward(tokens, targets=targets)

    def held_out(forward, outer):
        return forward(held[0], targets=held[1]) * outer["logits"].square().sum()

    found = lookahead(model, optimizer, {"logits": logits}, inner, held_out, engine, made=made)
    expected = 2 * logits.detach() * found.loss / logits.detach().square().sum()
    torch.testing.assert_close(found.gradients["logits"], expected, rtol=1e-9, atol=0)


def test_numeric_engines_take_models_that_return_logits_and_outer_tensors_inside_the_loss(trained):
    model, optimizer, batches = trained
    targets = torch.randn(16, 11, dtype=torch.float64, requires_grad=True)

    def inner(forward, outer):
        return mse_loss(forward(batches[0][0]), outer["targets"])

    def held_out(forward, outer):
        return cross_entropy(forward(batches[5][0]), batches[5][1])

    exact, near = (
        lookahead(model, optimizer, {"targets": targets}, inner, held_out, engine).gradients["targets"]
        for engine in (Higher(), FiniteDifference(1e-4))
    )
    assert float(exact.norm()) > 0
    torch.testing.assert_close(near, exact, rtol=1e-3, atol=1e-8)
    with pytest.raises(UserError, match="needs a model that returns one loss"):
        lookahead(model, optimizer, {"targets": targets}, inner, held_out, "one_step")


def test_one_step_refuses_outer_tensors_in_what_the_model_is_given():
    model = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))
    optimizer = torch.optim.AdamW(model.parameters())
    points = torch.randn(1, 3, requires_grad=True)

    def inner(forward, outer):
        return forward(outer["points"]).sum()

    def held_out(forward, outer):
        return forward(torch.ones(1, 3)).sum()

    with pytest.raises(UserError, match="what the model is given"):
        lookahead(model, optimizer, {"points": points}, inner, held_out, "one_step")
    found = lookahead(model, optimizer, {"points": points}, inner, held_out, "auto")
    assert found.gradients["points"].shape == (1, 3)


def test_auto_says_what_it_chose_and_keeps_it(trained, monkeypatch, caplog):
    model, optimizer, batches = trained
    outer = {"logits": torch.zeros(2, dtype=torch.float64, requires_grad=True)}
    loss, held_out = weighted(batches[:2]), lambda forward, _: forward(batches[5][0], targets=batches[5][1])
    chosen = {}
    caplog.set_level(logging.INFO, "mlpt")
    problem = Lookahead(model, optimizer, outer, [InnerStep(loss)] * 2, held_out)
    needed = needed_bytes(problem)
    assert needed["finite_difference"] < needed["forward_over_reverse"] < needed["higher"]
    rooms = (
        ("one", 1, 10**12),
        ("roomy", 2, 2 * needed["higher"]),
        ("narrow", 2, 2 * needed["forward_over_reverse"]),
        ("narrower", 2, needed["finite_difference"]),
        ("unknown", 2, None),
    )
    for name, steps, free in rooms:
        monkeypatch.setattr(auto_engine, "free_bytes", lambda device, free=free: free)
        engine = Auto()
        lookahead(model, optimizer, outer, [loss] * steps, held_out, engine)
        chosen[name] = type(engine.chosen)
        kept = engine.chosen
        lookahead(model, optimizer, outer, [loss] * steps, held_out, engine)
        assert engine.chosen is kept
        assert engine.why in caplog.text
    assert chosen == {
        "one": OneStep,
        "roomy": Higher,
        "narrow": ForwardOverReverse,
        "narrower": FiniteDifference,
        "unknown": Higher,
    }
    monkeypatch.setattr(auto_engine, "free_bytes", lambda device: 1000)
    with pytest.raises(UserError, match=rf"needs {needed['finite_difference']:,} bytes and 1,000 are free"):
        lookahead(model, optimizer, outer, [loss] * 2, held_out, Auto())


def test_auto_leaves_attention_without_a_second_derivative_as_it_is(trained, monkeypatch):
    model, optimizer, batches = trained
    model.config = SimpleNamespace(_attn_implementation="flash_attention_2")
    outer = {"logits": torch.zeros(2, dtype=torch.float64, requires_grad=True)}
    engine = Auto()
    lookahead(model, optimizer, outer, [weighted(batches[:2])] * 2, weighted(batches[4:]), engine)
    assert isinstance(engine.chosen, FiniteDifference)
    assert "flash_attention_2" in engine.why


def test_activations_are_counted_once_and_without_weights():
    """Of y = sum((x W)^2) autograd keeps x, for W, and x W, for the square."""
    model = nn.Linear(5, 7, bias=False)
    x = torch.ones(3, 5)
    loss = InnerStep(lambda forward, outer: (forward(x) ** 2).sum())
    problem = Lookahead(model, torch.optim.AdamW(model.parameters()), {}, [loss], loss.loss)
    assert activation_bytes(problem) == 4 * (3 * 5 + 3 * 7)


def test_free_memory_is_known_here_or_not_at_all():
    free = auto_engine.free_bytes(torch.device("cpu"))
    assert free is None or free > 10**6


def test_what_cannot_be_looked_ahead_is_one_line(trained):
    model, optimizer, batches = trained
    loss = weighted(batches[:2])
    good = {"logits": torch.zeros(2, dtype=torch.float64, requires_grad=True)}
    descent = torch.optim.SGD(model.parameters(), lr=0.1)
    wider = torch.optim.AdamW([*model.parameters(), nn.Parameter(torch.zeros(3))])
    for changed, says in (
        ({"outer": {}}, "leaf tensors"),
        ({"outer": {"logits": torch.zeros(2)}}, "'logits' is none"),
        ({"optimizer": descent}, "not SGD"),
        ({"optimizer": wider}, "a parameter that the model has not"),
        ({"inner": []}, "at least one inner step"),
        ({"engine": "magic"}, "there is no engine 'magic'; there are " + ", ".join(ENGINES)),
    ):
        given = {"optimizer": optimizer, "outer": good, "inner": loss, "outer_loss": loss, **changed}
        with pytest.raises(UserError, match=says):
            lookahead(model, **given)


def test_the_example_finds_which_labels_are_random():
    clean, random = runpy.run_path(str(EXAMPLE))["learn"](steps=100)
    assert clean > 0.9 > 0.1 > random
