"""Causal language modelling: what is predicted, that nothing later is seen, and which architectures can have it."""

import pytest
import torch
from tiny_bert import SIZES, VOCABULARY, tiny_encoder_of, token_batch
from torch import Tensor
from torch.nn import functional
from transformers import BertConfig, BertLMHeadModel

from mlpt.data.batch import Batch
from mlpt.errors import UserError
from mlpt.meta.engines import ENGINES
from mlpt.meta.engines.base import InnerStep, Lookahead
from mlpt.models.config import ModelConfig
from mlpt.models.encoder import Encoder, build_encoder
from mlpt.objectives import make_objectives
from mlpt.objectives.base import Inputs

PAD, CLS, SEP, UNK = VOCABULARY.pad, VOCABULARY.cls, VOCABULARY.sep, VOCABULARY.unk
OBJECTIVES = make_objectives({"clm": {}, "mlm": {}}, VOCABULARY)


def inputs_of(tokens: Tensor) -> Inputs:
    return OBJECTIVES["clm"].corrupt(Batch.of(tokens), torch.Generator())


def encoder_of(architecture: str, attention: str = "sdpa", **options) -> Encoder:
    config = ModelConfig(
        architecture=architecture, hidden_size=32, layers=4, heads=4, attention=attention, dropout=0.0, options=options
    )
    return build_encoder(config, VOCABULARY, OBJECTIVES, 40, seed=1).eval()


def test_the_next_real_token_is_predicted_within_a_document_and_a_row():
    tokens = torch.tensor([[CLS, 10, 11, SEP, 12, 13, UNK, 14, SEP], [CLS, 20, SEP, SEP, 21, 22, SEP, PAD, PAD]])
    inputs = inputs_of(tokens)
    pairs = [
        (int(tokens.view(-1)[at]), int(target)) for at, target in zip(inputs.positions, inputs.targets, strict=True)
    ]
    # Not the first token of a document behind a [SEP], no special or unknown token, nothing beyond a row's end.
    assert pairs == [(CLS, 10), (10, 11), (12, 13), (UNK, 14), (CLS, 20), (21, 22)]
    assert torch.equal(inputs.input_ids, tokens)
    assert inputs.causal
    assert inputs.attention_mask.tolist()[1] == [True] * 7 + [False] * 2


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("bert", {}),
        ("roberta", {}),
        ("electra", {}),
        ("metalmo", {}),
        ("modernbert", {"local_attention": 4}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_logits_depend_on_no_later_token(architecture, options, attention):
    encoder = encoder_of(architecture, attention, **options)
    first = token_batch(rows=2, length=12)
    first[1, 9:] = PAD
    changed = first.clone()
    changed[:, 6:9] = 5 + (changed[:, 6:9] + 7) % 90
    with torch.no_grad():
        logits, others = (
            encoder.token_logits(encoder.hidden(inputs_of(one)).flatten(0, 1)).view(2, 12, -1)
            for one in (first, changed)
        )
        both_ways = [encoder.hidden(Inputs(one, one != PAD)) for one in (first, changed)]
    assert torch.allclose(logits[:, :6], others[:, :6], atol=1e-5)
    assert (logits[:, 6:9] - others[:, 6:9]).abs().amax(-1).min() > 1e-3
    assert (both_ways[0][:, :6] - both_ways[1][:, :6]).abs().max() > 1e-3  # the test would notice
    assert (logits[0, 3] - logits[0, 4]).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["distilbert", "albert", "xlm-roberta", "camembert"])
def test_other_families_look_back_alone_too(family):
    encoder = Encoder(tiny_encoder_of(family), OBJECTIVES).eval()
    encoder.check_causal()


def test_a_bert_that_looks_back_is_transformers_own_decoder():
    encoder = encoder_of("bert")
    sizes = {**SIZES, "num_hidden_layers": 4, "intermediate_size": 128}
    decoder = BertLMHeadModel(BertConfig(**sizes, is_decoder=True)).eval()
    report = decoder.load_state_dict(encoder.backbone.state_dict(), strict=False)
    assert not report.missing_keys
    tokens = token_batch(rows=3, length=12)
    tokens[1, 8:] = PAD
    inputs = inputs_of(tokens)
    with torch.no_grad():
        logits = decoder(tokens, attention_mask=(tokens != PAD).long()).logits[:, :-1]
        kept = torch.zeros(tokens.shape, dtype=torch.bool).view(-1)
        kept[inputs.positions] = True
        kept = kept.view(tokens.shape)[:, :-1]
        expected = functional.cross_entropy(logits[kept], tokens[:, 1:][kept])
        assert float(encoder("clm", inputs)) == pytest.approx(float(expected), rel=1e-5)


def test_a_window_of_attention_stays_a_window():
    """ModernBERT with one local layer: what lies further back than half its window is not seen."""
    config = ModelConfig(
        architecture="modernbert",
        hidden_size=32,
        layers=1,
        heads=4,
        dropout=0.0,
        options={"local_attention": 4, "layer_types": ["sliding_attention"]},
    )
    encoder = build_encoder(config, VOCABULARY, OBJECTIVES, 40, seed=1).eval()
    first = token_batch(rows=1, length=12)
    changed = first.clone()
    changed[:, 3] = 50
    with torch.no_grad():
        moved = (encoder.hidden(inputs_of(first)) - encoder.hidden(inputs_of(changed))).abs().amax(-1)[0]
    assert (moved > 1e-4).nonzero().flatten().tolist() == [3, 4, 5]


@pytest.mark.parametrize("family", ["fnet", "longformer"])
def test_an_architecture_that_cannot_look_back_alone_is_refused(family):
    encoder = Encoder(tiny_encoder_of(family), OBJECTIVES)
    with pytest.raises(UserError, match=f"clm needs attention that looks back alone.*'{family}'|'{family}'.*") as error:
        OBJECTIVES["clm"].prepare(encoder)
    assert "\n" not in str(error.value)


def test_all_engines_look_ahead_through_it_alike():
    encoder = encoder_of("bert")
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-2)
    train, held_out = inputs_of(token_batch(4, 12, seed=1)), inputs_of(token_batch(4, 12, seed=2))
    masked = OBJECTIVES["mlm"].corrupt(Batch.of(token_batch(4, 12, seed=3)), torch.Generator().manual_seed(0))
    for _ in range(3):
        optimizer.zero_grad()
        (encoder("clm", train) + encoder("mlm", masked)).backward()
        optimizer.step()
    weights = torch.tensor([0.5, 0.5], requires_grad=True)

    def inner(forward, outer):
        return outer["w"][0] * forward("clm", train) + outer["w"][1] * forward("mlm", masked)

    def outer_loss(forward, outer):
        return forward("clm", held_out)

    found = {}
    for name in ("higher", "one_step", "finite_difference"):
        problem = Lookahead(encoder, optimizer, {"w": weights}, [InnerStep(inner)], outer_loss)
        found[name] = ENGINES[name]()(problem).gradients["w"]
    assert found["higher"].abs().min() > 1e-6
    assert torch.allclose(found["one_step"], found["higher"], rtol=1e-3, atol=1e-6)
    assert torch.allclose(found["finite_difference"], found["higher"], rtol=5e-2, atol=1e-4)
