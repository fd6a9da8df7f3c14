"""Starting scores and threshold resets. Vectors: specs/self-evolution_tamt.md, B2, B3."""

import pytest
import torch
from tiny_bert import tiny_bert
from torch import nn

from mlpt.errors import UserError
from mlpt.models.masked import attach_scores, current_masks, maskable_weights, scores_of
from mlpt.sparsity.making import pruned_count
from mlpt.sparsity.scores import exact_threshold, initial_scores, reset_thresholds


def test_magnitude_scores_are_two_theta_above_the_kth_magnitude_and_zero_below():
    weights = {"w": torch.tensor([[0.5, -0.1, 0.3], [-0.7, 0.2, 0.05]])}
    assert torch.equal(initial_scores(weights, 0.7)["w"], torch.tensor([[0.02, 0, 0], [0.02, 0, 0]]))


def test_the_toy_matrices_have_the_published_zeros():
    weights = {str(n): torch.randn(n) for n in (160, 64, 128)}
    for init in ("magnitude", "random"):
        scores = initial_scores(weights, 0.7, init)
        assert [int((one == 0).sum()) for one in scores.values()] == [112, 44, 89]
        for one in scores.values():
            torch.testing.assert_close(one.unique(), torch.tensor([0.0, 0.02]))


def test_magnitude_and_random_takes_magnitude_inside_the_body_only():
    weights = {"bert.a.weight": torch.randn(200), "head.weight": torch.randn(200)}
    mixed, magnitude = (initial_scores(weights, 0.5, init) for init in ("magnitude_and_random", "magnitude"))
    assert torch.equal(mixed["bert.a.weight"], magnitude["bert.a.weight"])
    assert not torch.equal(mixed["head.weight"], magnitude["head.weight"])
    assert list(mixed) == list(weights)


def test_double_uniform_scores_lie_in_their_two_ranges_with_an_exact_count():
    scores = initial_scores({"w": torch.zeros(1000)}, 0.7, "double_uniform")["w"]
    pruned = scores <= 0.01
    assert int(pruned.sum()) == 700
    assert scores[pruned].min() >= 0.005
    assert scores[pruned].max() <= 0.009
    assert scores[~pruned].min() >= 0.011
    assert scores[~pruned].max() <= 0.015


@pytest.mark.parametrize("sparsity", [0.5, 0.7, 0.9])
def test_free_scores_expect_the_target_sparsity(sparsity):
    scores = initial_scores({"w": torch.zeros(40_000)}, sparsity, "free")["w"]
    assert float((scores <= 0.01).float().mean()) == pytest.approx(sparsity, abs=0.01)


TRAP = [0.0, 0, 0, 0, 0.02, 0.02, 0.02, 0.02, 0.0199, 0.02]


def test_the_published_threshold_prunes_everything_in_the_tie_trap():
    scores = torch.tensor(TRAP)
    theta = exact_threshold(scores, 7, "published")
    assert float(theta) == pytest.approx(0.02)
    assert not (scores > theta).any()


def test_the_exact_threshold_prunes_k_in_the_tie_trap_and_takes_small_weights_first():
    scores = torch.tensor(TRAP)
    magnitudes = torch.arange(10, 0, -1).float()
    theta = exact_threshold(scores, 7, "exact", magnitudes)
    assert (scores > theta).tolist() == [False] * 4 + [True, True, True, False, False, False]
    torch.testing.assert_close(scores, torch.tensor(TRAP))  # moved by one float at most


def test_a_reset_restores_exact_sparsity_after_any_drift():
    torch.manual_seed(0)
    model = tiny_bert()
    attach_scores(model, initial_scores(maskable_weights(model), 0.7))
    for scores in scores_of(model).values():
        scores.data.add_(0.03 * torch.randn_like(scores))
    reset_thresholds(model, 0.7)
    for mask in current_masks(model).values():
        assert int((~mask).sum()) == pruned_count(mask.numel(), 0.7)


def test_a_reset_keeps_each_matrix_own_count_when_asked():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    attach_scores(model, {"0.weight": torch.rand(4, 4), "1.weight": torch.rand(4, 4)})
    reset_thresholds(model, {"0.weight": 3, "1.weight": 11})
    assert [int((~mask).sum()) for mask in current_masks(model).values()] == [3, 11]


def test_no_sparsity_keeps_all():
    model = nn.Sequential(nn.Linear(4, 4))
    attach_scores(model, initial_scores(maskable_weights(model, "0"), 0.0))
    reset_thresholds(model, 0.0)
    assert current_masks(model)["0.weight"].all()


def test_published_ties_that_empty_a_matrix_are_refused_by_name():
    model = nn.Sequential(nn.Linear(5, 2))
    attach_scores(model, {"0.weight": torch.tensor(TRAP).view(2, 5)})
    with pytest.raises(UserError, match=r"no weight of '0\.weight'"):
        reset_thresholds(model, 0.7, "published")
