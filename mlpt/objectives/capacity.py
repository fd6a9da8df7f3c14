"""Predicted positions in a buffer of a fixed size: a compiled step then sees the same shapes in every batch.

How many positions chance chooses changes from batch to batch. The buffer has room for as many as a batch chooses but
with a probability below 1e-15, and the entries that it does not need weigh nothing. A batch that does not fit takes a
multiple of the room: no position is ever dropped.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from mlpt.objectives.base import Inputs

_DEVIATIONS = 8  # standard deviations of the number of chosen positions, above its mean
_MULTIPLE = 64  # of rows, which the matrix products of a GPU are cut into


def most_chosen(tokens: int, probability: float) -> int:
    """Room for the positions that are chosen among `tokens`, each with `probability` and for itself."""
    spread = math.sqrt(tokens * probability * (1 - probability))
    return _rounded(tokens * probability + _DEVIATIONS * spread, tokens)


def part_of(tokens: int) -> int:
    """Room where nobody knows how many of `tokens` are chosen: an eighth, so that there are at most eight shapes."""
    return _rounded(tokens / 8, tokens)


def with_capacity(inputs: Inputs, capacity: int) -> Inputs:
    """The same micro-batch with `capacity` predicted positions, or the multiple of it that its own need.

    Those that are added repeat the first (of a batch without any: the first token, which predicts itself), so that
    whatever reads positions and targets finds what stands there; their weight is 0, and of the others as it was, or 1.
    Inputs that predict no positions, such as those of contrastive losses, stay as they are.
    """
    positions, targets = inputs.positions, inputs.targets
    if positions is None or targets is None:
        return inputs
    count = len(positions)
    missing = min(capacity * max(1, math.ceil(count / capacity)), inputs.input_ids.numel()) - count
    weights = torch.ones(count) if inputs.weights is None else inputs.weights
    first = positions[:1] if count else positions.new_zeros(1)
    target = targets[:1] if count else inputs.input_ids.reshape(-1)[:1]
    return replace(
        inputs,
        positions=torch.cat([positions, first.expand(missing)]),
        targets=torch.cat([targets, target.expand(missing)]),
        weights=pad(weights, (0, missing)),
    )


def weighted_mean(losses: Tensor, weights: Tensor | None) -> Tensor:
    """The mean of `losses` (n,), each counting as much as its weight; 0, with a gradient path, where nothing counts."""
    if weights is None:
        return losses.sum() / max(1, len(losses))
    return (losses * weights).sum() / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)


def _rounded(count: float, most: int) -> int:
    return min(most, math.ceil(count / _MULTIPLE) * _MULTIPLE)
