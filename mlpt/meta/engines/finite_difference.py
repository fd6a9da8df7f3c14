"""Engine `finite_difference`: the adjoint of the inner steps, its Hessian-vector products by central differences.

As DARTS does for one step (Liu et al. 2019, eq. 8), here for any number of steps through the optimiser.
"""

import torch
from torch import Tensor

from mlpt.meta.engines.base import Engine, Hypergradient, Lookahead, add, forward_at, leaves, named, outer_gradients
from mlpt.meta.engines.path import Path


class FiniteDifference(Engine):
    """Any number of steps with first-order passes only: memory near that of plain training, any attention kernel.

    radius  length of the weight displacement of a central difference; small against curvature, large against rounding.
            1e-2 suits float32.
    """

    def __init__(self, radius: float = 1e-2):
        self.radius = radius

    def __call__(self, problem: Lookahead) -> Hypergradient:
        start = leaves(problem.model)
        path = Path(problem)
        visited = [start]  # the weights before each inner step
        for k in range(len(problem.steps)):
            gradients, _ = self._gradients(problem, visited[k], k, by_weights=True)
            visited.append({**visited[k], **path.step(visited[k], gradients)})
        loss, adjoint, total = outer_gradients(problem, visited.pop())
        for k in reversed(range(len(problem.steps))):
            adapted, adjoint = path.pull_back(adjoint)
            curvature, mixed = self._second_order(problem, visited[k], adapted, k)
            adjoint = add(adjoint, curvature)
            total = add(total, mixed)
        return Hypergradient(loss, total)

    def _second_order(
        self, problem: Lookahead, weights: dict[str, Tensor], direction: dict[str, Tensor], k: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The derivative of inner step k's gradients by the weights and by the outer tensors along `direction`."""
        length = float(torch.stack([one.norm() for one in direction.values()]).norm()) if direction else 0.0
        if length == 0:
            return {}, {}
        scale = self.radius / length
        sides = []
        for sign in (1, -1):
            displaced = {name: weights[name].detach() + sign * scale * one for name, one in direction.items()}
            moved = {**weights, **{name: one.requires_grad_() for name, one in displaced.items()}}
            sides.append(self._gradients(problem, moved, k, by_weights=k > 0))  # nobody asks what came before step 0
        (plus, plus_outer), (minus, minus_outer) = sides
        curvature = {
            name: (one - other) / (2 * scale)
            for name, one in plus.items()
            if one is not None and (other := minus[name]) is not None
        }
        return curvature, {name: (plus_outer[name] - minus_outer[name]) / (2 * scale) for name in plus_outer}

    @staticmethod
    def _gradients(
        problem: Lookahead, weights: dict[str, Tensor], k: int, by_weights: bool
    ) -> tuple[dict[str, Tensor | None], dict[str, Tensor]]:
        """Gradients of inner step k's loss by the trained weights (if asked) and by the outer tensors."""
        inner = problem.steps[k].loss(forward_at(problem, weights), problem.outer)
        names = [name for name, one in weights.items() if one.requires_grad] if by_weights else []
        sources = [weights[name] for name in names] + list(problem.outer.values())
        found = torch.autograd.grad(inner, sources, allow_unused=True)
        return dict(zip(names, found, strict=False)), named(problem.outer, found[len(names) :])
