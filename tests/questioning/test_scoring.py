"""Scores of tokens against the stock model's own logits: padding, special tokens, modes, chunks, passes."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM

from mlpt.data.vocabulary import Vocabulary
from mlpt.errors import UserError
from mlpt.models.config import ModelConfig
from mlpt.models.encoder import build_encoder
from mlpt.questioning import scoring
from mlpt.questioning.config import QuestionConfig
from mlpt.questioning.scoring import model_digest, score_tokens
from mlpt.randomness import torch_generator

VOCABULARY = Vocabulary(size=100, pad=0, unk=1, cls=2, sep=3, mask=4)
LENGTH = 24
ALL = ("loss", "correctness", "confidence", "entropy", "margin", "pseudo_loss", "random")


def encoder_of(architecture="bert", **settings):
    config = ModelConfig(architecture=architecture, hidden_size=32, layers=2, heads=2, dropout=0.3, **settings)
    encoder = build_encoder(config, VOCABULARY, {}, LENGTH, seed=0)
    with torch.no_grad():  # predictions of fresh weights are all alike
        for parameter in encoder.parameters():
            parameter.mul_(3.0)
    return encoder


def texts(rows=9):
    tokens = torch.randint(5, 100, (rows, LENGTH), generator=torch_generator(0, "texts"))
    tokens[:, 0], tokens[:, -1] = VOCABULARY.cls, VOCABULARY.sep
    tokens[2, 10:] = VOCABULARY.pad
    tokens[5, 7:] = VOCABULARY.pad
    return tokens


def config_of(*metrics, **settings):
    return QuestionConfig(model="m", blocks="b", out="o", metrics=metrics, **settings)


def scored(encoder, tokens, *metrics, **settings):
    return score_tokens(encoder, tokens, np.arange(len(tokens)), VOCABULARY, config_of(*metrics, **settings))


def stock_losses(encoder, shown, tokens):
    """(rows, LENGTH) float64: loss of each token of `tokens` where the stock model sees `shown`."""
    encoder.eval()
    with torch.no_grad():
        logits = encoder.backbone(shown, attention_mask=(tokens != VOCABULARY.pad).long()).logits.double()
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")


def near(found, expected):
    np.testing.assert_allclose(found.astype(np.float64), expected, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "modernbert", "electra"])
def test_the_loss_is_the_stock_models_on_the_text_as_it_is(architecture):
    options = {"embedding_size": 32} if architecture == "electra" else {}
    encoder, tokens = encoder_of(architecture, options=options), texts()
    found = scored(encoder.train(), tokens, "loss")["loss"]
    assert found.dtype == np.float16
    real = (tokens != VOCABULARY.pad).numpy()
    near(found[real], stock_losses(encoder, tokens, tokens).numpy()[real])
    assert (found[~real] == 0).all(), "padding"
    assert (found[:, 0] > 0).all(), "special tokens are scored like others"


@pytest.mark.parametrize("stride", [2, 5, 7, 24, 100])
def test_each_token_is_masked_once_among_every_stride_th(stride, monkeypatch):
    encoder, tokens = encoder_of(), texts()
    expected = torch.zeros(tokens.shape, dtype=torch.float64)
    for place in range(LENGTH):  # one position at a time, its stride-th neighbours masked with it
        shown = tokens.clone()
        shown[:, place % stride :: stride] = VOCABULARY.mask
        shown[tokens == VOCABULARY.pad] = VOCABULARY.pad
        expected[:, place] = stock_losses(encoder, shown, tokens)[:, place]
    expected[tokens == VOCABULARY.pad] = 0
    passes = []
    plain = type(encoder).hidden
    monkeypatch.setattr(type(encoder), "hidden", lambda self, inputs: passes.append(1) or plain(self, inputs))
    near(scored(encoder, tokens, "pseudo_loss", stride=stride)["pseudo_loss"], expected.numpy())
    assert len(passes) == min(stride, LENGTH)


def test_all_unmasked_metrics_share_one_pass(monkeypatch):
    encoder, tokens = encoder_of(), texts()
    passes = []
    plain = type(encoder).hidden
    monkeypatch.setattr(type(encoder), "hidden", lambda self, inputs: passes.append(1) or plain(self, inputs))
    together = scored(encoder, tokens, *ALL[:5])
    assert len(passes) == 1
    for metric in ALL[:5]:
        assert np.array_equal(together[metric], scored(encoder, tokens, metric)[metric])


def test_correctness_counts_the_stock_models_wrong_answers():
    encoder, tokens = encoder_of(), texts()
    found = scored(encoder, tokens, "correctness")["correctness"]
    with torch.no_grad():
        best = encoder.eval().backbone(tokens, attention_mask=(tokens != 0).long()).logits.argmax(2)
    assert np.array_equal(found == 1, ((best != tokens) & (tokens != 0)).numpy())


def test_memory_is_bounded_by_chunks_and_scores_do_not_depend_on_them(monkeypatch):
    encoder, tokens = encoder_of(), texts()
    whole = scored(encoder, tokens, "loss", "entropy")
    monkeypatch.setitem(scoring.LOGITS_BYTES, "cpu", 4 * 100 * 10)  # ten tokens
    seen = []
    plain = type(encoder).token_logits
    monkeypatch.setattr(
        type(encoder), "token_logits", lambda self, hidden: seen.append(len(hidden)) or plain(self, hidden)
    )
    chunked = scored(encoder, tokens, "loss", "entropy", batch_tokens=2 * LENGTH)
    assert max(seen) == 10
    assert sum(seen) == int((tokens != VOCABULARY.pad).sum())
    for metric, scores in whole.items():
        near(chunked[metric], scores)


def test_the_model_keeps_its_mode_and_no_gradient_is_kept():
    encoder = encoder_of().train()
    encoder.backbone.bert.embeddings.eval()
    modes = [module.training for module in encoder.modules()]
    one, two = (scored(encoder, texts(), *ALL) for _ in range(2))
    assert [module.training for module in encoder.modules()] == modes
    assert all(np.array_equal(one[metric], two[metric]) for metric in ALL), "no dropout"
    loss = encoder.hidden(scoring.Inputs(texts())).sum()
    loss.backward()  # the weights still train afterwards


def test_random_scores_follow_from_seed_and_row_alone():
    tokens = texts(rows=40)
    rows = np.arange(40)
    config = config_of("random", seed=3)
    whole = score_tokens(encoder_of(), tokens, rows, VOCABULARY, config)["random"]
    pieces = [
        score_tokens(encoder_of(), tokens[p], rows[p], VOCABULARY, config)["random"] for p in (rows[:7], rows[7:])
    ]
    assert np.array_equal(np.concatenate(pieces), whole)
    real = (tokens != VOCABULARY.pad).numpy()
    assert (whole[~real] == 0).all()
    assert (whole[real] > 0.85).mean() == pytest.approx(0.15, abs=0.04)
    other = score_tokens(encoder_of(), tokens, rows, VOCABULARY, config_of("random", seed=4))["random"]
    assert not np.array_equal(other, whole)


def test_scores_are_never_negative_and_their_sign_is_plus():
    """Readers compare the bits of float16."""
    for metric, scores in scored(encoder_of(), texts(), *ALL).items():
        assert not np.signbit(scores).any(), metric
        assert np.isfinite(scores).all()


def test_bf16_is_near_float32():
    encoder, tokens = encoder_of(), texts()
    one, two = (scored(encoder, tokens, "loss", precision=name)["loss"] for name in ("float32", "bf16"))
    assert not np.array_equal(one, two)
    np.testing.assert_allclose(one.astype(float), two.astype(float), rtol=0.1, atol=0.1)


def test_a_model_that_answers_nan_is_one_line():
    encoder = encoder_of()
    with torch.no_grad():
        encoder.backbone.bert.embeddings.word_embeddings.weight[50] = torch.nan
    tokens = texts()
    tokens[:4][tokens[:4] == 50] = 51
    tokens[4, 3] = 50
    with pytest.raises(UserError, match="weights are damaged") as error:
        score_tokens(encoder, tokens, np.arange(100, 109), VOCABULARY, config_of("loss"))
    assert "\n" not in str(error.value)


def test_the_digest_names_the_weights_whatever_holds_them(tmp_path):
    encoder = encoder_of()
    encoder.save(tmp_path)
    name = model_digest(encoder)
    assert model_digest(AutoModelForMaskedLM.from_pretrained(tmp_path)) == name
    with torch.no_grad():
        encoder.backbone.bert.encoder.layer[0].output.dense.bias[0] += 1e-6
    assert model_digest(encoder) != name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metrics": ["losses"]}, "Input should be"),
        ({"metrics": ["loss", "loss"]}, "named twice"),
        ({"metrics": []}, "at least 1"),
        ({"stride": 1}, "greater than or equal to 2"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        QuestionConfig(model="m", blocks="b", out="o", **settings)


def test_metrics_may_be_written_with_commas():
    assert QuestionConfig(model="m", blocks="b", out="o", metrics="loss,margin").metrics == ("loss", "margin")
