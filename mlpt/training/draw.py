"""Which objective each micro-batch of a step trains, drawn from the policy's mixture.

step        one objective for the whole step, the same on every rank (MOMETAS).
stratified  the step's micro-batches, over all ranks, are shared out in proportion to the mixture by systematic
            sampling: every objective gets floor or ceil of its expected number, so the step's gradient varies less.
weighted    every micro-batch trains every objective; the losses are weighted by the mixture.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from mlpt.randomness import numpy_generator

Draw = Literal["step", "stratified", "weighted"]
Weighted = list[tuple[str, float]]  # the objectives of one micro-batch and the weights of their losses


def draw_objectives(
    how: Draw, mixture: Mapping[str, float], seed: int, step: int, rank: int, world: int, micro_batches: int
) -> list[Weighted]:
    """The objectives of this rank's `micro_batches` micro-batches of step `step`.

    A pure function of its arguments: every rank can compute every other rank's draws, so they can't disagree.
    """
    if how == "weighted":
        return [[(name, share) for name, share in mixture.items() if share > 0]] * micro_batches
    generator = numpy_generator(seed, "draw", step)
    names = list(mixture)
    edges = np.cumsum([mixture[name] for name in names])
    if how == "step":
        drawn = names[_slot(edges, generator.random())]
        return [[(drawn, 1.0)]] * micro_batches
    slots = world * micro_batches
    points = (generator.random() + np.arange(slots)) / slots
    order = generator.permutation(slots)
    mine = order[rank * micro_batches : (rank + 1) * micro_batches]
    return [[(names[_slot(edges, points[slot])], 1.0)] for slot in mine]


def _slot(edges: np.ndarray, point: float) -> int:
    # A point above the last edge can only come from rounding of the sum.
    return min(int(np.searchsorted(edges, point * edges[-1], side="right")), len(edges) - 1)
