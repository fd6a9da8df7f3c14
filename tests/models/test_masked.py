"""Masked weights. Vectors: specs/self-evolution_tamt.md, B1, B2."""

import copy

import higher
import pytest
import torch
import torch.nn.functional as F
from tiny_bert import linear, tiny_bert, tiny_encoder_of, tiny_roberta, token_batch
from torch import nn

from mlpt.errors import UserError
from mlpt.models.masked import (
    add_pooler,
    attach_scores,
    binarise,
    current_masks,
    dense_state,
    maskable_weights,
    masked_modules,
    remove_scores,
    scores_of,
    set_trainable,
)
from mlpt.sparsity.scores import initial_scores

W = [[0.5, -0.1, 0.3], [-0.7, 0.2, 0.05]]


def published_example() -> nn.Sequential:
    model = nn.Sequential(linear(W))
    attach_scores(model, initial_scores(maskable_weights(model, "0"), 0.7))
    return model


def masked_bert(sparsity: float = 0.7, **options) -> nn.Module:
    model = tiny_bert()
    add_pooler(model)
    attach_scores(model, initial_scores(maskable_weights(model), sparsity), **options)
    return model


def test_the_published_example_gives_its_scores_outputs_and_gradients():
    model = published_example()
    assert torch.equal(model[0].scores, torch.tensor([[0.02, 0, 0], [0.02, 0, 0]]))
    output = model(torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(output, torch.tensor([0.5, -0.7]))
    output.sum().backward()
    torch.testing.assert_close(model[0].scores.grad, torch.tensor([[0.5, -0.2, 0.9], [-0.7, 0.4, 0.15]]))


def test_a_score_at_the_threshold_is_pruned():
    scores = torch.tensor([0.009, 0.01, 0.011])
    assert binarise(scores, torch.tensor(0.01)).tolist() == [0, 0, 1]


def test_masked_linear_follows_the_plain_product_in_value_and_in_both_derivatives():
    """Against autograd through W * M written out, in float64; the mask itself is a constant for numeric differences."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(5, 4).double())
    scores = torch.rand(4, 5, dtype=torch.float64)
    attach_scores(layer, {"0.weight": scores}, threshold=0.4)
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    weight, bias = layer[0].weight, layer[0].bias

    def ours(x, weight, bias):
        return torch.func.functional_call(layer, {"0.weight": weight, "0.bias": bias}, (x,))

    expected = F.linear(x, weight * (scores > 0.4), bias)
    torch.testing.assert_close(layer(x), expected)
    torch.autograd.gradcheck(ours, (x, weight, bias))
    torch.autograd.gradgradcheck(ours, (x, weight, bias))


def test_the_score_gradient_is_differentiable_once_more():
    """d(dL/dS)/dx for L = sum((x (W*M)^T)^2) / 2 by autograd through a straight-through product written out."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(3, 2, bias=False).double())
    scores = torch.rand(2, 3, dtype=torch.float64)
    attach_scores(layer, {"0.weight": scores}, threshold=0.5)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    weight = layer[0].weight.detach()

    def second(output, leaf):
        (by_scores,) = torch.autograd.grad(output.pow(2).sum() / 2, leaf, create_graph=True)
        (by_x,) = torch.autograd.grad(by_scores.pow(2).sum(), x)
        return by_scores, by_x

    leaf = scores.clone().requires_grad_()
    straight_through = (scores > 0.5).double() + leaf - leaf.detach()
    for mine, reference in zip(
        second(layer(x), layer[0].scores), second(x @ (weight * straight_through).t(), leaf), strict=True
    ):
        torch.testing.assert_close(mine, reference)


def test_masked_embedding_looks_up_the_masked_table():
    table = nn.Sequential(nn.Embedding(7, 4, padding_idx=0))
    scores = torch.rand(7, 4)
    attach_scores(table, {"0.weight": scores}, threshold=0.5)
    ids = torch.tensor([[1, 0, 6], [6, 6, 2]])
    effective = (table[0].weight.detach() * (scores > 0.5)).requires_grad_()
    expected = F.embedding(ids, effective, padding_idx=0)
    assert torch.equal(table(ids), expected)
    weights = torch.randn(2, 3, 4)
    (table(ids) * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(table[0].scores.grad, effective.grad * table[0].weight.detach())


def test_the_preset_names_the_published_matrices_of_bert_in_module_order():
    model = tiny_bert()
    add_pooler(model)
    names = list(maskable_weights(model))
    assert len(names) == 2 * 6 + 2
    assert names[0] == "bert.embeddings.word_embeddings.weight"
    assert names[-1] == "bert.pooler.dense.weight"
    assert names[6] == "bert.encoder.layer.0.output.dense.weight"
    assert not any("position" in name or "LayerNorm" in name or "predictions" in name for name in names)


@pytest.mark.parametrize(("kind", "total"), [("bert", 108_965_376), ("roberta", 124_128_000)])
def test_the_full_size_models_have_74_matrices_and_the_published_totals(kind, total):
    from transformers import BertConfig, BertForMaskedLM, RobertaConfig, RobertaForMaskedLM

    with torch.device("meta"):
        model = BertForMaskedLM(BertConfig()) if kind == "bert" else RobertaForMaskedLM(RobertaConfig(vocab_size=50265))
        body = model.base_model
        body.pooler = None
    add_pooler_on_meta(body)
    weights = maskable_weights(model)
    assert len(weights) == 74
    assert sum(weight.numel() for weight in weights.values()) == total


def add_pooler_on_meta(body):
    with torch.device("meta"):
        body.pooler = type(body)(body.config, add_pooling_layer=True).pooler


def test_the_tied_decoder_stays_dense_by_default_and_is_masked_by_the_switch():
    hidden = torch.randn(3, 32)
    table = tiny_bert().bert.embeddings.word_embeddings.weight
    dense = masked_bert()
    decoder = dense.cls.predictions.decoder
    torch.testing.assert_close(decoder(hidden), hidden @ table.t() + decoder.bias)
    masked = masked_bert(decoder="masked")
    mask = current_masks(masked)["bert.embeddings.word_embeddings.weight"]
    torch.testing.assert_close(masked.cls.predictions.decoder(hidden), hidden @ (table * mask).t() + decoder.bias)
    assert len(masked_modules(masked)) == len(masked_modules(dense)) == 14
    masked_modules(masked)["bert.embeddings.word_embeddings.weight"].threshold.fill_(1.0)
    torch.testing.assert_close(masked.cls.predictions.decoder(hidden), decoder.bias.expand(3, -1))


def test_the_decoder_s_threshold_is_the_embeddings_wherever_the_model_goes():
    """Another dtype or device makes new buffers, and a checkpoint fills those of the embeddings."""
    model = masked_bert(decoder="masked").double()
    state = model.state_dict()
    state["bert.embeddings.word_embeddings.threshold"].fill_(1.0)
    model.load_state_dict(state)
    decoder = model.cls.predictions.decoder
    bias = decoder.bias.expand(3, -1)
    torch.testing.assert_close(decoder(torch.randn(3, 32, dtype=torch.float64)), bias)
    moved = copy.deepcopy(model)
    moved.bert.embeddings.word_embeddings.threshold.fill_(0)
    assert not torch.equal(moved.cls.predictions.decoder(torch.ones(3, 32, dtype=torch.float64)), bias)


def test_only_scores_and_the_head_change_in_mlm_mask_training():
    model = masked_bert()
    set_trainable(model, weights=False, scores=True, heads=True)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0)
    tokens = token_batch()
    for _ in range(2):
        optimizer.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    heads = {name for name in before if name.startswith("cls.") and "decoder.weight" not in name}
    scores = {name.replace("weight", "scores") for name in maskable_weights(model) if "pooler" not in name}
    assert changed == heads | scores
    assert torch.equal(model.cls.predictions.decoder.weight, before["bert.embeddings.word_embeddings.weight"])


def test_weights_scores_and_heads_are_separately_trainable():
    model = masked_bert()
    kinds = {"scores": "scores", "cls.predictions.transform.dense.bias": "heads", "query.weight": "weights"}
    for chosen in ("weights", "scores", "heads"):
        set_trainable(model, **{kind: kind == chosen for kind in ("weights", "scores", "heads")})
        for name, parameter in model.named_parameters():
            kind = next((kind for ending, kind in kinds.items() if name.endswith(ending)), None)
            if kind and "pooler" not in name:
                assert parameter.requires_grad == (kind == chosen), name


@pytest.mark.parametrize("decoder", ["dense", "masked"])
def test_removing_scores_brings_the_dense_model_back(decoder):
    model, plain = masked_bert(decoder=decoder), tiny_bert()
    remove_scores(model)
    tokens = token_batch()
    assert torch.equal(model(tokens).logits, plain(tokens).logits)
    assert not any("scores" in name for name in model.state_dict())


def test_a_saved_state_is_dense_and_loads_into_the_stock_class():
    model, stock = masked_bert(), tiny_bert(seed=1)
    missing, unexpected = stock.load_state_dict(dense_state(model), strict=False)
    assert not missing
    assert all("pooler" in name for name in unexpected)
    assert torch.equal(stock(token_batch()).logits, tiny_bert()(token_batch()).logits)


def test_roberta_is_masked_alike():
    model = tiny_roberta()
    add_pooler(model)
    attach_scores(model, initial_scores(maskable_weights(model), 0.5))
    assert len(scores_of(model)) == 14
    assert torch.isfinite(model(token_batch()).logits).all()


def test_higher_unrolls_weight_updates_of_a_masked_model_back_to_its_scores():
    """One inner SGD step on a masked linear regression, against the same computation written out in plain autograd."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2, bias=False).double())
    weight = model[0].weight.detach().clone()
    values = torch.rand(2, 3, dtype=torch.float64)
    attach_scores(model, {"0.weight": values}, threshold=0.5)
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    held_x, held_y = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    inner = torch.optim.SGD([model[0].weight], lr=0.1)
    with higher.innerloop_ctx(model, inner, copy_initial_weights=False) as (patched, optimizer):
        optimizer.step(F.mse_loss(patched(x), y))
        outer = F.mse_loss(patched(held_x), held_y)
        (ours,) = torch.autograd.grad(outer, model[0].scores)

    leaf, start = values.clone().requires_grad_(), weight.requires_grad_()
    mask = (values > 0.5).double() + leaf - leaf.detach()
    (gradient,) = torch.autograd.grad(F.mse_loss(x @ (start * mask).t(), y), start, create_graph=True)
    (reference,) = torch.autograd.grad(F.mse_loss(held_x @ ((start - 0.1 * gradient) * mask).t(), held_y), leaf)
    torch.testing.assert_close(ours, reference)


def test_masked_layers_follow_autocast():
    model = nn.Sequential(nn.Linear(8, 8))
    attach_scores(model, {"0.weight": torch.rand(8, 8)}, threshold=0.5)
    x = torch.randn(4, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(x)
    assert output.dtype == torch.bfloat16
    output.float().pow(2).sum().backward()
    assert model[0].scores.grad.dtype == torch.float32
    exact = F.linear(x, model[0].weight * (model[0].scores > 0.5), model[0].bias)
    torch.testing.assert_close(output.float(), exact, atol=2e-2, rtol=2e-2)


def test_a_pattern_without_a_match_and_scores_of_another_model_are_refused_in_one_line():
    model = tiny_bert()
    with pytest.raises(UserError, match="no linear layer"):
        maskable_weights(model, "nothing.like.this")
    with pytest.raises(UserError, match="neither one of"):
        maskable_weights(model, "(")
    with pytest.raises(UserError, match="no weight"):
        attach_scores(model, {"bert.absent.weight": torch.zeros(2, 2)})
    with pytest.raises(UserError, match="in the masks and"):
        attach_scores(model, {"bert.encoder.layer.0.output.dense.weight": torch.zeros(2, 2)})
    with pytest.raises(UserError, match="in the masks and"):
        attach_scores(model, {"bert.encoder.layer.0.output.dense.weight": torch.zeros(5)})  # of 64 input features
    with pytest.raises(UserError, match="in the masks and"):
        attach_scores(model, {"bert.embeddings.word_embeddings.weight": torch.zeros(8)})  # read by nothing


@pytest.mark.parametrize(
    ("family", "in_a_layer", "layers"),
    [("electra", 6, 2), ("deberta-v2", 6, 2), ("distilbert", 6, 2), ("modernbert", 4, 2), ("albert", 6, 1)],
)
def test_the_preset_finds_every_matrix_of_the_layers_and_the_embeddings_in_other_families(family, in_a_layer, layers):
    model = tiny_encoder_of(family)
    found = maskable_weights(model)
    body = {
        name
        for name, module in model.base_model.named_modules()
        if isinstance(module, nn.Linear) and "mapping" not in name
    }
    assert len(body) == in_a_layer * layers
    prefix = f"{model.base_model_prefix}."
    kept = {name.removeprefix(prefix).removesuffix(".weight") for name in found}
    embeddings = [name for name in kept if name.startswith("embeddings.")]
    assert len(embeddings) == 1
    assert kept - set(embeddings) == body


def test_a_family_whose_layers_have_unknown_names_is_refused_not_masked_in_part():
    with pytest.raises(UserError, match="give a regular expression over its names"):
        maskable_weights(nn.ModuleDict({"word_embeddings": nn.Embedding(4, 2), "mixer": nn.Linear(2, 2)}), "encoder")
