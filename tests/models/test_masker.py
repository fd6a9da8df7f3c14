"""The masker's draws: their distribution, their likelihood and their budget."""

import itertools
import math

import pytest
import torch

from mlpt.data.vocabulary import Vocabulary
from mlpt.models.masker import build_masker, draw_loss, draw_positions
from mlpt.models.writers import entropy_of, flat_weights, load_flat, make_writer
from mlpt.objectives.networks import NetworkConfig
from mlpt.objectives.teacher_settings import TeacherMadeConfig

VOCABULARY = Vocabulary(size=30, pad=0, mask=1, cls=2, sep=3, unk=4)
SCORES = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).log()


def test_the_first_position_is_drawn_in_proportion_to_the_exponential_of_its_score():
    rows = 20_000
    generator = torch.Generator().manual_seed(0)
    among = torch.ones(rows, 4, dtype=torch.bool)
    turns = draw_positions(SCORES.expand(rows, 4), among, torch.ones(rows, dtype=torch.int64), generator)
    shares = (turns == 0).double().mean(0)
    assert torch.allclose(shares, torch.tensor([0.1, 0.2, 0.3, 0.4]).double(), atol=0.015)  # four standard errors


def test_the_probabilities_of_all_draws_of_two_sum_to_one_and_are_the_products_of_shares():
    total = 0.0
    weights = [1.0, 2.0, 3.0, 4.0]
    for first, second in itertools.permutations(range(4), 2):
        turns = torch.full((1, 4), -1)
        turns[0, first], turns[0, second] = 0, 1
        loss = draw_loss(SCORES, torch.ones(1, 4, dtype=torch.bool), turns)
        probability = math.exp(-2 * loss.item())
        assert probability == pytest.approx(weights[first] / 10 * weights[second] / (10 - weights[first]), rel=1e-5)
        total += probability
    assert total == pytest.approx(1, rel=1e-5)


def test_its_gradient_is_finite_beside_positions_that_cannot_be_drawn_and_agrees_with_differences():
    scores = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    among = torch.tensor([[False, True, True, True, False], [True, True, False, True, True]])
    turns = torch.tensor([[-1, 1, 0, -1, -1], [0, -1, -1, 1, 2]])
    assert torch.autograd.gradcheck(lambda one: draw_loss(one, among, turns), scores)


@pytest.mark.parametrize("network", [False, True])
def test_a_budget_of_positions_is_masked_never_a_special_one(network):
    masking = {"budget": 0.25, "mask_share": 1, "random_share": 0, "network": network}
    settings = {"teacher": "masker", "masking": masking}
    sizes = NetworkConfig(hidden_size=8, heads=2, layers=1, intermediate_size=16, positions=12)
    writer = make_writer(TeacherMadeConfig.model_validate({**settings, "network": sizes}), VOCABULARY)
    tokens = torch.randint(5, 30, (6, 12), generator=torch.Generator().manual_seed(1))
    tokens[:, 0], tokens[:, -1] = 2, 3
    tokens[0, 6:] = 0
    inputs, loss = writer.write(tokens, torch.Generator().manual_seed(2))
    masked = inputs.input_ids == 1
    eligible = ~VOCABULARY.is_special(tokens)
    assert not (masked & ~eligible).any()
    counts, expected = masked.sum(1), 0.25 * eligible.sum(1)
    assert ((counts >= expected.floor()) & (counts <= expected.floor() + 1)).all()
    assert torch.equal(inputs.targets, tokens[masked])
    again, _ = writer.write(tokens, torch.Generator().manual_seed(2))
    assert torch.equal(again.input_ids, inputs.input_ids)
    assert all(one.isfinite().all() for one in torch.autograd.grad(loss, [next(writer.network.parameters())]))


def test_it_begins_with_equal_scores_and_its_weights_travel_as_one_tensor():
    masker = build_masker(None, VOCABULARY, 0)
    assert not masker(torch.arange(30).unsqueeze(0)).any()
    load_flat(masker, torch.arange(30.0))
    assert torch.equal(flat_weights(masker), torch.arange(30.0))
    assert torch.equal(masker(torch.tensor([[7, 9]])), torch.tensor([[7.0, 9.0]]))


def test_entropy_counts_what_has_mass_and_has_a_gradient_beside_what_has_none():
    logits = torch.tensor([0.0, 0.0, -torch.inf, 1.0], dtype=torch.float64).requires_grad_()
    entropy = entropy_of(logits.log_softmax(-1))
    shares = torch.tensor([1.0, 1.0, math.e], dtype=torch.float64) / (2 + math.e)
    assert entropy.item() == pytest.approx(-(shares * shares.log()).sum().item())
    (gradient,) = torch.autograd.grad(entropy, logits)
    expected = -shares * (shares.log() + entropy.item())  # of a softmax by its logits
    assert torch.allclose(gradient[[0, 1, 3]], expected)
    assert gradient[2] == 0
