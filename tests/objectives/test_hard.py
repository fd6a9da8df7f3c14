"""Masking hard tokens: the table A2 of the specification row by row, as published and as mended, and what is new."""

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from mlpt.data.vocabulary import Vocabulary
from mlpt.errors import UserError
from mlpt.objectives.hard import HardTokens, choose, hard_inputs
from mlpt.randomness import torch_generator
from mlpt.settings import load_settings

VOCABULARY = Vocabulary(size=1000, pad=0, unk=1, cls=2, sep=3, mask=4)
LENGTH = 65  # 15 % of it, and of what is between its ends, is no whole number
MENDED = HardTokens()
PUBLISHED = HardTokens(special="in", single="published", fallback={"random_tokens": "non_special"})


def words(rows=50, length=LENGTH):
    tokens = torch.randint(5, 1000, (rows, length), generator=torch_generator(0, "words"))
    tokens[:, 0], tokens[:, -1] = VOCABULARY.cls, VOCABULARY.sep
    return tokens


def marks(tokens, *positions):
    hard = torch.zeros_like(tokens, dtype=torch.bool)
    hard[:, list(positions)] = True
    return hard


def made(tokens, hard, settings, step=0):
    """Inputs, and of each row the positions that are predicted."""
    before = tokens.clone()
    inputs = hard_inputs(tokens, hard, settings, VOCABULARY, torch_generator(0, "hard", step))
    assert torch.equal(tokens, before), "tokens are not changed"
    assert torch.equal(inputs.targets, before.view(-1)[inputs.positions])
    untouched = torch.ones(tokens.numel(), dtype=torch.bool)
    untouched[inputs.positions] = False
    assert torch.equal(inputs.input_ids.view(-1)[untouched], before.view(-1)[untouched])
    chosen = torch.zeros(tokens.numel(), dtype=torch.bool)
    chosen[inputs.positions] = True
    return inputs, [row.nonzero().squeeze(1).tolist() for row in chosen.view(tokens.shape)]


def shares(tokens, inputs):
    """Of the predicted positions: replaced by the mask, by another token, by nothing."""
    now = inputs.input_ids.view(-1)[inputs.positions]
    masked, kept = (now == VOCABULARY.mask).float().mean().item(), (now == inputs.targets).float().mean().item()
    return masked, 1 - masked - kept, kept


def fifteen_percent(n):
    """floor(0.15 n + u) for u in [0, 1)."""
    return {int(0.15 * n), int(0.15 * n) + 1}


def random_tokens_are_near(found, wanted):
    assert found == pytest.approx(wanted, abs=0.06)


# ---------------------------------------------------------------- the table: what is stored, and what comes of it


@pytest.mark.parametrize("settings", [MENDED, PUBLISHED], ids=["mended", "published"])
def test_two_hard_tokens_or_more_are_masked_and_nothing_else_at_every_epoch(settings):
    tokens = words()
    hard = marks(tokens, 3, 7, 20)
    for epoch in range(3):
        inputs, positions = made(tokens, hard, settings, epoch)
        assert positions == [[3, 7, 20]] * 50, "no top-up, no down-sampling, the same at every epoch"
        assert (inputs.input_ids.view(-1)[inputs.positions] == VOCABULARY.mask).all()


def test_one_hard_token_is_masked_alone():
    inputs, positions = made(words(), marks(words(), 9), MENDED)
    assert positions == [[9]] * 50
    assert (inputs.input_ids[:, 9] == VOCABULARY.mask).all()


def test_one_hard_token_as_published_draws_random_ones_and_spares_some_from_the_mask():
    tokens = words(rows=400)
    inputs, positions = made(tokens, marks(tokens, 9), PUBLISHED)
    assert all(9 in row for row in positions)
    assert {len(row) - 1 for row in positions} == fifteen_percent(LENGTH)
    random_tokens_are_near(shares(tokens, inputs), (0.8, 0.1, 0.1))
    assert 0.6 < (inputs.input_ids[:, 9] == VOCABULARY.mask).float().mean() < 0.95, "the hard token too"
    assert len({tuple(row) for row in positions}) > 300
    drawn = {place for row in positions for place in row}
    assert {0, LENGTH - 1} <= drawn, "special tokens may be drawn"


@pytest.mark.parametrize(
    ("settings", "eligible"), [(MENDED, LENGTH - 2), (PUBLISHED, LENGTH)], ids=["mended", "published"]
)
def test_no_hard_token_is_masked_at_random(settings, eligible):
    """Empty arrays, blocks that the file lacks, texts of other splits."""
    tokens = words(rows=400)
    inputs, positions = made(tokens, torch.zeros_like(tokens, dtype=torch.bool), settings)
    assert {len(row) for row in positions} == fifteen_percent(eligible)
    assert sum(map(len, positions)) / 400 == pytest.approx(0.15 * eligible, abs=0.15)
    random_tokens_are_near(shares(tokens, inputs), (0.8, 0.1, 0.1))
    _, others = made(tokens, torch.zeros_like(tokens, dtype=torch.bool), settings, step=1)
    assert others != positions


def test_texts_without_hard_tokens_may_be_left_alone():
    tokens = words(rows=4)
    hard = marks(tokens, 5, 6)
    hard[1] = False
    _, positions = made(tokens, hard, HardTokens(fallback=None))
    assert positions == [[5, 6], [], [5, 6], [5, 6]]


def test_each_text_has_its_own_way():
    """A batch of all kinds: two hard tokens, one, none."""
    tokens = words(rows=3)
    hard = marks(tokens, 5, 6)
    hard[1], hard[2] = False, False
    hard[1, 8] = True
    _, mended = made(tokens, hard, MENDED)
    assert mended[:2] == [[5, 6], [8]]
    assert len(mended[2]) in fifteen_percent(LENGTH - 2)
    _, published = made(tokens, hard, PUBLISHED)
    assert published[0] == [5, 6]
    assert 8 in published[1]
    assert len(published[1]) - 1 in fifteen_percent(LENGTH)
    assert len(published[2]) in fifteen_percent(LENGTH)


def test_more_random_tokens_than_are_free():
    """Published: choosing them fails, and the hard token alone is masked, always by the mask. The other texts: all."""
    tokens = words(rows=30, length=10)
    everything = {"probability": 1.0, "random_tokens": "non_special"}
    settings = HardTokens(special="in", single="published", fallback=everything)
    inputs, positions = made(tokens, marks(tokens, 4), settings)
    assert positions == [[4]] * 30
    assert (inputs.input_ids[:, 4] == VOCABULARY.mask).all()
    _, none = made(tokens, torch.zeros_like(tokens, dtype=torch.bool), settings)
    assert none == [list(range(10))] * 30
    _, topped = made(tokens, marks(tokens, 4), HardTokens(top_up=1.0))
    assert topped == [list(range(1, 9))] * 30, "mended: all that there are"


@pytest.mark.parametrize(("special", "expected"), [("out", [5]), ("in", [0, 5, 64])])
def test_special_tokens_are_chosen_only_if_asked(special, expected):
    tokens = words(rows=2)
    tokens[:, 30] = VOCABULARY.pad
    _, positions = made(tokens, marks(tokens, 0, 5, 30, 64), HardTokens(special=special))
    assert positions == [expected] * 2


def test_padding_is_never_chosen_and_does_not_count():
    tokens = words(rows=400)
    tokens[:, 23:] = VOCABULARY.pad
    for settings in (MENDED, PUBLISHED):
        inputs, positions = made(tokens, torch.zeros_like(tokens, dtype=torch.bool), settings)
        assert max(max(row) for row in positions if row) < 23
        assert {len(row) for row in positions} == fifteen_percent(22 if settings is MENDED else 23)
        assert torch.equal(inputs.attention_mask, tokens != VOCABULARY.pad)


# ---------------------------------------------------------------- what the published system lacks


def test_hard_tokens_may_be_masked_replaced_and_kept_by_shares():
    tokens = words(rows=200)
    inputs, positions = made(tokens, marks(tokens, *range(5, 25)), HardTokens(mask_share=0.5, random_share=0.3))
    assert positions == [list(range(5, 25))] * 200
    random_tokens_are_near(shares(tokens, inputs), (0.5, 0.3, 0.2))


def test_a_probability_below_one_draws_among_the_hard_tokens():
    tokens = words(rows=300)
    _, positions = made(tokens, marks(tokens, *range(5, 25)), HardTokens(probability=0.25))
    assert sum(map(len, positions)) / (300 * 20) == pytest.approx(0.25, abs=0.03)
    assert {place for row in positions for place in row} == set(range(5, 25))


def test_a_cap_drops_hard_tokens_at_random():
    tokens = words(rows=300)
    _, positions = made(tokens, marks(tokens, *range(5, 45)), HardTokens(cap=0.2))
    assert {len(row) for row in positions} == {int(0.2 * (LENGTH - 2))}
    counts = torch.bincount(torch.tensor(positions).view(-1), minlength=LENGTH)
    assert counts[5:45].min() > 40, "each of the 40 in its turn: 300 * 11 / 40 = 82"
    _, few = made(tokens, marks(tokens, 9, 10), HardTokens(cap=0.001))
    assert {len(row) for row in few} == {1}, "one is left"


def test_a_top_up_adds_random_tokens_up_to_the_rate_and_keeps_the_hard_ones():
    tokens = words(rows=300)
    inputs, positions = made(tokens, marks(tokens, 8, 9), HardTokens(top_up=0.3))
    assert all({8, 9} <= set(row) for row in positions)
    n = 0.3 * (LENGTH - 2)
    assert {len(row) for row in positions} == {int(n), int(n) + 1}
    assert (inputs.input_ids.view(-1)[inputs.positions] == VOCABULARY.mask).all()
    _, many = made(tokens, marks(tokens, *range(5, 45)), HardTokens(top_up=0.3))
    assert many == [list(range(5, 45))] * 300, "there are more already"


def test_spans_grow_around_hard_tokens_and_end_with_the_text():
    tokens = words(rows=300)
    _, positions = made(tokens, marks(tokens, 1, 30), HardTokens(spans=(3,)))
    assert positions == [[1, 2, 29, 30, 31]] * 300, "the first position is [CLS]"
    _, positions = made(tokens, marks(tokens, 30), HardTokens(spans=(1, 3, 5, 7)))
    sizes = torch.bincount(torch.tensor([len(row) for row in positions]), minlength=8)
    assert all(row == list(range(30 - len(row) // 2, 31 + len(row) // 2)) for row in positions)
    assert sizes[1] > sizes[7] > 0
    # Chances 1, 0.8, 0.64, 0.512 over their sum: geometric with p = 0.2.
    assert sizes[[1, 3, 5, 7]].div(300).tolist() == pytest.approx([0.339, 0.271, 0.217, 0.173], abs=0.08)


@examples(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_settings_keep_their_promises(data):
    draw = data.draw
    cap = draw(st.none() | st.floats(0.05, 1.0))
    settings = HardTokens(
        probability=draw(st.sampled_from([0.3, 1.0])),
        special=draw(st.sampled_from(["in", "out"])),
        spans=draw(st.sampled_from([(), (1, 3), (5,), (99,)])),
        cap=cap,
        top_up=draw(st.none() | st.floats(0.01, cap or 1.0)),
        fallback=draw(st.sampled_from([None, {"probability": 0.15}, {"probability": 1.0}])),
        mask_share=draw(st.sampled_from([1.0, 0.6])),
    )
    tokens = words(rows=6, length=draw(st.integers(2, 12)))
    tokens[0] = VOCABULARY.pad
    hard = torch.rand(tokens.shape, generator=torch_generator(draw(st.integers(0, 99)), "hard")) < 0.3
    chosen, at_random = choose(tokens, hard, settings, VOCABULARY, torch_generator(0, "choose"))
    again, _ = choose(tokens, hard, settings, VOCABULARY, torch_generator(0, "choose"))
    assert torch.equal(chosen, again)
    eligible = tokens != VOCABULARY.pad if settings.special == "in" else ~VOCABULARY.is_special(tokens)
    assert not (chosen & ~eligible).any()
    guided = (hard & eligible).any(1)
    assert at_random is None or not (at_random & guided).any()
    if settings.fallback is None:
        assert not chosen[~guided].any()
    if cap is not None:
        most = (cap * eligible.sum(1)).clamp(min=1).long()
        assert (chosen.sum(1) <= most + 1)[guided].all()
    made(tokens, hard, settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"spans": [2]}, "odd lengths"),
        ({"cap": 0.1, "top_up": 0.2}, "top_up 0.2 is above cap 0.1"),
        ({"single": "published", "fallback": None}, "fallback is null"),
        ({"mask_share": 0.9, "random_share": 0.2}, "together exceed 1"),
    ],
)
def test_settings_that_cannot_work_together_are_refused(settings, message):
    with pytest.raises(UserError, match=message) as caught:
        load_settings(HardTokens, settings, "objectives.guided.hard")
    assert "\n" not in str(caught.value)
