"""Engine `finite_difference`: the adjoint of the inner steps, its Hessian-vector products by central differences.

As DARTS does for one step (Liu et al. 2019, eq. 8), here for any number of steps through the optimiser.
"""

import torch
from torch import Tensor

from mlpt.meta.engines.adjoint import Adjoint
from mlpt.meta.engines.base import Lookahead


class FiniteDifference(Adjoint):
    """Any number of steps with first-order passes only: memory near that of plain training, any attention kernel.

    radius  length of the weight displacement of a central difference; small against curvature, large against rounding.
            1e-2 suits float32.
    """

    def __init__(self, radius: float = 1e-2):
        self.radius = radius

    def second_order(
        self, problem: Lookahead, weights: dict[str, Tensor], direction: dict[str, Tensor], k: int, by_weights: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        length = float(torch.stack([one.norm() for one in direction.values()]).norm())
        scale = self.radius / length
        sides = []
        for sign in (1, -1):
            displaced = {name: weights[name].detach() + sign * scale * one for name, one in direction.items()}
            moved = {**weights, **{name: one.requires_grad_() for name, one in displaced.items()}}
            sides.append(self.gradients(problem, moved, k, by_weights, by_outer=True))
        (plus, plus_outer), (minus, minus_outer) = sides
        curvature = {
            name: (one - other) / (2 * scale)
            for name, one in plus.items()
            if one is not None and (other := minus[name]) is not None
        }
        return curvature, {name: (plus_outer[name] - minus_outer[name]) / (2 * scale) for name in plus_outer}
