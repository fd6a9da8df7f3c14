"""Which parameters stop training when layers are frozen."""

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertModel

from mlpt.errors import UserError
from mlpt.models.conditional.encoder import ConditionalConfig, ConditionalEncoder
from mlpt.models.conditional.freezing import freeze_layers

CONFIG = BertConfig(vocab_size=60, hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=48)


def conditional(wiring: str) -> ConditionalEncoder:
    with torch.device("meta"):
        return ConditionalEncoder(BertModel(CONFIG), ConditionalConfig(wiring=wiring, max_length=16), 2)


def test_frozen_layers_keep_training_what_conditions_them():
    frozen = freeze_layers(conditional("base"), "2-3")
    assert "encoder.layer.2.attention.self.query.weight" in frozen
    assert "encoder.layer.3.output.LayerNorm.weight" in frozen
    assert "embeddings.word_embeddings.weight" in frozen
    assert not any(part in name for name in frozen for part in ("film", "matrix", "bottleneck", "task_", "pooler"))
    assert not any(name.startswith(("encoder.layer.0", "encoder.layer.1")) for name in frozen)


def test_the_ladder_is_never_frozen():
    assert not any("ladder" in name for name in freeze_layers(conditional("large"), "0-3"))


@pytest.mark.parametrize("model", [BertModel, BertForMaskedLM])
def test_a_plain_bert_can_be_frozen_too(model):
    with torch.device("meta"):
        bert = model(CONFIG)
    frozen = set(freeze_layers(bert, "0-1"))
    expected = {n for n, _ in bert.named_parameters() if "embeddings." in n or "layer.0." in n or "layer.1." in n}
    assert frozen == expected
    assert {name for name, parameter in bert.named_parameters() if not parameter.requires_grad} == expected


@pytest.mark.parametrize("layers", ["3", "2-1", "a-b", "0-4", ""])
def test_a_range_that_is_none_or_leaves_the_encoder_is_refused(layers):
    with pytest.raises(UserError, match=r"range of layers|the encoder has layers 0-3"):
        freeze_layers(conditional("base"), layers)
