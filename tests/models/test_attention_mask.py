"""Documents of a block that don't see each other: each has the states and the loss that it would have alone."""

from dataclasses import replace

import pytest
import torch
from tiny_bert import VOCABULARY, tiny_encoder_of
from torch import Tensor
from torch.nn import functional

from mlpt.data.batch import Batch
from mlpt.errors import UserError
from mlpt.meta.engines import ENGINES
from mlpt.meta.engines.base import InnerStep, Lookahead
from mlpt.models.attention_mask import check_within_documents
from mlpt.models.config import ModelConfig
from mlpt.models.encoder import Encoder, build_encoder
from mlpt.models.soft import soft_hidden
from mlpt.models.teacher import Pair
from mlpt.models.writers import soft_inputs, soft_loss
from mlpt.objectives import make_objectives
from mlpt.objectives.base import Inputs

PAD, CLS, SEP, MASK = VOCABULARY.pad, VOCABULARY.cls, VOCABULARY.sep, VOCABULARY.mask
OBJECTIVES = make_objectives({"mlm": {"probability": 0.4}, "clm": {}}, VOCABULARY)
# Two blocks of two documents, the second block padded: where each document begins and ends.
BLOCKS = torch.tensor(
    [
        [CLS, 10, 11, 12, 13, 14, SEP, 20, 21, 22, 23, 24, 25, SEP],
        [CLS, 30, 31, SEP, 40, 41, 42, 43, 44, 45, SEP, PAD, PAD, PAD],
    ]
)
ENDS = [[(0, 7), (7, 14)], [(0, 4), (4, 11)]]
DOCUMENTS = torch.tensor([[0] * 7 + [1] * 7, [0] * 4 + [1] * 10])
BATCH = replace(Batch.of(BLOCKS), documents=DOCUMENTS)


def encoder_of(architecture: str = "modernbert", attention: str = "sdpa", layers: int = 4, **options) -> Encoder:
    config = ModelConfig(
        architecture=architecture,
        hidden_size=32,
        layers=layers,
        heads=4,
        attention=attention,
        attend_within="document",
        dropout=0.0,
        options=options,
    )
    encoder = build_encoder(config, VOCABULARY, OBJECTIVES, 40, seed=1).eval()
    with torch.no_grad():
        for one in encoder.parameters():
            if one.ndim == 2:
                one *= 6.0  # of starting weights the loss would hardly depend on what is attended to
    return encoder


def made(objective: str, within: str = "document") -> Inputs:
    batch = BATCH if within == "document" else Batch.of(BLOCKS)
    return OBJECTIVES[objective].corrupt(batch, torch.Generator().manual_seed(0))


def alone(inputs: Inputs, row: int, begin: int, end: int) -> Inputs:
    """The document of `inputs` at these positions, in a row of its own."""
    length = inputs.input_ids.shape[1]
    own = (inputs.positions >= row * length + begin) & (inputs.positions < row * length + end)
    ids = inputs.input_ids[row : row + 1, begin:end]
    return Inputs(ids, None, inputs.positions[own] - row * length - begin, inputs.targets[own], causal=inputs.causal)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("objective", ["mlm", "clm"])
@torch.no_grad()
def test_a_document_has_the_states_and_the_loss_that_it_has_alone(objective, attention):
    """Rotary positions, and layers with a window of attention of two tokens to either side."""
    encoder = encoder_of(attention=attention, local_attention=4)
    inputs = made(objective)
    assert inputs.causal == (objective == "clm")
    states = encoder.hidden(inputs)
    whole = encoder.hidden(replace(inputs, documents=None))
    total = counted = 0.0
    for row, documents in enumerate(ENDS):
        for number, (begin, end) in enumerate(documents):
            one = alone(inputs, row, begin, end)
            torch.testing.assert_close(states[row, begin:end], encoder.hidden(one)[0], atol=1e-5, rtol=1e-4)
            sees_other = objective == "mlm" or number == 1
            assert ((states[row, begin:end] - whole[row, begin:end]).abs().max() > 1e-3) == sees_other
            total += float(encoder(objective, one)) * len(one.positions)
            counted += len(one.positions)
    assert counted == len(inputs.positions)
    assert float(encoder(objective, inputs)) == pytest.approx(total / counted, rel=1e-5)
    assert float(encoder(objective, made(objective, "block"))) != pytest.approx(total / counted, rel=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_learned_positions_are_those_in_the_block(attention):
    encoder = encoder_of("bert", attention)
    states = encoder.hidden(Inputs(BLOCKS, BLOCKS != PAD, documents=DOCUMENTS))
    for row, documents in enumerate(ENDS):
        for begin, end in documents:
            places = torch.arange(begin, end).unsqueeze(0)
            expected = encoder.backbone.base_model(BLOCKS[row : row + 1, begin:end], position_ids=places)[0]
            torch.testing.assert_close(states[row, begin:end], expected[0], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_soft_inputs_stay_within_their_documents_too():
    encoder = encoder_of(local_attention=4)
    certain = functional.one_hot(BLOCKS, VOCABULARY.size).float()
    soft = replace(soft_inputs(Pair(certain, BLOCKS), BLOCKS, PAD), documents=DOCUMENTS)
    real = BLOCKS != PAD
    hard = Inputs(BLOCKS, real, documents=DOCUMENTS)
    logits = encoder.token_logits(encoder.hidden(hard)[real])
    expected = functional.cross_entropy(logits[:, : VOCABULARY.size], BLOCKS[real])
    assert float(soft_loss(encoder, soft)) == pytest.approx(float(expected), rel=1e-5)
    elsewhere = soft_hidden(encoder.backbone, certain, real)
    assert (elsewhere - encoder.hidden(hard))[real].abs().max() > 1e-3


@pytest.mark.parametrize("family", ["distilbert", "albert", "xlm-roberta", "camembert", "electra"])
def test_other_families_stay_within_documents(family):
    check_within_documents(Encoder(tiny_encoder_of(family), {}))


@pytest.mark.parametrize("architecture", ["bert", "roberta", "modernbert", "metalmo"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_tested_architectures_stay_within_documents(architecture, attention):
    """`build_encoder` raises where one does not."""
    assert encoder_of(architecture, attention).backbone.config.attend_within == "document"


@pytest.mark.parametrize("family", ["fnet", "longformer", "convbert"])
def test_an_architecture_that_mixes_documents_is_refused(family):
    encoder = Encoder(tiny_encoder_of(family), {})
    with pytest.raises(UserError, match=r"attention that stays within a document.*leave it out") as error:
        check_within_documents(encoder)
    assert "\n" not in str(error.value)


@pytest.fixture
def no_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("no_graphs")
def test_torch_compile_takes_it_in_one_graph():
    encoder = encoder_of("bert", layers=1)
    compiled = torch.compile(encoder, backend="eager", fullgraph=True, dynamic=False)
    with torch.no_grad():
        assert float(compiled("clm", made("clm"))) == pytest.approx(float(encoder("clm", made("clm"))), rel=1e-5)


def test_engines_look_ahead_through_it_alike():
    encoder = encoder_of(local_attention=4)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (encoder("clm", made("clm")) + encoder("mlm", made("mlm"))).backward()
        optimizer.step()
    weights = torch.tensor([0.5, 0.5], requires_grad=True)

    def inner(forward, outer) -> Tensor:
        return outer["w"][0] * forward("clm", made("clm")) + outer["w"][1] * forward("mlm", made("mlm"))

    found = {}
    for name in ("higher", "one_step"):
        problem = Lookahead(
            encoder, optimizer, {"w": weights}, [InnerStep(inner)], lambda forward, outer: forward("clm", made("clm"))
        )
        found[name] = ENGINES[name]()(problem).gradients["w"]
    assert found["higher"].abs().min() > 1e-6
    torch.testing.assert_close(found["one_step"], found["higher"], rtol=1e-3, atol=1e-6)
