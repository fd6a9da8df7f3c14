"""States of a few positions equal those of the whole forward pass."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from mlpt.data.vocabulary import Vocabulary
from mlpt.models.config import ModelConfig
from mlpt.models.encoder import build_encoder
from mlpt.models.last_layer import reading_few
from mlpt.objectives.base import Inputs

VOCABULARY = Vocabulary(size=100, pad=0, unk=1, cls=2, sep=3, mask=4)


@pytest.mark.parametrize("padded", [False, True], ids=["packed", "padded"])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "electra", "modernbert", "distilbert", "deberta-v2"])
def test_states_at_positions_equal_those_of_the_whole_pass(architecture, padded):
    config = ModelConfig(architecture=architecture, hidden_size=32, layers=2, heads=2, attention="eager")
    encoder = build_encoder(config, VOCABULARY, {}, 16, seed=0).eval()
    tokens = torch.randint(5, 100, (4, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    if padded:
        tokens[1, 8:], mask[1, 8:] = VOCABULARY.pad, False
    inputs = Inputs(tokens, mask if padded else None)
    positions = torch.tensor([3, 14, 14, 40])
    with torch.inference_mode():
        whole = encoder.hidden(inputs)
        with reading_few(encoder) as hidden_at:
            torch.testing.assert_close(hidden_at(inputs, positions), whole.flatten(0, 1)[positions])
            torch.testing.assert_close(encoder.hidden(inputs), whole, rtol=0, atol=0)  # others get the whole layer
            with torch.autocast("cpu", dtype=torch.bfloat16):
                rough = encoder.hidden(inputs).flatten(0, 1)[positions]
                torch.testing.assert_close(hidden_at(inputs, positions), rough, rtol=0.02, atol=0.02)
        torch.testing.assert_close(encoder.hidden(inputs), whole, rtol=0, atol=0)
    assert not any({"forward", "feed_forward_chunk"} & set(vars(module)) for module in encoder.modules())


@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_the_last_feed_forward_block_sees_the_positions_alone(architecture):
    config = ModelConfig(architecture=architecture, hidden_size=32, layers=2, heads=2, attention="eager")
    encoder = build_encoder(config, VOCABULARY, {}, 16, seed=0).eval()
    base = encoder.backbone.base_model
    linear = base.encoder.layer[-1].intermediate.dense if architecture == "bert" else base.layers[-1].mlp.Wi
    rows = []
    linear.register_forward_hook(lambda module, inputs, output: rows.append(inputs[0].numel() // 32))
    with torch.inference_mode(), reading_few(encoder) as hidden_at:
        hidden_at(Inputs(torch.full((4, 12), 7)), torch.tensor([3, 14, 40]))
    assert rows == [3]


@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_threads_read_their_own_positions(architecture):
    config = ModelConfig(architecture=architecture, hidden_size=32, layers=2, heads=2, attention="eager")
    encoder = build_encoder(config, VOCABULARY, {}, 16, seed=0).eval()
    tokens = torch.randint(5, 100, (40, 4, 12), generator=torch.Generator().manual_seed(0))
    positions = [torch.tensor([n % 48, (7 * n) % 48]) for n in range(40)]
    with torch.inference_mode():
        expected = [encoder.hidden(Inputs(one)).flatten(0, 1)[at] for one, at in zip(tokens, positions, strict=True)]

    def read(number):
        with torch.inference_mode():
            return hidden_at(Inputs(tokens[number]), positions[number])

    with reading_few(encoder) as hidden_at, ThreadPoolExecutor(4) as pool:
        for found, right in zip(pool.map(read, range(40)), expected, strict=True):
            torch.testing.assert_close(found, right)
