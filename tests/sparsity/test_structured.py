"""Heads and FFN neurons: masks, global cuts, and models that are physically smaller."""

import numpy as np
import pytest
import torch
from tiny_bert import mask_groups, tiny_bert, token_batch

from mlpt.errors import UserError
from mlpt.models.masked import attach_scores, current_masks, masked_modules, scores_of
from mlpt.sparsity.config import MaskConfig, mask_encoder, mask_hooks
from mlpt.sparsity.making import largest
from mlpt.sparsity.scores import reset_thresholds
from mlpt.sparsity.structured import importance, load_group_mask, save_group_mask, shrink, whole_groups

HEADS = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 1]], dtype=torch.bool)


def some_neurons() -> torch.Tensor:
    return torch.rand(2, 64, generator=torch.Generator().manual_seed(0)) > 0.5


def pruned(model) -> dict[str, int]:
    return {kind: int((~kept).sum()) for kind, kept in whole_groups(model, current_masks(model)).items()}


def test_masking_a_head_silences_exactly_its_part_of_the_attention_output():
    model = tiny_bert()
    reference = tiny_bert()
    mask_groups(model, heads=HEADS)
    with torch.no_grad():
        for layer, kept in zip(reference.bert.encoder.layer, HEADS, strict=True):
            layer.attention.output.dense.weight.mul_(kept.repeat_interleave(8).float())
    tokens = token_batch()
    torch.testing.assert_close(model(tokens).logits, reference(tokens).logits)


def test_the_cut_is_global_over_the_layers():
    first, second = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])
    kept = largest({"first": first, "second": second}, 0.5, "global")
    assert [kept["first"].tolist(), kept["second"].tolist()] == [[False] * 4, [True] * 4]


def test_importance_is_the_norm_of_values_times_the_norm_of_their_reader():
    model = tiny_bert()
    layer = model.bert.encoder.layer[1]
    found = importance(model, "heads")
    assert [values.shape for values in found.values()] == [(4,), (4,)]
    written = layer.attention.self.value.weight[8:16].norm()
    read = layer.attention.output.dense.weight[:, 8:16].norm()
    reader = "bert.encoder.layer.1.attention.output.dense.weight"
    torch.testing.assert_close(found[reader][1], (written * read).detach())
    neurons = importance(model, "neurons")["bert.encoder.layer.1.output.dense.weight"]
    expected = layer.intermediate.dense.weight[5].norm() * layer.output.dense.weight[:, 5].norm()
    torch.testing.assert_close(neurons[5], expected.detach())


def test_group_scores_train_straight_through_and_stay_exact():
    model = tiny_bert()
    config = MaskConfig(structured="both", sparsity=0.5, train=("scores",))
    mask_encoder(config, model, None, seed=0)
    (hook,) = mask_hooks(config, model, 0, None, None)
    groups = masked_modules(model)
    assert len(groups) == 4
    optimizer = torch.optim.SGD([module.scores for module in groups.values()], lr=1.0)
    tokens = token_batch()
    for step in range(3):
        hook.before_step(step, model, optimizer)
        optimizer.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
        hook.after_step(step + 1, model, optimizer)
        assert pruned(model) == {"heads": 4, "neurons": 64}
    assert all(module.scores.grad.abs().max() > 0 for module in groups.values())


def test_the_gradient_of_a_group_score_is_that_of_its_gate():
    model = tiny_bert()
    mask_groups(model, heads=HEADS)
    reader = model.bert.encoder.layer[0].attention.output.dense
    x = torch.randn(3, 32)
    gate = HEADS[0].float().requires_grad_()
    torch.nn.functional.linear(x * gate.repeat_interleave(8), reader.weight, reader.bias).pow(2).sum().backward()
    reader(x).pow(2).sum().backward()
    torch.testing.assert_close(reader.scores.grad, gate.grad)


def test_resets_break_ties_exactly():
    model = tiny_bert()
    mask_groups(model, neurons=torch.ones(2, 64, dtype=torch.bool))
    reset_thresholds(model, 0.3)
    assert pruned(model) == {"neurons": 38}  # floor(128 * 0.3)


def test_heads_of_all_layers_compete_and_matrices_do_not():
    """Of scores 1 to 8 the lowest half goes: one layer's heads. A matrix loses its own half."""
    model = tiny_bert()
    readers = [f"bert.encoder.layer.{layer}.attention.output.dense.weight" for layer in (0, 1)]
    word = "bert.encoder.layer.0.output.dense.weight"
    low, high = torch.arange(1.0, 9).view(2, 4)
    attach_scores(model, {readers[0]: low, readers[1]: high, word: torch.rand(32, 64)})
    reset_thresholds(model, 0.5)
    kept = {name: module.scores > module.threshold for name, module in masked_modules(model).items()}
    assert [kept[name].tolist() for name in readers] == [[False] * 4, [True] * 4]
    assert int(kept[word].sum()) == 1024


def test_a_layer_may_lose_all_its_heads_and_a_model_may_not():
    model = tiny_bert()
    mask_groups(model, heads=HEADS)
    for scores in scores_of(model).values():
        scores.data.fill_(1)
    with pytest.raises(UserError, match="tied scores leave no weight of 'heads'"):
        reset_thresholds(model, 0.5, "published")


def test_whole_groups_are_told_from_single_weights():
    model = tiny_bert()
    mask_groups(model, heads=HEADS, neurons=some_neurons())
    masks = current_masks(model)
    found = whole_groups(model, masks)
    assert torch.equal(found["heads"], HEADS)
    assert torch.equal(found["neurons"], some_neurons())
    name = "bert.encoder.layer.0.output.dense.weight"
    assert whole_groups(model, masks | {name: masks[name] ^ (torch.arange(64) == torch.arange(32)[:, None])}) == {}
    assert whole_groups(model, {name: masks[name]}) == {}  # only one of the layers
    assert whole_groups(model, masks | {"bert.embeddings.word_embeddings.weight": torch.ones(101, 32).bool()}) == {}
    assert whole_groups(model, {}) == {}


@pytest.mark.parametrize("empty_layer", [False, True])
def test_the_smaller_model_computes_the_same(empty_layer):
    heads, neurons = HEADS.clone(), some_neurons()
    if empty_layer:
        heads[0], neurons[1] = False, False
    model, smaller = tiny_bert(), tiny_bert()
    mask_groups(model, heads=heads, neurons=neurons)
    shrink(smaller, {"heads": heads, "neurons": neurons})
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
        mask_groups(tiny_bert(), heads=torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(UserError, match=r"\(layers, neurons\)"):
        shrink(tiny_bert(), {"neurons": torch.ones(3, 64, dtype=torch.bool)})
