"""The adjoint of the inner steps: K steps forward, then back through the optimiser, one Hessian-vector product a step.

How that product is made is an engine's own matter: by central differences, or exactly, forward over reverse.
"""

import torch
from torch import Tensor

from mlpt.meta.engines.base import Engine, Hypergradient, Lookahead, add, forward_at, leaves, named, outer_gradients
from mlpt.meta.engines.path import Path


class Adjoint(Engine):
    """Any number of steps, without a graph that spans them: kept are the gradient of each step and two states."""

    def __call__(self, problem: Lookahead) -> Hypergradient:
        start = leaves(problem.model)
        path = Path(problem)
        weights = start
        for k in range(len(problem.steps)):
            gradients, _ = self.gradients(problem, weights, k)
            weights = {**start, **path.step(gradients)}
        loss, adjoint, total = outer_gradients(problem, weights)
        del weights
        for k in reversed(range(problem.first_tracked, len(problem.steps))):
            adapted, adjoint, before = path.pull_back(adjoint)
            if not any(bool(one.any()) for one in adapted.values()):
                continue
            wanted = k > problem.first_tracked  # nobody asks what came before the first step that is followed
            curvature, mixed = self.second_order(problem, {**start, **before}, adapted, k, wanted)
            adjoint = add(adjoint, curvature)
            total = add(total, mixed)
        return Hypergradient(loss, total)

    def second_order(
        self, problem: Lookahead, weights: dict[str, Tensor], direction: dict[str, Tensor], k: int, by_weights: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The derivative of inner step k's gradients at `weights` along `direction`, which is not zero: by the weights,
        where `by_weights` asks for them, and by the outer tensors."""
        raise NotImplementedError(f"{type(self).__name__}.second_order")

    @staticmethod
    def gradients(
        problem: Lookahead, weights: dict[str, Tensor], k: int, by_weights: bool = True, by_outer: bool = False
    ) -> tuple[dict[str, Tensor | None], dict[str, Tensor]]:
        """Gradients of inner step k's loss by the trained weights and by the outer tensors, where asked for.

        Without `by_weights` nothing is kept for a backward pass but what lies between the loss and an outer tensor.
        """
        if not by_weights:
            weights = {name: one.detach() for name, one in weights.items()}
        inner = problem.steps[k].loss(forward_at(problem, weights), problem.outer)
        names = [name for name, one in weights.items() if one.requires_grad]
        outer = list(problem.outer.values()) if by_outer else []
        if not inner.requires_grad:
            return {}, named(problem.outer, [None] * len(problem.outer))
        found = torch.autograd.grad(inner, [weights[name] for name in names] + outer, allow_unused=True)
        by_name: dict[str, Tensor | None] = dict(zip(names, found, strict=False))
        return by_name, named(problem.outer, found[len(names) :]) if by_outer else {}
