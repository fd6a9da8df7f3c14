"""Masked language modelling: rates, what replaces a token, and what is never touched."""

import pytest
import torch

from mlpt.data.batch import Batch
from mlpt.data.vocabulary import Vocabulary
from mlpt.errors import UserError
from mlpt.objectives import make_objectives
from mlpt.objectives.mlm import MaskingConfig, random_tokens, replacements
from mlpt.objectives.prediction import mean_cross_entropy
from mlpt.randomness import torch_generator

VOCABULARY = Vocabulary(size=1000, pad=0, unk=1, cls=2, sep=3, mask=4)


def words(rows=100, length=100):
    tokens = torch.randint(5, 1000, (rows, length), generator=torch_generator(0, "words"))
    tokens[:, 0], tokens[:, -1] = VOCABULARY.cls, VOCABULARY.sep
    return tokens


def mlm(**settings):
    return make_objectives({"mlm": settings}, VOCABULARY)["mlm"]


def test_fifteen_percent_of_the_ordinary_tokens_are_predicted_and_four_fifths_of_those_are_masked():
    tokens = words()
    inputs = mlm().corrupt(Batch.of(tokens), torch_generator(1, "mlm"))
    predicted = len(inputs.positions)
    assert abs(predicted / (100 * 98) - 0.15) < 0.015  # 4 standard deviations
    now = inputs.input_ids.view(-1)[inputs.positions]
    assert abs((now == VOCABULARY.mask).float().mean() - 0.8) < 0.05
    assert abs((now == inputs.targets).float().mean() - 0.1) < 0.035


def test_targets_are_the_original_tokens_and_other_positions_keep_theirs():
    tokens = words()
    inputs = mlm().corrupt(Batch.of(tokens), torch_generator(1, "mlm"))
    assert torch.equal(inputs.targets, tokens.view(-1)[inputs.positions])
    untouched = torch.ones(tokens.numel(), dtype=torch.bool)
    untouched[inputs.positions] = False
    assert torch.equal(inputs.input_ids.view(-1)[untouched], tokens.view(-1)[untouched])


def test_special_tokens_are_never_predicted():
    tokens = words()
    tokens[:, 50:] = VOCABULARY.pad
    tokens[:, 20] = VOCABULARY.unk
    tokens[:, 21] = VOCABULARY.mask
    inputs = mlm(probability=1.0).corrupt(Batch.of(tokens), torch_generator(1, "mlm"))
    assert not VOCABULARY.is_special(inputs.targets).any()
    assert len(inputs.positions) == 100 * (50 - 3)
    assert torch.equal(inputs.attention_mask, tokens != VOCABULARY.pad)


def test_a_packed_block_needs_no_attention_mask():
    assert mlm().corrupt(Batch.of(words()), torch_generator(1, "mlm")).attention_mask is None


def test_fate_decides_between_mask_random_and_kept():
    fate = torch.tensor([0.0, 0.79, 0.81, 0.89, 0.91, 0.999])
    targets = torch.tensor([10, 11, 12, 13, 14, 15])
    made = replacements(targets, fate, torch.full((6,), 77), VOCABULARY.mask, MaskingConfig())
    assert made.tolist() == [4, 4, 77, 77, 14, 15]


def test_random_tokens_come_from_the_whole_vocabulary_or_only_from_ordinary_tokens():
    small = Vocabulary(size=9, pad=1, unk=3, cls=0, sep=2, mask=8)
    published = random_tokens(2000, small, "whole_vocabulary", torch_generator(0, "ids"))
    assert set(published.tolist()) == set(range(9))
    ordinary = random_tokens(2000, small, "non_special", torch_generator(0, "ids"))
    assert set(ordinary.tolist()) == {4, 5, 6, 7}


def test_a_batch_in_which_nothing_is_predicted_has_a_loss_of_zero_with_a_gradient():
    logits = torch.zeros(0, 7, requires_grad=True)
    loss = mean_cross_entropy(logits, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mml": {}}, "did you mean 'mlm'"),
        ({"mlm": {"probabilty": 0.1}}, "did you mean 'objectives.mlm.probability'"),
        ({"mlm": {"mask_share": 0.95}}, "mask_share and random_share together exceed 1"),
    ],
)
def test_wrong_settings_are_named_in_one_line(settings, message):
    with pytest.raises(UserError, match=message) as caught:
        make_objectives(settings, VOCABULARY)
    assert "\n" not in str(caught.value)
