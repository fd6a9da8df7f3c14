"""Added and deleted token detection against the vectors of specs 3.9, and the two sides of MO-2."""

import pytest
import torch

from mlpt.data.batch import Batch
from mlpt.data.vocabulary import Vocabulary
from mlpt.objectives import make_objectives
from mlpt.objectives.atd import add_tokens
from mlpt.objectives.dtd import delete_tokens
from mlpt.randomness import torch_generator

PAD, CLS, SEP, NEW = 0, 101, 102, 77  # NEW stands for the random id that the spec writes as a'
A = [101, 5, 6, 7, 102, 0, 0, 0]
B = [101, 5, 6, 7, 8, 9, 10, 102]
VOCABULARY = Vocabulary(size=200, pad=PAD, unk=100, cls=CLS, sep=SEP, mask=103)

ADDED = [
    (A, [0, 0, 1, 0, 0, 0, 0, 0], [101, 5, NEW, 6, 7, 102, 0, 0], [0, 0, 1, 0, 0, 0, 0, 0]),
    (B, [0, 1, 0, 0, 1, 0, 0, 0], [101, NEW, 5, 6, NEW, 7, 8, 102], [0, 1, 0, 0, 1, 0, 0, 0]),
    (A, [0, 1, 1, 0, 1, 0, 0, 0], [101, NEW, NEW, 5, NEW, 6, 7, 102], [0, 1, 1, 0, 1, 0, 0, 0]),
    (B, [1] * 8, [101, NEW, NEW, NEW, NEW, NEW, NEW, 102], [0, 1, 1, 1, 1, 1, 1, 0]),
]
DELETED = [
    (A, [0, 0, 1, 0, 0, 0, 0, 0], [101, 5, 7, 102, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0, 0]),
    (B, [0, 1, 0, 0, 1, 0, 0, 0], [101, 6, 7, 9, 10, 102, 0, 0], [0, 1, 0, 1, 0, 0, 0, 0]),
    (A, [0, 1, 1, 0, 1, 0, 0, 0], [101, 7, 0, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0, 0, 0]),
    (B, [0, 0, 0, 0, 0, 0, 1, 1], [101, 5, 6, 7, 8, 9, 102, 0], [0, 0, 0, 0, 0, 0, 1, 0]),
    (B, [1] * 8, [101, 102, 0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0]),
]


@pytest.mark.parametrize(("tokens", "marks", "expected", "labels"), ADDED)
def test_inserted_tokens_shift_the_text_as_the_published_vectors_say(tokens, marks, expected, labels):
    random_ids = torch.full((1, 8), NEW)
    made, made_labels = add_tokens(torch.tensor([tokens]), torch.tensor([marks]).bool(), random_ids, PAD, SEP)
    assert made.tolist() == [expected]
    assert made_labels.tolist() == [labels]


@pytest.mark.parametrize(("tokens", "marks", "expected", "labels"), DELETED)
def test_deleted_tokens_close_the_gap_as_the_published_vectors_say(tokens, marks, expected, labels):
    made, made_labels = delete_tokens(torch.tensor([tokens]), torch.tensor([marks]).bool(), PAD)
    assert made.tolist() == [expected]
    assert made_labels.tolist() == [labels]


def added_token_by_token(tokens, marks, random_ids):
    """Section 3.3's scan of one row, written as the prose reads."""
    out, labels, read = [], [], 0
    for place in range(len(tokens)):
        if tokens[read] == PAD:
            out += [PAD] * (len(tokens) - place)
            labels += [0] * (len(tokens) - place)
            break
        if marks[place] and 0 < place < len(tokens) - 1:
            out.append(random_ids[place])
            labels.append(1)
        else:
            out.append(tokens[read])
            labels.append(0)
            read += 1
    if out[-1] != PAD:
        out[-1] = SEP
    return out, labels


def deleted_token_by_token(tokens, marks):
    out, labels, pending = [], [], 0
    for place, token in enumerate(tokens):
        if marks[place] and token != PAD and 0 < place < len(tokens) - 1:
            pending = 1
        else:
            out.append(token)
            labels.append(pending)
            pending = 0
    missing = len(tokens) - len(out)
    return out + [PAD] * missing, labels + [0] * missing


def random_rows():
    generator = torch_generator(0, "rows")
    tokens = torch.randint(1, 100, (64, 17), generator=generator)
    tokens[:, 0] = CLS
    for row, words in enumerate(torch.randint(1, 16, (64,), generator=generator).tolist()):
        tokens[row, words] = SEP
        tokens[row, words + 1 :] = PAD
    marks = torch.rand(tokens.shape, generator=generator) < 0.4
    return tokens, marks, torch.randint(1, 100, tokens.shape, generator=generator)


def test_a_whole_batch_of_insertions_equals_the_scan_of_each_row():
    tokens, marks, random_ids = random_rows()
    made, labels = add_tokens(tokens, marks, random_ids, PAD, SEP)
    for row in range(len(tokens)):
        expected = added_token_by_token(tokens[row].tolist(), marks[row].tolist(), random_ids[row].tolist())
        assert (made[row].tolist(), labels[row].tolist()) == expected


def test_a_whole_batch_of_deletions_equals_the_scan_of_each_row():
    tokens, marks, _ = random_rows()
    made, labels = delete_tokens(tokens, marks, PAD)
    for row in range(len(tokens)):
        expected = deleted_token_by_token(tokens[row].tolist(), marks[row].tolist())
        assert (made[row].tolist(), labels[row].tolist()) == expected


PADDED = torch.tensor([A + [PAD] * 8, B + [PAD] * 8])  # (2, 16)


@pytest.mark.parametrize("name", ["atd", "dtd"])
def test_recomputed_padding_masks_the_padding_of_the_corrupted_text_and_keeps_it_out_of_the_loss(name):
    inputs = make_objectives({name: {"probability": 0.4}}, VOCABULARY)[name].corrupt(
        Batch.of(PADDED), torch_generator(3, name)
    )
    real = inputs.input_ids != PAD
    assert not torch.equal(real, PADDED != PAD), "this corruption must change how long the texts are"
    assert torch.equal(inputs.attention_mask, real)
    assert torch.equal(inputs.positions, real.view(-1).nonzero().squeeze(1))


@pytest.mark.parametrize("name", ["atd", "dtd"])
def test_published_padding_keeps_the_old_mask_and_trains_on_every_position(name):
    settings = {"probability": 0.4, "padding": "published"}
    inputs = make_objectives({name: settings}, VOCABULARY)[name].corrupt(Batch.of(PADDED), torch_generator(3, name))
    assert not torch.equal(inputs.input_ids != PAD, PADDED != PAD)
    assert torch.equal(inputs.attention_mask, PADDED != PAD)
    assert inputs.positions.tolist() == list(range(32))


def test_packed_blocks_that_lose_tokens_get_an_attention_mask():
    objective = make_objectives({"dtd": {"probability": 1.0}}, VOCABULARY)["dtd"]
    inputs = objective.corrupt(Batch.of(torch.tensor([B, B])), torch_generator(0, "dtd"))
    assert inputs.input_ids[:, :2].tolist() == [[CLS, SEP], [CLS, SEP]]
    assert inputs.attention_mask.sum(1).tolist() == [2, 2]


def test_packed_blocks_that_gain_tokens_need_no_attention_mask():
    objective = make_objectives({"atd": {}}, VOCABULARY)["atd"]
    assert objective.corrupt(Batch.of(torch.tensor([B, B])), torch_generator(0, "atd")).attention_mask is None


@pytest.mark.parametrize("name", ["atd", "dtd"])
def test_the_share_of_changed_places_is_the_configured_probability(name):
    objective = make_objectives({name: {"probability": 0.2}}, VOCABULARY)[name]
    tokens = torch.randint(104, 200, (200, 100), generator=torch_generator(0, "tokens"))
    inputs = objective.corrupt(Batch.of(tokens), torch_generator(1, name))
    if name == "atd":
        changes = inputs.targets.sum()
    else:
        changes = 200 * 100 - len(inputs.positions)  # every deletion leaves one pad
    # 19,600 Bernoulli trials: the standard deviation of the share is 0.003
    assert abs(changes / (200 * 98) - 0.2) < 0.012


def test_inserted_tokens_are_any_but_padding():
    vocabulary = Vocabulary(size=8, pad=3, unk=4, cls=5, sep=6, mask=7)
    objective = make_objectives({"atd": {"probability": 1.0}}, vocabulary)["atd"]
    inputs = objective.corrupt(Batch.of(torch.full((50, 40), 1)), torch_generator(0, "atd"))
    assert set(inputs.input_ids[:, 1:-1].reshape(-1).tolist()) == {0, 1, 2, 4, 5, 6, 7}


@pytest.mark.parametrize("name", ["atd", "dtd"])
def test_corruption_leaves_its_tokens_alone_and_repeats_with_the_same_generator(name):
    objective = make_objectives({name: {}}, VOCABULARY)[name]
    tokens = torch.tensor([A, B])
    one = objective.corrupt(Batch.of(tokens), torch_generator(5, name))
    two = objective.corrupt(Batch.of(tokens), torch_generator(5, name))
    assert tokens.tolist() == [A, B]
    assert torch.equal(one.input_ids, two.input_ids)
    assert torch.equal(one.targets, two.targets)
