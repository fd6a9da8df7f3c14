"""Comparing masks. Vectors: specs/self-evolution_tamt.md, B13."""

import json
import math

import pytest
import torch

from mlpt.errors import UserError
from mlpt.sparsity.compare import compare, distances, jaccard, plot_comparison, similarity
from mlpt.sparsity.making import random_masks


def bools(*bits: int) -> torch.Tensor:
    return torch.tensor(bits, dtype=torch.bool)


def test_equal_masks_are_1_and_disjoint_ones_0():
    mask = bools(1, 0, 1, 1)
    assert jaccard(mask, mask) == 1
    assert jaccard(mask, ~mask) == 0
    assert jaccard(bools(1, 1, 0), bools(1, 0, 1)) == 1 / 3


@pytest.mark.parametrize(("sparsity", "expected"), [(0.5, 0.3333), (0.6, 0.25), (0.7, 0.1765), (0.8, 0.1111)])
def test_independent_masks_of_density_d_have_d_over_2_minus_d(sparsity, expected):
    weights = {"w": torch.zeros(400, 500)}
    first, second = random_masks(weights, sparsity, seed=1), random_masks(weights, sparsity, seed=2)
    assert similarity(first, second).mean == pytest.approx(expected, abs=0.004)


def test_two_empty_matrices_are_equal_and_by_position_nan_as_published():
    assert jaccard(bools(0, 0), bools(0, 0)) == 1
    masks = {"empty": bools(0, 0), "kept": bools(1, 0)}
    assert similarity(masks, masks).mean == 1
    assert math.isnan(similarity(masks, masks, "position").mean)
    assert similarity(masks, {"empty": bools(0, 1), "kept": bools(1, 0)}, "position").mean == 0.5
    assert json.loads(compare({"a": masks, "b": masks}, "position").to_json())["means"] == [[1, None], [None, 1]]


def test_the_mean_is_over_matrices_without_weights_and_symmetric():
    first = {"big": torch.ones(1000, dtype=torch.bool), "small": bools(1, 0)}
    second = {"big": torch.ones(1000, dtype=torch.bool), "small": bools(0, 1)}
    assert similarity(first, second).mean == similarity(second, first).mean == 0.5
    assert similarity(first, second).matrices == {"big": 1.0, "small": 0.0}


def test_pairs_go_by_key_or_by_position():
    first = {"a": bools(1, 0), "b": bools(1, 1)}
    second = {"b": bools(1, 1), "a": bools(1, 0)}
    assert similarity(first, second).mean == 1
    assert similarity(first, second, "position").mean == 0.5
    with pytest.raises(UserError, match="different models"):
        similarity(first, {"c": bools(1, 0), "b": bools(1, 1)})
    assert similarity(first, {"c": bools(1, 0), "d": bools(1, 1)}, "position").mean == 1
    with pytest.raises(UserError, match="2 matrices against 1"):
        similarity(first, {"a": bools(1, 0)}, "position")
    with pytest.raises(UserError, match="against"):
        similarity(first, {"a": bools(1, 0, 1), "b": bools(1, 1)})


def test_all_pairs_make_a_symmetric_heat_map_and_the_published_json(tmp_path):
    masks = {name: random_masks({"w": torch.zeros(100)}, 0.5, seed) for seed, name in enumerate("xyz")}
    found = compare(masks)
    assert [found.means[i][i] for i in range(3)] == [1, 1, 1]
    assert found.means == [list(column) for column in zip(*found.means, strict=True)]
    assert found.means[0][2] == similarity(masks["x"], masks["z"]).mean
    stored = json.loads(found.to_json())
    assert stored["mask_sim"]["y"] == found.means[1]
    assert stored["matrices"]["x | y"] == {"w": found.means[0][1]}
    pytest.importorskip("matplotlib")
    plot_comparison(found, tmp_path / "heat.png")
    assert (tmp_path / "heat.png").read_bytes().startswith(b"\x89PNG")


def test_distance_is_one_minus_similarity_at_each_step():
    reference = {"w": bools(1, 1, 0, 0)}
    rows = distances(reference, [(100, reference), (200, {"w": bools(1, 0, 1, 0)})])
    assert rows[0] == {"step": 100, "similarity": 1.0, "distance": 0.0}
    assert rows[1] == {"step": 200, "similarity": pytest.approx(1 / 3), "distance": pytest.approx(2 / 3)}
