"""Soft inputs and targets, against lookups, stock models and the vectors of the MetaLMO specification (1.4, 1.21)."""

import pytest
import torch
import torch.nn.functional as F

from mlpt.data.vocabulary import Vocabulary
from mlpt.errors import UserError
from mlpt.models.config import ModelConfig
from mlpt.models.encoder import build_encoder
from mlpt.models.masked import attach_scores
from mlpt.models.soft import check_soft_inputs, input_embeddings, soft_cross_entropy, soft_embedding, soft_hidden

SIZE, LENGTH = 100, 12
VOCABULARY = Vocabulary(size=SIZE, pad=0, unk=1, cls=2, sep=3, mask=4)
ARCHITECTURES = [
    "bert",
    "roberta",
    "modernbert",
    "roberta-prelayernorm",
    "electra",
    "distilbert",
    "albert",
    "deberta-v2",
]


def backbone(architecture, **settings):
    sizes = {"hidden_size": 32, "layers": 2, "heads": 2, "intermediate_size": 64, "attention": "eager"}
    config = ModelConfig(architecture=architecture, **sizes, **settings)
    return build_encoder(config, VOCABULARY, {}, LENGTH, seed=0).backbone.eval()


def tokens():
    ids = torch.randint(5, SIZE, (3, LENGTH), generator=torch.Generator().manual_seed(0))
    ids[1, 8:] = 0
    return ids, ids != 0


def one_hot(ids):
    return F.one_hot(ids, SIZE).float()


def test_every_row_but_the_padding_row_of_a_looked_up_table_gets_the_gradient():
    # The published vector: 15 x 5, padding row 1, all 15 ids looked up, backward of the sum.
    table = torch.randn(15, 5, requires_grad=True)
    soft_embedding(torch.eye(15), table, padding=1).sum().backward()
    expected = torch.ones(15, 5)
    expected[1] = 0
    assert torch.equal(table.grad, expected)


def test_all_mass_on_padding_gives_its_row_and_no_gradient_to_it():
    table = torch.randn(15, 5, dtype=torch.float64, requires_grad=True)
    probabilities = F.one_hot(torch.tensor(1), 15).double().requires_grad_()
    value = soft_embedding(probabilities, table, padding=1)
    assert torch.equal(value, table[1])
    value.sum().backward()
    assert torch.equal(table.grad[1], torch.zeros(5))
    # The distribution itself has a gradient everywhere, at the padding token too.
    assert torch.allclose(probabilities.grad, table.detach().sum(dim=1))


def test_a_table_rounded_up_is_read_by_its_first_rows_and_a_short_one_is_refused():
    table = torch.randn(16, 5)
    assert torch.equal(soft_embedding(torch.eye(15), table), table[:15])
    with pytest.raises(ValueError, match="17 tokens do not fit 16"):
        soft_embedding(torch.eye(17), table)


def test_gradients_of_gradients_pass_through_soft_tokens_and_soft_targets():
    generator = torch.Generator().manual_seed(0)
    logits, table, outputs = (
        torch.randn(*shape, dtype=torch.float64, generator=generator, requires_grad=True)
        for shape in ((2, 3, 6), (6, 4), (2, 3, 6))
    )

    def loss(logits, table, outputs):
        embedded = soft_embedding(logits.softmax(-1), table)  # (2, 3, 4)
        return soft_cross_entropy(embedded @ table.T, outputs.softmax(-1))

    assert torch.autograd.gradcheck(loss, (logits, table, outputs))
    assert torch.autograd.gradgradcheck(loss, (logits, table, outputs))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_hot_distributions_give_what_the_ids_give(architecture):
    model = backbone(architecture)
    check_soft_inputs(model, SIZE)
    ids, mask = tokens()
    hard = model.base_model(ids, attention_mask=mask)[0]
    soft = soft_hidden(model, one_hot(ids), mask)
    torch.testing.assert_close(soft[mask], hard[mask], atol=1e-5, rtol=1e-4)


def test_token_types_are_still_added_by_the_stock_code():
    model = backbone("bert")
    ids, mask = tokens()
    types = (torch.arange(LENGTH) > 5).long().expand_as(ids)
    hard = model.base_model(ids, attention_mask=mask, token_type_ids=types)[0]
    torch.testing.assert_close(soft_hidden(model, one_hot(ids), mask, types)[mask], hard[mask], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "modernbert"])
def test_the_gradient_reaches_the_distribution_and_the_table_as_a_lookup_would(architecture):
    model = backbone(architecture)
    ids, mask = tokens()
    table = model.get_input_embeddings()
    model.base_model(ids, attention_mask=mask)[0][mask].square().sum().backward()
    looked_up = table.weight.grad.clone()
    table.weight.grad = None
    probabilities = one_hot(ids).requires_grad_()
    soft_hidden(model, probabilities, mask)[mask].square().sum().backward()
    torch.testing.assert_close(table.weight.grad, looked_up, atol=1e-4, rtol=1e-3)
    assert probabilities.grad[mask].abs().sum(-1).min() > 0


def test_masked_embeddings_act_masked():
    model = backbone("bert")
    name = next(name for name, one in model.named_parameters() if one is model.get_input_embeddings().weight)
    scores = torch.rand(model.get_input_embeddings().weight.shape, generator=torch.Generator().manual_seed(1))
    attach_scores(model, {name: scores}, threshold=0.5)
    ids, _ = tokens()
    torch.testing.assert_close(input_embeddings(model, one_hot(ids)), model.get_input_embeddings()(ids))


def test_an_architecture_that_takes_no_embeddings_is_refused_in_one_line():
    with pytest.raises(UserError, match="'esm' takes no soft inputs; choose"):
        check_soft_inputs(backbone("esm"), SIZE)


def test_soft_cross_entropy_of_one_hot_targets_is_the_published_vector():
    scores = torch.tensor([[[2.0, -2, 0], [-2, 0, 2]], [[1, 1, 1], [1, 2, 3]]])
    targets = torch.tensor([[1, 2], [0, 2]])
    keep = torch.tensor([[True, False], [True, True]])
    expected = sum(
        F.cross_entropy(torch.tensor(row), torch.tensor(pick)).item()
        for row, pick in (([2.0, -2, 0], 1), ([1.0, 1, 1], 0), ([1.0, 2, 3], 2))
    )
    assert soft_cross_entropy(scores, F.one_hot(targets, 3), keep).item() == pytest.approx(expected / 3)


def test_soft_cross_entropy_is_divided_by_its_mass():
    scores = torch.tensor([[0.3, -1.0, 2.0], [0.0, 0.5, 0.1]])
    targets = torch.tensor([[0.2, 0.5, 0.3], [0.1, 0.1, 0.2]])  # the second row has a mass of 0.4
    logs = scores.log_softmax(-1)
    expected = -(targets[0] @ logs[0] + targets[1] @ logs[1]) / 1.4
    assert soft_cross_entropy(scores, targets).item() == pytest.approx(expected.item())


def test_soft_cross_entropy_without_any_mass_is_zero_with_a_gradient_path():
    scores = torch.randn(2, 3, requires_grad=True)
    loss = soft_cross_entropy(scores, torch.rand(2, 3), torch.zeros(2, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(scores.grad, torch.zeros(2, 3))
