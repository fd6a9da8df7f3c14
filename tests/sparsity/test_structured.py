"""Heads and FFN neurons: masks, global cuts, and models that are physically smaller."""

import numpy as np
import pytest
import torch
from tiny_bert import tiny_bert, token_batch

from mlpt.errors import UserError
from mlpt.models.masked import group_masked_modules, set_trainable
from mlpt.sparsity.config import MaskConfig, mask_encoder, mask_hooks
from mlpt.sparsity.structured import (
    attach_group_mask,
    current_group_mask,
    group_mask,
    importance,
    load_group_mask,
    random_group_mask,
    reset_group_thresholds,
    save_group_mask,
    shrink,
)

HEADS = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 1]], dtype=torch.bool)


def some_neurons() -> torch.Tensor:
    return random_group_mask((2, 64), 0.5, torch.Generator().manual_seed(0))


def test_masking_a_head_silences_exactly_its_part_of_the_attention_output():
    model = tiny_bert()
    reference = tiny_bert()
    attach_group_mask(model, "heads", HEADS)
    with torch.no_grad():
        for layer, kept in zip(reference.bert.encoder.layer, HEADS, strict=True):
            layer.attention.output.dense.weight.mul_(kept.repeat_interleave(8).float())
    tokens = token_batch()
    torch.testing.assert_close(model(tokens).logits, reference(tokens).logits)


def test_the_cut_is_global_over_the_layers():
    scores = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])
    assert group_mask(scores, 0.5).tolist() == [[False] * 4, [True] * 4]


def test_importance_is_the_norm_of_values_times_the_norm_of_their_reader():
    model = tiny_bert()
    layer = model.bert.encoder.layer[1]
    found = importance(model, "heads")
    assert found.shape == (2, 4)
    written = layer.attention.self.value.weight[8:16].norm()
    read = layer.attention.output.dense.weight[:, 8:16].norm()
    torch.testing.assert_close(found[1, 1], (written * read).detach())
    neurons = importance(model, "neurons")
    expected = layer.intermediate.dense.weight[5].norm() * layer.output.dense.weight[:, 5].norm()
    torch.testing.assert_close(neurons[1, 5], expected.detach())


def test_group_scores_train_straight_through_and_stay_exact():
    model = tiny_bert()
    mask_encoder(MaskConfig(structured="both", sparsity=0.5), model, None, seed=0)
    (hook,) = mask_hooks(MaskConfig(structured="both", sparsity=0.5), model, 0, None, None)
    set_trainable(model, weights=False, scores=True, heads=False)
    groups = group_masked_modules(model)
    assert len(groups) == 4
    optimizer = torch.optim.SGD([module.scores for module in groups.values()], lr=1.0)
    tokens = token_batch()
    for step in range(3):
        hook.before_step(step, model, optimizer)
        optimizer.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
        hook.after_step(step + 1, model, optimizer)
        assert int((~current_group_mask(model, "heads")).sum()) == 4
        assert int((~current_group_mask(model, "neurons")).sum()) == 64
    assert all(module.scores.grad.abs().max() > 0 for module in groups.values())


def test_the_gradient_of_a_group_score_is_that_of_its_gate():
    model = tiny_bert()
    attach_group_mask(model, "heads", HEADS)
    reader = model.bert.encoder.layer[0].attention.output.dense
    x = torch.randn(3, 32)
    gate = HEADS[0].float().requires_grad_()
    torch.nn.functional.linear(x * gate.repeat_interleave(8), reader.weight, reader.bias).pow(2).sum().backward()
    reader(x).pow(2).sum().backward()
    torch.testing.assert_close(reader.scores.grad, gate.grad)


def test_resets_break_ties_exactly():
    model = tiny_bert()
    attach_group_mask(model, "neurons", torch.ones(2, 64, dtype=torch.bool))
    reset_group_thresholds(model, "neurons", 0.3)
    assert int((~current_group_mask(model, "neurons")).sum()) == 38


@pytest.mark.parametrize("empty_layer", [False, True])
def test_the_smaller_model_computes_the_same(empty_layer):
    heads, neurons = HEADS.clone(), some_neurons()
    if empty_layer:
        heads[0], neurons[1] = False, False
    model, smaller = tiny_bert(), tiny_bert()
    attach_group_mask(model, "heads", heads)
    attach_group_mask(model, "neurons", neurons)
    shrink(smaller, heads, neurons)
    tokens = token_batch()
    torch.testing.assert_close(smaller(tokens).logits, model(tokens).logits)
    kept = max(1, int(heads[0].sum()))
    assert smaller.bert.encoder.layer[0].attention.self.query.weight.shape == (8 * kept, 32)
    assert smaller.bert.encoder.layer[0].output.dense.weight.shape == (32, int(neurons[0].sum()))


def test_published_npy_masks_are_read_and_pickles_refused(tmp_path):
    save_group_mask(HEADS, tmp_path / "head_mask.npy")
    assert torch.equal(load_group_mask(tmp_path / "head_mask.npy"), HEADS)
    np.save(tmp_path / "object.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="plain numbers"):
        load_group_mask(tmp_path / "object.npy")
    np.save(tmp_path / "flat.npy", np.zeros(3))
    with pytest.raises(UserError, match="structured mask"):
        load_group_mask(tmp_path / "flat.npy")


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(UserError, match=r"\(layers, heads\)"):
        attach_group_mask(tiny_bert(), "heads", torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(UserError, match=r"\(layers, neurons\)"):
        shrink(tiny_bert(), neurons=torch.ones(3, 64, dtype=torch.bool))
