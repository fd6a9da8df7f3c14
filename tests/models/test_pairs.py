"""Pairs that a teacher writes: samples, losses and figures, against distributions and losses written out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from mlpt.data.vocabulary import Vocabulary
from mlpt.models.pairs import (
    auxiliary_loss,
    counted_positions,
    describe_pairs,
    draw_pair,
    draw_tokens,
    pair_loss,
    soft_pair,
)
from mlpt.models.teacher import NetworkConfig, Pair, build_teacher

PAD, MASK = 0, 1
VOCABULARY = Vocabulary(size=60, pad=PAD, mask=MASK, sep=2, cls=3, unk=MASK)
SIZES = NetworkConfig(hidden_size=8, heads=2, intermediate_size=16, layers=1, positions=12)


def texts(rows=4, length=12):
    tokens = torch.randint(5, 60, (rows, length), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = 3
    tokens[1, 7:] = PAD
    return tokens


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_tokens_are_drawn_from_the_softmax():
    logits = torch.tensor([1.0, -0.5, 2.0, 0.0, float("-inf")])
    drawn = draw_tokens(logits.expand(200_000, 5), generator())
    shares = torch.bincount(drawn, minlength=5) / len(drawn)
    torch.testing.assert_close(shares, logits.softmax(0), atol=0.005, rtol=0)
    assert shares[4] == 0


def test_a_token_without_mass_is_never_drawn_at_either_end():
    inside = torch.tensor([float("-inf"), 0.0, 3.0, float("-inf")])
    assert set(draw_tokens(inside.expand(100_000, 4), generator()).tolist()) == {1, 2}


def test_a_pair_keeps_the_texts_padding_and_can_be_drawn_again():
    teacher, tokens = build_teacher(SIZES, VOCABULARY, 0), texts()
    logits = teacher(tokens, tokens != PAD)
    first, again, other = (draw_pair(logits, tokens, PAD, generator(seed)) for seed in (0, 0, 1))
    for drawn, redrawn, else_drawn in zip(first, again, other, strict=True):
        assert torch.equal(drawn, redrawn)
        assert not torch.equal(drawn, else_drawn)
        # Padding where the text has it, and only there: this teacher may not write it.
        assert torch.equal(drawn == PAD, tokens == PAD)
    assert not torch.equal(first.inputs, first.targets)


def test_a_teacher_that_may_write_padding_draws_it_inside_the_text():
    logits = Pair(*(torch.zeros(4, 12, 3) for _ in range(2)))
    drawn = draw_pair(logits, texts(), PAD, generator())
    assert ((drawn.inputs == PAD) & (texts() != PAD)).any()


def test_soft_pairs_are_distributions_with_a_gradient_to_every_weight_of_the_teacher():
    teacher = build_teacher(SIZES, VOCABULARY, 0)
    pair = soft_pair(teacher(texts()))
    for one in pair:
        torch.testing.assert_close(one.sum(-1), torch.ones(4, 12))
    (pair.inputs.square().sum() + pair.targets.square().sum()).backward()
    assert all(one.grad.abs().sum() > 0 for one in teacher.parameters())


def test_the_loss_of_a_pair_is_the_mean_of_both_cross_entropies():
    logits = Pair(torch.randn(2, 5, 7), torch.randn(2, 5, 7))
    pair = Pair(torch.randint(7, (2, 5)), torch.randint(7, (2, 5)))
    keep = Pair(torch.rand(2, 5) < 0.6, torch.ones(2, 5, dtype=torch.bool))
    expected = [F.cross_entropy(logits[n][keep[n]], pair[n][keep[n]]) for n in (0, 1)]
    assert pair_loss(logits, pair, keep).item() == pytest.approx((sum(expected) / 2).item())


def test_the_auxiliary_loss_is_the_sum_of_both_pairs_written_out():
    teacher, tokens = build_teacher(SIZES, VOCABULARY, 0).eval(), texts()
    masked, labels = tokens.clone(), torch.zeros_like(tokens)
    masked[:, 0] = 4
    for row, place in ((0, 3), (1, 2), (2, 10), (3, 5)):
        labels[row, place], masked[row, place] = tokens[row, place], MASK
    before = tokens.clone()
    found = auxiliary_loss(teacher, tokens, masked, labels, PAD)
    assert torch.equal(tokens, before)
    text, real, labelled = tokens.clone(), tokens != PAD, labels != PAD
    text[:, 0] = 4
    of_text, of_masked = teacher(text, real), teacher(masked, real)
    expected = (
        0.5 * F.cross_entropy(of_text.inputs[real], masked[real])
        + 0.5 * F.cross_entropy(of_text.targets[real], text[real])
        + 0.5 * F.cross_entropy(of_masked.inputs[real], masked[real])
        + 0.5 * F.cross_entropy(of_masked.targets[labelled], labels[labelled])
    )
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_labelled_batch_counts_its_labels_and_as_published_all_of_its_input():
    # The published vector of masked language modelling as a labelled task.
    inputs, labels = torch.tensor([[4, 1, 9, 10, 2, 0]]), torch.tensor([[0, 8, 0, 0, 0, 0]])
    published = counted_positions(inputs, labels, PAD, by_inputs=True)
    assert labels[published].tolist() == [0, 8, 0, 0, 0]
    assert labels[counted_positions(inputs, labels, PAD)].tolist() == [8]


def test_the_figures_of_a_collapsed_teacher_say_so():
    tokens = texts()
    certain = 50.0
    copies = certain * F.one_hot(tokens, 60).float()
    masks = torch.zeros(4, 12, 60)
    masks[..., MASK] = certain
    figures = describe_pairs(Pair(masks, copies), tokens, PAD, MASK)
    assert figures["mask_share"] == pytest.approx(1)
    assert figures["copied_targets"] == pytest.approx(1)
    assert figures["copied_inputs"] == pytest.approx(0, abs=1e-6)
    assert figures["entropy_inputs"] == pytest.approx(0, abs=1e-6)
    assert figures["one_token_inputs"] == pytest.approx(1)
    commonest = tokens[tokens != PAD].bincount().max() / (tokens != PAD).sum()
    assert figures["one_token_targets"] == pytest.approx(commonest.item())


def test_the_figures_of_a_uniform_teacher_leave_out_what_has_no_mass():
    logits = torch.zeros(4, 12, 60)
    logits[..., PAD] = float("-inf")
    figures = describe_pairs(Pair(logits, logits), texts(), PAD, MASK)
    assert figures["entropy_targets"] == pytest.approx(math.log(59), rel=1e-5)
    assert figures["mask_share"] == pytest.approx(1 / 59)
