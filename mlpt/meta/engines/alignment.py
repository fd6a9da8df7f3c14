"""Engine `alignment`: K = 1 from the gradients that training has just made, with one new gradient: the held-out loss's.

The inner step is the one that training made: theta_1 = AdamW(theta_0, g), g the combination of the losses' gradients
g_i, clipped. At theta_1 d L_dev / d w_i = <g_i, J^T grad L_dev>, J the Jacobian of clipping and AdamW.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from mlpt.meta.engines.adam import check_groups, pulled_back
from mlpt.meta.engines.base import (
    Engine,
    Hypergradient,
    Lookahead,
    Unsuited,
    add,
    by_parameter,
    leaves,
    outer_gradients,
    pieces,
    through_weights,
)


class Alignment(Engine):
    """Any attention kernel, and training in any precision. Outer tensors may enter the inner loss only as weights of
    the losses that `forward` returns. A loss whose gradient was not kept takes two forward passes instead of an inner
    product, at the present weights moved by +- radius along J^T grad L_dev; asked for parts by parameter, a gradient.

    radius  length of that displacement; 1e-2 suits float32.

    Raises `Unsuited` for a problem that says nothing of a step that was made.
    """

    uses_made = True
    takes_apart = True

    def __init__(self, radius: float = 1e-2):
        self.radius = radius

    def __call__(self, problem: Lookahead) -> Hypergradient:
        if problem.made is None or len(problem.steps) != 1 or problem.steps[0].optimizer is not None:
            raise Unsuited("engine 'alignment' follows one AdamW step that was made: give it, or set engine=auto")
        weights = leaves(problem.model)
        if weights.keys() & problem.outer.keys():
            raise Unsuited("engine 'alignment' cannot differentiate by parameters of the model: set engine=higher")
        combination, calls = _combination(problem)
        if len(combination) != len(problem.made.gradients):
            raise Unsuited(
                f"the inner loss combines {len(combination)} losses, and there are gradients of "
                f"{len(problem.made.gradients)}: give one for each, in its order"
            )
        if problem.by_parameter:
            problem = _with_every_gradient(problem, weights, calls)
        assert problem.made is not None
        loss, adjoint, direct = outer_gradients(problem, weights)
        through = _through_step(problem, adjoint)
        products = iter(through.products)
        alignments = [
            next(products) if one is not None else self._difference(problem, weights, through.adapted, call)
            for one, call in zip(problem.made.gradients, calls, strict=True)
        ]
        parts = {}
        if problem.by_parameter:
            each = [one for one in problem.made.gradients if one is not None]  # all of them by now
            parts = by_parameter(problem, combination, each, through.adapted)
        return Hypergradient(loss, add(direct, through_weights(problem, combination, alignments)) | parts)

    @torch.no_grad()
    def _difference(
        self, problem: Lookahead, weights: Mapping[str, Tensor], direction: Mapping[str, Tensor], call: Any
    ) -> Tensor:
        """The derivative of a loss along `direction`, at the weights after the step."""
        length = float(torch.stack([one.norm() for one in direction.values()]).norm()) if direction else 0.0
        if length == 0:
            return torch.zeros(())
        scale, (args, kwargs) = self.radius / length, call
        sides = []
        for sign in (1, -1):
            moved = {name: weights[name] + sign * scale * one for name, one in direction.items()}
            sides.append(functional_call(problem.model, {**weights, **moved}, args, kwargs))
        return (sides[0] - sides[1]) / (2 * scale)


def _with_every_gradient(problem: Lookahead, weights: Mapping[str, Tensor], calls: list[Any]) -> Lookahead:
    """The problem with a gradient of the losses, too, whose own were not kept: at the weights after the step."""
    assert problem.made is not None
    gradients = []
    for one, (args, kwargs) in zip(problem.made.gradients, calls, strict=True):
        if one is None:
            loss = functional_call(problem.model, dict(weights), args, kwargs)
            names = [name for name, weight in weights.items() if weight.requires_grad]
            found = torch.autograd.grad(loss, [weights[name] for name in names], allow_unused=True)
            one = {name: gradient for name, gradient in zip(names, found, strict=True) if gradient is not None}
        gradients.append(one)
    return replace(problem, made=replace(problem.made, gradients=gradients))


def _combination(problem: Lookahead) -> tuple[tuple[Tensor, ...], list[Any]]:
    """The weight of each loss in the inner loss, with its graph to the outer tensors; and what `forward` was given."""
    calls: list[Any] = []
    parts: list[Tensor] = []
    first = next(problem.model.parameters())

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        calls.append((args, kwargs))
        parts.append(torch.ones((), dtype=first.dtype, device=first.device, requires_grad=True))
        return parts[-1]

    inner = problem.steps[0].loss(forward, problem.outer)
    return torch.autograd.grad(inner, parts, create_graph=True), calls


class _Through(NamedTuple):
    """products  of each gradient that was kept with the adjoint of the combined gradient, scalars.
    adapted   that adjoint, by the parameter's name; empty where nothing more is to be multiplied with it.
    """

    products: list[Tensor]
    adapted: dict[str, Tensor]


def _through_step(problem: Lookahead, adjoint: Mapping[str, Tensor]) -> _Through:
    """From the adjoint of the weights after the step to that of the gradients that were combined, and its products.

    A piece of the weights at a time, of which all products are taken while it is at hand: what this costs is reading.
    """
    assert problem.made is not None
    check_groups(problem.optimizer.param_groups)
    total, clipped = problem.made.total, problem.made.clipped
    kept = [one for one in problem.made.gradients if one is not None]
    last = len(kept)  # the place of the whole gradient's own products
    with_adapted: list[list[Tensor]] = [[] for _ in range(last + 1)]
    with_total: list[list[Tensor]] = [[] for _ in range(last + 1)]
    adapted: dict[str, Tensor] = {}
    for name, parameter, state, group in _stepped(problem, adjoint):
        places = [place for place, one in enumerate(kept) if name in one]
        each = [kept[place][name] for place in places]
        moments = state["exp_avg"], state["exp_avg_sq"]
        backward: list[Tensor] = []
        for behind, taken, first, second, *gradients in pieces(adjoint[name], total[name], *moments, *each):
            here = {"step": state["step"], "exp_avg": first, "exp_avg_sq": second}
            back = pulled_back(behind, taken, here, group)
            if problem.by_parameter or last < len(problem.made.gradients):
                backward.append(back)
            for place, gradient in zip(places, gradients, strict=True):
                with_adapted[place].append(torch.dot(gradient, back))
            if clipped != 1:
                with_adapted[last].append(torch.dot(taken, back))
                for place, gradient in zip([*places, last], [*gradients, taken], strict=True):
                    with_total[place].append(torch.dot(gradient, taken))
        if backward:
            adapted[name] = torch.cat(backward).view(parameter.shape)
    products = [_sum(parts) for parts in with_adapted]
    if clipped == 1:
        return _Through(products[:last], adapted)
    # Clipped: c g / |g| moves only across g.
    beside = [_sum(parts) for parts in with_total]
    along = products[last] / beside[last]
    across = [clipped * (one - along * other) for one, other in zip(products[:last], beside[:last], strict=True)]
    return _Through(across, {name: clipped * torch.sub(one, along * total[name]) for name, one in adapted.items()})


def _stepped(
    problem: Lookahead, adjoint: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor, Mapping[str, Any], Mapping[str, Any]]]:
    """Name, parameter, the optimiser's state and its group, of all that the step moved by a gradient."""
    assert problem.made is not None
    names = {parameter: name for name, parameter in problem.model.named_parameters()}
    for group in problem.optimizer.param_groups:
        for parameter in group["params"]:
            name, state = names[parameter], problem.optimizer.state.get(parameter, {})
            if state and name in adjoint and name in problem.made.total:
                yield name, parameter, state, group


def _sum(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).sum() if parts else torch.zeros(())
