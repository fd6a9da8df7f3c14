"""Frozen states equal what the stock model says of each text alone."""

import numpy as np
import pytest
import torch
from tiny_subjects import SENTENCES, tiny_subject

from mlpt.downstream.states import text_states, word_states
from mlpt.errors import UserError
from mlpt.tasks import Example, Task
from mlpt.tasks.features import SpanConfig, make_features

TASK = Task("t", "own", "classification", ("a", "b"), ("accuracy",), "accuracy", ("x",), ("{x}", None))


@torch.no_grad()
def stock_states(subject, first, second=None, layer=None):
    """(length, hidden) of one text or pair."""
    encoded = subject.tokenizer(first, second, return_tensors="pt")
    output = subject.encoder.backbone.base_model(**encoded, output_hidden_states=True)
    return (output.last_hidden_state if layer is None else output.hidden_states[layer])[0].numpy()


@pytest.mark.parametrize("layer", [None, 0, 1, -1])
@pytest.mark.parametrize(("architecture", "kind"), [("bert", "wordpiece"), ("modernbert", "bpe")])
def test_pooled_states_are_those_of_each_text_alone(architecture, kind, layer):
    subject = tiny_subject(architecture, kind)
    examples = [Example(n, text, label=0) for n, text in enumerate(SENTENCES)]
    features = make_features(TASK, examples, subject.tokenizer, 48, False, SpanConfig())
    alone = [stock_states(subject, text, layer=layer) for text in SENTENCES]
    for pooling, expected in (("mean", [one.mean(0) for one in alone]), ("first", [one[0] for one in alone])):
        found = text_states(subject, features, pooling, layer, tokens=60, precision="float32")
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_pairs_have_their_token_types():
    subject = tiny_subject()
    examples = [Example(0, SENTENCES[0], SENTENCES[1], 0), Example(1, "who", "hill", 1)]
    features = make_features(TASK, examples, subject.tokenizer, 48, True, SpanConfig())
    found = text_states(subject, features, "mean", None, tokens=1000, precision="float32")
    expected = [stock_states(subject, one.first, one.second).mean(0) for one in examples]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    one_type = [stock_states_without_types(subject, one.first, one.second).mean(0) for one in examples]
    assert np.abs(np.array(expected) - one_type).max() > 0.01


@torch.no_grad()
def stock_states_without_types(subject, first, second):
    ids = subject.tokenizer(first, second, return_tensors="pt")["input_ids"]
    return subject.encoder.backbone.base_model(input_ids=ids).last_hidden_state[0].numpy()


def test_a_layer_that_isnt_there_is_refused():
    subject = tiny_subject()
    features = make_features(TASK, [Example(0, "hill", label=0)], subject.tokenizer, 48, False, SpanConfig())
    with pytest.raises(UserError, match=r"layers 0 \(embeddings\) to 2, not 3"):
        text_states(subject, features, "mean", 3, tokens=100, precision="float32")


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_a_words_state_is_the_mean_over_its_tokens(kind):
    subject = tiny_subject("bert", kind)
    texts = ["the travelers lost souvenirs", "who runs?"]
    spans = [[(0, 3), (4, 13), (14, 18), (19, 28)], [(0, 3), (4, 8), (8, 9)]]
    found, known = word_states(subject, texts, spans, None, tokens=1000, precision="float32")
    assert known.all()
    expected = []
    for text, words in zip(texts, spans, strict=True):
        states = stock_states(subject, text)
        encoded = subject.tokenizer(text, return_offsets_mapping=True)
        for start, end in words:
            pieces = [
                place
                for place, (first, last) in enumerate(encoded["offset_mapping"])
                if set(range(first, last)) & set(range(start, end))
            ]
            expected.append(states[pieces].mean(0))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_words_beyond_the_models_length_are_known_to_be_missing():
    subject = tiny_subject()
    text = "hill " * 60
    spans = [[(5 * n, 5 * n + 4) for n in range(60)]]
    found, known = word_states(subject, [text], spans, None, tokens=1000, precision="float32")
    tokens = len(subject.tokenizer.tokenize("hill"))
    assert known.sum() == (subject.room - 2) // tokens
    assert not found[~known].any()
