"""CA-MTL's ablation: a conditional part that is off leaves the stock network there; with all four off it is stock."""

import copy
import itertools

import pytest
import torch
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from mlpt.models.conditional.encoder import ConditionalConfig, ConditionalEncoder
from mlpt.models.conditional.freezing import freeze_layers, parameter_counts

SWITCHES = ("attention", "alignment", "layer_norm", "bottleneck")
OFF = dict.fromkeys(SWITCHES, False)
SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 20,
    "pad_token_id": 0,
}


def stock_model(roberta: bool = False):
    torch.manual_seed(0)
    model = RobertaModel(RobertaConfig(**SIZES)) if roberta else BertModel(BertConfig(**SIZES))
    for name, parameter in model.named_parameters():
        if "LayerNorm" in name:  # otherwise all ones and zeros, which a wrong norm could share
            torch.nn.init.normal_(parameter, 1.0, 0.2)
    return model.eval()


def encoder_on(stock, **settings) -> ConditionalEncoder:
    made = ConditionalEncoder(copy.deepcopy(stock), ConditionalConfig(max_length=16, **settings), 3).eval()
    for name, parameter in made.named_parameters():
        if "film." in name or name.startswith("alignment.") or name.endswith("attention_bias.matrix"):
            torch.nn.init.normal_(parameter, std=0.3)  # what is on can be seen
    return made


def some_rows():
    ids = torch.randint(5, 60, (3, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(3, 11, dtype=torch.bool)
    ids[1, 7:], mask[1, 7:] = 0, False
    return ids, mask, torch.tensor([0, 1, 2])


def close(ours, theirs, mask) -> bool:
    return torch.allclose(ours[mask], theirs[mask], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("roberta", [False, True])
@pytest.mark.parametrize("wiring", ["base", "large"])
def test_with_all_four_off_it_is_the_stock_encoder(wiring, roberta):
    stock = stock_model(roberta)
    encoder, (ids, mask, tasks) = encoder_on(stock, wiring=wiring, **OFF), some_rows()
    expected = stock(ids, attention_mask=mask)
    assert close(encoder.hidden(ids, mask, tasks), expected.last_hidden_state, mask)
    torch.testing.assert_close(encoder(ids, mask, tasks), expected.pooler_output, atol=1e-5, rtol=1e-4)
    assert set(encoder.state_dict()) == set(stock.state_dict())  # and nothing that would never be trained


@pytest.mark.parametrize("wiring", ["base", "large"])
@pytest.mark.parametrize("switch", SWITCHES)
def test_each_alone_makes_the_output_depend_on_the_task(wiring, switch):
    stock, (ids, mask, tasks) = stock_model(), some_rows()
    encoder = encoder_on(stock, wiring=wiring, **OFF | {switch: True})
    assert not close(encoder.hidden(ids, mask, tasks), stock(ids, attention_mask=mask).last_hidden_state, mask)
    assert not close(encoder.hidden(ids, mask, tasks), encoder.hidden(ids, mask, tasks.flip(0)), mask)


@pytest.mark.parametrize("wiring", ["base", "large"])
def test_without_conditional_attention_every_layer_attends_as_the_stock_one(wiring):
    stock, (_, mask, _) = stock_model(), some_rows()
    encoder = encoder_on(stock, wiring=wiring, attention=False, layer_norm=False)
    hidden, condition = torch.randn(3, 11, 32), torch.randn(3, 32)
    padding = torch.zeros(3, 1, 1, 11).masked_fill(~mask[:, None, None], torch.finfo(torch.float32).min)
    for ours, theirs in zip(encoder.encoder.layer, stock.encoder.layer, strict=True):
        assert close(ours.attend(hidden, mask, condition), theirs.attention(hidden, padding)[0], mask)


def test_without_conditional_alignment_the_first_layer_sees_the_stock_embeddings():
    stock, (ids, mask, tasks) = stock_model(), some_rows()
    encoder, seen = encoder_on(stock, alignment=False), []
    encoder.encoder.layer[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    encoder(ids, mask, tasks)
    torch.testing.assert_close(seen[0], stock.embeddings(input_ids=ids), rtol=0, atol=0)


@pytest.mark.parametrize("wiring", ["base", "large"])
def test_without_conditional_norms_every_feed_forward_part_is_the_stock_one(wiring):
    stock = stock_model()
    encoder = encoder_on(stock, wiring=wiring, layer_norm=False)
    hidden, condition = torch.randn(3, 11, 32), torch.randn(3, 32)
    for ours, theirs in zip(encoder.encoder.layer, stock.encoder.layer, strict=True):
        expected = theirs.output(theirs.intermediate(hidden), hidden)
        torch.testing.assert_close(ours.feed_forward(hidden, condition), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("wiring", ["base", "large"])
@pytest.mark.parametrize("last_layer", ["loaded", "random"])
def test_without_the_bottleneck_the_last_layer_is_a_stock_one_and_what_comes_out(wiring, last_layer):
    stock, (ids, mask, tasks) = stock_model(), some_rows()
    off = {"bottleneck": False, "attention": False, "layer_norm": False}
    encoder = encoder_on(stock, wiring=wiring, last_layer=last_layer, **off)
    encoder.alignment.modulation.weight.data.zero_()  # the one part that is on does nothing
    encoder.alignment.modulation.bias.data.zero_()
    assert close(encoder.hidden(ids, mask, tasks), stock(ids, attention_mask=mask).last_hidden_state, mask)


def test_each_switch_takes_its_own_parameters_away_and_no_others():
    parts = {
        "attention": "attention_bias",
        "alignment": "alignment.",
        "layer_norm": "LayerNorm.film",
        "bottleneck": "bottleneck",
    }
    stock = stock_model()
    whole = set(encoder_on(stock).state_dict())
    for switch, part in parts.items():
        gone = whole - set(encoder_on(stock, **{switch: False}).state_dict())
        expected = {name for name in whole if part in name}
        if switch == "layer_norm":
            expected |= {name for name in whole if "bottleneck_norm.film" in name}
        assert gone == expected


@pytest.mark.parametrize("on", itertools.chain.from_iterable(itertools.combinations(SWITCHES, n) for n in range(1, 5)))
@pytest.mark.parametrize("wiring", ["base", "large"])
def test_in_every_combination_all_parameters_are_trained_and_padding_changes_nothing(wiring, on):
    encoder = encoder_on(stock_model(), wiring=wiring, **OFF | dict.fromkeys(on, True))
    ids, mask, tasks = some_rows()
    states = encoder.hidden(ids, mask, tasks)
    states[mask].square().sum().backward()
    idle = [name for name, one in encoder.named_parameters() if one.grad is None and not name.startswith("pooler")]
    assert idle == []
    assert close(encoder.hidden(ids[1:2, :7], mask[1:2, :7], tasks[1:2]), states[1:2, :7], mask[1:2, :7])


def test_without_conditional_attention_the_length_need_not_divide_the_width():
    encoder, (ids, mask, tasks) = encoder_on(stock_model(), attention=False), some_rows()
    odd = ConditionalEncoder(stock_model(), ConditionalConfig(max_length=15, attention=False), 3)
    assert odd.eval()(ids, mask, tasks).shape == encoder(ids, mask, tasks).shape


def test_freezing_the_lower_half_knows_the_layers_whatever_is_on():
    encoder = encoder_on(stock_model(), **OFF)
    frozen = freeze_layers(encoder, "0-1")
    stock = {name for name in stock_model().state_dict() if name.startswith(("encoder.layer.0.", "encoder.layer.1."))}
    assert {name for name in frozen if not name.startswith("embeddings.")} == stock
    assert parameter_counts(encoder)["trainable"] < parameter_counts(encoder)["total"]
