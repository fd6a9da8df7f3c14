"""A buffer of fixed size for predicted positions: the plain losses and gradients, nothing dropped, no shape changes."""

from dataclasses import replace

import pytest
import torch
from scipy.stats import binom
from torch._dynamo.testing import CompileCounter

from mlpt.data.batch import Batch
from mlpt.data.vocabulary import Vocabulary
from mlpt.models.config import ModelConfig
from mlpt.models.encoder import build_encoder
from mlpt.objectives import make_objectives
from mlpt.objectives.base import Inputs
from mlpt.objectives.capacity import most_chosen, with_capacity
from mlpt.objectives.smoothing import clean_inputs
from mlpt.randomness import torch_generator
from mlpt.training.compiling import compiled

VOCABULARY = Vocabulary(size=100, pad=0, unk=1, cls=2, sep=3, mask=4)
ROWS, LENGTH = 8, 32
CASES = {
    "mlm": {},
    "guided": {"guide": "all", "probability": 0.3},
    "counted_mlm": {},
    "clm": {},
    "atd": {},
    "dtd": {},
    "uniform": {"type": "mlm", "smoothing": {"kind": "uniform"}},
    "token": {"type": "mlm", "smoothing": {"kind": "token"}},
    "all_tokens": {"type": "mlm", "smoothing": {"denominator": "all_tokens"}},
}


@pytest.fixture(scope="module")
def encoder():
    objectives = make_objectives(CASES, VOCABULARY)
    config = ModelConfig(architecture="bert", hidden_size=16, layers=1, heads=2)
    return build_encoder(config, VOCABULARY, objectives, LENGTH, seed=0).eval()


def corrupted(encoder, name, batch=0) -> Inputs:
    tokens = torch.randint(5, 100, (ROWS, LENGTH), generator=torch_generator(0, "texts", batch))
    tokens[:, 0], tokens[:, -1] = VOCABULARY.cls, VOCABULARY.sep
    return encoder.objectives[name].corrupt(Batch.of(tokens), torch_generator(0, name, batch))


def loss_and_gradients(encoder, name, inputs):
    encoder.zero_grad()
    loss = encoder(name, inputs)
    loss.backward()
    return {"loss": loss.detach()} | {
        key: one.grad.clone() for key, one in encoder.named_parameters() if one.grad is not None
    }


def buffered(encoder, name, inputs):
    return with_capacity(inputs, encoder.objectives[name].capacity(ROWS * LENGTH))


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_those_without_a_buffer(encoder, name):
    inputs = corrupted(encoder, name)
    filled = buffered(encoder, name, inputs)
    assert len(filled.positions) == encoder.objectives[name].capacity(ROWS * LENGTH) >= len(inputs.positions)
    expected = loss_and_gradients(encoder, name, inputs)
    torch.testing.assert_close(loss_and_gradients(encoder, name, filled), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("capacity", [1, 5, 16])
def test_a_batch_that_does_not_fit_takes_a_multiple_and_loses_nothing(encoder, capacity):
    inputs = corrupted(encoder, "mlm")
    filled = with_capacity(inputs, capacity)
    assert len(filled.positions) % capacity == 0
    assert len(inputs.positions) <= len(filled.positions) < len(inputs.positions) + capacity
    torch.testing.assert_close(encoder("mlm", filled), encoder("mlm", inputs))


def test_no_buffer_is_larger_than_the_batch(encoder):
    inputs = corrupted(encoder, "atd")
    assert len(with_capacity(inputs, ROWS * LENGTH - 1).positions) == ROWS * LENGTH


def test_weights_that_inputs_have_stay_theirs(encoder):
    inputs = corrupted(encoder, "mlm")
    inputs = replace(inputs, weights=torch.rand(len(inputs.positions), generator=torch_generator(0, "weights")))
    expected = loss_and_gradients(encoder, "mlm", inputs)
    filled = loss_and_gradients(encoder, "mlm", buffered(encoder, "mlm", inputs))
    torch.testing.assert_close(filled, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["mlm", "token"])
def test_a_batch_with_nothing_to_predict_gives_zero_and_finite_gradients(encoder, name):
    none = torch.zeros(0, dtype=torch.int64)
    inputs = replace(corrupted(encoder, name), positions=none, targets=none)
    found = loss_and_gradients(encoder, name, buffered(encoder, name, inputs))
    assert all(one.abs().sum() == 0 for one in found.values())


def test_the_text_before_its_corruption_is_found_again(encoder):
    inputs = corrupted(encoder, "mlm")
    filled = buffered(encoder, "mlm", inputs)
    assert torch.equal(clean_inputs(filled).input_ids, clean_inputs(inputs).input_ids)
    assert torch.equal(filled.labels(), inputs.labels())


def test_inputs_without_positions_stay_as_they_are():
    inputs = Inputs(torch.zeros(2, 4, dtype=torch.int64))
    assert with_capacity(inputs, 8) is inputs


@pytest.mark.parametrize(
    ("tokens", "probability"), [(512, 0.02), (2048, 0.15), (65536, 0.15), (65536, 0.01), (4096, 0.4)]
)
def test_next_to_no_batch_overflows(tokens, probability):
    """By the binomial distribution."""
    assert binom.sf(most_chosen(tokens, probability), tokens, probability) < 1e-15


@pytest.fixture
def no_graphs():
    """Graphs that are kept count for the code of the encoder, whoever compiles it next."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("no_graphs")
def test_a_compiled_step_keeps_the_graph_of_its_first_batch(encoder):
    counter = CompileCounter()
    forward = compiled(encoder, True, backend=counter)
    batches = [corrupted(encoder, "mlm", batch) for batch in range(12)]
    for inputs in batches:
        forward("mlm", buffered(encoder, "mlm", inputs))
    assert counter.frame_count == 1
    for inputs in batches:
        forward("mlm", inputs)
    assert counter.frame_count == 1 + len({len(inputs.positions) for inputs in batches}), "without a buffer"
