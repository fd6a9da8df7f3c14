"""When masks change. Vectors: specs/self-evolution_tamt.md, B3, B4, B9; torch.nn.utils.prune as reference."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from mlpt.sparsity.schedule import (
    IterativeConfig,
    ResetConfig,
    fraction_of_remaining,
    prune_further,
)

TENTHS = [tenth / 10 for tenth in range(1, 11)]
COUNTS = {
    589_824: "58982,117964,176946,235929,294911,353894,412876,471859,530841,589824",
    2_359_296: "235930,471860,707790,943719,1179649,1415578,1651508,1887437,2123367,2359296",
    23_440_896: "2344090,4688180,7032270,9376359,11720449,14064538,16408628,18752717,21096807,23440896",
}


@pytest.mark.parametrize("size", [589_824, 2_359_296, pytest.param(23_440_896, marks=pytest.mark.slow)])
def test_iterative_pruning_counts_are_the_published_ones(size):
    weight, kept, pruned = torch.rand(size), torch.ones(size, dtype=torch.bool), []
    for before, after in itertools.pairwise([0.0, *TENTHS]):
        kept = prune_further(weight, kept, fraction_of_remaining(before, after))
        pruned.append(size - int(kept.sum()))
    assert pruned == [int(count) for count in COUNTS[size].split(",")]


def test_the_published_fractions_of_the_remaining_weights():
    for j in range(1, 10):
        assert fraction_of_remaining(j / 10, (j + 1) / 10) == 1 / (10 - j)


def test_pruning_further_follows_torch_prune_over_several_rounds():
    torch.manual_seed(0)
    layer, kept = nn.Linear(23, 19), torch.ones(19, 23, dtype=torch.bool)
    weight = layer.weight.detach().clone()
    before = 0.0
    for level in TENTHS[:9]:
        fraction = fraction_of_remaining(before, level)
        prune.l1_unstructured(layer, "weight", fraction)
        kept = prune_further(weight, kept, fraction)
        assert torch.equal(kept, layer.weight_mask.bool())
        before = level


def test_pruned_weights_never_come_back():
    weight, kept = torch.tensor([9.0, 8, 1, 2]), torch.tensor([False, True, True, True])
    assert prune_further(weight, kept, 1 / 3).tolist() == [False, True, False, True]


def test_levels_fall_on_multiples_of_the_interval():
    config = IterativeConfig(interval=2792)
    assert config.level_at(0) == 0
    assert config.level_at(2792) == 1
    assert config.level_at(6 * 2792) == 6  # 70 %
    assert config.level_at(2793) is None
    assert config.level_at(9 * 2792) is None  # 100 % is not pruned: nothing would be left


@pytest.mark.parametrize("levels", [(), (0.5, 0.4), (0.5, 1.0), (0.0, 0.5)])
def test_levels_must_rise_inside_0_to_1(levels):
    with pytest.raises(ValueError, match="levels"):
        IterativeConfig(levels=levels)


def test_thresholds_of_tamt_mlm_are_reset_every_1000_steps():
    assert [step for step in range(1, 3001) if ResetConfig().due(step)] == [1000, 2000, 3000]
    first = ResetConfig(first_step=True)
    assert [step for step in range(1, 2001) if first.due(step)] == [1, 1000, 2000]


def test_thresholds_of_tamt_kd_are_reset_at_1_99_199_and_at_an_epoch_s_end():
    reset = ResetConfig(cadence="before", interval=100)
    assert [step for step in range(1, 400) if reset.due(step)] == [1, 99, 199, 299, 399]
    assert [step for step in range(1, 400) if reset.due(step, steps_per_epoch=150)] == [
        1,
        99,
        150,
        199,
        299,
        300,
        399,
    ]
