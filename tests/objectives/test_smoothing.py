"""Label smoothing: the published example, the reference's text, weights and mode, and what wraps the model."""

import copy
import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from ranks import run_ranks
from torch.nn.parallel import DistributedDataParallel

from mlpt.data.batch import Batch
from mlpt.data.vocabulary import Vocabulary
from mlpt.errors import UserError
from mlpt.meta.engines import FiniteDifference, Higher, OneStep
from mlpt.meta.engines.base import InnerStep, Lookahead
from mlpt.models.config import ModelConfig
from mlpt.models.encoder import build_encoder
from mlpt.objectives import make_objectives
from mlpt.objectives.base import Inputs
from mlpt.objectives.prediction import predicted_tokens_loss
from mlpt.objectives.smoothing import clean_inputs, reference_logits, smoothed_cross_entropy
from mlpt.randomness import torch_generator
from mlpt.training.group import Group
from mlpt.training.optimizer import OptimizerConfig, make_optimizer
from mlpt.training.reference import AverageReference

VOCABULARY = Vocabulary(size=100, pad=0, unk=1, cls=2, sep=3, mask=4)
LENGTH = 16

# The worked example of the specification (A3).
LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
REFERENCE = torch.tensor([[0.0, 3.0, 1.0, 0.0]])
TARGET = torch.tensor([0])


def six_digits(values) -> list[float]:
    return [round(value, 6) for value in values.flatten().tolist()]


def build(dropout=0.0, architecture="bert", seed=0, **smoothing):
    objectives = make_objectives({"mlm": {"smoothing": {"kind": "token", **smoothing}}}, VOCABULARY)
    config = ModelConfig(architecture=architecture, hidden_size=32, layers=2, heads=2, dropout=dropout)
    encoder = build_encoder(config, VOCABULARY, objectives, LENGTH, seed)
    objectives["mlm"].prepare(encoder)
    return encoder


def texts(rows=6, padded=True, seed=0):
    tokens = torch.randint(5, 100, (rows, LENGTH), generator=torch_generator(seed, "texts"))
    tokens[:, 0], tokens[:, -1] = VOCABULARY.cls, VOCABULARY.sep
    if padded:
        tokens[0, 9:] = VOCABULARY.pad
    return tokens


def training_inputs(encoder, tokens=None, **keywords):
    tokens = texts(**keywords) if tokens is None else tokens
    return encoder.objectives["mlm"].corrupt(Batch.of(tokens), torch_generator(0, "mlm"))


def test_the_published_example_to_all_its_digits():
    assert six_digits(LOGITS.softmax(1)) == [0.643914, 0.236883, 0.087144, 0.032059]
    assert six_digits(REFERENCE.softmax(1)) == [0.040316, 0.809776, 0.109591, 0.040316]
    logits = LOGITS.clone().requires_grad_()
    reference = REFERENCE.clone().requires_grad_()
    loss = smoothed_cross_entropy(logits, TARGET, 0.1, reference)
    loss.sum().backward()
    assert six_digits(loss) == [0.555180]
    assert six_digits(logits.grad) == [-0.260117, 0.155905, 0.076185, 0.028027]
    assert reference.grad is None, "nothing flows through the reference"
    assert six_digits(smoothed_cross_entropy(LOGITS, TARGET, 0.0, REFERENCE)) == [0.440190]
    assert six_digits(smoothed_cross_entropy(LOGITS, TARGET, 0.1, None)) == [0.440190]
    assert six_digits(smoothed_cross_entropy(LOGITS, TARGET, 0.1, "uniform")) == [0.590190]


def test_it_is_torchs_cross_entropy_with_those_targets():
    logits, reference = torch.randn(7, 30, generator=torch_generator(0, "a")), torch.randn(7, 30)
    targets = torch.arange(7)
    q = 0.7 * F.one_hot(targets, 30) + 0.3 * reference.softmax(1)
    ours = smoothed_cross_entropy(logits, targets, 0.3, reference)
    torch.testing.assert_close(ours, F.cross_entropy(logits, q, reduction="none"))
    uniform = F.cross_entropy(logits, targets, reduction="none", label_smoothing=0.3)
    torch.testing.assert_close(smoothed_cross_entropy(logits, targets, 0.3, "uniform"), uniform)


def test_a_probability_that_underflows_gives_no_infinity():
    """Published: log(softmax), which is -inf there."""
    loss = smoothed_cross_entropy(torch.tensor([[0.0, 200.0]]), TARGET, 0.1, torch.tensor([[0.0, 0.0]]))
    assert loss.item() == pytest.approx(0.9 * 200 + 0.1 * 0.5 * 200)


def test_the_weight_may_be_a_tensor_of_each_token_and_learned():
    weight = torch.tensor([0.1, 0.6], requires_grad=True)
    logits, reference = LOGITS.repeat(2, 1), REFERENCE.repeat(2, 1)
    targets = TARGET.repeat(2)
    losses = smoothed_cross_entropy(logits, targets, weight, reference)
    alone = [smoothed_cross_entropy(LOGITS, TARGET, a, REFERENCE).item() for a in (0.1, 0.6)]
    assert losses.tolist() == pytest.approx(alone)
    losses.sum().backward()
    plain, toward = (smoothed_cross_entropy(LOGITS, TARGET, a, REFERENCE) for a in (0.0, 1.0))
    torch.testing.assert_close(weight.grad, (toward - plain).repeat(2))


def test_the_clean_text_is_what_was_corrupted():
    encoder = build()
    tokens = texts(rows=40)
    inputs = training_inputs(encoder, tokens)
    assert not torch.equal(inputs.input_ids, tokens)
    assert torch.equal(clean_inputs(inputs).input_ids, tokens)


def test_the_loss_is_that_of_the_stock_model_on_the_corrupted_and_the_clean_text():
    encoder = build(weight=0.25)
    tokens = texts()
    inputs = training_inputs(encoder, tokens)
    attention = tokens != VOCABULARY.pad
    stock = encoder.backbone
    p = stock(inputs.input_ids, attention_mask=attention).logits.flatten(0, 1)[inputs.positions].log_softmax(1)
    r = stock(tokens, attention_mask=attention).logits.flatten(0, 1)[inputs.positions].softmax(1)
    q = 0.75 * F.one_hot(inputs.targets, 100) + 0.25 * r
    assert encoder("mlm", inputs).item() == pytest.approx(-(q * p).sum(1).mean().item(), abs=1e-5)
    plain = predicted_tokens_loss(encoder, inputs).item()
    assert abs(encoder("mlm", inputs).item() - plain) > 1e-3


def test_the_gradient_takes_the_reference_as_given():
    encoder = build()
    inputs = training_inputs(encoder)
    weights = [one for one in encoder.parameters() if one.requires_grad]
    ours = torch.autograd.grad(encoder("mlm", inputs), weights, allow_unused=True)
    fixed = reference_logits(encoder, inputs)
    hidden = encoder.hidden(inputs).flatten(0, 1)[inputs.positions]
    by_hand = smoothed_cross_entropy(encoder.token_logits(hidden), inputs.targets, 0.1, fixed).mean()
    theirs = torch.autograd.grad(by_hand, weights, allow_unused=True)
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)


def test_the_reference_has_no_dropout_and_every_module_keeps_its_mode():
    encoder = build(dropout=0.5).train()
    encoder.backbone.bert.embeddings.eval()  # someone froze a part
    modes = [module.training for module in encoder.modules()]
    inputs = training_inputs(encoder)
    torch.manual_seed(0)
    one = reference_logits(encoder, inputs)
    assert [module.training for module in encoder.modules()] == modes
    assert torch.equal(one, reference_logits(encoder, inputs)), "no randomness"
    state = torch.get_rng_state()
    encoder("mlm", inputs)
    assert [module.training for module in encoder.modules()] == modes
    assert not torch.equal(torch.get_rng_state(), state), "the other pass has dropout"


def test_the_head_never_sees_more_than_the_predicted_positions(monkeypatch):
    encoder = build()
    inputs = training_inputs(encoder)
    seen = []
    plain = type(encoder).token_logits
    monkeypatch.setattr(
        type(encoder), "token_logits", lambda self, hidden: seen.append(len(hidden)) or plain(self, hidden)
    )
    encoder("mlm", inputs)
    assert seen == [len(inputs.positions)] * 2


def test_held_out_texts_have_plain_targets():
    encoder = build()
    tokens = texts()
    for split in ("dev", "test"):
        inputs = encoder.objectives["mlm"].corrupt(Batch.of(tokens, split), torch_generator(0, "mlm"))
        assert inputs.smoothing is None
        assert encoder("mlm", inputs).item() == predicted_tokens_loss(encoder, inputs).item()


def test_the_default_is_no_smoothing_and_no_second_pass():
    objective = make_objectives({"mlm": {}}, VOCABULARY)["mlm"]
    assert objective.corrupt(Batch.of(texts()), torch_generator(0, "mlm")).smoothing is None
    assert objective.reference is None


@pytest.mark.parametrize("kind", ["none", "uniform", "token"])
def test_the_published_denominator_counts_all_tokens_but_padding(kind):
    ours, published = (build(kind=kind, denominator=one) for one in ("predicted", "all_tokens"))
    for padded in (True, False):
        inputs = training_inputs(published, padded=padded)
        tokens = 6 * LENGTH - (LENGTH - 9 if padded else 0)
        expected = ours("mlm", training_inputs(ours, padded=padded)).item() * len(inputs.positions) / tokens
        assert published("mlm", inputs).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("denominator", ["predicted", "all_tokens"])
def test_nothing_predicted_is_a_loss_of_zero_and_one_position_is_enough(denominator):
    encoder = build(denominator=denominator)
    nothing = torch.zeros(0, dtype=torch.int64)
    loss = encoder("mlm", Inputs(texts(), None, nothing, nothing, smoothing=torch.tensor(0.1)))
    loss.backward()
    assert loss.item() == 0
    one = Inputs(texts(), None, torch.tensor([3]), torch.tensor([8]), smoothing=torch.tensor(0.1))
    assert encoder("mlm", one).isfinite()


def moved(encoder, by=0.05):
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(by)
    return encoder


def test_a_frozen_reference_stays_where_training_began():
    encoder = build(reference="frozen")
    inputs = training_inputs(encoder)
    before = reference_logits(encoder, inputs)
    moved(encoder)
    reference = encoder.objectives["mlm"].reference
    assert torch.equal(reference_logits(reference.model, inputs), before)
    assert not torch.allclose(reference_logits(encoder, inputs), before)
    hidden = encoder.hidden(inputs).flatten(0, 1)[inputs.positions]
    expected = smoothed_cross_entropy(encoder.token_logits(hidden), inputs.targets, 0.1, before).mean()
    assert encoder("mlm", inputs).item() == pytest.approx(expected.item(), rel=1e-6)


def test_an_average_reference_moves_as_its_equation_says_and_survives_a_checkpoint():
    encoder = build(reference="average", decay=0.9)
    hook = AverageReference(encoder.objectives["mlm"])
    expected = {name: one.detach().clone() for name, one in encoder.named_parameters()}
    for step in range(3):
        moved(encoder)
        hook.after_step(step, encoder, None)
        expected = {name: 0.9 * expected[name] + 0.1 * one for name, one in encoder.named_parameters()}
    state, tensors = hook.state()
    assert tensors.keys() == expected.keys()
    for name, one in tensors.items():
        torch.testing.assert_close(one, expected[name])
    again = build(reference="average", decay=0.9, seed=1)
    other = AverageReference(again.objectives["mlm"])
    other.load_state(json.loads(json.dumps(state)), {name: one.clone() for name, one in tensors.items()})
    inputs = training_inputs(encoder)
    ours, theirs = (reference_logits(one.objectives["mlm"].reference.model, inputs) for one in (encoder, again))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("reference", ["frozen", "average"])
def test_a_reference_is_neither_trained_nor_saved_with_the_model(reference):
    encoder, plain = build(reference=reference), build()
    assert [name for name, _ in encoder.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert encoder.state_dict().keys() == plain.state_dict().keys()
    assert not any(one.requires_grad for one in encoder.objectives["mlm"].reference.model.parameters())


def test_a_reference_that_was_never_prepared_says_so():
    objective = make_objectives({"mlm": {"smoothing": {"kind": "token", "reference": "frozen"}}}, VOCABULARY)["mlm"]
    with pytest.raises(ValueError, match=r"call prepare\(model\)"):
        objective.loss(build(), training_inputs(build()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "uniform", "reference": "frozen"}, "belongs to kind=token"),
        ({"weight": 1.5}, "less than or equal to 1"),
        ({"kind": "tokens"}, "'none', 'uniform' or 'token'"),
    ],
)
def test_wrong_settings_are_one_line(settings, message):
    with pytest.raises(UserError, match=message) as caught:
        make_objectives({"mlm": {"smoothing": settings}}, VOCABULARY)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- what wraps the model


def lookahead(reference, steps=1):
    """Learning the weight of smoothing: one inner objective, a held-out loss with plain targets."""
    encoder = build(reference=reference).eval()
    optimizer = make_optimizer(encoder, OptimizerConfig(lr=2e-2))
    objective = encoder.objectives["mlm"]
    for step in range(3):  # warm moments
        inputs = objective.corrupt(Batch.of(texts(seed=step), "dev"), torch_generator(step, "warm"))
        optimizer.zero_grad()
        encoder("mlm", inputs).backward()
        optimizer.step()
    moved(encoder, 0.01)  # a frozen reference is no longer the model

    def inner_loss(k):
        def loss(forward, outer):
            inputs = objective.corrupt(Batch.of(texts(seed=k)), torch_generator(k, "inner"))
            plain, toward = (replaced_smoothing(inputs, torch.tensor(a)) for a in (0.0, 1.0))
            return (1 - outer["weight"]) * forward("mlm", plain) + outer["weight"] * forward("mlm", toward)

        return InnerStep(loss)

    def outer_loss(forward, outer):
        return forward("mlm", objective.corrupt(Batch.of(texts(seed=9), "dev"), torch_generator(9, "outer")))

    outer = {"weight": torch.tensor(0.3, requires_grad=True)}
    return Lookahead(encoder, optimizer, outer, [inner_loss(k) for k in range(steps)], outer_loss)


def replaced_smoothing(inputs, weight):
    return Inputs(**{**vars(inputs), "smoothing": weight})


def after_plain_training(problem, weight):
    encoder, optimizer = copy.deepcopy((problem.model, problem.optimizer))
    for step in problem.steps:
        optimizer.zero_grad()
        step.loss(encoder, {"weight": torch.tensor(weight)}).backward()
        optimizer.step()
    return problem.outer_loss(encoder, {}).item()


def numeric_gradient(problem, h=0.05):
    return (after_plain_training(problem, 0.3 + h) - after_plain_training(problem, 0.3 - h)) / (2 * h)


@pytest.mark.parametrize("reference", ["current", "frozen"])
def test_the_hypergradient_of_the_weight_is_that_of_plain_training(reference):
    problem = lookahead(reference)
    exact = Higher()(problem).gradients["weight"].item()
    assert exact == pytest.approx(numeric_gradient(problem), rel=2e-2)
    assert OneStep()(problem).gradients["weight"].item() == pytest.approx(exact, rel=1e-3)
    if reference == "frozen":  # see `SmoothingConfig`: displaced weights would displace a current reference
        assert FiniteDifference()(problem).gradients["weight"].item() == pytest.approx(exact, rel=1e-2)


def test_higher_takes_the_weight_inside_the_inputs_too():
    """A learner may put the outer tensor into the inputs instead of combining two losses."""
    problem = lookahead("current")
    objective = problem.model.objectives["mlm"]

    def inner_loss(forward, outer):
        inputs = objective.corrupt(Batch.of(texts(seed=0)), torch_generator(0, "inner"))
        return forward("mlm", replaced_smoothing(inputs, outer["weight"]))

    inside = replace(problem, steps=[InnerStep(inner_loss)])
    expected = Higher()(problem).gradients["weight"].item()
    assert Higher()(inside).gradients["weight"].item() == pytest.approx(expected, rel=1e-4)


def test_a_frozen_reference_gives_exact_hypergradients_over_several_steps():
    problem = lookahead("frozen", steps=3)
    exact = Higher()(problem).gradients["weight"].item()
    assert exact == pytest.approx(numeric_gradient(problem), rel=2e-2)


@pytest.mark.parametrize("reference", ["current", "average"])
def test_torch_compile_captures_both_passes_in_one_graph(reference):
    encoder = build(dropout=0.3, reference=reference)
    inputs = training_inputs(encoder, padded=False)
    compiled = torch.compile(encoder, backend="aot_eager", fullgraph=True)

    def loss(forward):
        torch.manual_seed(5)
        return forward("mlm", inputs)

    for _ in range(2):
        ours, expected = loss(compiled), loss(encoder)
        assert ours.item() == pytest.approx(expected.item(), abs=1e-5)
        ours.backward()
        moved(encoder, 0.02)
        if reference == "average":
            encoder.objectives["mlm"].reference.update(encoder)


def ddp_gradients(group: Group, folder: str) -> None:
    encoder = build()
    wrapped = DistributedDataParallel(encoder, forward_sync_buffers=False, find_unused_parameters=True)
    rows = texts(padded=False).chunk(group.world)[group.rank]
    for _ in range(2):
        encoder.zero_grad()
        wrapped("mlm", training_inputs(encoder, rows)).backward()
    gradients = {name: one.grad for name, one in encoder.named_parameters() if one.grad is not None}
    torch.save(gradients, f"{folder}/{group.rank}.pt")


def test_ddp_averages_the_gradients_of_both_ranks(tmp_path):
    run_ranks(ddp_gradients, str(tmp_path))
    encoder = build()
    halves = [training_inputs(encoder, rows) for rows in texts(padded=False).chunk(2)]
    (sum(encoder("mlm", half) for half in halves) / 2).backward()
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, parameter in encoder.named_parameters():
        if parameter.grad is not None:
            for one in found:
                torch.testing.assert_close(one[name], parameter.grad, msg=name)
