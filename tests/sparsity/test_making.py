"""Masks in one shot. Vectors: specs/self-evolution_tamt.md, B2, B3, B8; torch.nn.utils.prune as a reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bert import tiny_bert
from torch import nn
from torch.nn.utils import prune

from mlpt.errors import UserError
from mlpt.models.masked import maskable_weights
from mlpt.sparsity.making import density, layer_density, lowest, magnitude_masks, pruned_count, random_masks

FLOORS = {
    589_824: (294_912, 353_894, 412_876, 471_859, 530_841),
    2_359_296: (1_179_648, 1_415_577, 1_651_507, 1_887_436, 2_123_366),
    23_440_896: (11_720_448, 14_064_537, 16_408_627, 18_752_716, 21_096_806),
}


@pytest.mark.parametrize("size", FLOORS)
def test_counts_are_the_published_floors(size):
    assert tuple(pruned_count(size, s) for s in (0.5, 0.6, 0.7, 0.8, 0.9)) == FLOORS[size]


def test_the_whole_bert_at_70_percent_prunes_the_published_count():
    sizes = [589_824] * 49 + [2_359_296] * 24 + [23_440_896]
    assert sum(pruned_count(size, 0.7) for size in sizes) == 76_275_719


def test_torch_pruning_rounds_where_mask_training_floors():
    assert pruned_count(589_824, 0.7, "round") == 412_877


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan")])
def test_a_sparsity_outside_0_to_1_is_refused(sparsity):
    with pytest.raises(UserError, match=r"outside \[0, 1\)"):
        magnitude_masks({"w": torch.ones(3)}, sparsity)


def test_magnitude_masks_are_those_of_torch_prune():
    for sparsity in (0.1, 0.37, 0.9):
        layer = nn.Linear(17, 13)
        expected = prune.l1_unstructured(nn.Linear(17, 13), "weight", 0.1)
        with torch.no_grad():
            expected.weight_orig.copy_(layer.weight)
        fresh = nn.Linear(17, 13)
        fresh.weight = nn.Parameter(layer.weight.detach().clone())
        expected = prune.l1_unstructured(fresh, "weight", sparsity).weight_mask.bool()
        masks = magnitude_masks({"w": layer.weight}, sparsity, rounding="round")
        assert torch.equal(masks["w"], expected)


def test_a_global_cut_is_one_order_over_all_matrices():
    weights = {"a": torch.tensor([1.0, -2, 3]), "b": torch.tensor([[0.1, -10], [0.2, 5]])}
    masks = magnitude_masks(weights, 0.5, "global")
    assert masks["a"].tolist() == [False, True, True]
    assert masks["b"].tolist() == [[False, True], [False, True]]
    assert density(masks) == 4 / 7


def test_ties_are_cut_exactly_and_in_order_or_all_together_as_published():
    values = torch.tensor([1.0, 1, 1, 1, 2])
    assert lowest(values, 2).tolist() == [True, True, False, False, False]
    assert lowest(values, 2, second=torch.tensor([9.0, 8, 1, 2, 0])).tolist() == [False, False, True, True, False]
    assert lowest(values, 2, "published").tolist() == [True, True, True, True, False]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.floats(0, 0.99))
def test_exactly_k_are_pruned_and_none_larger_than_one_kept(values, sparsity):
    tensor = torch.tensor(values, dtype=torch.float32)
    count = pruned_count(len(values), sparsity)
    pruned = lowest(tensor, count)
    assert int(pruned.sum()) == count
    if 0 < count < len(values):
        assert tensor[pruned].max() <= tensor[~pruned].min()


def test_random_masks_have_exact_counts_and_follow_the_seed_and_the_name():
    weights = {"a": torch.zeros(50, 40), "b": torch.zeros(30)}
    masks = random_masks(weights, 0.7, seed=3)
    assert [int((~mask).sum()) for mask in masks.values()] == [1400, 21]
    assert torch.equal(masks["b"], random_masks({"b": weights["b"]}, 0.7, seed=3)["b"])
    assert not torch.equal(masks["a"], random_masks(weights, 0.7, seed=4)["a"])


def test_a_matrix_that_a_sparsity_empties_is_named():
    weights = {"big": torch.randn(100) + 5, "small": torch.full((4,), 0.001)}
    with pytest.raises(UserError, match="none of the 4 weights of 'small'"):
        magnitude_masks(weights, 0.3, "global")
    with pytest.raises(UserError, match="lower it"):
        random_masks({"one": torch.zeros(2)}, 0.9, seed=0, rounding="round")


def test_weights_that_are_not_finite_are_refused():
    with pytest.raises(UserError, match="not finite"):
        magnitude_masks({"w": torch.tensor([1.0, float("nan")])}, 0.5)


def test_density_is_reported_over_all_and_for_each_layer():
    masks = magnitude_masks(maskable_weights(tiny_bert()), 0.5)
    assert density(masks) == pytest.approx(0.5, abs=1e-3)
    assert set(layer_density(masks).values()) == {0.5}
