"""The encoder: parity with stock models, parameter counts, saving, seeds, and wrapping by higher, DDP and compile."""

import json

import higher
import huggingface_hub
import pytest
import torch
import torch.distributed
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from mlpt.data.batch import Batch
from mlpt.data.vocabulary import Vocabulary
from mlpt.errors import UserError
from mlpt.models.config import ModelConfig
from mlpt.models.encoder import build_encoder, load_encoder
from mlpt.objectives import make_objectives
from mlpt.objectives.base import Inputs
from mlpt.randomness import torch_generator

VOCABULARY = Vocabulary(size=100, pad=0, unk=1, cls=2, sep=3, mask=4)
# RoBERTa's own order of special tokens, with padding in the middle: the trap for position ids.
ROBERTA_VOCABULARY = Vocabulary(size=100, cls=0, pad=1, sep=2, unk=3, mask=99)
LENGTH = 16
TESTED = ["bert", "roberta", "electra", "modernbert"]
OTHERS = ["xlm-roberta", "distilbert", "albert"]
BY_THE_GENERIC_ROUTE = ["deberta-v2", "convbert", "ernie", "mpnet", "longformer", "luke"]

# The objectives that need nothing but text; those with a teacher are in test_distill.py.
FROM_TEXT = {"mlm": {}, "guided": {"guide": "all"}, "atd": {}, "dtd": {}, "cse": {}}


def small(architecture="bert", **settings):
    settings = {"hidden_size": 32, "layers": 2, "heads": 2, "intermediate_size": 64} | settings
    return ModelConfig(architecture=architecture, **settings)


def build(architecture="bert", vocabulary=VOCABULARY, seed=0, objectives=tuple(FROM_TEXT), **settings):
    made = make_objectives({name: FROM_TEXT[name] for name in objectives}, vocabulary)
    return build_encoder(small(architecture, **settings), vocabulary, made, LENGTH, seed)


def texts(vocabulary=VOCABULARY, padded=True):
    tokens = torch.randint(5, 99, (6, LENGTH), generator=torch_generator(0, "texts"))
    tokens[:, 0], tokens[:, -1] = vocabulary.cls, vocabulary.sep
    if padded:
        tokens[0, 9], tokens[0, 10:] = vocabulary.sep, vocabulary.pad
    return tokens


def corrupted(encoder, name="mlm", vocabulary=VOCABULARY, padded=True):
    return encoder.objectives[name].corrupt(Batch.of(texts(vocabulary, padded)), torch_generator(0, name))


def stock_loss(model, inputs):
    labels = inputs.labels()
    return model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, labels=labels).loss


@pytest.mark.parametrize("vocabulary", [VOCABULARY, ROBERTA_VOCABULARY], ids=["pad0", "pad1"])
@pytest.mark.parametrize("padded", [True, False], ids=["padded", "packed"])
@pytest.mark.parametrize("architecture", TESTED + OTHERS)
def test_the_loss_equals_the_stock_models_own(architecture, padded, vocabulary):
    encoder = build(architecture, vocabulary).eval()
    inputs = corrupted(encoder, vocabulary=vocabulary, padded=padded)
    assert len(inputs.positions) > 0
    expected = stock_loss(encoder.backbone, inputs)
    assert encoder("mlm", inputs).item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("architecture", BY_THE_GENERIC_ROUTE)
def test_an_architecture_without_a_known_head_goes_through_its_own_forward(architecture):
    encoder = build(architecture, attention="eager").eval()
    inputs = corrupted(encoder)
    expected = stock_loss(encoder.backbone, inputs)
    assert encoder("mlm", inputs).item() == pytest.approx(expected.item(), abs=1e-5)
    assert "forward" not in vars(encoder.backbone.base_model), "the encoder's own forward is back"


@pytest.mark.parametrize("architecture", TESTED)
def test_gradients_equal_the_stock_models_own(architecture):
    encoder = build(architecture).eval()
    inputs = corrupted(encoder)
    weights = dict(encoder.backbone.named_parameters())
    ours = torch.autograd.grad(encoder("mlm", inputs), list(weights.values()), allow_unused=True)
    theirs = torch.autograd.grad(stock_loss(encoder.backbone, inputs), list(weights.values()), allow_unused=True)
    for name, one, other in zip(weights, ours, theirs, strict=True):
        if one is None or other is None:
            assert one is other, name
        else:
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("name", list(FROM_TEXT))
@pytest.mark.parametrize("architecture", TESTED)
def test_every_objective_trains_the_encoder_and_its_own_head_only(architecture, name):
    encoder = build(architecture)
    loss = encoder(name, corrupted(encoder, name))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    assert encoder.backbone.get_input_embeddings().weight.grad.abs().sum() > 0
    trained = {head for head, module in encoder.heads.items() if any(p.grad is not None for p in module.parameters())}
    assert trained == ({name} if name in encoder.heads else set())


def test_a_batch_with_nothing_to_predict_gives_zero_and_reaches_every_weight_of_the_language_model():
    encoder = build(objectives=("mlm",))
    nothing = torch.zeros(0, dtype=torch.int64)
    loss = encoder("mlm", Inputs(texts(padded=False), None, nothing, nothing))
    loss.backward()
    assert loss.item() == 0
    assert all(weight.grad is not None and weight.grad.abs().sum() == 0 for weight in encoder.parameters())


def test_parameter_counts_of_bert_base_and_of_the_heads_are_the_published_ones():
    """Specs 3.2: 110 107 966 for the whole of BERT-base with its heads; atd 1 538, dtd 1 538, cse 590 592."""
    vocabulary = Vocabulary(size=30522, pad=0, unk=100, cls=101, sep=102, mask=103)
    config = ModelConfig(hidden_size=768, layers=12, heads=12)
    objectives = make_objectives({name: {} for name in ("mlm", "atd", "dtd", "cse")}, vocabulary)
    with torch.device("meta"):
        encoder = build_encoder(config, vocabulary, objectives, 512, seed=0)
    count = {name: sum(p.numel() for p in module.parameters()) for name, module in encoder.heads.items()}
    assert count == {"atd": 1538, "dtd": 1538, "cse": 590592}
    assert sum(p.numel() for p in encoder.parameters()) == 110_107_966


@pytest.mark.parametrize("architecture", TESTED)
def test_a_saved_folder_loads_with_stock_classes_and_gives_equal_logits(architecture, tmp_path):
    encoder = build(architecture).eval()
    encoder.save(tmp_path)
    tokens = texts(padded=False)
    expected = encoder.token_logits(encoder.hidden(Inputs(tokens)).flatten(0, 1)).view(6, LENGTH, -1)
    stock = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(stock(tokens).logits, expected)
    torch.testing.assert_close(
        AutoModel.from_pretrained(tmp_path).eval()(tokens).last_hidden_state, encoder.hidden(Inputs(tokens))
    )


def test_the_heads_are_saved_beside_the_model_and_reload(tmp_path):
    encoder = build().eval()
    encoder.save(tmp_path)
    assert {key.split(".")[0] for key in load_file(tmp_path / "heads.safetensors")} == {"atd", "dtd", "cse"}
    again = load_encoder(tmp_path, encoder.objectives).eval()
    for name in FROM_TEXT:
        inputs = corrupted(encoder, name)
        assert again(name, inputs).item() == encoder(name, inputs).item()


def test_loading_needs_only_the_heads_of_the_objectives_asked_for(tmp_path):
    build(objectives=("mlm", "atd", "dtd")).save(tmp_path)
    assert set(load_encoder(tmp_path, make_objectives({"atd": {}}, VOCABULARY)).heads) == {"atd"}
    with pytest.raises(UserError, match="no head for cse"):
        load_encoder(tmp_path, make_objectives({"cse": {}}, VOCABULARY))


@pytest.mark.parametrize("architecture", ["deberta-v2", "deberta", "roformer", "convbert", "mpnet"])
def test_a_model_without_fast_attention_is_loaded_without_being_told(architecture, tmp_path):
    encoder = build(architecture, objectives=("mlm",), attention="eager").eval()
    encoder.save(tmp_path)
    inputs = corrupted(encoder)
    assert load_encoder(tmp_path, encoder.objectives, complete=True)("mlm", inputs).item() > 0
    assert load_encoder(tmp_path, encoder.objectives).eval()("mlm", inputs).item() == encoder("mlm", inputs).item()
    with pytest.raises(UserError, match="has no sdpa attention; use attention=eager"):
        build_encoder(ModelConfig(pretrained=str(tmp_path)), VOCABULARY, {}, LENGTH, 0)


def test_the_decoder_stays_tied_to_the_embeddings_through_saving(tmp_path):
    encoder = build()
    encoder.save(tmp_path)
    for one in (encoder, load_encoder(tmp_path, {})):
        assert one.backbone.get_output_embeddings().weight is one.backbone.get_input_embeddings().weight


def test_equal_seeds_give_equal_weights_and_the_global_stream_is_not_touched():
    before = torch.get_rng_state()
    one, two, other = build(seed=1), build(seed=1), build(seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.heads["atd"].weight, other.heads["atd"].weight)
    assert not torch.equal(one.backbone.get_input_embeddings().weight, other.backbone.get_input_embeddings().weight)


def test_special_ids_are_written_into_the_saved_configuration(tmp_path):
    build("roberta", ROBERTA_VOCABULARY).save(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert {key: saved[key] for key in ("pad_token_id", "bos_token_id", "eos_token_id", "vocab_size")} == {
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "vocab_size": 100,
    }
    assert saved["mask_token_id"] == 99
    assert saved["max_position_embeddings"] == LENGTH + 2


def test_the_vocabulary_is_rounded_up_only_when_asked():
    assert build().config.vocab_size == 100
    encoder = build(vocabulary_multiple=64)
    assert encoder.config.vocab_size == 128
    inputs = corrupted(encoder)
    assert encoder("mlm", inputs).isfinite()


def test_hidden_states_are_the_embeddings_and_each_layers_output():
    encoder = build().eval()
    inputs = Inputs(texts(padded=False))
    states = encoder.hidden_states(inputs)
    assert [tuple(state.shape) for state in states] == [(6, LENGTH, 32)] * 3
    torch.testing.assert_close(states[-1], encoder.hidden(inputs))
    torch.testing.assert_close(states[0], encoder.backbone.bert.embeddings(inputs.input_ids))


def test_two_views_differ_by_dropout_in_training_and_not_in_evaluation():
    encoder = build(objectives=("cse",))
    inputs = corrupted(encoder, "cse")
    training = encoder.hidden(inputs)[:, 0]
    assert not torch.allclose(training[0], training[1])
    evaluation = encoder.eval().hidden(inputs)[:, 0]
    torch.testing.assert_close(evaluation[0], evaluation[1])


@pytest.mark.parametrize(
    ("architecture", "attention", "name"),
    [(architecture, "sdpa", "mlm") for architecture in TESTED]
    + [("bert", "eager", "mlm"), ("modernbert", "eager", "dtd"), ("roberta", "sdpa", "atd"), ("bert", "sdpa", "cse")],
)
def test_higher_unrolls_the_encoder_with_equal_losses_and_tied_embeddings(architecture, attention, name):
    encoder = build(architecture, attention=attention, layers=1).eval()
    inputs = corrupted(encoder, name)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    with sdpa_kernel(SDPBackend.MATH), higher.innerloop_ctx(encoder, optimizer) as (patched, inner):
        start = patched(name, inputs)
        assert start.item() == pytest.approx(encoder(name, inputs).item(), abs=1e-6)
        inner.step(start)
        later = patched(name, inputs)
        decoder, embeddings = patched.backbone.get_output_embeddings(), patched.backbone.get_input_embeddings()
        assert decoder.weight is embeddings.weight
        torch.autograd.grad(later, patched.parameters(time=0), allow_unused=True)  # second order exists
    encoder(name, inputs).backward()
    optimizer.step()
    assert later.item() == pytest.approx(encoder(name, inputs).item(), abs=2e-6)
    assert later.item() != start.item()


def test_torch_compile_captures_the_forward_and_gives_the_same_loss():
    encoder = build(layers=1).eval()
    compiled = torch.compile(encoder, backend="aot_eager")
    for name in ("mlm", "cse"):
        inputs = corrupted(encoder, name, padded=False)
        assert compiled(name, inputs).item() == pytest.approx(encoder(name, inputs).item(), abs=1e-6)


def test_attention_gets_no_mask_when_nothing_is_padded():
    encoder = build().eval()
    seen = []
    attention = encoder.backbone.bert.encoder.layer[0].attention.self
    attention.register_forward_pre_hook(
        lambda _, positional, named: seen.append(named.get("attention_mask", (*positional, None, None)[1])),
        with_kwargs=True,
    )
    encoder("mlm", corrupted(encoder, padded=False))
    encoder("mlm", corrupted(encoder, padded=True))
    assert seen[0] is None
    assert seen[1] is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "brt"}, "did you mean 'bert'"),
        ({"architecture": "gpt2"}, "no architecture with a masked language model"),
        ({"heads": 5}, "not a multiple of 5 heads"),
        ({"options": {"hiden_act": "relu"}}, "did you mean 'hidden_act'"),
        ({"architecture": "deberta-v2"}, "use attention=eager"),
        ({"architecture": "funnel"}, "'funnel' cannot be made with these sizes"),
        ({"architecture": "squeezebert", "attention": "eager"}, "'squeezebert' cannot be made with these sizes"),
        ({"architecture": "bart"}, "a 'bart' is more than an encoder"),
        ({"architecture": "perceiver", "attention": "eager"}, "head of a 'perceiver' cannot be applied"),
        ({"architecture": "ultravbert"}, "'ultravbert' is made for more than text"),
        ({"architecture": "xmod"}, "'xmod' cannot be made with these sizes .*Input language unknown"),
        ({"options": {"type_vocab_size": 0}}, "cannot be made with model.options={'type_vocab_size': 0}"),
    ],
)
def test_wrong_model_settings_are_one_line(settings, message):
    with pytest.raises(UserError, match=message) as caught:
        build_encoder(small(**settings), VOCABULARY, {}, LENGTH, seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere/nothing-of-this-name", "cannot load a masked language model"),
        ("./no/such/folder", "there is no folder"),
    ],
)
def test_a_pretrained_model_that_is_not_there_is_one_line(name, message, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=message) as caught:
        build_encoder(ModelConfig(pretrained=name), VOCABULARY, {}, LENGTH, seed=0)
    assert "\n" not in str(caught.value)


def test_training_continues_from_a_saved_folder(tmp_path):
    encoder = build("roberta", ROBERTA_VOCABULARY)
    encoder.save(tmp_path)
    config = ModelConfig(pretrained=str(tmp_path))
    again = build_encoder(config, ROBERTA_VOCABULARY, encoder.objectives, LENGTH, seed=9)
    inputs = corrupted(encoder, vocabulary=ROBERTA_VOCABULARY)
    assert again.eval()("mlm", inputs).item() == encoder.eval()("mlm", inputs).item()


@pytest.mark.parametrize(
    ("vocabulary", "length", "message"),
    [
        (Vocabulary(size=101, cls=0, pad=1, sep=2, unk=3, mask=99), LENGTH, "100 tokens and the tokenizer 101"),
        (VOCABULARY, LENGTH, "pads with token 1 and the tokenizer with 0"),
        (ROBERTA_VOCABULARY, LENGTH + 1, "takes 16 tokens and the blocks have 17"),
    ],
)
def test_a_pretrained_model_that_does_not_fit_the_blocks_is_refused(vocabulary, length, message, tmp_path):
    build("roberta", ROBERTA_VOCABULARY).save(tmp_path)
    with pytest.raises(UserError, match=message):
        build_encoder(ModelConfig(pretrained=str(tmp_path)), vocabulary, {}, length, seed=0)


def test_a_damaged_model_file_is_reported_in_one_line(tmp_path):
    encoder = build()
    encoder.save(tmp_path)
    (tmp_path / "heads.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_encoder(tmp_path, encoder.objectives)
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="cannot load a masked language model"):
        load_encoder(tmp_path, encoder.objectives)


def test_the_saved_configuration_names_a_stock_class(tmp_path):
    build().save(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).architectures == ["BertForMaskedLM"]
