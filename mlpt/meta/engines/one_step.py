"""Engine `one_step`: K = 1 in closed form, with first-order passes only.

d L_dev / d w_i = <grad L_i, J^T g_dev>, J the Jacobian of the AdamW step by its gradient: the chain rule written out.
"""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from mlpt.meta.engines.base import (
    Engine,
    Hypergradient,
    Lookahead,
    Unsuited,
    add,
    by_parameter,
    dot,
    leaves,
    outer_gradients,
    through_weights,
)
from mlpt.meta.engines.path import Path


class OneStep(Engine):
    """Any attention kernel works, at the price of one stored gradient an inner loss. Outer tensors may enter the inner
    loss only by how it combines the losses that `forward` returns (mixture weights).

    Raises `Unsuited` for more steps, for outer tensors inside the model or in what it is called with, and for a model
    that does not return one loss.
    """

    takes_apart = True

    def __call__(self, problem: Lookahead) -> Hypergradient:
        if len(problem.steps) != 1:
            raise Unsuited("engine 'one_step' looks one step ahead: set inner_steps=1, or engine=higher")
        weights = leaves(problem.model)
        if weights.keys() & problem.outer.keys():
            raise Unsuited("engine 'one_step' cannot differentiate by parameters of the model: set engine=higher")
        combination, per_loss = self._inner_gradients(problem, weights)
        gradients = {name: _weighted_sum(combination, [each[name] for each in per_loss]) for name in weights}
        path = Path(problem)
        after = {**weights, **path.step(gradients)}
        loss, adjoint, direct = outer_gradients(problem, after)
        adapted, _, _ = path.pull_back(adjoint)
        alignments = [dot(each, adapted) for each in per_loss]
        parts = by_parameter(problem, combination, per_loss, adapted) if problem.by_parameter else {}
        return Hypergradient(loss, add(direct, through_weights(problem, combination, alignments)) | parts)

    @staticmethod
    def _inner_gradients(
        problem: Lookahead, weights: dict[str, Tensor]
    ) -> tuple[tuple[Tensor, ...], list[dict[str, Tensor | None]]]:
        """d(inner loss)/d(each loss that it combines), with its graph to the outer tensors; each loss's gradient."""
        losses: list[Tensor] = []
        parts: list[Tensor] = []

        def forward(*args: Any, **kwargs: Any) -> Tensor:
            _refuse_outer((args, kwargs))
            losses.append(functional_call(problem.model, weights, args, kwargs))
            if losses[-1].ndim:
                raise Unsuited(
                    f"engine 'one_step' needs a model that returns one loss, and this one returns "
                    f"{tuple(losses[-1].shape)}: set engine=higher"
                )
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


def _refuse_outer(given: Any) -> None:
    """What the model is called with must not depend on an outer tensor: no second derivative is taken here."""
    if any(one.requires_grad for one in _tensors(given)):
        raise Unsuited("engine 'one_step' cannot differentiate by what the model is given: set engine=higher")


def _tensors(given: Any) -> Iterator[Tensor]:
    """Those in nested arguments, those in dataclasses too."""
    for one in tree_leaves(given):
        if is_dataclass(one) and not isinstance(one, type):
            yield from _tensors([getattr(one, field.name) for field in fields(one)])
        elif isinstance(one, Tensor):
            yield one


def _weighted_sum(weights: tuple[Tensor, ...], gradients: list[Tensor | None]) -> Tensor | None:
    total = None
    for weight, one in zip(weights, gradients, strict=True):
        if one is not None:
            total = weight.detach() * one if total is None else torch.addcmul(total, weight.detach(), one)
    return total
