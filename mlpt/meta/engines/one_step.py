"""Engine `one_step`: K = 1 in closed form, with first-order passes only.

d L_dev / d w_i = <grad L_i, J^T g_dev>, J the Jacobian of the AdamW step by its gradient: the chain rule written out.
"""

from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from mlpt.errors import UserError
from mlpt.meta.engines.base import Engine, Hypergradient, Lookahead, add, dot, leaves, named, outer_gradients
from mlpt.meta.engines.path import Path


class OneStep(Engine):
    """Any attention kernel works, at the price of one stored gradient an inner loss. Outer tensors may enter the inner
    loss only by how it combines the losses that `forward` returns (mixture weights).

    Raises `UserError` for more steps or for outer tensors inside the model.
    """

    def __call__(self, problem: Lookahead) -> Hypergradient:
        if len(problem.steps) != 1:
            raise UserError("engine 'one_step' looks one step ahead: set inner_steps=1, or engine=higher")
        weights = leaves(problem.model)
        if weights.keys() & problem.outer.keys():
            raise UserError("engine 'one_step' cannot differentiate by parameters of the model: set engine=higher")
        combination, per_loss = self._inner_gradients(problem, weights)
        gradients = {name: _weighted_sum(combination, [each[name] for each in per_loss]) for name in weights}
        path = Path(problem)
        after = {**weights, **path.step(weights, gradients)}
        loss, adjoint, direct = outer_gradients(problem, after)
        adapted, _ = path.pull_back(adjoint)
        alignments = [dot(each, adapted) for each in per_loss]
        # The combination's weights are functions of the outer tensors; the alignments are numbers.
        total = torch.stack([weight * one for weight, one in zip(combination, alignments, strict=True)]).sum()
        through = torch.autograd.grad(total, list(problem.outer.values()), allow_unused=True)
        return Hypergradient(loss, add(direct, named(problem.outer, through)))

    @staticmethod
    def _inner_gradients(
        problem: Lookahead, weights: dict[str, Tensor]
    ) -> tuple[tuple[Tensor, ...], list[dict[str, Tensor | None]]]:
        """d(inner loss)/d(each loss that it combines), with its graph to the outer tensors; each loss's gradient."""
        losses: list[Tensor] = []
        parts: list[Tensor] = []

        def forward(*args: Any) -> Tensor:
            losses.append(functional_call(problem.model, weights, args))
            parts.append(losses[-1].detach().requires_grad_())
            return parts[-1]

        inner = problem.steps[0].loss(forward, problem.outer)
        combination = torch.autograd.grad(inner, parts, create_graph=True)
        trained = [weight for weight in weights.values() if weight.requires_grad]
        names = [name for name, weight in weights.items() if weight.requires_grad]
        per_loss = []
        for loss in losses:
            found = torch.autograd.grad(loss, trained, allow_unused=True)
            per_loss.append({**dict.fromkeys(weights), **dict(zip(names, found, strict=True))})
        return combination, per_loss


def _weighted_sum(weights: tuple[Tensor, ...], gradients: list[Tensor | None]) -> Tensor | None:
    total = None
    for weight, one in zip(weights, gradients, strict=True):
        if one is not None:
            total = weight.detach() * one if total is None else torch.addcmul(total, weight.detach(), one)
    return total
