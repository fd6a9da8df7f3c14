"""Many models trained at once do what each would do alone."""

import pytest
import torch
from torch import nn

from mlpt.data.vocabulary import Vocabulary
from mlpt.models.soft import token_cross_entropy
from mlpt.models.teacher import NetworkConfig, build_student
from mlpt.training.compiling import why_not_compile
from mlpt.training.many import Many

VOCABULARY = Vocabulary(size=40, pad=0, mask=1, sep=2, cls=3, unk=1)
MODELS, ROWS, LENGTH = 3, 2, 6
ADAMW = {"betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.1}


def students(dropout=0.0, attention="eager"):
    config = NetworkConfig(
        hidden_size=8,
        heads=2,
        intermediate_size=16,
        layers=1,
        positions=LENGTH,
        dropout=dropout,
        attention_dropout=dropout,
        attention=attention,
    )
    return [build_student(config, VOCABULARY, seed) for seed in range(MODELS)]


def loss(forward, tokens, labels):
    return token_cross_entropy(forward(tokens, tokens != 0), labels, labels != 0)


def batches(step):
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(3, 40, (MODELS, ROWS, LENGTH), generator=generator)
    tokens[:, 1, 4:] = 0
    return tokens, torch.where(tokens == 0, 0, tokens.roll(1, 2).clamp(min=3))


def rates(step):
    return torch.tensor([1e-2, 3e-3, 1e-3]) / (step + 1)


@pytest.mark.parametrize(("mode", "attention"), [("recorded", "eager"), ("recorded", "sdpa"), ("plain", "eager")])
def test_each_model_goes_the_way_of_torchs_adamw_on_its_own_batches_and_rates(mode, attention):
    together = Many(students(attention=attention), loss, **ADAMW, max_norm=2.0, mode=mode)
    alone = students(attention=attention)
    optimizers = [torch.optim.AdamW(one.parameters(), **ADAMW) for one in alone]
    clipped = 0
    for step in range(4):
        found = together.step(batches(step), rates(step), seed=step)
        for number, (model, optimizer) in enumerate(zip(alone, optimizers, strict=True)):
            optimizer.param_groups[0]["lr"] = rates(step)[number].item()
            optimizer.zero_grad()
            expected = loss(model, *(one[number] for one in batches(step)))
            expected.backward()
            clipped += bool(nn.utils.clip_grad_norm_(model.parameters(), 2.0) > 2.0)
            optimizer.step()
            assert found[number].item() == pytest.approx(expected.item(), rel=1e-5)
    assert 0 < clipped < 4 * MODELS
    for number, model in enumerate(alone):
        for name, value in together.state(number).items():
            torch.testing.assert_close(value, model.get_parameter(name).detach(), atol=1e-5, rtol=1e-4, msg=name)


def test_the_models_that_were_given_stay_as_they_are():
    given = students()
    before = [one.trunk.tokens.weight.detach().clone() for one in given]
    together = Many(given, loss)
    together.step(batches(0), rates(0), seed=0)
    assert all(torch.equal(one.trunk.tokens.weight, old) for one, old in zip(given, before, strict=True))
    for number, old in enumerate(before):
        assert not torch.equal(together.state(number)["trunk.tokens.weight"], old)


@pytest.mark.parametrize("mode", ["recorded", "plain"])
def test_a_steps_seed_names_its_dropout_and_the_global_stream_is_left_alone(mode):
    def after(seed):
        together = Many(students(dropout=0.5), loss, mode=mode)
        together.step(batches(0), rates(0), seed=100)  # recording draws nothing from later steps
        return together.step(batches(1), rates(1), seed=seed)

    state = torch.random.get_rng_state()
    first, again, other = after(1), after(1), after(2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_models_draw_different_dropout_and_a_recorded_step_draws_anew():
    same = [students(dropout=0.5)[0]] * MODELS
    together = Many(same, loss)
    tokens, labels = (one[:1].expand(MODELS, -1, -1) for one in batches(0))
    first = together.step((tokens, labels), torch.zeros(MODELS), seed=1)
    second = together.step((tokens, labels), torch.zeros(MODELS), seed=2)
    assert len(set(first.tolist() + second.tolist())) == 2 * MODELS


def test_recording_changes_no_result_with_dropout_either():
    found = []
    for mode in ("recorded", "plain"):
        together = Many(students(dropout=0.3), loss, mode=mode)
        found.append(torch.stack([together.step(batches(step), rates(step), seed=step) for step in range(3)]))
    torch.testing.assert_close(found[0], found[1])


def test_a_model_without_a_rate_stays_where_it_is():
    together = Many(students(), loss, **ADAMW)
    before = together.weights.clone()
    together.step(batches(0), torch.tensor([1e-2, 0.0, 1e-2]), seed=0)
    changed = (together.weights != before).any(dim=1)
    assert changed.tolist() == [True, False, True]


def test_batches_of_another_shape_are_recorded_anew():
    together = Many(students(), loss)
    short = [one[:, :1, :3] for one in batches(0)]
    wide = together.step(batches(0), torch.zeros(MODELS), seed=0)
    narrow = together.step(short, torch.zeros(MODELS), seed=0)
    model = students()[1]
    assert narrow[1].item() == pytest.approx(loss(model, *(one[1] for one in short)).item(), rel=1e-5)
    assert wide[1].item() == pytest.approx(loss(model, *(one[1] for one in batches(0))).item(), rel=1e-5)


def test_all_models_are_evaluated_on_shared_inputs_without_dropout():
    given = students(dropout=0.5)
    together = Many(given, loss)
    tokens = batches(0)[0][0]
    found = together.apply(lambda forward, tokens: forward(tokens, tokens != 0).argmax(-1), tokens)
    assert found.shape == (MODELS, ROWS, LENGTH)
    expected = torch.stack([one.eval()(tokens, tokens != 0).argmax(-1) for one in students(dropout=0.5)])
    assert torch.equal(found, expected)
    assert given[0].training


@pytest.mark.slow
@pytest.mark.skipif(why_not_compile(torch.device("cpu")) is not None, reason="needs a C++ compiler")
def test_compiling_changes_no_result_and_draws_by_the_steps_seed():
    found = []
    for mode in ("compiled", "plain"):
        together = Many(students(), loss, **ADAMW, max_norm=2.0, mode=mode)
        found.append(torch.stack([together.step(batches(step), rates(step), seed=step) for step in range(3)]))
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)
    noisy = Many(students(dropout=0.5), loss, mode="compiled")
    first, again, other = (noisy.step(batches(0), torch.zeros(MODELS), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_models_that_are_not_alike_are_refused():
    with pytest.raises(ValueError, match="the same parameters and no buffers"):
        Many([nn.Linear(2, 2), nn.Linear(2, 3)], loss)
    with pytest.raises(ValueError, match="the same parameters and no buffers"):
        Many([nn.BatchNorm1d(2), nn.BatchNorm1d(2)], loss)
