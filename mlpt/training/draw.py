"""Which arm each micro-batch of a step trains, drawn from the policy's mixture.

step        one arm for the whole step, the same on every rank (MOMETAS).
stratified  the step's micro-batches, over all ranks, are shared out in proportion to the mixture by systematic
            sampling: every arm gets floor or ceil of its expected number, so the step's gradient varies less.
weighted    every micro-batch trains every arm; the losses are weighted by the mixture.

With sampling probabilities q of their own (train.sampling) arms are drawn by q, and a loss is multiplied by p / q,
with p the mixture: in expectation a step minimises sum_i p_i L_i whatever q is.
"""

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np

from mlpt.randomness import numpy_generator

Draw = Literal["step", "stratified", "weighted"]
Drawn = list[tuple[str, float]]  # the arms of one micro-batch, and the weights of their losses


def draw_arms(how: Draw, mixture: Mapping[str, float], seed: int, step: int, micro_batches: int) -> list[Drawn]:
    """The arms of each of the `micro_batches` of global step `step`, over all ranks.

    A pure function of its arguments: every rank computes the whole list and takes its own, so ranks can't disagree.
    """
    if how == "weighted":
        return [[(name, share) for name, share in mixture.items() if share > 0]] * micro_batches
    generator = numpy_generator(seed, "draw", step)
    names = list(mixture)
    edges = np.cumsum([mixture[name] for name in names])
    if how == "step":
        return [[(names[_slot(edges, generator.random())], 1.0)]] * micro_batches
    points = (generator.random() + generator.permutation(micro_batches)) / micro_batches
    return [[(names[_slot(edges, point)], 1.0)] for point in points]


def sampled(mixture: Mapping[str, float], sampling: Mapping[str, float] | None) -> Mapping[str, float]:
    """The probabilities to draw by: the mixture's own, or `sampling` among the arms that the mixture has a share of."""
    if sampling is None:
        return mixture
    kept = {name: sampling[name] if share > 0 else 0.0 for name, share in mixture.items()}
    total = math.fsum(kept.values())
    return {name: share / total for name, share in kept.items()}


def _slot(edges: np.ndarray, point: float) -> int:
    # A point above the last edge can only come from rounding of the sum.
    return min(int(np.searchsorted(edges, point * edges[-1], side="right")), len(edges) - 1)
