"""Masking by number, against the published shares (MetaLMO specification 1.12)."""

import pytest
import torch

from mlpt.data.vocabulary import Vocabulary
from mlpt.errors import UserError
from mlpt.objectives.counted_masking import CountedMaskingConfig, mask_counted
from mlpt.settings import load_settings

PAD, MASK, SEP, MLM = 0, 1, 2, 4
VOCABULARY = Vocabulary(size=60, pad=PAD, mask=MASK, sep=SEP, cls=3, unk=MASK, extra=tuple(range(4, 33)))
ROWS = 40_000


def rows(count=ROWS, length=34):
    tokens = torch.randint(33, 60, (count, length), generator=torch.Generator().manual_seed(1))
    tokens[:, 0], tokens[:, -1] = 3, SEP
    return tokens


def corrupt(tokens, seed=0, first=MLM, **settings):
    return mask_counted(
        tokens, VOCABULARY, torch.Generator().manual_seed(seed), CountedMaskingConfig(**settings), first
    )


@pytest.fixture(scope="module")
def many():
    tokens = rows()
    inputs, labels = corrupt(tokens)
    original = tokens.clone()
    original[:, 0] = MLM
    return original, inputs, labels


def test_of_34_tokens_five_are_chosen_nine_times_in_ten_and_else_six(many):
    _, _, labels = many
    counts = (labels != PAD).sum(1)
    assert set(counts.tolist()) == {5, 6}
    assert (counts == 5).float().mean().item() == pytest.approx(0.9, abs=0.01)


def test_of_the_chosen_eighty_percent_are_masked_ten_random_and_ten_kept(many):
    original, inputs, labels = many
    chosen = labels != PAD
    chosen[:, 0] = False  # its input is the task token whatever befalls it
    was, now = original[chosen], inputs[chosen]
    share = 27 + 1  # ids that a random token may be: 33 to 59 and the separator
    random_but_equal = 0.1 / share
    assert (now == MASK).float().mean().item() == pytest.approx(0.8, abs=0.01)
    assert (now == was).float().mean().item() == pytest.approx(0.1 + random_but_equal, abs=0.01)
    drawn = now[(now != MASK) & (now != was)]
    assert set(drawn.unique().tolist()) == {SEP, *range(33, 60)}


def test_labels_are_the_original_tokens_and_other_positions_stay_as_they_are(many):
    original, inputs, labels = many
    chosen = labels != PAD
    assert torch.equal(labels[chosen], original[chosen])
    assert torch.equal(inputs[~chosen], original[~chosen])


def test_the_first_token_is_the_task_token_and_its_label_too_where_it_was_chosen(many):
    _, inputs, labels = many
    assert (inputs[:, 0] == MLM).all()
    first = labels[:, 0]
    assert set(first.tolist()) == {PAD, MLM}
    # 5.1 of 34 positions on average
    assert (first == MLM).float().mean().item() == pytest.approx(5.1 / 34, abs=0.01)
    assert (labels[:, -1] == SEP).float().mean().item() == pytest.approx(5.1 / 34, abs=0.01)


def test_padding_is_never_chosen_and_a_rows_number_follows_its_own_length():
    tokens = rows(2_000)
    tokens[:, 20:] = PAD
    inputs, labels = corrupt(tokens)
    assert (inputs[:, 20:] == PAD).all()
    assert (labels[:, 20:] == PAD).all()
    assert set((labels != PAD).sum(1).tolist()) == {3}  # 0.15 * 20


def test_the_same_generator_gives_the_same_and_the_tokens_are_not_changed():
    tokens = rows(10)
    before = tokens.clone()
    first, second, third = corrupt(tokens), corrupt(tokens), corrupt(tokens, seed=1)
    assert torch.equal(tokens, before)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], third[0])


def test_without_a_task_token_the_first_token_is_as_any_other():
    inputs, labels = corrupt(rows(5_000), first=None)
    assert set(labels[:, 0].tolist()) == {PAD, 3}
    assert MASK in inputs[:, 0].tolist()


def test_everything_can_be_masked_and_impossible_shares_are_refused():
    inputs, labels = corrupt(rows(20), first=None, probability=1.0, keep_share=0.0, random_share=0.0)
    assert (inputs == MASK).all()
    assert torch.equal(labels, rows(20))
    with pytest.raises(UserError, match="keep_share and random_share together exceed 1"):
        load_settings(CountedMaskingConfig, {"keep_share": 0.6, "random_share": 0.6})
