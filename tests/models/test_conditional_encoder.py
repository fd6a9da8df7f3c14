"""The wiring of the conditional encoders: what loads, what is shared with stock BERT, and how inputs may look."""

import copy

import pytest
import torch
from transformers import AutoModel, BertConfig, BertModel, RobertaConfig, RobertaModel

from mlpt.errors import UserError
from mlpt.models.conditional.encoder import (
    BottleneckLayer,
    ConditionalConfig,
    ConditionalEncoder,
    load_stock,
)

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 20,
    "pad_token_id": 0,
}


def stock_model(layers: int = 4, roberta: bool = False):
    torch.manual_seed(0)
    made = (
        RobertaModel(RobertaConfig(**SIZES, num_hidden_layers=layers))
        if roberta
        else BertModel(BertConfig(**SIZES, num_hidden_layers=layers))
    )
    return made.eval()


def encoder_on(stock, wiring="base", **settings) -> ConditionalEncoder:
    return ConditionalEncoder(
        copy.deepcopy(stock), ConditionalConfig(wiring=wiring, max_length=16, **settings), 3
    ).eval()


def some_rows(batch: int = 3, length: int = 11):
    ids = torch.randint(5, 60, (batch, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(batch, length, dtype=torch.bool)
    ids[1, length - 4 :], mask[1, length - 4 :] = 0, False
    return ids, mask, torch.tensor([0, 1, 2])


def without_conditions(encoder: ConditionalEncoder) -> ConditionalEncoder:
    """The same encoder with every modulation at zero: FiLM is the identity and the attention bias vanishes."""
    for name, parameter in encoder.named_parameters():
        if "film." in name or name.startswith("alignment."):
            parameter.data.zero_()
    return encoder


@pytest.mark.parametrize("roberta", [False, True])
@pytest.mark.parametrize("wiring", ["base", "large"])
def test_every_pretrained_weight_is_found_under_its_stock_name(wiring, roberta):
    stock = stock_model(roberta=roberta)
    ours = encoder_on(stock, wiring).state_dict()
    for name, weight in stock.state_dict().items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=0)


def test_a_published_base_encoder_draws_its_last_layer_and_keeps_the_others():
    stock = stock_model()
    ours = encoder_on(stock, last_layer="random").state_dict()
    same = {name: torch.equal(ours[name], weight) for name, weight in stock.state_dict().items() if "weight" in name}
    assert not any(same[name] for name in same if name.startswith("encoder.layer.3") and "LayerNorm" not in name)
    assert all(same[name] for name in same if not name.startswith("encoder.layer.3"))


@pytest.mark.parametrize("roberta", [False, True])
def test_without_modulation_the_ladder_wirings_layers_compute_what_stock_layers_do(roberta):
    stock = stock_model(roberta=roberta)
    encoder = without_conditions(encoder_on(stock, "large"))
    ids, mask, _ = some_rows()
    ids[~mask] = stock.config.pad_token_id
    expected = stock(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    hidden = encoder.embeddings(input_ids=ids)
    for layer, wanted in zip(encoder.encoder.layer, expected[1:], strict=True):
        hidden = layer(hidden, mask, torch.zeros(3, 32))
        torch.testing.assert_close(hidden[mask], wanted[mask], atol=1e-5, rtol=1e-4)


def test_base_ends_in_a_bottleneck_whose_residual_is_the_attention_output():
    encoder = encoder_on(stock_model())
    assert [isinstance(layer, BottleneckLayer) for layer in encoder.encoder.layer] == [False, False, False, True]
    last, (_, mask, _) = encoder.encoder.layer[-1], some_rows()
    hidden, condition = torch.randn(3, 11, 32), torch.randn(3, 32)
    attended = last.attend(hidden, mask, condition)
    narrowed = last.bottleneck(condition, last.feed_forward(attended, condition))
    torch.testing.assert_close(last(hidden, mask, condition), last.bottleneck_norm(narrowed + attended, condition))


def test_large_gives_out_the_last_rung_of_the_ladder():
    encoder = encoder_on(stock_model(3), "large")
    (_, mask, _), hidden, condition = some_rows(), torch.randn(3, 11, 32), torch.randn(3, 32)
    states, rung = [], 0
    for layer in encoder.encoder.layer:
        states.append(layer(states[-1] if states else hidden, mask, condition))
    for bottleneck, state in zip(encoder.encoder.ladder, states, strict=True):
        rung = bottleneck(condition, state + rung)
    torch.testing.assert_close(encoder.encoder(hidden, mask, condition), rung)


@pytest.mark.parametrize(("wiring", "layers", "conditional"), [("base", 4, [2, 3]), ("large", 5, [3, 4])])
def test_the_upper_half_has_conditional_norms_and_an_odd_layer_goes_below(wiring, layers, conditional):
    encoder = encoder_on(stock_model(layers), wiring)
    assert [i for i, layer in enumerate(encoder.encoder.layer) if layer.conditional_norms] == conditional


def test_an_odd_count_of_layers_is_refused_for_base():
    with pytest.raises(UserError, match="even number of layers"):
        encoder_on(stock_model(3))


@pytest.mark.parametrize("wiring", ["base", "large"])
def test_padding_changes_nothing(wiring):
    encoder = encoder_on(stock_model(), wiring)
    ids, mask, tasks = some_rows()
    short = encoder(ids[1:2, :7], mask[1:2, :7], tasks[1:2])
    torch.testing.assert_close(encoder(ids, mask, tasks)[1:2], short, atol=1e-5, rtol=1e-4)


def test_the_task_changes_the_output_and_its_neighbours_do_not():
    encoder = encoder_on(stock_model())
    ids, mask, tasks = some_rows()
    together = encoder(ids, mask, tasks)
    torch.testing.assert_close(encoder(ids[:1], mask[:1], tasks[:1]), together[:1], atol=1e-5, rtol=1e-4)
    assert (encoder(ids[:1], mask[:1], tasks[2:]) - together[:1]).abs().max() > 1e-5


def test_inputs_longer_than_max_length_are_refused_in_one_line():
    encoder = encoder_on(stock_model())
    with pytest.raises(UserError, match="17 tokens exceed"):
        encoder(torch.ones(1, 17, dtype=torch.int64), torch.ones(1, 17, dtype=torch.bool), torch.tensor([0]))


def test_eager_and_sdpa_attention_agree():
    stock = stock_model()
    encoder = encoder_on(stock)
    sdpa = encoder(*some_rows())
    encoder.config._attn_implementation = "eager"
    torch.testing.assert_close(encoder(*some_rows()), sdpa, atol=1e-5, rtol=1e-4)


def test_bfloat16_autocast_stays_near_float32_and_gives_gradients():
    encoder = encoder_on(stock_model())
    exact = encoder(*some_rows())
    with torch.autocast("cpu", torch.bfloat16):
        rough = encoder(*some_rows())
    assert (exact - rough.float()).abs().max() < 0.05
    rough.float().square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in encoder.parameters())


def test_an_encoder_is_built_from_a_saved_folder(tmp_path):
    stock = stock_model()
    stock.save_pretrained(tmp_path)
    made, again = (ConditionalEncoder(load_stock(tmp_path), ConditionalConfig(max_length=16), 3, 5) for _ in range(2))
    for name, weight in made.state_dict().items():
        torch.testing.assert_close(weight, again.state_dict()[name], rtol=0, atol=0)
    torch.testing.assert_close(made.embeddings.word_embeddings.weight, stock.embeddings.word_embeddings.weight)


def test_another_architecture_is_refused(tmp_path):
    AutoModel.from_config(BertConfig(**SIZES, num_hidden_layers=2)).save_pretrained(tmp_path / "bert")
    stock = stock_model()
    stock.config.model_type = "electra"
    with pytest.raises(UserError, match="BERT or RoBERTa"):
        ConditionalEncoder(stock, ConditionalConfig(max_length=16), 2)


def test_a_folder_without_a_model_is_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot load an encoder") as caught:
        load_stock(tmp_path)
    assert "\n" not in str(caught.value)
