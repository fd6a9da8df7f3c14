"""Pseudo-log-likelihoods: exact against one masked position at a time through the stock model."""

import numpy as np
import pytest
import torch
from tiny_subjects import ROOM, SENTENCES, one_at_a_time, tiny_subject, tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mlpt.data.vocabulary import Vocabulary
from mlpt.downstream.pseudo_likelihood import score_sentences
from mlpt.downstream.subject import Subject
from mlpt.errors import UserError
from mlpt.models.config import ModelConfig
from mlpt.models.encoder import build_encoder

ARCHITECTURES = ["bert", "roberta", "modernbert", "deberta-v2", "electra"]


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_equal_those_of_one_stock_forward_a_position(architecture, kind):
    subject = tiny_subject(architecture, kind)
    for masking in ("plain", "within_word"):
        expected = [one_at_a_time(subject, sentence, masking) for sentence in SENTENCES]
        found = score_sentences(subject, SENTENCES, masking, tokens_per_batch=100)
        np.testing.assert_allclose(found.values, [total for total, _ in expected], rtol=0, atol=2e-4)
        assert found.tokens.tolist() == [scored for _, scored in expected]
    plain = score_sentences(subject, SENTENCES, "plain")
    assert np.abs(plain.values - found.values).max() > 0.1, "these words have several tokens"


def test_the_rest_of_a_word_is_masked_with_each_of_its_tokens(monkeypatch):
    subject = tiny_subject()
    tokens = subject.tokenizer.tokenize("the stonesran ran")
    inside = [token for token in tokens if token.startswith("##")]
    assert len(inside) >= 2, "'stonesran' must have three tokens or more for this test"
    seen = seen_inputs(subject, monkeypatch)
    score_sentences(subject, ["the stonesran ran"])
    mask = subject.vocabulary.mask
    rows = sorted("".join("#" if token == mask else "." for token in row) for batch in seen for row in batch.tolist())
    starts = [place for place, token in enumerate(tokens) if not token.startswith("##")] + [len(tokens)]
    ends = [min(start for start in starts if start > place) for place in range(len(tokens))]
    drawn = [
        "." + "." * place + "#" * (end - place) + "." * (len(tokens) - end) + "." for place, end in enumerate(ends)
    ]
    assert rows == sorted(drawn)


def letter_by_letter(kind):
    """A vocabulary of letters; `word_ids` call a whole sentence one word, except where Metaspace splits it."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = {token: number for number, token in enumerate([*special, *"▁abcdef"])}
    if kind == "gemma":
        backend = Tokenizer(models.BPE(letters, [], unk_token="[UNK]"))
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        backend = Tokenizer(models.Unigram([(token, -1.0) for token in letters], unk_id=1))
        backend.pre_tokenizer = pre_tokenizers.Metaspace(split=kind == "split")
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    named = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **named)


@pytest.mark.parametrize(
    ("kind", "sentence", "expected"),
    [
        ("gemma", "ab cd", ["##...", ".#...", "..###", "...##", "....#"]),
        ("metaspace", "ab cd", ["###...", ".##...", "..#...", "...###", "....##", ".....#"]),
        ("split", "ab cd", ["###...", ".##...", "..#...", "...###", "....##", ".....#"]),
        ("gemma", "a  b", ["#...", ".###", "..##", "...#"]),
        ("metaspace", "aéb c", ["####..", ".###..", "...#..", "....##", ".....#"]),
        ("split", "aéb c", ["####..", ".###..", "...#..", "....##", ".....#"]),
    ],
)
def test_a_word_ends_at_whitespace_and_not_at_an_unknown_letter(kind, sentence, expected, monkeypatch):
    made = letter_by_letter(kind)
    config = ModelConfig(hidden_size=32, layers=1, heads=2)
    subject = Subject.of("tiny", build_encoder(config, Vocabulary.of(made), {}, ROOM, 0), made, torch.device("cpu"))
    seen = seen_inputs(subject, monkeypatch)
    score_sentences(subject, [sentence])
    mask = subject.vocabulary.mask
    rows = ["".join("#" if token == mask else "." for token in row[1:-1]) for batch in seen for row in batch.tolist()]
    assert sorted(rows) == sorted(expected)


def seen_inputs(subject, monkeypatch):
    """The token ids of every forward pass from now on."""
    seen = []
    hidden = subject.encoder.hidden

    def watched(inputs):
        seen.append(inputs.input_ids)
        return hidden(inputs)

    monkeypatch.setattr(subject.encoder, "hidden", watched)
    return seen


def rows_of(seen):
    return sum(len(batch) for batch in seen)


def test_equal_sentences_are_scored_once_and_pairs_share_the_copy_that_hides_their_difference(monkeypatch):
    subject = tiny_subject()
    one, other = "a b c d", "a b x d"
    assert len(subject.tokenizer(one)["input_ids"]) == len(subject.tokenizer(other)["input_ids"]) == 6
    seen = seen_inputs(subject, monkeypatch)
    twice = score_sentences(subject, [one, one, one])
    assert rows_of(seen) == 4
    assert len(set(twice.values.tolist())) == 1
    seen.clear()
    score_sentences(subject, [one, other])
    assert rows_of(seen) == 4 + 3


@pytest.mark.parametrize("tokens", [1, 37, 10_000])
def test_the_size_of_batches_changes_nothing(tokens, monkeypatch):
    subject = tiny_subject()
    whole = score_sentences(subject, SENTENCES, tokens_per_batch=10**6)
    seen = seen_inputs(subject, monkeypatch)
    cut = score_sentences(subject, SENTENCES, tokens_per_batch=tokens)
    np.testing.assert_allclose(cut.values, whole.values, atol=1e-4)
    assert all(batch.numel() <= tokens or len(batch) == 1 for batch in seen)


@pytest.mark.parametrize("architecture", ["bert", "modernbert", "deberta-v2"])
def test_passes_side_by_side_give_the_same_scores(architecture, monkeypatch):
    subject = tiny_subject(architecture)
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    alone = score_sentences(subject, SENTENCES * 5, tokens_per_batch=40)
    monkeypatch.setattr("torch.get_num_threads", lambda: 4)
    together = score_sentences(subject, SENTENCES * 5, tokens_per_batch=40)
    np.testing.assert_allclose(together.values, alone.values, atol=1e-4)


def test_unknown_words_are_context_and_are_not_scored():
    subject = tiny_subject()
    known, unknown = score_sentences(subject, ["a ran"]), score_sentences(subject, ["a \u96ea ran"])
    assert subject.tokenizer.tokenize("a \u96ea ran")[1] == subject.tokenizer.unk_token
    assert unknown.tokens.tolist() == known.tokens.tolist()
    assert unknown.unknown == 1
    assert unknown.values[0] != known.values[0]


def test_a_long_sentence_is_refused_or_cut_and_counted():
    subject = tiny_subject()
    long = "the traveler lost the souvenir " * 8
    assert len(subject.tokenizer(long)["input_ids"]) > ROOM
    with pytest.raises(UserError, match=f"the model takes {ROOM}") as error:
        score_sentences(subject, ["a hill", long])
    assert "too_long=truncate" in str(error.value)
    found = score_sentences(subject, ["a hill", long, long], too_long="truncate")
    assert found.truncated == 2
    expected, scored = one_at_a_time(subject, long, "within_word", max_length=ROOM)
    assert found.values[1] == pytest.approx(expected, abs=1e-3)
    assert found.tokens[1] == scored


def test_bfloat16_is_close_to_float32():
    subject = tiny_subject()
    exact = score_sentences(subject, SENTENCES).values
    rough = score_sentences(subject, SENTENCES, precision="bf16").values
    assert np.abs(rough - exact).max() > 0
    np.testing.assert_allclose(rough, exact, rtol=0.03)


def test_progress_ends_at_the_whole():
    told = []
    score_sentences(tiny_subject(), SENTENCES, progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] > 0
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_a_model_whose_weights_are_not_numbers_is_refused():
    subject = tiny_subject()
    with torch.no_grad():
        next(subject.encoder.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match="not numbers"):
        score_sentences(subject, SENTENCES)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_scores():
    from mlpt.downstream.subject import Subject

    subject = tiny_subject()
    expected = score_sentences(subject, SENTENCES).values
    moved = Subject.of("on the GPU", subject.encoder, tokenizer("wordpiece"), torch.device("cuda"))
    np.testing.assert_allclose(score_sentences(moved, SENTENCES).values, expected, atol=1e-2)
